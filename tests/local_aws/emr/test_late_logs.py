"""The logs of a step are uploaded some time after its end, when its cluster terminates, or when the server stops."""

import logging
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from local_aws.emr.life import Timings
from local_aws.server import LocalAws
from tests.local_aws.program import serving
from tests.local_aws.user import BUCKET, LOG_URI, User, bash, grandchild, read_pid, until, wait_for_death, wait_until

LOGS = ["controller.gz", "stderr.gz", "stdout.gz"]
NEVER_SECONDS = 600.0
NEVER = Timings(log_delay_seconds=NEVER_SECONDS)


@pytest.fixture
def late(user: User, tmp_path: Path) -> Iterator[User]:  # `user` creates the bucket of this process
    """A user of a server that uploads no log before its cluster terminates."""
    with LocalAws(tmp_path / "late", timings=NEVER) as server:
        yield User(server.endpoint_url)


def folder_of(cluster_id: str, step_id: str) -> str:
    return f"{LOG_URI}{cluster_id}/steps/{step_id}/"


def run_step(user: User, cluster_id: str, script: str) -> str:
    """Run a step to its end, and return the folder of its logs."""
    (step_id,) = user.add(cluster_id, bash(script))
    user.wait_for_step(cluster_id, step_id, "COMPLETED", "FAILED")
    return folder_of(cluster_id, step_id)


def uploaded(user: User, folder: str) -> None:
    wait_until(lambda: user.keys(folder) == LOGS, f"the logs in {folder}")


@pytest.mark.parametrize("script", ["echo out", "echo out; exit 3"])
def test_the_logs_of_a_step_appear_some_seconds_after_its_end(user: User, script: str) -> None:
    cluster_id = user.start(keep_alive=True)
    folder = run_step(user, cluster_id, script)
    assert user.keys(folder) == []
    assert user.read_log(f"{folder}stdout.gz") == "out\n"
    uploaded(user, folder)
    (step,) = user.steps(cluster_id)
    listed = user.s3.list_objects_v2(Bucket=BUCKET, Prefix=folder.removeprefix(f"s3://{BUCKET}/"))["Contents"]
    # The default is 3 seconds, and LastModified is in whole seconds.
    earliest = step["Status"]["Timeline"]["EndDateTime"] + timedelta(seconds=2)
    assert all(item["LastModified"] >= earliest for item in listed)
    assert user.state(cluster_id) == "WAITING"


def test_a_cancelled_step_has_its_logs_some_seconds_after_its_end(user: User, tmp_path: Path) -> None:
    cluster_id = user.start(keep_alive=True)
    (step_id,) = user.add(cluster_id, bash(f"echo started; touch {tmp_path}/started; {until(tmp_path / 'never')}"))
    wait_until((tmp_path / "started").exists, "the step")
    user.emr.cancel_steps(ClusterId=cluster_id, StepIds=[step_id])
    user.wait_for_step(cluster_id, step_id, "CANCELLED")
    folder = folder_of(cluster_id, step_id)
    assert user.keys(folder) == []
    assert user.read_log(f"{folder}stdout.gz") == "started\n"


def test_no_step_waits_for_the_logs_of_another(late: User) -> None:
    cluster_id = late.start(keep_alive=True)
    folders = [run_step(late, cluster_id, f"echo {word}; exit 1") for word in "abc"]
    late.wait_for(cluster_id, "WAITING")
    assert [late.keys(folder) for folder in folders] == [[], [], []]


def test_logs_are_uploaded_while_a_later_step_is_running(user: User, tmp_path: Path) -> None:
    cluster_id = user.start(bash("echo first"), bash(until(tmp_path / "go")), keep_alive=True)
    first, second = user.steps(cluster_id)
    uploaded(user, folder_of(cluster_id, first["Id"]))
    assert user.step_states(cluster_id) == ["COMPLETED", "RUNNING"]
    assert user.keys(folder_of(cluster_id, second["Id"])) == []
    (tmp_path / "go").touch()
    uploaded(user, folder_of(cluster_id, second["Id"]))


