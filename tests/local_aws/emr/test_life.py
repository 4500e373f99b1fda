import logging
import time
from pathlib import Path
from typing import Any

import pytest

from local_aws.emr import checks
from local_aws.emr.life import Timings
from local_aws.server import LocalAws
from tests.local_aws.user import ENDED, User, bash, until, wait_until


@pytest.fixture
def short_idle_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove EMR's minimum of a minute, which is too long for tests."""
    monkeypatch.setattr(checks, "MIN_IDLE_TIMEOUT_SECONDS", 0)


def states_in_log(caplog: pytest.LogCaptureFixture, cluster_id: str) -> list[str]:
    """Return every state of a cluster, which a client that polls could miss."""
    start = f"cluster {cluster_id}: "
    words = [message.removeprefix(start).split()[0] for message in caplog.messages if message.startswith(start)]
    return [word for word in words if word.isupper()]


@pytest.mark.usefixtures("short_idle_timeouts")
@pytest.mark.parametrize(
    ("steps", "request_", "states"),
    [
        ([], {}, "STARTING BOOTSTRAPPING TERMINATING TERMINATED"),
        (["true", "true"], {}, "STARTING BOOTSTRAPPING RUNNING TERMINATING TERMINATED"),
        (["false"], {}, "STARTING BOOTSTRAPPING RUNNING TERMINATING TERMINATED"),
        (
            ["true"],
            {"keep_alive": True, "AutoTerminationPolicy": {"IdleTimeout": 0}},
            "STARTING BOOTSTRAPPING RUNNING WAITING TERMINATING TERMINATED",
        ),
        (
            ["true"],
            {"bootstrap": [("s3://local-aws-tests/none",)]},
            "STARTING BOOTSTRAPPING TERMINATING TERMINATED_WITH_ERRORS",
        ),
    ],
)
def test_a_cluster_passes_through_its_states_in_order(
    user: User, caplog: pytest.LogCaptureFixture, steps: list[str], request_: dict[str, Any], states: str
) -> None:
    caplog.set_level(logging.INFO, logger="local_aws")
    cluster_id = user.run(*[bash(line) for line in steps], **request_)
    assert states_in_log(caplog, cluster_id) == states.split()


def test_a_cluster_reports_the_reason_of_each_state(user: User, tmp_path: Path) -> None:
    bootstrapped, stepped, running, ended = (
        tmp_path / name for name in ("bootstrapped", "stepped", "running", "ended")
    )
    script = user.put("wait.sh", f"#!/bin/bash\n{until(bootstrapped)}\n")
    cluster_id = user.start(bash(until(stepped)), bootstrap=[(script,)], keep_alive=True)

    assert "Code" not in user.wait_for(cluster_id, "BOOTSTRAPPING")["Status"]["StateChangeReason"]
    bootstrapped.touch()
    assert user.wait_for(cluster_id, "RUNNING")["Status"]["StateChangeReason"] == {"Message": "Running step"}
    stepped.touch()
    waiting = user.wait_for(cluster_id, "WAITING")
    assert waiting["Status"]["StateChangeReason"] == {"Message": "Cluster ready to run steps."}
    user.add(
        cluster_id,
        bash(f"trap 'touch {tmp_path}/signalled; {until(ended)}; exit' TERM; touch {running}; {until(ended)}"),
    )
    user.wait_for(cluster_id, "RUNNING")
    wait_until(running.exists, "the last step")

    user.terminate(cluster_id)
    wait_until((tmp_path / "signalled").exists, "SIGTERM")
    by_user = {"Code": "USER_REQUEST", "Message": "Terminated by user request"}
    assert user.cluster(cluster_id)["Status"]["State"] == "TERMINATING"
    assert user.cluster(cluster_id)["Status"]["StateChangeReason"] == by_user
    ended.touch()
    assert user.wait_for(cluster_id, "TERMINATED")["Status"]["StateChangeReason"] == by_user
    assert user.step_states(cluster_id) == ["COMPLETED", "CANCELLED"]


def test_the_times_of_cluster_and_step_are_in_order(user: User) -> None:
    cluster_id = user.run(bash("true"))
    cluster = user.cluster(cluster_id)["Status"]["Timeline"]
    (step,) = (step["Status"]["Timeline"] for step in user.steps(cluster_id))
    times = [
        cluster["CreationDateTime"],
        cluster["ReadyDateTime"],
        step["StartDateTime"],
        step["EndDateTime"],
        cluster["EndDateTime"],
    ]
    assert times == sorted(set(times))
    assert cluster["CreationDateTime"] <= step["CreationDateTime"] < step["StartDateTime"]


def test_a_cluster_that_is_not_kept_alive_ends_after_its_last_step(user: User) -> None:
    cluster_id = user.run(bash("true"), bash("true"))
    assert user.step_states(cluster_id) == ["COMPLETED", "COMPLETED"]
    assert user.cluster(cluster_id)["Status"]["StateChangeReason"] == {
        "Code": "ALL_STEPS_COMPLETED",
        "Message": "Steps completed",
    }


