from pathlib import Path

import pytest

from local_aws.client import EndCode, LocalAwsClient, Refused
from tests.local_aws.user import ENDED, User, bash, grandchild, is_running, read_pid, until, wait_for_death

SPOT = {"InstanceRole": "MASTER", "InstanceType": "m5.xlarge", "InstanceCount": 1, "Market": "SPOT"}


@pytest.mark.parametrize(
    ("code", "detail"),
    [
        ("VALIDATION_ERROR", "VALIDATION_ERROR"),
        ("BOOTSTRAP_FAILURE", "BOOTSTRAP_FAILURE"),
        ("INSTANCE_FAILURE", "INSTANCE_FAILURE"),
    ],
)
def test_the_nth_cluster_ends_in_the_state_of_its_fault(
    own: User, local_aws: LocalAwsClient, tmp_path: Path, code: EndCode, detail: str
) -> None:
    ran = tmp_path / "ran"
    script = own.put("faults/bootstrap.sh", f"#!/bin/sh\necho >> {ran}\n")
    local_aws.end_cluster(code, calls=[2])
    unaffected = own.run(bash("exit 0"), LogUri=None)
    ended = own.run(bash("sleep 60"), bootstrap=[(script,)], LogUri=None)
    assert own.end_code(unaffected) == "ALL_STEPS_COMPLETED"
    status = own.cluster(ended)["Status"]
    assert status["State"] == "TERMINATED_WITH_ERRORS"
    assert status["StateChangeReason"]["Code"] == code
    assert [error["ErrorCode"] for error in status["ErrorDetails"]] == [detail]
    assert own.step_states(ended) == ["CANCELLED"]
    # Only INSTANCE_FAILURE ends the cluster after bootstrapping.
    assert ran.exists() == (code == "INSTANCE_FAILURE")
    assert ("ReadyDateTime" in status["Timeline"]) == (code == "INSTANCE_FAILURE")


def test_losing_the_instances_of_a_cluster_ends_it_and_kills_its_processes(
    own: User, local_aws: LocalAwsClient, tmp_path: Path
) -> None:
    instances = {"TerminationProtected": True, "InstanceGroups": [SPOT]}
    cluster_id = own.start(bash(grandchild(tmp_path / "pid")), Instances=instances, LogUri=None)
    pid = read_pid(tmp_path / "pid")
    local_aws.lose_instances(cluster_id)
    status = own.wait_for(cluster_id, "TERMINATED_WITH_ERRORS")["Status"]
    assert status["StateChangeReason"]["Code"] == "INSTANCE_FAILURE"
    assert [error["ErrorCode"] for error in status["ErrorDetails"]] == ["INTERNAL_ERROR_SPOT_NO_CAPACITY_PRIMARY"]
    wait_for_death(pid)
    with pytest.raises(Refused, match=f"{cluster_id} is TERMINATED_WITH_ERRORS") as raised:
        local_aws.lose_instances(cluster_id)
    assert raised.value.status == 409


def test_a_waiting_cluster_can_lose_its_instances(own: User, local_aws: LocalAwsClient) -> None:
    cluster_id = own.start(keep_alive=True, LogUri=None)
    own.wait_for(cluster_id, "WAITING")
    local_aws.lose_instances(cluster_id)
    own.wait_for(cluster_id, "TERMINATED_WITH_ERRORS")
    assert own.end_code(cluster_id) == "INSTANCE_FAILURE"


@pytest.mark.parametrize("number", [9, 15])
def test_a_signal_kills_a_step_with_all_its_processes(
    own: User, local_aws: LocalAwsClient, tmp_path: Path, number: int
) -> None:
    cluster_id = own.start(bash(grandchild(tmp_path / "pid")), keep_alive=True, LogUri=None)
    pid = read_pid(tmp_path / "pid")
    [step_id] = [step["Id"] for step in own.steps(cluster_id)]
    local_aws.kill_step(cluster_id, step_id, number)
    status = own.wait_for_step(cluster_id, step_id, "FAILED")["Status"]
    assert status["FailureDetails"]["Reason"] == f"Killed by signal {number}."
    wait_for_death(pid)
    own.wait_for(cluster_id, "WAITING")
    with pytest.raises(Refused, match=f"{step_id} is FAILED"):
        local_aws.kill_step(cluster_id, step_id)


def test_a_signal_reaches_the_child_processes_of_a_step(own: User, local_aws: LocalAwsClient, tmp_path: Path) -> None:
    child = f"bash -c 'echo $$ > {tmp_path / 'pid'}; exec sleep 60'"
    cluster_id = own.start(bash(f"trap : TERM; {child}; exit 3"), keep_alive=True, LogUri=None)
    read_pid(tmp_path / "pid")
    [step_id] = [step["Id"] for step in own.steps(cluster_id)]
    local_aws.kill_step(cluster_id, step_id, 15)
    # The command itself ignores the signal, and ends with exit code 3 after its child was killed.
    status = own.wait_for_step(cluster_id, step_id, "FAILED")["Status"]
    assert status["FailureDetails"]["Reason"] == "Unknown Error."


def test_a_signal_reaches_only_one_of_two_concurrent_steps(
    own: User, local_aws: LocalAwsClient, tmp_path: Path
) -> None:
    one, other, end = tmp_path / "one", tmp_path / "other", tmp_path / "end"
    steps = bash(grandchild(one)), bash(f"echo $$ > {other}; {until(end)}")
    cluster_id = own.start(*steps, keep_alive=True, StepConcurrencyLevel=2, LogUri=None)
    pid, _ = read_pid(other), read_pid(one)
    killed, spared = (step["Id"] for step in own.steps(cluster_id))
    local_aws.kill_step(cluster_id, killed)
    own.wait_for_step(cluster_id, killed, "FAILED")
    assert is_running(pid)
    end.touch()
    own.wait_for_step(cluster_id, spared, "COMPLETED")


def test_a_pending_step_cannot_be_killed(own: User, local_aws: LocalAwsClient, tmp_path: Path) -> None:
    end = tmp_path / "end"
    cluster_id = own.start(bash(until(end)), bash("exit 0"), LogUri=None)
    _, second = (step["Id"] for step in own.steps(cluster_id))
    with pytest.raises(Refused, match=f"{second} is PENDING"):
        local_aws.kill_step(cluster_id, second)
    end.touch()
    own.wait_for(cluster_id, *ENDED)
    assert own.step_states(cluster_id) == ["COMPLETED", "COMPLETED"]
