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


def test_the_runtime_role_of_a_step_is_kept(user: User) -> None:
    role = "arn:aws:iam::123456789012:role/reader"
    cluster_id = user.start(keep_alive=True)
    steps = [bash("true")]
    (step_id,) = user.emr.add_job_flow_steps(JobFlowId=cluster_id, Steps=steps, ExecutionRoleArn=role)["StepIds"]
    assert user.emr.describe_step(ClusterId=cluster_id, StepId=step_id)["Step"]["ExecutionRoleArn"] == role
    user.terminate(cluster_id)
