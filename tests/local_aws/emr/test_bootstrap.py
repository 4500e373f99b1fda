from pathlib import Path

import pytest

from tests.local_aws.user import BUCKET, LOG_URI, User, bash, grandchild, read_pid, until, wait_for_death, wait_until

LOGS = ["controller.gz", "stderr.gz", "stdout.gz"]


@pytest.fixture
def print_script(user: User) -> str:
    """The URI of a script that prints its arguments."""
    return user.put("print.sh", '#!/bin/bash\nprintf "%s\\n" "$@"\necho oops >&2\n')


def logs_of(user: User, cluster_id: str, number: int) -> str:
    """Return the prefix of the logs of a bootstrap action."""
    instance = user.emr.list_instances(ClusterId=cluster_id)["Instances"][0]["Ec2InstanceId"]
    return f"{LOG_URI}{cluster_id}/node/{instance}/bootstrap-actions/{number}/"


def test_paths_of_the_node_in_the_arguments_of_an_action_are_rewritten(
    user: User, data: Path, print_script: str
) -> None:
    arguments = ["--prefix", "/opt/thing", "--to=/mnt/a b", "s3://bucket/opt/thing", ""]
    cluster_id = user.run(bootstrap=[(print_script, *arguments)])
    root = data / "clusters" / cluster_id
    assert user.read_log(f"{logs_of(user, cluster_id, 1)}stdout.gz").split("\n")[:-1] == [
        "--prefix",
        f"{root}/opt/thing",
        f"--to={root}/mnt/a b",
        "s3://bucket/opt/thing",
        "",
    ]


def test_each_action_has_its_logs(user: User, print_script: str) -> None:
    cluster_id = user.run(bootstrap=[(print_script, "first"), (print_script, "second")])
    for number, word in enumerate(["first", "second"], start=1):
        folder = logs_of(user, cluster_id, number)
        assert user.keys(folder) == LOGS
        assert user.read_log(f"{folder}stdout.gz") == f"{word}\n"
        assert user.read_log(f"{folder}stderr.gz") == "oops\n"
        assert user.read_log(f"{folder}controller.gz").endswith(f"bootstrap-action-{number} {word}\n")


def test_actions_run_in_order_before_the_steps_on_the_same_node(user: User, data: Path) -> None:
    append = user.put("append.sh", '#!/bin/bash\necho "$1" >> "$2"\n')
    cluster_id = user.run(
        bash("echo step >> /mnt/made"), bootstrap=[(append, "first", "/mnt/made"), (append, "second", "/mnt/made")]
    )
    assert (data / "clusters" / cluster_id / "mnt/made").read_text().split() == ["first", "second", "step"]


def test_what_an_action_has_installed_is_deleted_with_the_cluster_and_its_logs_stay(user: User, data: Path) -> None:
    install = user.put("install.sh", '#!/bin/bash\necho library > "$1"\n')
    cluster_id = user.run(bash("cat /opt/installed"), bootstrap=[(install, "/opt/installed")])
    root = data / "clusters" / cluster_id
    assert user.step_states(cluster_id) == ["COMPLETED"]
    wait_until(lambda: not (root / "opt").exists(), "the deletion")
    assert (root / "var/log/bootstrap-actions/1/stdout").exists()


def test_a_failed_action_ends_the_cluster_with_errors_before_anything_else_runs(user: User, tmp_path: Path) -> None:
    fail = user.put("fail.sh", "#!/bin/bash\necho broken >&2\nexit 7\n")
    touch = user.put("touch.sh", '#!/bin/bash\ntouch "$1"\n')
    cluster_id = user.run(
        bash(f"touch {tmp_path}/step"), bootstrap=[(fail,), (touch, f"{tmp_path}/action")], keep_alive=True
    )
    status = user.cluster(cluster_id)["Status"]
    assert status["State"] == "TERMINATED_WITH_ERRORS"
    assert status["StateChangeReason"]["Code"] == "BOOTSTRAP_FAILURE"
    log = f"{logs_of(user, cluster_id, 1)}stderr.gz"
    message = f"bootstrap action 1 returned a non-zero return code: 7; its log is {log}"
    assert message in status["StateChangeReason"]["Message"]
    assert [error["ErrorCode"] for error in status["ErrorDetails"]] == ["BOOTSTRAP_FAILURE"]
    assert user.step_states(cluster_id) == ["CANCELLED"]
    assert list(tmp_path.iterdir()) == []
    assert user.read_log(log) == "broken\n"


