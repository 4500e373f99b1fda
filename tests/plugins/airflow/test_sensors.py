"""The sensors and their trigger against a local AWS with injected faults."""

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException, TaskDeferred

from local_aws.client import LocalAwsClient
from orchard.airflow.links import StepLogsLink
from orchard.airflow.sensors import ClusterReadySensor
from orchard.cluster.emr_clusters import MAX_CLUSTERS_PER_RUN
from tests.local_aws.airflow_task import TaskInstance, defer, execute, fire, resume
from tests.local_aws.user import BUCKET, LOG_URI, REGION, User, bash, grandchild, read_pid, wait_for_death
from tests.plugins.airflow.tasks import (
    add_step,
    clusters_gone,
    clusters_of_run,
    create_cluster,
    step_config,
    wait_step,
    wait_until_ready,
)

pytestmark = pytest.mark.usefixtures("local_aws")


def test_the_id_of_the_cluster_that_is_ready_is_returned(request_: dict[str, Any]) -> None:
    created = execute(create_cluster(request_))
    assert wait_until_ready(request_, created) == created


def test_a_cluster_that_fails_to_start_for_a_temporary_reason_is_replaced(
    user: User, local_aws: LocalAwsClient, request_: dict[str, Any]
) -> None:
    local_aws.end_cluster("BOOTSTRAP_FAILURE", calls=[1])
    created = execute(create_cluster(request_))
    ready = wait_until_ready(request_, created)
    assert clusters_of_run(user, request_) == [ready, created]
    assert ready != created


def test_a_third_cluster_is_not_replaced(user: User, local_aws: LocalAwsClient, request_: dict[str, Any]) -> None:
    local_aws.end_cluster("BOOTSTRAP_FAILURE")
    created = execute(create_cluster(request_))
    message = r"did not start: .*BOOTSTRAP_FAILURE.*this was the last of 3 attempts"
    with pytest.raises(AirflowFailException, match=message):
        wait_until_ready(request_, created)
    clusters = clusters_of_run(user, request_)
    assert len(clusters) == 3
    assert {user.end_code(cluster) for cluster in clusters} == {"BOOTSTRAP_FAILURE"}


def with_bootstrap(user: User, request: dict[str, Any], script: str) -> dict[str, Any]:
    """Return the request with a bootstrap action that runs a shell script."""
    key = f"bootstrap/{request['Name']}.sh"
    user.s3.put_object(Bucket=BUCKET, Key=key, Body=f"#!/bin/bash\n{script}\n".encode())
    action = {"Name": "test", "ScriptBootstrapAction": {"Path": f"s3://{BUCKET}/{key}"}}
    return {**request, "BootstrapActions": [action]}


def test_a_cluster_that_is_not_ready_in_time_is_terminated_and_replaced_and_the_next_has_its_own_time(
    user: User, request_: dict[str, Any], tmp_path: Path
) -> None:
    first_only = f"test -e {tmp_path}/second && exit 0; touch {tmp_path}/second; sleep 60"
    request = with_bootstrap(user, request_, first_only)
    created = execute(create_cluster(request))
    ready = wait_until_ready(request, created, timedelta(seconds=3))
    assert clusters_of_run(user, request) == [ready, created]
    assert user.end_code(created) == "USER_REQUEST"


def test_three_launches_that_take_too_long_fail_without_a_cluster(user: User, request_: dict[str, Any]) -> None:
    request = with_bootstrap(user, request_, "sleep 60")
    created = execute(create_cluster(request))
    message = r"did not start: .* not ready within 0\.02 minutes; this was the last of 3 attempts"
    with pytest.raises(AirflowFailException, match=message):
        wait_until_ready(request, created, timedelta(seconds=1.2))
    clusters = clusters_of_run(user, request)
    assert len(clusters) == 3
    for cluster_id in clusters:
        user.wait_for(cluster_id, "TERMINATED")


