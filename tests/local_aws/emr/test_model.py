from typing import Any

import pytest

from local_aws.emr.model import Cluster, IllegalTransition, Step

STEP = {"Name": "a step", "HadoopJarStep": {"Jar": "command-runner.jar"}}


def cluster(*states: str) -> Cluster:
    """Return a cluster that has passed through these states."""
    created = Cluster({"Name": "a cluster", "Instances": {}}, "eu-west-1")
    for state in states:
        created.move_to(state)
    return created


def step(*states: str) -> Step:
    created = Step(STEP)
    for state in states:
        created.move_to(state)
    return created


@pytest.mark.parametrize(
    ("history", "illegal"),
    [
        ((), "RUNNING"),
        ((), "WAITING"),
        ((), "TERMINATED"),
        (("BOOTSTRAPPING",), "STARTING"),
        (("BOOTSTRAPPING",), "BOOTSTRAPPING"),
        (("BOOTSTRAPPING",), "TERMINATED"),
        (("BOOTSTRAPPING", "WAITING"), "BOOTSTRAPPING"),
        (("BOOTSTRAPPING", "WAITING"), "TERMINATED"),
        (("BOOTSTRAPPING", "RUNNING"), "TERMINATED"),
        (("TERMINATING",), "RUNNING"),
        (("TERMINATING",), "TERMINATING"),
        (("TERMINATING", "TERMINATED"), "STARTING"),
        (("TERMINATING", "TERMINATED"), "TERMINATED_WITH_ERRORS"),
        (("TERMINATED_WITH_ERRORS",), "TERMINATING"),
    ],
)
def test_an_illegal_transition_of_a_cluster_raises_and_changes_nothing(history: tuple[str, ...], illegal: str) -> None:
    subject = cluster(*history)
    before = subject.describe()
    with pytest.raises(IllegalTransition, match=f"{subject.id}: {subject.state} -> {illegal}"):
        subject.move_to(illegal)
    assert subject.describe() == before


@pytest.mark.parametrize(
    ("history", "illegal"),
    [
        ((), "COMPLETED"),
        ((), "FAILED"),
        ((), "CANCEL_PENDING"),
        (("RUNNING",), "PENDING"),
        (("RUNNING", "CANCEL_PENDING"), "RUNNING"),
        (("RUNNING", "COMPLETED"), "FAILED"),
        (("RUNNING", "FAILED"), "RUNNING"),
        (("CANCELLED",), "RUNNING"),
    ],
)
def test_an_illegal_transition_of_a_step_raises_and_changes_nothing(history: tuple[str, ...], illegal: str) -> None:
    subject = step(*history)
    before = subject.describe()
    with pytest.raises(IllegalTransition, match=f"{subject.id}: {subject.state} -> {illegal}"):
        subject.move_to(illegal)
    assert subject.describe() == before


@pytest.mark.parametrize(
    ("history", "times"),
    [
        ((), ["CreationDateTime"]),
        (("BOOTSTRAPPING",), ["CreationDateTime"]),
        (("BOOTSTRAPPING", "WAITING", "RUNNING"), ["CreationDateTime", "ReadyDateTime"]),
        (("TERMINATING", "TERMINATED"), ["CreationDateTime", "EndDateTime"]),
    ],
)
def test_the_timeline_of_a_cluster_has_the_times_of_its_states(history: tuple[str, ...], times: list[str]) -> None:
    assert sorted(cluster(*history).timeline) == times


@pytest.mark.parametrize(
    ("history", "times"),
    [
        ((), ["CreationDateTime"]),
        (("RUNNING",), ["CreationDateTime", "StartDateTime"]),
        (("RUNNING", "CANCEL_PENDING"), ["CreationDateTime", "StartDateTime"]),
        (("RUNNING", "FAILED"), ["CreationDateTime", "EndDateTime", "StartDateTime"]),
        (("CANCELLED",), ["CreationDateTime", "EndDateTime"]),
    ],
)
def test_the_timeline_of_a_step_has_the_times_of_its_states(history: tuple[str, ...], times: list[str]) -> None:
    assert sorted(step(*history).timeline) == times


def test_the_ready_time_is_when_a_cluster_was_first_ready() -> None:
    subject = cluster("BOOTSTRAPPING", "RUNNING")
    first = subject.timeline["ReadyDateTime"]
    subject.move_to("WAITING")
    subject.move_to("RUNNING")
    assert subject.timeline["ReadyDateTime"] == first


@pytest.mark.parametrize(
    ("config", "action"),
    [
        ({}, "CONTINUE"),
        ({"ActionOnFailure": "CANCEL_AND_WAIT"}, "CANCEL_AND_WAIT"),
        ({"ActionOnFailure": "TERMINATE_CLUSTER"}, "TERMINATE_CLUSTER"),
        ({"ActionOnFailure": "TERMINATE_JOB_FLOW"}, "TERMINATE_CLUSTER"),
    ],
)
def test_a_described_step_has_its_action_on_failure(config: dict[str, Any], action: str) -> None:
    assert Step({**STEP, **config}).describe()["ActionOnFailure"] == action


def test_ids_are_unique_and_have_the_format_of_emr() -> None:
    ids = [cluster().id for _ in range(100)] + [step().id for _ in range(100)]
    assert len(set(ids)) == 200
    assert {(name[:2], len(name), name[2:].isalnum(), name[2:].upper() == name[2:]) for name in ids} == {
        ("j-", 15, True, True),
        ("s-", 15, True, True),
    }
