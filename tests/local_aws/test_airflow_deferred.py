"""The EMR operators and sensors of the Amazon provider in deferrable mode, in the worker and in the triggerer."""

from pathlib import Path
from typing import Any

import pytest
from airflow.providers.amazon.aws.operators.emr import (
    EmrAddStepsOperator,
    EmrCreateJobFlowOperator,
    EmrTerminateJobFlowOperator,
)
from airflow.providers.amazon.aws.sensors.emr import EmrJobFlowSensor, EmrStepSensor
from airflow.providers.amazon.aws.utils.waiter import WaitPolicy
from airflow.sdk.exceptions import AirflowException

from local_aws.client import Answer, LocalAwsClient
from tests.local_aws.airflow_task import POLLING, defer, execute, failing_action, fire, point_airflow_at, resume
from tests.local_aws.user import LOG_URI, ROLES, User, bash, until

ONE_CALL = {"retries": {"total_max_attempts": 1}}


@pytest.fixture(autouse=True)
def airflow(own: User, monkeypatch: pytest.MonkeyPatch) -> None:
    point_airflow_at(own.endpoint_url, monkeypatch)


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """The file that a step waits for, so that a sensor finds the step unfinished."""
    return tmp_path / "go"


@pytest.fixture(scope="module")
def waiting(own: User) -> str:
    """The id of a WAITING cluster, where faults do not affect other tests."""
    cluster_id = own.start(keep_alive=True)
    own.wait_for(cluster_id, "WAITING")
    return cluster_id


@pytest.fixture
def step_id(own: User, waiting: str, release: Path) -> str:
    """The id of a step that waits for the file `release`."""
    (added,) = own.add(waiting, bash(until(release)))
    return added


@pytest.fixture(scope="module")
def broken(own: User) -> str:
    """A cluster whose bootstrap action failed."""
    return own.run(bootstrap=[(failing_action(own),)])


def create(
    *steps: Any, keep_alive: bool = False, bootstrap: str | None = None, **options: Any
) -> EmrCreateJobFlowOperator:
    request = {
        "Name": "deferred",
        "ReleaseLabel": "emr-7.14.0",
        **ROLES,
        "LogUri": LOG_URI,
        "Instances": {"InstanceCount": 1, "MasterInstanceType": "m5.xlarge", "KeepJobFlowAliveWhenNoSteps": keep_alive},
        "BootstrapActions": [{"Name": "action", "ScriptBootstrapAction": {"Path": bootstrap}}] if bootstrap else [],
        "Steps": list(steps),
    }
    return EmrCreateJobFlowOperator(
        task_id="create", emr_conn_id=None, job_flow_overrides=request, deferrable=True, **POLLING, **options
    )


def add(cluster_id: str, *steps: Any) -> EmrAddStepsOperator:
    return EmrAddStepsOperator(task_id="add", job_flow_id=cluster_id, steps=list(steps), deferrable=True, **POLLING)


def terminate(cluster_id: str) -> EmrTerminateJobFlowOperator:
    return EmrTerminateJobFlowOperator(task_id="end", job_flow_id=cluster_id, deferrable=True, **POLLING)


def cluster_sensor(cluster_id: str, **options: Any) -> EmrJobFlowSensor:
    return EmrJobFlowSensor(task_id="wait", job_flow_id=cluster_id, deferrable=True, poke_interval=1, **options)


def step_sensor(cluster_id: str, step_id: str, **options: Any) -> EmrStepSensor:
    return EmrStepSensor(
        task_id="wait", job_flow_id=cluster_id, step_id=step_id, deferrable=True, poke_interval=1, **options
    )


def test_create_is_deferred_until_the_cluster_accepts_steps(own: User) -> None:
    operator = create(keep_alive=True, wait_for_completion=True)
    deferred = defer(operator)
    event = fire(deferred)
    cluster_id = resume(operator, deferred, event)
    assert event == {"status": "success", "job_flow_id": cluster_id}
    assert own.state(cluster_id) in ("RUNNING", "WAITING")


