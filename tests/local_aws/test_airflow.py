"""The EMR operators, sensors, hook and links of the Amazon provider, as an Airflow worker runs them."""

from pathlib import Path
from typing import Any

import pytest
from airflow.providers.amazon.aws.hooks.emr import EmrHook
from airflow.providers.amazon.aws.links.emr import EmrClusterLink, EmrLogsLink, get_log_uri
from airflow.providers.amazon.aws.operators.emr import (
    EmrAddStepsOperator,
    EmrCreateJobFlowOperator,
    EmrModifyClusterOperator,
    EmrTerminateJobFlowOperator,
)
from airflow.providers.amazon.aws.sensors.emr import EmrJobFlowSensor, EmrStepSensor
from airflow.providers.amazon.aws.utils.waiter import WaitPolicy
from airflow.sdk.exceptions import AirflowException, AirflowRescheduleException, AirflowSensorTimeout
from botocore.exceptions import ClientError, WaiterError

from tests.local_aws.airflow_task import POLLING, TaskInstance, execute, failing_action, point_airflow_at
from tests.local_aws.user import BUCKET, LOG_URI, REGION, ROLES, User, bash, until, wait_until

KEEP_ALIVE = {"MasterInstanceType": "m5.xlarge", "InstanceCount": 1, "KeepJobFlowAliveWhenNoSteps": True}
ONE_SHOT = {**KEEP_ALIVE, "KeepJobFlowAliveWhenNoSteps": False}
READY = ["RUNNING", "WAITING"]


