"""The sensors and their trigger against a local AWS with injected faults."""

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException, TaskDeferred

from local_aws.client import LocalAwsClient
from orchard.airflow.links import StepLogsLink
from orchard.airflow.sensors import ClusterReadySensor, StepFailed
from orchard.cluster import step_failures
from orchard.cluster.emr_clusters import MAX_CLUSTERS_PER_RUN
from orchard.run.verdict import RunFailed
from tests.local_aws.airflow_task import fire
from tests.local_aws.user import BUCKET, LOG_URI, REGION, User, bash, grandchild, read_pid, wait_for_death
from tests.plugins.airflow.tasks import (
    NOT_CLEARED,
    DagRun,
    TaskInstance,
    add_step,
    cleared_run,
    clusters_gone,
    clusters_of_run,
    create_cluster,
    defer,
    execute,
    fail,
    of_run,
    plan_of,
    resume,
    step_config,
    take_turn,
    verdict,
    wait_step,
    wait_until_ready,
)

pytestmark = pytest.mark.usefixtures("local_aws")


@pytest.fixture(autouse=True)
def quick_uploads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The local AWS uploads all logs of a step within a moment."""
    monkeypatch.setattr(step_failures, "UPLOAD_TIME", timedelta(seconds=1))


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


@pytest.mark.slow
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
        task_id="cluster_ready",
        job_flow_id="j-1",
        request=request,
        launch_timeout=timedelta(minutes=30),
        **of_run(plan_of({"Name": "j"})),
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


@pytest.mark.slow
def test_the_clusters_of_an_earlier_round_do_not_count_as_attempts(
    user: User, local_aws: LocalAwsClient, request_: dict[str, Any]
) -> None:
    """A user clears `cluster_ready` alone, or all failed tasks, after three clusters have failed to start."""
    rule = local_aws.end_cluster("BOOTSTRAP_FAILURE")
    created = execute(create_cluster(request_))
    with pytest.raises(AirflowFailException, match="this was the last of 3 attempts"):
        wait_until_ready(request_, created)
    cleared = cleared_run()
    with pytest.raises(AirflowFailException, match="this was the last of 3 attempts"):
        wait_until_ready(request_, created, dag_run=cleared)
    assert len(clusters_of_run(user, request_)) == 6
    assert rule is not None
    local_aws.clear()
    ready = wait_until_ready(request_, created, dag_run=cleared_run())
    assert clusters_of_run(user, request_)[0] == ready


def ended_step(user: User, request: dict[str, Any], step: dict[str, Any], state: str) -> tuple[str, str]:
    """Run a step of a cluster until the step is in a state, and terminate the cluster. Return the ids of both."""
    cluster_id = execute(create_cluster(request))
    step_id = execute(add_step(cluster_id, step, plan_of(request)))
    user.wait_for_step(cluster_id, step_id, state)
    user.terminate(cluster_id)
    user.wait_for(cluster_id, "TERMINATED")
    return cluster_id, step_id


def test_a_step_of_an_earlier_cluster_is_submitted_to_the_current_one(user: User, request_: dict[str, Any]) -> None:
    """A user clears `wait_step` alone: Airflow also clears the setups, and so creates a cluster, but not `add_step`."""
    step, plan = step_config("[ -e $HOME/ok ] || exit 3"), plan_of(request_)
    _, step_id = ended_step(user, request_, step, "FAILED")
    cleared = cleared_run()
    new = execute(create_cluster(request_), dag_run=cleared)
    step["HadoopJarStep"]["Args"][-1] = "sleep 3"
    task = wait_step(new, step_id, step, plan)
    deferred = defer(task, dag_run=cleared)
    assert deferred.kwargs is not None
    again = deferred.kwargs["step_id"]
    assert [item["Id"] for item in user.steps(new)] == [again]
    # Airflow builds the task anew, with the XComs as they were.
    resumed = wait_step(new, step_id, step, plan)
    assert resume(resumed, deferred, fire(deferred), dag_run=cleared) == new
    # A retry adopts it.
    assert execute(wait_step(new, step_id, step, plan), dag_run=cleared) == new
    assert [item["Id"] for item in user.steps(new)] == [again]
    user.terminate(new)


@pytest.mark.slow  # like other tests of cleared steps
def test_a_step_that_failed_in_an_earlier_round_gets_a_new_cluster_if_there_is_none(
    user: User, request_: dict[str, Any]
) -> None:
    """A user clears all failed tasks: `wait_step` is the first, and the setups are not among them."""
    step, plan = step_config("exit 3"), plan_of(request_)
    old, step_id = ended_step(user, request_, step, "FAILED")
    cleared = cleared_run()
    step["HadoopJarStep"]["Args"][-1] = "sleep 3"
    deferred = defer(wait_step(old, step_id, step, plan), TaskInstance(was_cleared=True), cleared)
    new, _ = clusters_of_run(user, request_)
    assert resume(wait_step(old, step_id, step, plan), deferred, fire(deferred), dag_run=cleared) == new
    user.terminate(new)


@pytest.mark.slow  # like other tests of cleared steps
def test_a_step_that_was_lost_in_this_round_is_not_submitted_again(user: User, request_: dict[str, Any]) -> None:
    step, plan = step_config("exit 3"), plan_of(request_)
    created = execute(create_cluster(request_))
    step_id = execute(add_step(created, step, plan))
    user.wait_for_step(created, step_id, "FAILED")
    assert "is FAILED" in str(fail(wait_step(created, step_id, step, plan)))
    assert [item["Id"] for item in user.steps(created)] == [step_id]
    user.terminate(created)
    user.wait_for(created, "TERMINATED")
    assert "is FAILED" in str(fail(wait_step(created, step_id, step, plan)))
    assert clusters_of_run(user, request_) == [created]


def test_a_step_that_completed_in_an_earlier_round_is_not_submitted_again(user: User, request_: dict[str, Any]) -> None:
    step, plan = step_config("exit 0"), plan_of(request_)
    old, step_id = ended_step(user, request_, step, "COMPLETED")
    assert execute(wait_step(old, step_id, step, plan), dag_run=cleared_run()) == old
    assert clusters_of_run(user, request_) == [old]


def test_a_cleared_step_waits_in_the_triggerer_until_it_is_the_runs_turn(user: User, request_: dict[str, Any]) -> None:
    step, plan = step_config("exit 3"), plan_of(request_)
    old, step_id = ended_step(user, request_, step, "FAILED")
    assert take_turn(request_, TaskInstance("other", {"run": "failed"})) == []
    cleared = cleared_run()
    ti = TaskInstance("run", {"other": "running"}, was_cleared=True)
    deferred = defer(wait_step(old, step_id, step, plan), ti, cleared)
    assert deferred.method_name == "execute_again"
    assert deferred.kwargs is None or "step_id" not in deferred.kwargs


@pytest.mark.parametrize("polled", [pytest.param("after the step is cancelled", marks=pytest.mark.slow), "before"])
def test_a_step_that_a_clear_cancels_is_submitted_again(user: User, request_: dict[str, Any], polled: str) -> None:
    """A user clears `wait_step` while its step runs. The trigger then cancels the step."""
    step, plan = step_config("sleep 60"), plan_of(request_)
    created = execute(create_cluster(request_))
    first = execute(add_step(created, step, plan))
    user.wait_for_step(created, first, "RUNNING")
    trigger: Any = defer(wait_step(created, first, step, plan)).trigger
    # The run has not finished, so that its start does not change.
    dag_run = replace(NOT_CLEARED, clear_number=1)
    cleared, task = TaskInstance(was_cleared=True), wait_step(created, first, step, plan)
    deferred = defer(task, cleared, dag_run) if polled == "before" else None
    step["HadoopJarStep"]["Args"][-1] = "sleep 5"
    asyncio.run(trigger.on_kill())
    user.wait_for_step(created, first, "CANCELLED")
    with pytest.raises(TaskDeferred) as again:
        execute(task, cleared, dag_run) if deferred is None else resume(
            task, deferred, fire(deferred), cleared, dag_run
        )
    assert again.value.kwargs is not None
    assert again.value.kwargs["step_id"] != first
    assert again.value.kwargs["clear_number"] == 1
    assert resume(wait_step(created, first, step, plan), again.value, fire(again.value), cleared, dag_run) == created
    user.terminate(created)


@pytest.mark.slow  # like other tests of cleared steps
def test_a_step_that_is_cancelled_after_it_was_submitted_again_is_not_submitted_a_third_time(
    user: User, request_: dict[str, Any]
) -> None:
    step, plan = step_config("sleep 60"), plan_of(request_)
    created, cleared = execute(create_cluster(request_)), cleared_run()
    first = execute(add_step(created, step, plan))
    user.emr.cancel_steps(ClusterId=created, StepIds=[first], StepCancellationOption="TERMINATE_PROCESS")
    user.wait_for_step(created, first, "CANCELLED")
    deferred = defer(wait_step(created, first, step, plan), TaskInstance(was_cleared=True), cleared)
    assert deferred.kwargs is not None
    second = deferred.kwargs["step_id"]
    user.emr.cancel_steps(ClusterId=created, StepIds=[second], StepCancellationOption="TERMINATE_PROCESS")
    user.wait_for_step(created, second, "CANCELLED")
    task = wait_step(created, first, step, plan, log_wait=timedelta(0))
    with pytest.raises(StepFailed, match="is CANCELLED"):
        resume(task, deferred, fire(deferred), TaskInstance(was_cleared=True), cleared)
    user.terminate(created)


def test_a_failed_step_is_not_submitted_again_when_another_task_was_cleared(
    user: User, request_: dict[str, Any]
) -> None:
    step, plan = step_config("sleep 5; exit 3"), plan_of(request_)
    created = execute(create_cluster(request_))
    first = execute(add_step(created, step, plan))
    deferred = defer(wait_step(created, first, step, plan))
    task = wait_step(created, first, step, plan, log_wait=timedelta(0))
    with pytest.raises(StepFailed, match="is FAILED"):
        resume(task, deferred, fire(deferred), dag_run=replace(NOT_CLEARED, clear_number=1))
    assert len(user.steps(created)) == 1
    user.terminate(created)


@pytest.mark.parametrize(
    ("states", "waits"),
    [
        ({"terminate_cluster": "running", "cluster_gone": None}, True),
        ({"terminate_cluster": "success", "cluster_gone": "queued"}, True),
        ({"terminate_cluster": "success", "cluster_gone": "success", "verdict": "scheduled"}, True),
        # Airflow starts these again only after the cleared task has finished.
        ({"terminate_cluster": "success", "cluster_gone": "up_for_reschedule"}, False),
        ({"terminate_cluster": "up_for_retry", "cluster_gone": None}, False),
        ({"terminate_cluster": "success", "cluster_gone": "success", "verdict": None}, False),
    ],
)
def test_a_cleared_step_waits_for_a_teardown_task_that_would_terminate_its_new_cluster(
    user: User, request_: dict[str, Any], states: dict[str, str | None], waits: bool
) -> None:
    """A user clears all failed tasks while the teardown of the failed run still waits for the old cluster."""
    step, plan = step_config("sleep 60"), plan_of(request_)
    old = execute(create_cluster(request_))
    step_id = execute(add_step(old, step, plan))
    user.terminate(old)
    user.wait_for(old, "TERMINATED")
    ti = TaskInstance(was_cleared=True, task_states=states)
    still_active = DagRun(datetime.now(UTC) - timedelta(minutes=5), clear_number=1)
    deferred = defer(wait_step(old, step_id, step, plan), ti, still_active)
    assert deferred.method_name == ("execute_again" if waits else "execute_complete")
    assert len(clusters_of_run(user, request_)) == (1 if waits else 2)
    for cluster_id in clusters_of_run(user, request_):
        user.terminate(cluster_id)


@pytest.mark.parametrize("state", [None, "deferred", "running", "up_for_retry", "up_for_reschedule"])
def test_the_verdict_waits_for_tasks_that_were_cleared_and_keeps_the_turn(
    request_: dict[str, Any], state: str | None
) -> None:
    assert take_turn(request_, TaskInstance("own")) == []
    assert not verdict(request_, TaskInstance("own", task_states={"ingest.wait_step": state, "publish": None}))
    assert take_turn(request_, TaskInstance("other", {"own": "running"})) != []
    assert verdict(request_, TaskInstance("own", task_states={"ingest.wait_step": "success", "verdict": "running"}))
    assert take_turn(request_, TaskInstance("other", {"own": "running"})) == []


def test_the_verdict_releases_the_turn_and_accepts_a_run_without_a_failed_task(
    user: User, request_: dict[str, Any]
) -> None:
    execute(create_cluster(request_), TaskInstance("own"))
    done = TaskInstance("own", task_states={"publish": "success", "cluster_gone": "success"})
    assert not verdict(request_, done), "the cluster is active"
    user.wait_for(clusters_of_run(user, request_)[0], "TERMINATED")
    assert verdict(request_, done)
    keys = [item["Key"] for item in user.s3.list_objects_v2(Bucket=BUCKET, Prefix="locks/").get("Contents", [])]
    assert [key for key in keys if request_["Name"] in key] == []
    cost = done.xcoms["cost"]
    assert [cluster["cluster_id"] for cluster in cost["clusters"]] == clusters_of_run(user, request_)
    assert cost["usd"] > 0


def test_the_verdict_fails_a_failed_run_after_its_clusters_are_gone_and_its_turn_is_given_back(
    user: User, request_: dict[str, Any]
) -> None:
    execute(create_cluster(request_), TaskInstance("own"))
    failed = TaskInstance("own", task_states={"ingest.wait_step": "failed", "publish": "upstream_failed"})
    assert not verdict(request_, failed), "the cluster is active"
    user.wait_for(clusters_of_run(user, request_)[0], "TERMINATED")
    with pytest.raises(RunFailed, match=r"because ingest\.wait_step failed"):
        verdict(request_, failed)
    assert failed.xcoms["cost"]["usd"] > 0


def test_the_verdict_does_not_need_to_know_the_cost(
    user: User, local_aws: LocalAwsClient, request_: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    user.terminate(execute(create_cluster(request_), TaskInstance("own")))
    user.wait_for(clusters_of_run(user, request_)[0], "TERMINATED")
    local_aws.fail("emr:ListInstances", "AccessDeniedException")
    done = TaskInstance("own", task_states={"publish": "success"})
    assert verdict(request_, done)
    assert "cost" not in done.xcoms
    assert "the cost of the run is unknown: ClientError: An error occurred (AccessDeniedException)" in caplog.text
    assert take_turn(request_, TaskInstance("other", {"own": "running"})) == []


def test_a_task_links_to_the_folder_of_its_steps_logs(cluster_id: str) -> None:
    step_id = execute(add_step(cluster_id, step_config("sleep 5")))
    task_instance = TaskInstance()
    with pytest.raises(TaskDeferred):
        execute(wait_step(cluster_id, step_id), task_instance)
    values = task_instance.xcoms[StepLogsLink.key]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("AWS_ENDPOINT_URL")
        link = StepLogsLink().format_link(**values)
    assert link == (
        f"https://console.aws.amazon.com/s3/buckets/{BUCKET}?region={REGION}"
        f"&prefix=deep/logs/{cluster_id}/steps/{step_id}/"
    )
    local = httpx.get(StepLogsLink().format_link(**values))
    assert f"<title>s3://{BUCKET}/deep/logs/{cluster_id}/steps/{step_id}/</title>" in local.text


def test_the_sensor_waits_in_the_triggerer_until_a_step_completes(cluster_id: str) -> None:
    step_id = execute(add_step(cluster_id, step_config("sleep 1")))
    task = wait_step(cluster_id, step_id)
    deferred = defer(task)
    event = fire(deferred)
    assert event["status"] == "success"
    assert resume(task, deferred, event) == cluster_id


def test_a_failed_step_is_reported_with_its_exception_and_the_end_of_its_log(cluster_id: str) -> None:
    script = "for n in $(seq 80); do echo line $n; done; echo 'ValueError: no such fruit: pear' >&2; sleep 1; exit 3"
    step_id = execute(add_step(cluster_id, step_config(script)))
    lines = str(fail(wait_step(cluster_id, step_id))).splitlines()
    folder = f"{LOG_URI}{cluster_id}/steps/{step_id}/"
    assert f"({step_id}) is FAILED" in lines[0]
    assert lines[1] == "ValueError: no such fruit: pear"
    assert lines[2] == f"end of {folder}stderr.gz:"
    assert lines[-1] == f"all logs: {folder}"


def test_a_step_that_wrote_a_report_is_reported_with_it(user: User, cluster_id: str) -> None:
    step = step_config("exit 3")
    uri = f"runs/{step['Name']}/1/{step['Name']}.error.json"
    step_id = execute(add_step(cluster_id, step))
    report = {"type": "NoImages", "message": "no images", "hint": "use another dataset", "last_lines": ["NoImages"]}
    user.wait_for_step(cluster_id, step_id, "FAILED")
    user.put(uri, json.dumps(report))
    plan = {**plan_of({"Name": step["Name"]}), "run_uri": f"s3://{BUCKET}/{uri.rpartition('/')[0]}"}
    with pytest.raises(StepFailed, match="NoImages: no images\nhint: use another dataset") as failed:
        execute(wait_step(cluster_id, step_id, step, plan))
    assert failed.value.cause == "NoImages: no images"


def test_a_failed_step_whose_logs_are_late_waits_for_them_in_the_triggerer(user: User) -> None:
    """The logs of the step go to a bucket that does not exist, and then appear, as on EMR five minutes later."""
    cluster_id = user.start(keep_alive=True, LogUri="s3://local-aws-no-such-bucket/")
    step_id = execute(add_step(cluster_id, step_config("exit 3")))
    user.wait_for_step(cluster_id, step_id, "FAILED")
    task = wait_step(cluster_id, step_id)
    deferred = defer(task)
    assert deferred.method_name == "execute_complete"
    with pytest.raises(TaskDeferred):
        resume(wait_step(cluster_id, step_id), deferred, fire(deferred))
    user.put(
        f"deep/logs/{cluster_id}/steps/{step_id}/stdout", "Traceback (most recent call last):\nmain.CannotFit: no\n"
    )
    assert fail(wait_step(cluster_id, step_id)).cause == "main.CannotFit: no"
    user.terminate(cluster_id)


def test_a_failed_step_does_not_wait_for_its_logs_for_ever(user: User) -> None:
    cluster_id = user.start(keep_alive=True, LogUri="s3://local-aws-no-such-bucket/")
    step_id = execute(add_step(cluster_id, step_config("exit 3")))
    user.wait_for_step(cluster_id, step_id, "FAILED")
    with pytest.raises(StepFailed, match="the log is not uploaded yet"):
        execute(wait_step(cluster_id, step_id, log_wait=timedelta(0)))
    user.terminate(cluster_id)


def test_only_the_last_fifty_lines_of_a_long_log_are_reported(user: User, cluster_id: str) -> None:
    step_id = execute(add_step(cluster_id, step_config("for n in $(seq 80); do echo line $n; done; exit 3")))
    user.wait_for_step(cluster_id, step_id, "FAILED")
    lines = str(fail(wait_step(cluster_id, step_id))).splitlines()
    assert [line for line in lines if line.startswith("line ")] == [f"line {n}" for n in range(31, 81)]


def test_a_step_whose_cluster_was_terminated_is_reported_with_the_reason(user: User) -> None:
    terminated = user.start(bash("sleep 60"))
    (step,) = user.steps(terminated)
    user.wait_for_step(terminated, step["Id"], "RUNNING")
    user.terminate(terminated)
    user.wait_for(terminated, "TERMINATED")
    assert "USER_REQUEST: Terminated by user request" in str(fail(wait_step(terminated, step["Id"])))


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