def test_create_is_deferred_until_the_steps_have_ended(own: User) -> None:
    operator = create(bash("sleep 0.2"), wait_policy=WaitPolicy.WAIT_FOR_STEPS_COMPLETION)
    deferred = defer(operator)
    cluster_id = resume(operator, deferred, fire(deferred))
    assert own.state(cluster_id) == "TERMINATED"
    assert own.step_states(cluster_id) == ["COMPLETED"]


def test_a_deferred_create_fails_with_the_reason_when_bootstrapping_fails(own: User) -> None:
    operator = create(bootstrap=failing_action(own), wait_for_completion=True)
    deferred = defer(operator)
    event = fire(deferred)
    assert event["status"] == "error"
    for part in ("JobFlow creation failed: TERMINATED_WITH_ERRORS", "bootstrap action 1", "'BOOTSTRAP_FAILURE'"):
        assert part in event["message"]
    with pytest.raises(AirflowException, match="Error creating jobFlow"):
        resume(operator, deferred, event)


def test_a_deferred_add_waits_for_the_steps_that_it_added(own: User, waiting: str) -> None:
    # An earlier step that failed must not count as one of the added steps.
    (failed,) = own.add(waiting, bash("exit 3"))
    operator = add(waiting, bash("true"), bash("sleep 0.2"))
    deferred = defer(operator)
    event = fire(deferred)
    step_ids = resume(operator, deferred, event)
    assert event == {"status": "success", "value": step_ids}
    assert [own.step(waiting, step_id)["Status"]["State"] for step_id in step_ids] == ["COMPLETED"] * 2
    assert failed not in step_ids


def test_one_failing_step_fails_the_task_that_added_several(waiting: str) -> None:
    operator = add(waiting, bash("true"), bash("exit 3"))
    deferred = defer(operator)
    event = fire(deferred)
    assert event["status"] == "error"
    assert f"Error while waiting for steps {event['value']} to complete" in event["message"]
    assert "stderr.gz" in event["message"]
    with pytest.raises(AirflowException, match="Error while running steps"):
        resume(operator, deferred, event)


def test_more_than_ten_steps_are_added_but_the_wait_for_them_fails(own: User, waiting: str) -> None:
    # The trigger passes all step ids to ListSteps, which accepts ten: the same happens on EMR.
    operator = add(waiting, *[bash("true")] * 11)
    event = fire(defer(operator))
    assert event["status"] == "error"
    assert "InvalidRequestException" in event["message"]
    own.wait_for_step(waiting, event["value"][-1], "COMPLETED")


def test_terminate_is_deferred_until_the_cluster_is_terminated(own: User) -> None:
    cluster_id = own.start(keep_alive=True)
    operator = terminate(cluster_id)
    deferred = defer(operator)
    event = fire(deferred)
    assert event == {"status": "success", "value": None}
    assert resume(operator, deferred, event) is None
    assert own.state(cluster_id) == "TERMINATED"


def test_a_deferred_terminate_fails_on_a_cluster_that_ended_with_errors(broken: str) -> None:
    operator = terminate(broken)
    deferred = defer(operator)
    event = fire(deferred)
    assert event["status"] == "error"
    assert "JobFlow termination failed: TERMINATED_WITH_ERRORS" in event["message"]
    with pytest.raises(AirflowException, match="BOOTSTRAP_FAILURE"):
        resume(operator, deferred, event)


def test_a_deferred_cluster_sensor_waits_until_the_cluster_ends(own: User, release: Path) -> None:
    cluster_id = own.start(bash(until(release)))
    sensor = cluster_sensor(cluster_id, target_states=["WAITING"])
    deferred = defer(sensor)
    release.touch()
    event = fire(deferred)
    assert event == {"status": "success", "value": None}
    resume(sensor, deferred, event)
    assert own.state(cluster_id) == "TERMINATED"


def test_a_deferred_cluster_sensor_reports_why_the_cluster_failed(own: User, release: Path) -> None:
    cluster_id = own.start(bash(f"{until(release)}; exit 3", on_failure="TERMINATE_CLUSTER"))
    sensor = cluster_sensor(cluster_id)
    deferred = defer(sensor)
    release.touch()
    event = fire(deferred)
    assert event["status"] == "error"
    assert "'Code': 'STEP_FAILURE'" in event["message"]
    with pytest.raises(AirflowException, match="TERMINATED_WITH_ERRORS"):
        resume(sensor, deferred, event)


