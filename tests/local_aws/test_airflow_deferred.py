"""Airflow's own EMR operators and sensors in deferrable mode: the worker's part, and the triggerer's."""

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
def held(tmp_path: Path) -> Path:
    """A file that a step waits for, so that a sensor finds it unfinished."""
    return tmp_path / "go"


@pytest.fixture(scope="module")
def waiting(own: User) -> str:
    """A cluster that waits for steps, where faults strike no others."""
    cluster_id = own.start(keep_alive=True)
    own.wait_for(cluster_id, "WAITING")
    return cluster_id


@pytest.fixture
def step_id(own: User, waiting: str, held: Path) -> str:
    """A step that is held."""
    (added,) = own.add(waiting, bash(until(held)))
    return added


@pytest.fixture(scope="module")
def broken(own: User) -> str:
    """A cluster whose bootstrap action failed."""
    return own.run(bootstrap=[(failing_action(own),)])


def create(*steps: Any, keep_alive: bool = False, bootstrap: str | None = None, **how: Any) -> EmrCreateJobFlowOperator:
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
        task_id="create", emr_conn_id=None, job_flow_overrides=request, deferrable=True, **POLLING, **how
    )


def add(cluster_id: str, *steps: Any) -> EmrAddStepsOperator:
    return EmrAddStepsOperator(task_id="add", job_flow_id=cluster_id, steps=list(steps), deferrable=True, **POLLING)


def terminate(cluster_id: str) -> EmrTerminateJobFlowOperator:
    return EmrTerminateJobFlowOperator(task_id="end", job_flow_id=cluster_id, deferrable=True, **POLLING)


def cluster_sensor(cluster_id: str, **how: Any) -> EmrJobFlowSensor:
    return EmrJobFlowSensor(task_id="wait", job_flow_id=cluster_id, deferrable=True, poke_interval=1, **how)


def step_sensor(cluster_id: str, step_id: str, **how: Any) -> EmrStepSensor:
    return EmrStepSensor(
        task_id="wait", job_flow_id=cluster_id, step_id=step_id, deferrable=True, poke_interval=1, **how
    )


def test_create_is_deferred_until_the_cluster_takes_steps(own: User) -> None:
    operator = create(keep_alive=True, wait_for_completion=True)
    deferred = defer(operator)
    event = fire(deferred)
    cluster_id = resume(operator, deferred, event)
    assert event == {"status": "success", "job_flow_id": cluster_id}
    assert own.state(cluster_id) in ("RUNNING", "WAITING")


def test_create_is_deferred_until_the_steps_are_over(own: User) -> None:
    operator = create(bash("sleep 0.2"), wait_policy=WaitPolicy.WAIT_FOR_STEPS_COMPLETION)
    deferred = defer(operator)
    cluster_id = resume(operator, deferred, fire(deferred))
    assert own.state(cluster_id) == "TERMINATED"
    assert own.step_states(cluster_id) == ["COMPLETED"]


def test_a_deferred_create_fails_when_bootstrapping_fails_and_says_why(own: User) -> None:
    operator = create(bootstrap=failing_action(own), wait_for_completion=True)
    deferred = defer(operator)
    event = fire(deferred)
    assert event["status"] == "error"
    for part in ("JobFlow creation failed: TERMINATED_WITH_ERRORS", "bootstrap action 1", "'BOOTSTRAP_FAILURE'"):
        assert part in event["message"]
    with pytest.raises(AirflowException, match="Error creating jobFlow"):
        resume(operator, deferred, event)


def test_added_steps_are_waited_for_by_their_ids(own: User, waiting: str) -> None:
    # An earlier step that failed must not be taken for one of these.
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


def test_more_than_ten_steps_are_added_but_cannot_be_waited_for(own: User, waiting: str) -> None:
    # The trigger names all of them to ListSteps, which takes ten: this is what happens on EMR, too.
    operator = add(waiting, *[bash("true")] * 11)
    event = fire(defer(operator))
    assert event["status"] == "error"
    assert "InvalidRequestException" in event["message"]
    own.wait_for_step(waiting, event["value"][-1], "COMPLETED")


def test_terminate_is_deferred_until_the_cluster_is_gone(own: User) -> None:
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


def test_a_deferred_cluster_sensor_waits_for_the_end_of_the_cluster(own: User, held: Path) -> None:
    cluster_id = own.start(bash(until(held)))
    sensor = cluster_sensor(cluster_id, target_states=["WAITING"])
    deferred = defer(sensor)
    held.touch()
    event = fire(deferred)
    assert event == {"status": "success", "value": None}
    resume(sensor, deferred, event)
    assert own.state(cluster_id) == "TERMINATED"