def test_logs_appear_in_the_order_in_which_the_steps_ended(user: User, tmp_path: Path) -> None:
    steps = [bash(until(tmp_path / name)) for name in ("first", "second")]
    cluster_id = user.start(*steps, keep_alive=True, StepConcurrencyLevel=2)
    first, second = (step["Id"] for step in user.steps(cluster_id))
    (tmp_path / "second").touch()
    user.wait_for_step(cluster_id, second, "COMPLETED")
    time.sleep(2)
    (tmp_path / "first").touch()
    uploaded(user, folder_of(cluster_id, second))
    assert user.keys(folder_of(cluster_id, first)) == []
    uploaded(user, folder_of(cluster_id, first))


def test_all_logs_are_uploaded_when_the_cluster_terminates(late: User, tmp_path: Path) -> None:
    cluster_id = late.start(keep_alive=True)
    folders = [run_step(late, cluster_id, f"echo {word}") for word in "ab"]
    (step_id,) = late.add(cluster_id, bash(f"echo c; touch {tmp_path}/started; sleep 60"))
    wait_until((tmp_path / "started").exists, "the third step")
    folders.append(folder_of(cluster_id, step_id))
    assert [late.keys(folder) for folder in folders] == [[], [], []]
    late.terminate(cluster_id)
    late.wait_for(cluster_id, "TERMINATED")
    assert [late.keys(folder) for folder in folders] == [LOGS] * 3
    assert [late.read_log(f"{folder}stdout.gz") for folder in folders] == ["a\n", "b\n", "c\n"]


@pytest.mark.parametrize(
    ("script", "on_failure", "state"),
    [
        ("echo out", "CONTINUE", "TERMINATED"),
        ("echo out; exit 3", "TERMINATE_CLUSTER", "TERMINATED_WITH_ERRORS"),
    ],
)
def test_a_cluster_that_ends_by_itself_uploads_its_logs_first(
    late: User, script: str, on_failure: str, state: str
) -> None:
    cluster_id = late.run(bash(script, on_failure))
    assert late.state(cluster_id) == state
    (step,) = late.steps(cluster_id)
    assert late.keys(folder_of(cluster_id, step["Id"])) == LOGS


def test_the_failure_details_name_a_log_that_is_not_there_yet(late: User) -> None:
    cluster_id = late.start(keep_alive=True)
    folder = run_step(late, cluster_id, "exit 3")
    (step,) = late.steps(cluster_id)
    assert step["Status"]["FailureDetails"]["LogFile"] == f"{folder}stderr.gz"
    assert late.keys(folder) == []


@pytest.mark.usefixtures("user")  # creates the bucket of this process
def test_without_a_delay_the_logs_appear_at_the_end_of_the_step(tmp_path: Path) -> None:
    with LocalAws(tmp_path, timings=Timings(log_delay_seconds=0)) as server:
        early = User(server.endpoint_url)
        folder = run_step(early, early.start(keep_alive=True), "true")
        wait_until(lambda: early.keys(folder) == LOGS, "the logs", seconds=2)


@pytest.mark.usefixtures("user")
def test_an_infinite_delay_uploads_the_logs_when_the_cluster_terminates(tmp_path: Path) -> None:
    with LocalAws(tmp_path, timings=Timings(log_delay_seconds=float("inf"))) as server:
        late = User(server.endpoint_url)
        cluster_id = late.start(keep_alive=True)
        folder = run_step(late, cluster_id, "true")
        late.wait_for(cluster_id, "WAITING")
        assert late.keys(folder) == []
        late.terminate(cluster_id)
        late.wait_for(cluster_id, "TERMINATED")
        assert late.keys(folder) == LOGS