def test_a_deferred_step_sensor_waits_until_the_step_ends(own: User, waiting: str, step_id: str, release: Path) -> None:
    sensor = step_sensor(waiting, step_id)
    deferred = defer(sensor)
    release.touch()
    event = fire(deferred)
    assert event == {"status": "success", "value": None}
    resume(sensor, deferred, event)
    assert own.step(waiting, step_id)["Status"]["State"] == "COMPLETED"


def test_a_deferred_step_sensor_reports_why_the_step_failed_and_its_log(own: User, waiting: str, release: Path) -> None:
    (step_id,) = own.add(waiting, bash(f"{until(release)}; exit 3"))
    sensor = step_sensor(waiting, step_id)
    deferred = defer(sensor)
    release.touch()
    event = fire(deferred)
    assert event["status"] == "error"
    assert f"Error while waiting for step {step_id} to complete: FAILED - " in event["message"]
    assert f"'LogFile': '{LOG_URI}{waiting}/steps/{step_id}/stderr.gz'" in event["message"]
    with pytest.raises(AirflowException, match="terminal failure"):
        resume(sensor, deferred, event)


def test_a_step_sensor_is_not_deferred_when_the_step_has_already_ended(own: User, waiting: str) -> None:
    completed, failed = own.add(waiting, bash("true"), bash("exit 3"))
    own.wait_for_step(waiting, failed, "FAILED")
    assert execute(step_sensor(waiting, completed)) is None
    with pytest.raises(AirflowException, match=f"{failed}/stderr.gz"):
        execute(step_sensor(waiting, failed))


def test_a_deferred_step_sensor_times_out(own: User, waiting: str, step_id: str, release: Path) -> None:
    event = fire(defer(step_sensor(waiting, step_id, max_attempts=2)))
    release.touch()
    own.wait_for_step(waiting, step_id, "COMPLETED")
    assert event["status"] == "error"
    assert "max attempts reached" in event["message"]


def test_a_throttled_trigger_retries(
    own: User, waiting: str, step_id: str, release: Path, local_aws: LocalAwsClient
) -> None:
    sensor = step_sensor(waiting, step_id, botocore_config=ONE_CALL)
    deferred = defer(sensor)
    local_aws.fail("emr:DescribeStep", "ThrottlingException", calls=[1, 2])
    release.touch()
    assert fire(deferred)["status"] == "success"
    (fault,) = local_aws.faults()
    assert fault["struck"] == 2


@pytest.mark.parametrize("answer", ["ThrottlingException", "InternalServerException"])
def test_a_call_that_fails_once_is_retried_within_the_same_poll(
    own: User, waiting: str, step_id: str, release: Path, local_aws: LocalAwsClient, answer: Answer
) -> None:
    sensor = step_sensor(waiting, step_id, max_attempts=1)
    deferred = defer(sensor)
    release.touch()
    own.wait_for_step(waiting, step_id, "COMPLETED")
    local_aws.fail("emr:DescribeStep", answer, calls=[1])
    assert fire(deferred)["status"] == "success"
    (fault,) = local_aws.faults()
    assert (fault["seen"], fault["struck"]) == (2, 1)


def test_a_trigger_without_permission_fails_immediately(
    own: User, waiting: str, step_id: str, release: Path, local_aws: LocalAwsClient
) -> None:
    sensor = step_sensor(waiting, step_id)
    deferred = defer(sensor)
    local_aws.fail("emr:DescribeStep", "AccessDeniedException")
    event = fire(deferred)
    release.touch()
    assert event["status"] == "error"
    assert "AccessDeniedException" in event["message"]


def test_a_deferred_step_sensor_fails_when_the_cluster_is_lost(
    own: User, release: Path, local_aws: LocalAwsClient
) -> None:
    cluster_id = own.start(bash(until(release)), keep_alive=True)
    own.wait_for(cluster_id, "RUNNING")
    (step,) = own.steps(cluster_id)
    sensor = step_sensor(cluster_id, step["Id"])
    deferred = defer(sensor)
    local_aws.lose_instances(cluster_id)
    event = fire(deferred)
    assert event["status"] == "error"
    with pytest.raises(AirflowException, match="terminal failure"):
        resume(sensor, deferred, event)