def test_a_cluster_that_is_kept_alive_accepts_steps_until_a_user_terminates_it(user: User) -> None:
    cluster_id = user.start(keep_alive=True)
    for _ in range(2):
        user.wait_for(cluster_id, "WAITING")
        (step_id,) = user.add(cluster_id, bash("true"))
        user.wait_for_step(cluster_id, step_id, "COMPLETED")
    user.wait_for(cluster_id, "WAITING")
    user.terminate(cluster_id)
    user.wait_for(cluster_id, "TERMINATED")
    assert user.end_code(cluster_id) == "USER_REQUEST"


@pytest.mark.usefixtures("short_idle_timeouts")
def test_a_cluster_terminates_after_its_idle_timeout_but_not_while_a_step_is_running(user: User) -> None:
    policy = {"IdleTimeout": 1}
    cluster_id = user.run(bash("sleep 1.2"), keep_alive=True, AutoTerminationPolicy=policy)
    status = user.cluster(cluster_id)["Status"]
    (step,) = user.steps(cluster_id)
    assert (status["State"], step["Status"]["State"]) == ("TERMINATED", "COMPLETED")
    assert "idle" in status["StateChangeReason"]["Message"]
    idle = status["Timeline"]["EndDateTime"] - step["Status"]["Timeline"]["EndDateTime"]
    assert 1 <= idle.total_seconds() < 5


def test_clusters_run_concurrently(user: User, tmp_path: Path) -> None:
    first = user.start(bash(f"touch {tmp_path}/first; {until(tmp_path / 'second')}"))
    second = user.start(bash(f"{until(tmp_path / 'first')}; touch {tmp_path}/second"))
    user.wait_for(first, "TERMINATED")
    user.wait_for(second, "TERMINATED")


def test_a_cluster_that_is_terminated_immediately_completes_no_step(user: User, tmp_path: Path) -> None:
    cluster_id = user.start(bash(f"sleep 0.3; touch {tmp_path}/touched"))
    user.terminate(cluster_id)
    user.wait_for(cluster_id, "TERMINATED")
    assert (user.end_code(cluster_id), user.step_states(cluster_id)) == ("USER_REQUEST", ["CANCELLED"])
    assert not (tmp_path / "touched").exists()


def test_termination_of_an_ended_cluster_changes_nothing(user: User) -> None:
    cluster_id = user.run(bash("exit 1", on_failure="TERMINATE_CLUSTER"))
    before = user.cluster(cluster_id)["Status"]
    user.terminate(cluster_id)
    assert user.cluster(cluster_id)["Status"] == before


@pytest.mark.parametrize("in_action", [False, True])
def test_a_protected_cluster_terminates_only_after_the_protection_is_removed(user: User, in_action: bool) -> None:
    cluster_id = user.start(keep_alive=True, Instances={"TerminationProtected": not in_action})
    if in_action:
        user.emr.set_termination_protection(JobFlowIds=[cluster_id], TerminationProtected=True)
    with pytest.raises(user.emr.exceptions.ClientError, match="termination protected") as raised:
        user.terminate(cluster_id)
    assert raised.value.response["Error"]["Code"] == "ValidationException"
    assert user.cluster(cluster_id)["TerminationProtected"] is True
    user.wait_for(cluster_id, "WAITING")
    user.emr.set_termination_protection(JobFlowIds=[cluster_id], TerminationProtected=False)
    user.terminate(cluster_id)
    user.wait_for(cluster_id, "TERMINATED")


def test_a_protected_cluster_still_ends_after_its_last_step(user: User) -> None:
    cluster_id = user.run(bash("true"), Instances={"TerminationProtected": True})
    assert user.end_code(cluster_id) == "ALL_STEPS_COMPLETED"


@pytest.mark.parametrize("line", ["true", "exit 1"])
def test_an_ended_cluster_rejects_steps(user: User, line: str) -> None:
    cluster_id = user.run(bash(line, on_failure="TERMINATE_CLUSTER"))
    assert user.state(cluster_id) in ENDED
    with pytest.raises(user.emr.exceptions.ClientError, match="may not be modified") as raised:
        user.add(cluster_id, bash("true"))
    assert raised.value.response["Error"]["Code"] == "ValidationException"
    assert len(user.steps(cluster_id)) == 1


def test_timings_extend_the_states_of_a_cluster(tmp_path: Path) -> None:
    with LocalAws(tmp_path, timings=Timings(0.4, 0.4, 0.4)) as server:
        user = User(server.endpoint_url)
        started = time.monotonic()
        cluster_id = user.start()
        seen = [user.state(cluster_id)]
        while seen[-1] != "TERMINATED":
            state = user.state(cluster_id)
            if state != seen[-1]:
                seen.append(state)
        assert seen == ["STARTING", "BOOTSTRAPPING", "TERMINATING", "TERMINATED"]
        assert time.monotonic() - started >= 1.2


def test_a_stopping_server_does_not_wait_for_the_timings(tmp_path: Path) -> None:
    started = time.monotonic()
    with LocalAws(tmp_path, timings=Timings(60, 0, 60)) as server:
        user = User(server.endpoint_url)
        user.terminate(user.start())
        user.start()
    assert time.monotonic() - started < 20
