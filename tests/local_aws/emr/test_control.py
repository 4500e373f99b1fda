from collections.abc import Callable
from pathlib import Path

import pytest

from local_aws.emr import process
from tests.local_aws.user import (
    LOG_URI,
    User,
    bash,
    grandchild,
    is_running,
    read_pid,
    runaway,
    until,
    wait_for_death,
    wait_until,
)

End = Callable[[User, str, str], object]


def terminate(user: User, cluster_id: str, step_id: str) -> None:
    user.terminate(cluster_id)


def cancel(user: User, cluster_id: str, step_id: str) -> None:
    user.emr.cancel_steps(ClusterId=cluster_id, StepIds=[step_id])


@pytest.mark.parametrize("end", [terminate, cancel])
def test_all_processes_of_a_step_die_with_it(user: User, tmp_path: Path, end: End) -> None:
    cluster_id = user.start(keep_alive=True)
    (step_id,) = user.add(cluster_id, bash(f"echo started; {grandchild(tmp_path / 'pid')}"))
    pid = read_pid(tmp_path / "pid")
    assert is_running(pid)
    end(user, cluster_id, step_id)
    user.wait_for_step(cluster_id, step_id, "CANCELLED")
    wait_for_death(pid)
    assert user.read_log(f"{LOG_URI}{cluster_id}/steps/{step_id}/stdout.gz") == "started\n"


def test_a_process_that_leaves_the_process_group_dies_too(user: User, tmp_path: Path) -> None:
    cluster_id = user.start(keep_alive=True)
    (left,) = user.add(cluster_id, bash(runaway(tmp_path / "left")))
    user.wait_for_step(cluster_id, left, "COMPLETED")
    wait_for_death(read_pid(tmp_path / "left"))
    (cancelled,) = user.add(cluster_id, bash(f"{runaway(tmp_path / 'cancelled')}; {until(tmp_path / 'never')}"))
    pid = read_pid(tmp_path / "cancelled")
    assert is_running(pid)
    cancel(user, cluster_id, cancelled)
    wait_for_death(pid)


@pytest.mark.parametrize("end", [terminate, cancel])
def test_a_process_that_ignores_sigterm_is_killed_after_a_grace_period(
    user: User, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: End
) -> None:
    monkeypatch.setattr(process, "KILL_GRACE_SECONDS", 0.3)
    cluster_id = user.start(keep_alive=True)
    stubborn = f"trap '' TERM; {grandchild(tmp_path / 'pid')}"
    (step_id,) = user.add(cluster_id, bash(stubborn))
    pid = read_pid(tmp_path / "pid")
    end(user, cluster_id, step_id)
    user.wait_for_step(cluster_id, step_id, "CANCELLED")
    wait_for_death(pid)


def test_a_step_gets_sigterm_before_it_is_killed(user: User, tmp_path: Path) -> None:
    cluster_id = user.start(keep_alive=True)
    trap = f"trap 'echo tidied up; exit' TERM; touch {tmp_path}/started; {until(tmp_path / 'never')}"
    (step_id,) = user.add(cluster_id, bash(trap))
    wait_until((tmp_path / "started").exists, "the step")
    user.terminate(cluster_id)
    user.wait_for(cluster_id, "TERMINATED")
    assert user.read_log(f"{LOG_URI}{cluster_id}/steps/{step_id}/stdout.gz") == "tidied up\n"


@pytest.mark.parametrize(("code", "state"), [(0, "COMPLETED"), (1, "FAILED")])
def test_processes_that_a_step_leaves_running_are_killed_when_it_ends(
    user: User, tmp_path: Path, code: int, state: str
) -> None:
    user_step = bash(f"sleep 60 & echo $! > {tmp_path}/pid; exit {code}")
    cluster_id = user.start(user_step, keep_alive=True)
    user.wait_for(cluster_id, "WAITING")
    assert user.step_states(cluster_id) == [state]
    wait_for_death(read_pid(tmp_path / "pid"))


def test_a_cancelled_running_step_lets_the_next_one_run(user: User, tmp_path: Path) -> None:
    running = bash(f"touch {tmp_path}/started; {until(tmp_path / 'never')}", on_failure="TERMINATE_CLUSTER")
    cluster_id = user.start(running, bash("true"))
    wait_until((tmp_path / "started").exists, "the step")
    step_id = user.steps(cluster_id)[0]["Id"]
    answer = user.emr.cancel_steps(ClusterId=cluster_id, StepIds=[step_id])["CancelStepsInfoList"]
    assert answer == [{"StepId": step_id, "Status": "SUBMITTED"}]
    user.wait_for(cluster_id, "TERMINATED")
    assert user.step_states(cluster_id) == ["CANCELLED", "COMPLETED"]


def test_a_cancelled_pending_step_never_runs(user: User, tmp_path: Path) -> None:
    touches = bash(f"touch {tmp_path}/touched")
    cluster_id = user.start(bash(until(tmp_path / "go")), touches, bash("true"))
    cancelled = user.steps(cluster_id)[1]["Id"]
    user.emr.cancel_steps(ClusterId=cluster_id, StepIds=[cancelled])
    assert user.step(cluster_id, cancelled)["Status"]["State"] == "CANCELLED"
    (tmp_path / "go").touch()
    user.wait_for(cluster_id, "TERMINATED")
    assert user.step_states(cluster_id) == ["COMPLETED", "CANCELLED", "COMPLETED"]
    assert not (tmp_path / "touched").exists()
    assert "StartDateTime" not in user.step(cluster_id, cancelled)["Status"]["Timeline"]


@pytest.mark.parametrize(("line", "state"), [("true", "COMPLETED"), ("exit 1", "FAILED")])
def test_an_ended_step_cannot_be_cancelled(user: User, line: str, state: str) -> None:
    cluster_id = user.run(bash(line))
    step_id = user.steps(cluster_id)[0]["Id"]
    (answer,) = user.emr.cancel_steps(ClusterId=cluster_id, StepIds=[step_id])["CancelStepsInfoList"]
    assert answer == {"StepId": step_id, "Status": "FAILED", "Reason": f"Step {step_id} is {state}"}
    assert user.step_states(cluster_id) == [state]


def test_termination_cancels_running_and_pending_steps(user: User, tmp_path: Path) -> None:
    running = bash(f"touch {tmp_path}/started; {until(tmp_path / 'never')}")
    cluster_id = user.start(bash("true"), running, bash("true"))
    wait_until((tmp_path / "started").exists, "the step")
    user.terminate(cluster_id)
    user.wait_for(cluster_id, "TERMINATED")
    assert user.step_states(cluster_id) == ["COMPLETED", "CANCELLED", "CANCELLED"]
    assert [step["Status"]["StateChangeReason"].get("Message") for step in user.steps(cluster_id)] == [
        None,
        "Job terminated",
        "Job terminated",
    ]
