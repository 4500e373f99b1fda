import signal
from pathlib import Path
from typing import Any

import pytest

from tests.local_aws.user import BUCKET, LOG_URI, User, bash, command, until, wait_until


def failure(user: User, cluster_id: str) -> dict[str, Any]:
    """Return the FailureDetails of the only step of a cluster."""
    (step,) = user.steps(cluster_id)
    assert step["Status"]["State"] == "FAILED"
    return dict(step["Status"]["FailureDetails"])


def test_steps_run_one_by_one_in_the_order_in_which_they_were_added(user: User, tmp_path: Path) -> None:
    lines = [bash(f"echo {word} starts >> {tmp_path}/output; echo {word} ends >> {tmp_path}/output") for word in "abc"]
    cluster_id = user.start(bash(until(tmp_path / "go")), *lines[:2])
    user.add(cluster_id, lines[2])
    assert user.step_states(cluster_id)[1:] == ["PENDING", "PENDING", "PENDING"]
    (tmp_path / "go").touch()
    user.wait_for(cluster_id, "TERMINATED")
    output = (tmp_path / "output").read_text().splitlines()
    assert output == ["a starts", "a ends", "b starts", "b ends", "c starts", "c ends"]


@pytest.mark.parametrize("before", [True, False])
def test_with_continue_the_other_steps_run_after_a_failure(user: User, before: bool) -> None:
    failing, succeeding = bash("exit 1", on_failure="CONTINUE"), bash("true", on_failure="CONTINUE")
    cluster_id = user.run(*([failing, succeeding] if before else [succeeding, failing]))
    states = user.step_states(cluster_id)
    assert states == (["FAILED", "COMPLETED"] if before else ["COMPLETED", "FAILED"])
    assert (user.state(cluster_id), user.end_code(cluster_id)) == ("TERMINATED", "ALL_STEPS_COMPLETED")


def test_with_cancel_and_wait_a_failure_cancels_pending_steps_and_the_cluster_accepts_new_ones(
    user: User, tmp_path: Path
) -> None:
    touches = bash(f"touch {tmp_path}/touched")
    cluster_id = user.start(
        bash("true"), bash("exit 1", on_failure="CANCEL_AND_WAIT"), touches, touches, keep_alive=True
    )
    user.wait_for(cluster_id, "WAITING")
    assert user.step_states(cluster_id) == ["COMPLETED", "FAILED", "CANCELLED", "CANCELLED"]
    assert list(tmp_path.iterdir()) == []
    (step_id,) = user.add(cluster_id, touches)
    user.wait_for_step(cluster_id, step_id, "COMPLETED")


@pytest.mark.parametrize("action", ["TERMINATE_CLUSTER", "TERMINATE_JOB_FLOW"])
def test_with_terminate_a_failure_ends_the_cluster_with_errors(user: User, tmp_path: Path, action: str) -> None:
    touches = bash(f"touch {tmp_path}/touched")
    cluster_id = user.run(bash("true"), bash("exit 1", on_failure=action), touches, keep_alive=True)
    assert user.step_states(cluster_id) == ["COMPLETED", "FAILED", "CANCELLED"]
    status = user.cluster(cluster_id)["Status"]
    assert status["State"] == "TERMINATED_WITH_ERRORS"
    assert status["StateChangeReason"] == {"Code": "STEP_FAILURE", "Message": "Shut down as step failed"}
    assert list(tmp_path.iterdir()) == []


def test_a_step_that_succeeds_does_not_trigger_its_action_on_failure(user: User) -> None:
    cluster_id = user.run(bash("true", on_failure="TERMINATE_CLUSTER"), bash("true", on_failure="CANCEL_AND_WAIT"))
    assert user.step_states(cluster_id) == ["COMPLETED", "COMPLETED"]
    assert user.state(cluster_id) == "TERMINATED"