@pytest.fixture(autouse=True)
def airflow(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    point_airflow_at(
        user.endpoint_url,
        monkeypatch,
        ReleaseLabel="emr-7.14.0",
        LogUri=LOG_URI,
        **ROLES,
        Instances=KEEP_ALIVE,
        Name="default",
    )


@pytest.fixture
def hook() -> EmrHook:
    return EmrHook()


@pytest.fixture(scope="module")
def broken(user: User) -> str:
    """A cluster whose bootstrap action failed."""
    return user.run(bootstrap=[(failing_action(user),)], Name="broken")


def held_action(user: User, release: Path) -> dict[str, Any]:
    """Return a bootstrap action that runs until a file exists."""
    script = user.put(f"airflow/hold-{release.parent.name}.sh", f"#!/bin/bash\n{until(release)}\n")
    return {"Name": "hold", "ScriptBootstrapAction": {"Path": script}}


def create(**arguments: Any) -> EmrCreateJobFlowOperator:
    return EmrCreateJobFlowOperator(task_id="create", **{**POLLING, **arguments})


def add(*steps: Any, **arguments: Any) -> EmrAddStepsOperator:
    return EmrAddStepsOperator(task_id="add", steps=list(steps), **POLLING, **arguments)


def modify(cluster_id: str, step_concurrency_level: int) -> EmrModifyClusterOperator:
    return EmrModifyClusterOperator(
        task_id="modify", cluster_id=cluster_id, step_concurrency_level=step_concurrency_level
    )


def terminate(cluster_id: str) -> EmrTerminateJobFlowOperator:
    return EmrTerminateJobFlowOperator(task_id="terminate", job_flow_id=cluster_id)


def cluster_sensor(cluster_id: str, **arguments: Any) -> EmrJobFlowSensor:
    return EmrJobFlowSensor(task_id="ready", job_flow_id=cluster_id, poke_interval=0.2, timeout=30, **arguments)


def step_sensor(cluster_id: str, step_id: str, **arguments: Any) -> EmrStepSensor:
    options = {"poke_interval": 0.2, "timeout": 30, **arguments}
    return EmrStepSensor(task_id="wait", job_flow_id=cluster_id, step_id=step_id, **options)


def test_create_merges_the_emr_connection_and_its_overrides(user: User) -> None:
    cluster_id = execute(create(job_flow_overrides={"Name": "overridden"}))
    cluster = user.cluster(cluster_id)
    assert (cluster["Name"], cluster["ReleaseLabel"]) == ("overridden", "emr-7.14.0")


def test_create_without_a_connection_uses_only_the_overrides(user: User) -> None:
    request = {"Name": "alone", "ReleaseLabel": "emr-7.14.0", "Instances": ONE_SHOT, **ROLES}
    cluster_id = execute(create(emr_conn_id=None, job_flow_overrides=str(request)))
    assert "LogUri" not in user.cluster(cluster_id)


def test_create_does_not_wait_by_default(user: User, tmp_path: Path) -> None:
    cluster_id = execute(create(job_flow_overrides={"BootstrapActions": [held_action(user, tmp_path / "go")]}))
    assert user.state(cluster_id) in ("STARTING", "BOOTSTRAPPING")
    user.terminate(cluster_id)


@pytest.mark.parametrize("options", [{"wait_for_completion": True}, {"wait_policy": WaitPolicy.WAIT_FOR_COMPLETION}])
def test_create_that_waits_for_completion_returns_when_the_cluster_accepts_steps(user: User, options: Any) -> None:
    assert user.state(execute(create(**options))) in READY


def test_create_that_waits_for_steps_returns_after_the_cluster_has_terminated(user: User) -> None:
    request = {"Instances": ONE_SHOT, "Steps": [bash("sleep 0.2")]}
    cluster_id = execute(create(wait_policy=WaitPolicy.WAIT_FOR_STEPS_COMPLETION, job_flow_overrides=request))
    assert (user.state(cluster_id), user.end_code(cluster_id)) == ("TERMINATED", "ALL_STEPS_COMPLETED")
    assert user.step_states(cluster_id) == ["COMPLETED"]


def test_create_that_waits_fails_when_bootstrapping_fails(user: User) -> None:
    action = {"Name": "fail", "ScriptBootstrapAction": {"Path": failing_action(user)}}
    task_instance = TaskInstance()
    with pytest.raises(WaiterError, match='matched expected path: "TERMINATED_WITH_ERRORS"'):
        execute(create(wait_for_completion=True, job_flow_overrides={"BootstrapActions": [action]}), task_instance)
    cluster_id = task_instance.xcoms["emr_cluster"]["job_flow_id"]
    # The operator then requests termination of the ended cluster, which must not change its reason.
    assert (user.state(cluster_id), user.end_code(cluster_id)) == ("TERMINATED_WITH_ERRORS", "BOOTSTRAP_FAILURE")


def test_create_that_times_out_terminates_the_cluster(user: User, tmp_path: Path) -> None:
    request = {"BootstrapActions": [held_action(user, tmp_path / "go")]}
    task_instance = TaskInstance()
    with pytest.raises(WaiterError, match="Max attempts exceeded"):
        execute(create(wait_for_completion=True, waiter_max_attempts=1, job_flow_overrides=request), task_instance)
    cluster_id = task_instance.xcoms["emr_cluster"]["job_flow_id"]
    user.wait_for(cluster_id, "TERMINATED")
    assert user.end_code(cluster_id) == "USER_REQUEST"


def test_a_killed_create_task_terminates_its_cluster(user: User) -> None:
    operator = create()
    cluster_id = execute(operator)
    operator.on_kill()
    user.wait_for(cluster_id, "TERMINATED")


def test_added_steps_run_in_order(user: User, waiting: str, tmp_path: Path) -> None:
    steps = [bash(f"echo {number} >> {tmp_path}/output") for number in (1, 2)]
    task_instance = TaskInstance()
    step_ids = execute(add(*steps, job_flow_id=waiting), task_instance)
    user.wait_for_step(waiting, step_ids[1], "COMPLETED")
    assert (tmp_path / "output").read_text().split() == ["1", "2"]
    assert task_instance.xcoms["job_flow_id"] == waiting


def test_add_that_waits_returns_after_all_its_steps_completed(user: User, waiting: str) -> None:
    step_ids = execute(add(bash("true"), bash("sleep 0.2"), job_flow_id=waiting, wait_for_completion=True))
    assert [user.step(waiting, step_id)["Status"]["State"] for step_id in step_ids] == ["COMPLETED"] * 2


def test_add_that_waits_fails_when_a_step_fails(user: User, waiting: str) -> None:
    with pytest.raises(AirflowException, match=r'EMR Steps failed: s-.* matched expected path: "FAILED"'):
        execute(add(bash("exit 3"), job_flow_id=waiting, wait_for_completion=True))


def test_add_finds_the_cluster_by_name_and_state(user: User) -> None:
    user.run(Name="nightly")
    cluster_id = user.start(Name="nightly", keep_alive=True)
    user.wait_for(cluster_id, *READY)
    execute(add(bash("true"), job_flow_name="nightly", cluster_states=READY, wait_for_completion=True))
    assert user.step_states(cluster_id) == ["COMPLETED"]


def test_steps_cannot_be_added_to_an_ended_cluster(broken: str) -> None:
    with pytest.raises(ClientError, match="ValidationException"):
        execute(add(bash("true"), job_flow_id=broken))


def test_modify_changes_the_step_concurrency_level(user: User, tmp_path: Path) -> None:
    cluster_id = execute(create(wait_for_completion=True))
    assert execute(modify(cluster_id, step_concurrency_level=2)) == 2
    # Each step waits for the other.
    steps = [bash(f"touch {tmp_path}/{one}; {until(tmp_path / other)}") for one, other in ("ab", "ba")]
    execute(add(*steps, job_flow_id=cluster_id, wait_for_completion=True))


def test_an_ended_cluster_cannot_be_modified(broken: str) -> None:
    with pytest.raises(ClientError, match="may not be modified"):
        execute(modify(broken, step_concurrency_level=2))


def test_terminate_returns_while_the_cluster_is_terminating(user: User, tmp_path: Path) -> None:
    # A step that handles SIGTERM slowly keeps the cluster TERMINATING.
    step = bash(f"trap '{until(tmp_path / 'go')}; exit' TERM; touch {tmp_path}/ready; sleep 60 & wait")
    cluster_id = user.start(step, keep_alive=True)
    wait_until((tmp_path / "ready").exists, "the step")
    assert execute(terminate(cluster_id)) is None
    assert user.state(cluster_id) == "TERMINATING"
    (tmp_path / "go").touch()
    user.wait_for(cluster_id, "TERMINATED")
    assert user.end_code(cluster_id) == "USER_REQUEST"


def test_terminate_does_not_change_a_cluster_that_ended_with_errors(user: User, broken: str) -> None:
    execute(terminate(broken))
    assert (user.state(broken), user.end_code(broken)) == ("TERMINATED_WITH_ERRORS", "BOOTSTRAP_FAILURE")


def test_terminate_of_a_protected_cluster_fails(user: User) -> None:
    cluster_id = user.start(keep_alive=True, Instances={"TerminationProtected": True})
    user.wait_for(cluster_id, "WAITING")
    with pytest.raises(ClientError, match=r"ValidationException.*protected"):
        execute(terminate(cluster_id))
    assert user.state(cluster_id) == "WAITING"


def test_a_cluster_sensor_waits_until_the_cluster_accepts_steps(user: User) -> None:
    cluster_id = user.start(keep_alive=True)
    execute(cluster_sensor(cluster_id, target_states=READY))
    assert user.state(cluster_id) in READY


def test_a_cluster_sensor_in_reschedule_mode_polls_once_per_run(user: User, tmp_path: Path) -> None:
    cluster_id = execute(create(job_flow_overrides={"BootstrapActions": [held_action(user, tmp_path / "go")]}))
    sensor = cluster_sensor(cluster_id, target_states=READY, mode="reschedule")
    with pytest.raises(AirflowRescheduleException):
        execute(sensor)
    (tmp_path / "go").touch()
    user.wait_for(cluster_id, *READY)
    execute(sensor)


def test_a_cluster_sensor_reports_why_the_cluster_failed(broken: str) -> None:
    with pytest.raises(AirflowException, match=r"for code: BOOTSTRAP_FAILURE with message .*bootstrap action 1"):
        execute(cluster_sensor(broken, target_states=READY))


def test_a_step_sensor_waits_until_the_step_ends(user: User, waiting: str) -> None:
    (step_id,) = user.add(waiting, bash("sleep 0.2"))
    execute(step_sensor(waiting, step_id))
    assert user.step(waiting, step_id)["Status"]["State"] == "COMPLETED"


def test_a_step_sensor_reports_why_the_step_failed_and_its_log(user: User, waiting: str) -> None:
    (step_id,) = user.add(waiting, bash("echo broken >&2; exit 3"))
    with pytest.raises(AirflowException, match=r"for reason .* with message .* and log file") as failure:
        execute(step_sensor(waiting, step_id))
    log_file = str(failure.value).rpartition(" and log file ")[2]
    assert log_file == f"{LOG_URI}{waiting}/steps/{step_id}/stderr.gz"
    assert user.read_log(log_file) == "broken\n"


def test_a_step_sensor_fails_when_the_step_is_cancelled(user: User, waiting: str, tmp_path: Path) -> None:
    running, pending = user.add(waiting, bash(until(tmp_path / "go")), bash("true"))
    user.emr.cancel_steps(ClusterId=waiting, StepIds=[pending])
    with pytest.raises(AirflowException, match="EMR job failed"):
        execute(step_sensor(waiting, pending))
    (tmp_path / "go").touch()
    user.wait_for_step(waiting, running, "COMPLETED")


def test_a_step_sensor_times_out(user: User, waiting: str, tmp_path: Path) -> None:
    (step_id,) = user.add(waiting, bash(until(tmp_path / "go")))
    with pytest.raises(AirflowSensorTimeout):
        execute(step_sensor(waiting, step_id, timeout=0.2))
    (tmp_path / "go").touch()
    user.wait_for_step(waiting, step_id, "COMPLETED")


def test_the_hook_finds_a_cluster_by_name_and_state(user: User, hook: EmrHook, broken: str) -> None:
    assert hook.get_cluster_id_by_name("broken", ["TERMINATED_WITH_ERRORS"]) == broken
    assert hook.get_cluster_id_by_name("broken", ["TERMINATED"]) is None
    assert hook.get_cluster_id_by_name("unknown", []) is None
    for _ in range(2):
        user.start(Name="twins", LogUri=None)
    with pytest.raises(AirflowException, match="More than one cluster found for name twins"):
        hook.get_cluster_id_by_name("twins", [])


@pytest.mark.parametrize("name", ["cluster_running", "job_flow_waiting"])
def test_the_waiters_of_the_hook_work(user: User, hook: EmrHook, name: str) -> None:
    cluster_id = user.start(keep_alive=True)
    hook.get_waiter(name).wait(ClusterId=cluster_id, WaiterConfig={"Delay": 1})
    assert user.state(cluster_id) in READY


def test_every_task_links_to_the_cluster_and_its_logs(user: User, waiting: str) -> None:
    (step_id,) = user.add(waiting, bash("true"))
    console = "https://console.aws.amazon.com"
    for operator in (
        add(bash("true"), job_flow_id=waiting),
        modify(waiting, step_concurrency_level=1),
        cluster_sensor(waiting, target_states=READY),
        step_sensor(waiting, step_id),
    ):
        task_instance = TaskInstance()
        execute(operator, task_instance)
        cluster, logs = (task_instance.xcoms[link.key] for link in (EmrClusterLink, EmrLogsLink))
        assert EmrClusterLink().format_link(**cluster) == (
            f"{console}/emr/home?region={REGION}#/clusterDetails/{waiting}"
        )
        # The prefix that the provider builds is wrong if LogUri has a folder; its parts come from DescribeCluster.
        assert EmrLogsLink().format_link(**logs) == (
            f"{console}/s3/buckets/{BUCKET}/deep/logs/?region={REGION}&prefix={waiting}/"
        )


def test_the_log_uri_of_a_cluster_is_found(user: User, hook: EmrHook, waiting: str) -> None:
    without_logs = user.start(LogUri=None)
    assert get_log_uri(emr_client=hook.conn, job_flow_id=waiting) == LOG_URI.removeprefix("s3://")
    assert get_log_uri(emr_client=hook.conn, job_flow_id=without_logs) is None