def test_logs_that_cannot_be_uploaded_are_reported_once_per_step(
    user: User, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with LocalAws(tmp_path, timings=Timings(log_delay_seconds=0)) as server:
        other = User(server.endpoint_url)
        with caplog.at_level(logging.WARNING, logger="local_aws"):
            cluster_id = other.start(keep_alive=True, LogUri="s3://no-such-bucket/logs/")
            run_step(other, cluster_id, "true")
            wait_until(lambda: "cannot upload logs to s3://no-such-bucket/logs/" in caplog.text, "the warning")
            run_step(other, cluster_id, "true")
            other.terminate(cluster_id)
            other.wait_for(cluster_id, "TERMINATED")
    assert caplog.text.count("cannot upload logs") == 2


def test_a_server_that_stops_uploads_the_logs_of_the_steps_that_have_ended(user: User, tmp_path: Path) -> None:
    with LocalAws(tmp_path / "data", timings=NEVER) as server:
        late = User(server.endpoint_url)
        clusters = [late.start(keep_alive=True) for _ in range(4)]
        folders = [run_step(late, cluster_id, "echo out") for cluster_id in clusters]
        (running,) = late.add(clusters[0], bash(f"echo started; {grandchild(tmp_path / 'pid')}"))
        pid = read_pid(tmp_path / "pid")
        assert [late.keys(folder) for folder in folders] == [[]] * 4
    wait_for_death(pid)
    assert [user.keys(folder) for folder in folders] == [LOGS] * 4
    assert user.keys(folder_of(clusters[0], running)) == []
    with LocalAws(tmp_path / "data") as server:
        again = User(server.endpoint_url)
        assert [again.state(cluster_id) for cluster_id in clusters[1:]] == ["WAITING"] * 3
        assert again.read_log(f"{folder_of(clusters[0], running)}stdout.gz") == "started\n"


def test_the_program_uploads_pending_logs_when_it_is_stopped(tmp_path: Path) -> None:
    with serving(tmp_path / "data", "--log-delay-seconds", str(NEVER_SECONDS)) as first:
        first.user.make_bucket()
        folder = run_step(first.user, first.user.start(keep_alive=True), "echo out")
        assert first.user.keys(folder) == []
        first.process.terminate()
        assert first.process.wait(10) == 0
    with serving(tmp_path / "data", "--log-delay-seconds", str(NEVER_SECONDS)) as second:
        assert second.user.keys(folder) == LOGS


def test_the_next_server_uploads_the_logs_that_a_killed_one_did_not(tmp_path: Path) -> None:
    with serving(tmp_path / "data", "--log-delay-seconds", str(NEVER_SECONDS)) as first:
        first.user.make_bucket()
        folder = run_step(first.user, first.user.start(keep_alive=True), "echo out")
        assert first.user.keys(folder) == []
    with serving(tmp_path / "data", "--log-delay-seconds", "0") as second:
        assert second.user.read_log(f"{folder}stdout.gz") == "out\n"


def test_the_logs_of_a_cluster_that_was_terminating_when_its_server_was_killed_are_uploaded(tmp_path: Path) -> None:
    stubborn = f"trap '' TERM; echo started; echo $$ > {tmp_path / 'pid'}; while true; do sleep 0.1; done"
    with serving(tmp_path / "data", "--log-delay-seconds", str(NEVER_SECONDS)) as first:
        first.user.make_bucket()
        cluster_id = first.user.start(bash("echo first"), bash(stubborn), keep_alive=True)
        pid = read_pid(tmp_path / "pid")
        first.user.terminate(cluster_id)
        assert first.user.state(cluster_id) == "TERMINATING"
        folders = [folder_of(cluster_id, step["Id"]) for step in first.user.steps(cluster_id)]
        assert [first.user.keys(folder) for folder in folders] == [[], []]
        first.process.kill()
    wait_for_death(pid)
    with serving(tmp_path / "data", "--log-delay-seconds", str(NEVER_SECONDS)) as second:
        second.user.wait_for(cluster_id, "TERMINATED")
        assert second.user.step_states(cluster_id) == ["COMPLETED", "CANCELLED"]
        assert [second.user.read_log(f"{folder}stdout.gz") for folder in folders] == ["first\n", "started\n"]