@pytest.mark.parametrize(
    ("log_uri", "folder"),
    [
        (f"s3://{BUCKET}/a/logs/", f"s3://{BUCKET}/a/logs/"),
        (f"s3://{BUCKET}/b/logs", f"s3://{BUCKET}/b/logs/"),
        (f"s3n://{BUCKET}/c/", f"s3://{BUCKET}/c/"),
        (f"s3://{BUCKET}", f"s3://{BUCKET}/"),
    ],
)
def test_the_logs_of_a_step_are_compressed_below_the_log_uri(user: User, log_uri: str, folder: str) -> None:
    cluster_id = user.run(bash("echo out; echo err >&2; exit 1"), LogUri=log_uri)
    (step,) = user.steps(cluster_id)
    logs = f"{folder}{cluster_id}/steps/{step['Id']}/"
    assert user.keys(logs) == ["controller.gz", "stderr.gz", "stdout.gz"]
    assert user.read_log(f"{logs}stdout.gz") == "out\n"
    assert user.read_log(f"{logs}stderr.gz") == "err\n"
    assert user.read_log(f"{logs}controller.gz") == "bash -c 'echo out; echo err >&2; exit 1'\n"
    assert step["Status"]["FailureDetails"]["LogFile"] == f"{logs}stderr.gz"


def test_a_step_that_succeeds_has_logs_and_no_failure_details(user: User) -> None:
    cluster_id = user.run(bash("echo fine"))
    (step,) = user.steps(cluster_id)
    assert step["Status"]["State"] == "COMPLETED"
    assert "FailureDetails" not in step["Status"]
    assert user.read_log(f"{LOG_URI}{cluster_id}/steps/{step['Id']}/stdout.gz") == "fine\n"


@pytest.mark.parametrize("log_uri", [None, "s3://no-such-bucket/logs/", "/var/log"])
def test_a_failed_step_reports_the_reason_even_if_its_logs_cannot_be_uploaded(user: User, log_uri: str | None) -> None:
    cluster_id = user.start(bash("echo broken >&2; exit 1"), LogUri=log_uri)
    user.wait_for(cluster_id, "TERMINATED")
    assert failure(user, cluster_id) == {"Reason": "Unknown Error.", "Message": "broken"}


PYTHON = "import sys; print('noise', file=sys.stderr); {}"


@pytest.mark.parametrize(
    ("step", "reason", "message"),
    [
        (bash("echo one; echo two >&2; exit 3"), "Unknown Error.", "one\ntwo"),
        (bash("exit 3"), "Unknown Error.", "The command ended with exit code 3 and wrote no output."),
        (
            command("python3.11", "-c", PYTHON.format("int('x')")),
            "Unknown Error.",
            "Traceback (most recent call last):\n"
            '  File "<string>", line 1, in <module>\n'
            "ValueError: invalid literal for int() with base 10: 'x'",
        ),
        (bash("echo last words; kill -KILL $$"), f"Killed by signal {signal.SIGKILL:d}.", "last words"),
        (bash("kill -SEGV $$"), "Killed by signal 11.", "The command was killed by signal 11 and wrote no output."),
    ],
)
def test_a_failed_step_reports_the_reason_and_its_log(user: User, step: Any, reason: str, message: str) -> None:
    cluster_id = user.run(step)
    (listed,) = user.steps(cluster_id)
    assert failure(user, cluster_id) == {
        "Reason": reason,
        "Message": message,
        "LogFile": f"{LOG_URI}{cluster_id}/steps/{listed['Id']}/stderr.gz",
    }


def test_a_long_failure_message_keeps_its_end(user: User) -> None:
    message = failure(user, user.run(bash("printf 'x%.0s' {1..5000}; echo END; exit 1")))["Message"]
    assert (len(message), message[-4:]) == (1500, "xEND")


@pytest.mark.parametrize(
    ("step", "part"),
    [
        (command("Main", jar="s3://bucket/application.jar"), "s3://bucket/application.jar"),
        (command(), "command-runner.jar"),
        (
            command("hive-script"),
            "'hive-script'; the node has aws, pip3, pyspark, python3, python3.11, run-example, spark",
        ),
        (command("/usr/bin/hadoop", "fs"), "'/usr/bin/hadoop'; the node has aws, pip3, pyspark"),
        (command("/usr/lib/spark/bin/sparkR"), "/usr/lib/spark/bin/sparkR'; the node has aws, pip3, pyspark"),
    ],
)
def test_a_step_that_cannot_start_fails_and_names_its_command(user: User, step: Any, part: str) -> None:
    cluster_id = user.run(step, bash("true"))
    first, second = user.steps(cluster_id)
    assert (first["Status"]["State"], second["Status"]["State"]) == ("FAILED", "COMPLETED")
    assert first["Status"]["FailureDetails"]["Reason"] == "Cannot start the command."
    assert part in first["Status"]["FailureDetails"]["Message"]