def test_a_deferred_cluster_sensor_says_why_the_cluster_failed(own: User, held: Path) -> None:
    cluster_id = own.start(bash(f"{until(held)}; exit 3", on_failure="TERMINATE_CLUSTER"))
    sensor = cluster_sensor(cluster_id)
    deferred = defer(sensor)
    held.touch()
    event = fire(deferred)
    assert event["status"] == "error"
    assert "'Code': 'STEP_FAILURE'" in event["message"]
    with pytest.raises(AirflowException, match="TERMINATED_WITH_ERRORS"):
        resume(sensor, deferred, event)


def test_a_deferred_step_sensor_waits_until_the_step_is_over(own: User, waiting: str, step_id: str, held: Path) -> None:
    sensor = step_sensor(waiting, step_id)
    deferred = defer(sensor)
    held.touch()
    event = fire(deferred)
    assert event == {"status": "success", "value": None}
    resume(sensor, deferred, event)
    assert own.step(waiting, step_id)["Status"]["State"] == "COMPLETED"


def test_a_deferred_step_sensor_says_why_the_step_failed_and_where_its_log_is(
    own: User, waiting: str, held: Path
) -> None:
    (step_id,) = own.add(waiting, bash(f"{until(held)}; exit 3"))
    sensor = step_sensor(waiting, step_id)
    deferred = defer(sensor)
    held.touch()
    event = fire(deferred)
    assert event["status"] == "error"
    assert f"Error while waiting for step {step_id} to complete: FAILED - " in event["message"]
    assert f"'LogFile': '{LOG_URI}{waiting}/steps/{step_id}/stderr.gz'" in event["message"]
    with pytest.raises(AirflowException, match="terminal failure"):
        resume(sensor, deferred, event)


def test_a_step_sensor_is_not_deferred_when_the_step_is_over_already(own: User, waiting: str) -> None:
    completed, failed = own.add(waiting, bash("true"), bash("exit 3"))
    own.wait_for_step(waiting, failed, "FAILED")
    assert execute(step_sensor(waiting, completed)) is None
    with pytest.raises(AirflowException, match=f"{failed}/stderr.gz"):
        execute(step_sensor(waiting, failed))


def test_a_deferred_step_sensor_loses_patience(own: User, waiting: str, step_id: str, held: Path) -> None:
    event = fire(defer(step_sensor(waiting, step_id, max_attempts=2)))
    held.touch()
    own.wait_for_step(waiting, step_id, "COMPLETED")
    assert event["status"] == "error"
    assert "max attempts reached" in event["message"]


def test_a_trigger_that_is_throttled_asks_again(
    own: User, waiting: str, step_id: str, held: Path, local_aws: LocalAwsClient
) -> None:
    sensor = step_sensor(waiting, step_id, botocore_config=ONE_CALL)
    deferred = defer(sensor)
    local_aws.fail("emr:DescribeStep", "ThrottlingException", calls=[1, 2])
    held.touch()
    assert fire(deferred)["status"] == "success"
    (fault,) = local_aws.faults()
    assert fault["struck"] == 2


@pytest.mark.parametrize("answer", ["ThrottlingException", "InternalServerException"])
def test_a_call_that_goes_wrong_once_is_repeated_within_a_poll(
    own: User, waiting: str, step_id: str, held: Path, local_aws: LocalAwsClient, answer: Answer
) -> None:
    sensor = step_sensor(waiting, step_id, max_attempts=1)
    deferred = defer(sensor)
    held.touch()
    own.wait_for_step(waiting, step_id, "COMPLETED")
    local_aws.fail("emr:DescribeStep", answer, calls=[1])
    assert fire(deferred)["status"] == "success"
    (fault,) = local_aws.faults()
    assert (fault["seen"], fault["struck"]) == (2, 1)


def test_a_trigger_without_permission_fails_at_once(
    own: User, waiting: str, step_id: str, held: Path, local_aws: LocalAwsClient
) -> None:
    sensor = step_sensor(waiting, step_id)
    deferred = defer(sensor)
    local_aws.fail("emr:DescribeStep", "AccessDeniedException")
    event = fire(deferred)
    held.touch()
    assert event["status"] == "error"
    assert "AccessDeniedException" in event["message"]


def test_a_deferred_step_sensor_fails_when_the_cluster_is_lost(
    own: User, held: Path, local_aws: LocalAwsClient
) -> None:
    cluster_id = own.start(bash(until(held)), keep_alive=True)
    own.wait_for(cluster_id, "RUNNING")
    (step,) = own.steps(cluster_id)
    sensor = step_sensor(cluster_id, step["Id"])
    deferred = defer(sensor)
    local_aws.lose_instances(cluster_id)
    event = fire(deferred)
    assert event["status"] == "error"
    with pytest.raises(AirflowException, match="terminal failure"):
        resume(sensor, deferred, event)