def test_a_cluster_that_a_user_terminates_in_time_is_not_replaced(user: User, request_: dict[str, Any]) -> None:
    request = with_bootstrap(user, request_, "sleep 60")
    created = execute(create_cluster(request))
    user.terminate(created)
    user.wait_for(created, "TERMINATED")
    with pytest.raises(AirflowFailException, match="USER_REQUEST") as error:
        wait_until_ready(request, created)
    assert "not ready within" not in str(error.value)
    assert clusters_of_run(user, request) == [created]


def test_the_sensor_outlives_the_launches_that_it_limits() -> None:
    request: dict[str, Any] = {}
    sensor = ClusterReadySensor(
        task_id="cluster_ready", job_flow_id="j-1", request=request, launch_timeout=timedelta(minutes=30)
    )
    assert sensor.timeout > MAX_CLUSTERS_PER_RUN * 30 * 60


def test_a_replacement_that_emr_refuses_is_not_tried_again(
    user: User, local_aws: LocalAwsClient, request_: dict[str, Any]
) -> None:
    local_aws.end_cluster("BOOTSTRAP_FAILURE", calls=[1])
    local_aws.fail("emr:RunJobFlow", "ValidationException", calls=[2])
    created = execute(create_cluster(request_))
    with pytest.raises(AirflowFailException, match=r"EMR rejected the cluster: .*ValidationException"):
        wait_until_ready(request_, created)
    assert clusters_of_run(user, request_) == [created]


@pytest.mark.parametrize("reason", ["VALIDATION_ERROR", "USER_REQUEST"])
def test_a_cluster_that_fails_to_start_for_a_permanent_reason_is_not_replaced(
    user: User, local_aws: LocalAwsClient, request_: dict[str, Any], reason: str
) -> None:
    if reason == "VALIDATION_ERROR":
        local_aws.end_cluster("VALIDATION_ERROR")
    created = execute(create_cluster(request_))
    if reason == "USER_REQUEST":
        user.terminate(created)
    with pytest.raises(AirflowFailException, match=f"cluster {created} did not start: .*{reason}"):
        wait_until_ready(request_, created)
    assert clusters_of_run(user, request_) == [created]


def test_a_task_links_to_the_folder_of_its_steps_logs(cluster_id: str) -> None:
    step_id = execute(add_step(cluster_id, step_config("sleep 1")))
    task_instance = TaskInstance()
    with pytest.raises(TaskDeferred):
        execute(wait_step(cluster_id, step_id), task_instance)
    link = StepLogsLink().format_link(**task_instance.xcoms[StepLogsLink.key])
    assert link == (
        f"https://console.aws.amazon.com/s3/buckets/{BUCKET}?region={REGION}"
        f"&prefix=deep/logs/{cluster_id}/steps/{step_id}/"
    )


def test_the_sensor_waits_in_the_triggerer_until_a_step_completes(cluster_id: str) -> None:
    step_id = execute(add_step(cluster_id, step_config("sleep 1")))
    task = wait_step(cluster_id, step_id)
    deferred = defer(task)
    event = fire(deferred)
    assert event["status"] == "success"
    resume(task, deferred, event)


def test_a_failed_step_is_reported_with_its_exception_and_the_end_of_its_log(cluster_id: str) -> None:
    script = "for n in $(seq 80); do echo line $n; done; echo 'ValueError: no such fruit: pear' >&2; sleep 1; exit 3"
    step_id = execute(add_step(cluster_id, step_config(script)))
    task = wait_step(cluster_id, step_id)
    deferred = defer(task)
    with pytest.raises(AirflowFailException) as failed:
        resume(task, deferred, fire(deferred))
    lines = str(failed.value).splitlines()
    folder = f"{LOG_URI}{cluster_id}/steps/{step_id}/"
    assert f"({step_id}) is FAILED" in lines[0]
    assert lines[1] == "ValueError: no such fruit: pear"
    assert lines[2] == f"end of {folder}stderr.gz:"
    assert lines[-1] == f"all logs: {folder}"


