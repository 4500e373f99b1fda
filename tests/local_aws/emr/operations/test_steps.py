from typing import Any

import pytest

from tests.local_aws.user import User, bash


@pytest.fixture(scope="module")
def ended(user: User) -> str:
    """The id of a cluster in which one step succeeded and one failed."""
    return user.run(bash("true"), bash("exit 1"), Name="the ended one")


def test_steps_are_listed_newest_first_by_state_and_id(user: User, ended: str) -> None:
    def listed(**filters: Any) -> list[str]:
        return [step["Id"] for step in user.emr.list_steps(ClusterId=ended, **filters)["Steps"]]

    succeeded, failed = (step["Id"] for step in user.steps(ended))
    assert listed() == [failed, succeeded]
    assert listed(StepStates=["COMPLETED"]) == [succeeded]
    assert listed(StepStates=["FAILED", "PENDING"]) == [failed]
    assert listed(StepIds=[succeeded]) == [succeeded]
    assert listed(StepIds=[succeeded], StepStates=["FAILED"]) == []


def test_a_described_step_has_the_values_of_its_request(user: User, ended: str) -> None:
    step = user.steps(ended)[0]
    assert step["Name"] == "bash -c true"
    assert step["Config"] == {"Jar": "command-runner.jar", "Properties": {}, "Args": ["bash", "-c", "true"]}