def test_without_log_uri_a_failed_action_reports_the_path_of_its_local_log(user: User) -> None:
    fail = user.put("fail.sh", "#!/bin/bash\necho broken >&2\nexit 7\n")
    status = user.cluster(user.run(bootstrap=[(fail,)], LogUri=None))["Status"]
    assert Path(status["StateChangeReason"]["Message"].rpartition(" ")[2]).read_text() == "broken\n"


@pytest.mark.parametrize(
    ("uri", "part"),
    [
        (f"s3://{BUCKET}/no/such/script.sh", "NoSuchKey"),
        ("s3://no-such-bucket/script.sh", "NoSuchBucket"),
        (f"s3://{BUCKET}/no-interpreter.sh", "No such file or directory"),
    ],
)
def test_an_action_that_cannot_start_is_a_bootstrap_failure_with_the_reason(user: User, uri: str, part: str) -> None:
    user.put("no-interpreter.sh", "#!/no/such/interpreter\n")
    cluster_id = user.run(bash("true"), bootstrap=[(uri,)])
    status = user.cluster(cluster_id)["Status"]
    assert (status["State"], user.end_code(cluster_id)) == ("TERMINATED_WITH_ERRORS", "BOOTSTRAP_FAILURE")
    assert f"bootstrap action 1, {uri}: " in status["StateChangeReason"]["Message"]
    assert part in status["StateChangeReason"]["Message"]
    assert user.step_states(cluster_id) == ["CANCELLED"]


def test_termination_during_an_action_kills_all_its_processes(user: User, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = user.put("family.sh", f"#!/bin/bash\necho started\n{grandchild(pid_file)}\n")
    cluster_id = user.start(bash("true"), bootstrap=[(script,)])
    pid = read_pid(pid_file)
    user.terminate(cluster_id)
    user.wait_for(cluster_id, "TERMINATED")
    wait_for_death(pid)
    assert user.end_code(cluster_id) == "USER_REQUEST"
    assert user.step_states(cluster_id) == ["CANCELLED"]
    assert user.read_log(f"{logs_of(user, cluster_id, 1)}stdout.gz") == "started\n"


def test_a_step_added_during_an_action_runs_after_it(user: User, tmp_path: Path) -> None:
    script = user.put("wait.sh", f"#!/bin/bash\n{until(tmp_path / 'go')}\n")
    cluster_id = user.start(bootstrap=[(script,)])
    user.wait_for(cluster_id, "BOOTSTRAPPING")
    (step_id,) = user.add(cluster_id, bash("true"))
    assert user.step(cluster_id, step_id)["Status"]["State"] == "PENDING"
    (tmp_path / "go").touch()
    user.wait_for(cluster_id, "TERMINATED")
    assert user.step_states(cluster_id) == ["COMPLETED"]


def test_bootstrap_actions_are_listed(user: User, print_script: str) -> None:
    cluster_id = user.run(bootstrap=[(print_script, "/opt/x"), (print_script,)])
    listed = user.emr.list_bootstrap_actions(ClusterId=cluster_id)["BootstrapActions"]
    assert listed == [
        {"Name": "action 1", "ScriptPath": print_script, "Args": ["/opt/x"]},
        {"Name": "action 2", "ScriptPath": print_script, "Args": []},
    ]