def test_only_the_last_fifty_lines_of_a_long_log_are_reported(user: User, cluster_id: str) -> None:
    step_id = execute(add_step(cluster_id, step_config("for n in $(seq 80); do echo line $n; done; exit 3")))
    user.wait_for_step(cluster_id, step_id, "FAILED")
    with pytest.raises(AirflowFailException) as failed:
        execute(wait_step(cluster_id, step_id))
    lines = str(failed.value).splitlines()
    assert [line for line in lines if line.startswith("line ")] == [f"line {n}" for n in range(31, 81)]


def test_a_step_whose_cluster_was_terminated_is_reported_with_the_reason(user: User) -> None:
    terminated = user.start(bash("sleep 60"))
    (step,) = user.steps(terminated)
    user.wait_for_step(terminated, step["Id"], "RUNNING")
    user.terminate(terminated)
    user.wait_for(terminated, "TERMINATED")
    with pytest.raises(AirflowFailException, match="USER_REQUEST: Terminated by user request"):
        execute(wait_step(terminated, step["Id"]))


def test_a_step_that_exceeds_its_timeout_is_cancelled(user: User, cluster_id: str, tmp_path: Path) -> None:
    step_id = execute(add_step(cluster_id, step_config(grandchild(tmp_path / "pid"))))
    pid = read_pid(tmp_path / "pid")
    task = wait_step(cluster_id, step_id, step_timeout=timedelta(seconds=6))
    deferred = defer(task)
    event = fire(deferred)
    assert event["status"] == "error"
    message = "did not finish within 0.1 minutes and is cancelled; .* ORCHARD_INGEST_TIMEOUT_MINUTES"
    with pytest.raises(AirflowFailException, match=message):
        resume(task, deferred, event)
    user.wait_for_step(cluster_id, step_id, "CANCELLED")
    wait_for_death(pid)


def test_a_retry_does_not_extend_the_timeout_of_a_step(user: User, cluster_id: str) -> None:
    step_id = execute(add_step(cluster_id, step_config("sleep 60")))
    with pytest.raises(AirflowFailException, match="did not finish within 0 minutes"):
        execute(wait_step(cluster_id, step_id, step_timeout=timedelta(0)))
    user.wait_for_step(cluster_id, step_id, "CANCELLED")


def test_the_sensor_is_retried_when_a_poll_fails(local_aws: LocalAwsClient, user: User, cluster_id: str) -> None:
    step_id = execute(add_step(cluster_id, step_config("sleep 60")))
    task = wait_step(cluster_id, step_id)
    deferred = defer(task)
    local_aws.fail("emr:DescribeStep", "AccessDeniedException", calls=[1])
    event = fire(deferred)
    with pytest.raises(AirflowException, match=f"polling step {step_id} failed while it is still running") as error:
        resume(task, deferred, event)
    assert not isinstance(error.value, AirflowFailException)
    user.emr.cancel_steps(ClusterId=cluster_id, StepIds=[step_id])


def test_a_step_is_cancelled_when_a_user_stops_its_sensor(user: User, cluster_id: str, tmp_path: Path) -> None:
    step_id = execute(add_step(cluster_id, step_config(grandchild(tmp_path / "pid"))))
    pid = read_pid(tmp_path / "pid")
    trigger: Any = defer(wait_step(cluster_id, step_id)).trigger
    asyncio.run(trigger.on_kill())
    user.wait_for_step(cluster_id, step_id, "CANCELLED")
    wait_for_death(pid)


def test_termination_is_requested_again_while_a_cluster_is_active(
    user: User, local_aws: LocalAwsClient, request_: dict[str, Any]
) -> None:
    created = execute(create_cluster(request_))
    local_aws.fail("emr:TerminateJobFlows", "AccessDeniedException", calls=[1])
    assert not clusters_gone(request_, created)
    assert not clusters_gone(request_, created)
    user.wait_for(created, "TERMINATED")
    assert clusters_gone(request_, created)