@pytest.mark.parametrize("jar", ["command-runner.jar", "/var/lib/aws/emr/command-runner.jar"])
def test_command_runner_can_have_a_path(user: User, jar: str) -> None:
    assert user.step_states(user.run(command("true", jar=jar))) == ["COMPLETED"]


def test_a_step_runs_in_the_home_folder_of_the_node(user: User, data: Path) -> None:
    cluster_id = user.run(bash("pwd > /mnt/where; echo $HOME > /mnt/home; touch /home/hadoop/mine; ls > /mnt/listed"))
    root = data / "clusters" / cluster_id
    assert (root / "mnt/where").read_text() == (root / "mnt/home").read_text() == f"{root}/home/hadoop\n"
    assert (root / "mnt/listed").read_text() == "mine\n"


def test_a_step_does_not_inherit_the_environment_of_the_server(
    user: User, monkeypatch: pytest.MonkeyPatch, data: Path
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_SERVER", "1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-the-server")
    cluster_id = user.run(bash("env > /mnt/env"))
    environment = (data / "clusters" / cluster_id / "mnt/env").read_text()
    assert f"AWS_ENDPOINT_URL={user.endpoint_url}\n" in environment
    assert "SECRET_OF_THE_SERVER" not in environment
    assert "of-the-server" not in environment


def test_aws_and_sudo_in_a_step_use_the_s3_of_this_server(user: User, data: Path) -> None:
    uri = user.put("for-a-step", "content")
    cluster_id = user.run(bash(f"sudo aws s3 cp {uri} /mnt/copy && aws s3 cp /mnt/copy {uri}-too"))
    assert user.step_states(cluster_id) == ["COMPLETED"]
    assert (data / "clusters" / cluster_id / "mnt/copy").read_text() == "content"
    assert user.s3.get_object(Bucket=BUCKET, Key="for-a-step-too")["Body"].read() == b"content"


def meets(folder: Path, name: str, other: str) -> str:
    """Return a shell command that ends only if the other one runs at the same time."""
    return f"touch {folder / name}; {until(folder / other)}"


def test_steps_run_concurrently_up_to_the_concurrency_level(user: User, tmp_path: Path) -> None:
    steps = [bash(meets(tmp_path, "a", "b")), bash(meets(tmp_path, "b", "a"))]
    cluster_id = user.run(*steps, StepConcurrencyLevel=2)
    assert user.step_states(cluster_id) == ["COMPLETED", "COMPLETED"]


def test_no_more_steps_run_than_the_concurrency_level(user: User, tmp_path: Path) -> None:
    go = tmp_path / "go"
    cluster_id = user.start(*[bash(until(go))] * 3, StepConcurrencyLevel=2)
    wait_until(lambda: user.step_states(cluster_id)[:2] == ["RUNNING", "RUNNING"], "two running steps")
    assert user.step_states(cluster_id)[2] == "PENDING"
    go.touch()
    user.wait_for(cluster_id, "TERMINATED")
    assert user.step_states(cluster_id) == ["COMPLETED"] * 3


def test_all_running_steps_are_cancelled_when_their_cluster_terminates(user: User, tmp_path: Path) -> None:
    cluster_id = user.start(*[bash("sleep 60")] * 2, StepConcurrencyLevel=2)
    wait_until(lambda: user.step_states(cluster_id) == ["RUNNING", "RUNNING"], "two running steps")
    user.terminate(cluster_id)
    user.wait_for(cluster_id, "TERMINATED")
    assert user.step_states(cluster_id) == ["CANCELLED", "CANCELLED"]
