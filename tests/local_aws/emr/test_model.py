from typing import Any

import pytest

from local_aws.emr.model import Cluster, IllegalTransition, Step

STEP = {"Name": "a step", "HadoopJarStep": {"Jar": "command-runner.jar"}}


def cluster(*states: str) -> Cluster:
    """A cluster that has been through these states."""
    made = Cluster({"Name": "a cluster", "Instances": {}}, "eu-west-1")
    for state in states:
        made.move_to(state)
    return made


def step(*states: str) -> Step:
    made = Step(STEP)
    for state in states:
        made.move_to(state)
    return made


@pytest.mark.parametrize(
    ("history", "wrong"),
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
def test_a_cluster_refuses_a_state_that_cannot_follow_and_stays_as_it_is(history: tuple[str, ...], wrong: str) -> None:
    subject = cluster(*history)
    before = subject.describe()
    with pytest.raises(IllegalTransition, match=f"{subject.id}: {subject.state} -> {wrong}"):
        subject.move_to(wrong)
    assert subject.describe() == before


@pytest.mark.parametrize(
    ("history", "wrong"),
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
def test_a_step_refuses_a_state_that_cannot_follow_and_stays_as_it_is(history: tuple[str, ...], wrong: str) -> None:
    subject = step(*history)
    before = subject.describe()
    with pytest.raises(IllegalTransition, match=f"{subject.id}: {subject.state} -> {wrong}"):
        subject.move_to(wrong)
    assert subject.describe() == before


@pytest.mark.parametrize(
    ("history", "known"),
    [
        ((), ["CreationDateTime"]),
        (("BOOTSTRAPPING",), ["CreationDateTime"]),
        (("BOOTSTRAPPING", "WAITING", "RUNNING"), ["CreationDateTime", "ReadyDateTime"]),
        (("TERMINATING", "TERMINATED"), ["CreationDateTime", "EndDateTime"]),
    ],
)
def test_a_clusters_timeline_knows_what_has_happened(history: tuple[str, ...], known: list[str]) -> None:
    assert sorted(cluster(*history).timeline) == known


@pytest.mark.parametrize(
    ("history", "known"),
    [
        ((), ["CreationDateTime"]),
        (("RUNNING",), ["CreationDateTime", "StartDateTime"]),
        (("RUNNING", "CANCEL_PENDING"), ["CreationDateTime", "StartDateTime"]),
        (("RUNNING", "FAILED"), ["CreationDateTime", "EndDateTime", "StartDateTime"]),
        (("CANCELLED",), ["CreationDateTime", "EndDateTime"]),
    ],
)
def test_a_steps_timeline_knows_what_has_happened(history: tuple[str, ...], known: list[str]) -> None:
    assert sorted(step(*history).timeline) == known


def test_ready_is_the_time_when_a_cluster_was_ready_first() -> None:
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
def test_a_step_shows_what_its_failure_means(config: dict[str, Any], action: str) -> None:
    assert Step({**STEP, **config}).describe()["ActionOnFailure"] == action


def test_ids_look_like_those_of_emr_and_differ() -> None:
    ids = [cluster().id for _ in range(100)] + [step().id for _ in range(100)]
    assert len(set(ids)) == 200
    assert {(name[:2], len(name), name[2:].isalnum(), name[2:].upper() == name[2:]) for name in ids} == {
        ("j-", 15, True, True),
        ("s-", 15, True, True),
    }
