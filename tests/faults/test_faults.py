"""The outcome of a run after a fault, with real Airflow processes, real Spark steps and an AWS that injects faults."""

import json
import shutil
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from orchard.storage import split_uri
from sandbox.folders import ROOT
from tests.faults.conftest import Check
from tests.faults.deployment import AIRFLOW, RUN_TIMEOUT_SECONDS, Deployment, Run, wait_until
from tests.plugins.published import append

WAIT = "ingest.wait_step"


@pytest.mark.slow
def test_no_fault(deployment: Deployment, check: Check) -> None:
    check(deployment.trigger(), "success")


@pytest.mark.slow
def test_a_step_raises(deployment: Deployment, check: Check) -> None:
    run = deployment.trigger(deployment.new_dataset(broken=2), max_reject_ratio=0)
    check(run, "failed", cause=(WAIT, "TooManyRejects"))


@pytest.mark.slow
def test_a_step_is_killed(deployment: Deployment, check: Check) -> None:
    run = deployment.trigger()
    deployment.aws.kill_step(*run.wait_for_step("ingest", "RUNNING"))
    check(run, "failed", cause=(WAIT, "killed by signal 9"))


@pytest.mark.slow
def test_a_failed_step_is_cleared_after_its_cluster_has_terminated(deployment: Deployment, check: Check) -> None:
    run = deployment.trigger()
    deployment.aws.kill_step(*run.wait_for_step("ingest", "RUNNING"))
    assert run.wait_for_end() == "failed"
    run.failures = 1
    run.clear("ingest.add_step")
    check(run, "success", clusters=2)


@pytest.mark.slow
def test_every_bootstrap_fails(deployment: Deployment, check: Check) -> None:
    deployment.aws.end_cluster("BOOTSTRAP_FAILURE")
    check(deployment.trigger(), "failed", clusters=3, cause=("cluster_ready", "BOOTSTRAP_FAILURE"))


@pytest.mark.slow
def test_the_first_bootstrap_fails(deployment: Deployment, check: Check) -> None:
    deployment.aws.end_cluster("BOOTSTRAP_FAILURE", calls=[1])
    check(deployment.trigger(), "success", clusters=2)


@pytest.mark.slow
def test_the_cluster_fails_validation(deployment: Deployment, check: Check) -> None:
    deployment.aws.end_cluster("VALIDATION_ERROR")
    check(deployment.trigger(), "failed", cause=("cluster_ready", "VALIDATION_ERROR"))


@pytest.mark.slow
def test_run_job_flow_is_rejected(deployment: Deployment, check: Check) -> None:
    deployment.aws.fail("emr:RunJobFlow", "ValidationException")
    check(deployment.trigger(), "failed", clusters=0, cause=("create_cluster", "EMR rejected the cluster"))


@pytest.mark.slow
def test_the_response_of_run_job_flow_is_lost(deployment: Deployment, check: Check) -> None:
    deployment.aws.lose_answer("emr:RunJobFlow", calls=[1])
    check(deployment.trigger(), "success")


@pytest.mark.slow
def test_the_response_of_add_job_flow_steps_is_lost(deployment: Deployment, check: Check) -> None:
    deployment.aws.lose_answer("emr:AddJobFlowSteps", calls=[1])
    run = deployment.trigger()
    cluster_id, _ = run.wait_for_step("ingest", "RUNNING", "COMPLETED")
    check(run, "success")
    assert len(deployment.emr.list_steps(ClusterId=cluster_id)["Steps"]) == 3


@pytest.mark.slow
def test_describe_cluster_is_throttled_after_the_creation(deployment: Deployment, check: Check) -> None:
    deployment.aws.fail("emr:DescribeCluster", "ThrottlingException", calls=range(1, 8))
    check(deployment.trigger(), "success")


@pytest.mark.slow
def test_describe_cluster_is_denied_after_the_creation(deployment: Deployment, check: Check) -> None:
    deployment.aws.fail("emr:DescribeCluster", "AccessDeniedException", calls=[1, 2, 3])
    check(deployment.trigger(), "success")


@pytest.mark.slow
def test_the_worker_is_killed_between_run_job_flow_and_its_response(deployment: Deployment, check: Check) -> None:
    deployment.aws.latency(30, on="emr:RunJobFlow")
    run = deployment.trigger()
    run.wait_for_cluster()
    deployment.kill_task(run, "create_cluster")
    deployment.aws.clear()
    check(run, "success")


@pytest.mark.slow
def test_the_triggerer_is_killed_during_a_step(deployment: Deployment, check: Check) -> None:
    run = deployment.trigger()
    run.wait_for(WAIT, "deferred")
    deployment.kill("triggerer")
    deployment.start("triggerer")
    check(run, "success")


@pytest.mark.slow
def test_the_scheduler_is_killed_during_a_step(deployment: Deployment, check: Check) -> None:
    run = deployment.trigger()
    run.wait_for(WAIT, "deferred")
    deployment.kill("scheduler")
    deployment.start("scheduler")
    check(run, "success")


@pytest.mark.slow
def test_all_of_airflow_is_killed_during_a_step(deployment: Deployment, check: Check) -> None:
    run = deployment.trigger()
    run.wait_for(WAIT, "deferred")
    deployment.kill(*AIRFLOW)
    deployment.start(*AIRFLOW)
    check(run, "success")


@pytest.mark.slow
def test_all_of_airflow_is_killed_during_a_hold(deployment: Deployment, check: Check) -> None:
    """After the restart, the hold goes on to the same end."""
    run = deployment.trigger(hold_minutes=2)
    run.wait_for("hold_cluster", "deferred", timeout_seconds=RUN_TIMEOUT_SECONDS)
    hold = run.summary("hold_cluster", "hold")
    assert hold is not None
    deployment.kill(*AIRFLOW)
    assert run.active_clusters() == [hold["cluster_id"]]
    deployment.start(*AIRFLOW)
    check(run, "success")
    until = datetime.fromisoformat(hold["until"])
    ended = run.clusters()[0]["Status"]["Timeline"]["EndDateTime"]
    # Airflow may need a while after its restart, but does not start the hold anew.
    assert until <= ended <= until + timedelta(seconds=90)


@pytest.mark.slow
def test_a_user_marks_the_run_failed_during_a_hold(deployment: Deployment, check: Check) -> None:
    """The run is published. The mark ends the hold."""
    run = deployment.trigger(hold_minutes=240)
    run.wait_for("hold_cluster", "deferred", timeout_seconds=RUN_TIMEOUT_SECONDS)
    run.mark("failed")
    check(run, "success")


@pytest.mark.slow
def test_the_triggerer_is_killed_during_a_hold_and_starts_again_after_its_end(
    deployment: Deployment, check: Check
) -> None:
    run = deployment.trigger(hold_minutes=1)
    run.wait_for("hold_cluster", "deferred", timeout_seconds=RUN_TIMEOUT_SECONDS)
    deployment.kill("triggerer")
    # The scheduler ends a deferral a minute after its end.
    run.wait_for("hold_cluster", "success", timeout_seconds=RUN_TIMEOUT_SECONDS)
    deployment.start("triggerer")
    assert "its end has passed while no triggerer was running" in run.log("hold_cluster")
    check(run, "success")


@pytest.mark.slow
def test_the_cluster_loses_its_instances_during_a_step(deployment: Deployment, check: Check) -> None:
    run = deployment.trigger()
    cluster_id, _ = run.wait_for_step("ingest", "RUNNING")
    deployment.aws.lose_instances(cluster_id)
    check(run, "failed", cause=(WAIT, "INSTANCE_FAILURE"))


@pytest.mark.slow
def test_a_user_terminates_the_cluster_during_a_step(deployment: Deployment, check: Check) -> None:
    run = deployment.trigger()
    cluster_id, _ = run.wait_for_step("ingest", "RUNNING")
    deployment.emr.terminate_job_flows(JobFlowIds=[cluster_id])
    check(run, "failed", cause=(WAIT, "USER_REQUEST"))


@pytest.mark.slow
def test_a_user_marks_the_run_failed_during_a_step(deployment: Deployment, check: Check) -> None:
    run = deployment.trigger()
    run.wait_for(WAIT, "deferred")
    run.mark("failed")
    check(run, "failed", cause=("verdict", "the run was marked failed"))


@pytest.mark.slow
def test_a_user_marks_the_run_failed_during_preflight(deployment: Deployment, check: Check) -> None:
    deployment.aws.latency(8, on="emr:ListReleaseLabels")
    run = deployment.trigger()
    run.wait_for("preflight", "running")
    run.mark("failed")
    check(run, "failed", clusters=0)


@pytest.mark.slow
def test_a_user_marks_the_run_success_during_a_step(deployment: Deployment, check: Check) -> None:
    run = deployment.trigger()
    run.wait_for(WAIT, "deferred")
    run.mark("success")
    run.wait_for_end()
    wait_until(lambda: not run.active_clusters(), "the termination of its cluster")
    assert not run.is_published()
    check.record(run, run.state())


@pytest.mark.slow
def test_terminate_job_flows_is_denied_three_times(deployment: Deployment, check: Check) -> None:
    deployment.aws.fail("emr:TerminateJobFlows", "AccessDeniedException", calls=[1, 2, 3])
    check(deployment.trigger(), "success")


@pytest.mark.slow
def test_terminate_job_flows_is_always_denied(deployment: Deployment, check: Check) -> None:
    deployment.aws.fail("emr:TerminateJobFlows", "AccessDeniedException")
    run = deployment.trigger()
    deployment.aws.kill_step(*run.wait_for_step("ingest", "RUNNING"))
    check.with_janitor(run, "failed")


@pytest.mark.slow
def test_aws_does_not_respond_for_a_minute(deployment: Deployment, check: Check) -> None:
    run = deployment.trigger()
    run.wait_for(WAIT, "deferred")
    with deployment.unresponsive_aws():
        time.sleep(60)
    check(run, "success")


@pytest.mark.slow
def test_s3_throttles_requests_during_ingest(deployment: Deployment, check: Check) -> None:
    run = deployment.trigger()
    run.wait_for("cluster_ready", "success")
    deployment.aws.slow_down(0.2)
    run.wait_for(WAIT, "success")
    deployment.aws.clear()
    check(run, "success")


@pytest.mark.slow
def test_an_image_is_deleted_after_it_was_counted(deployment: Deployment, check: Check) -> None:
    run = deployment.trigger(max_reject_ratio=0.1)
    run.wait_for("plan", "success")
    bucket, prefix = split_uri(run.dataset_uri)
    key = deployment.s3.list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"][0]["Key"]
    deployment.s3.delete_object(Bucket=bucket, Key=key)
    check(run, "success")


@pytest.mark.slow
def test_publish_is_killed(deployment: Deployment, check: Check) -> None:
    run = deployment.trigger()
    run.wait_for("publish", "running", timeout_seconds=180)
    deployment.kill_task(run, "publish")
    check(run, "success")


@pytest.mark.slow
def test_aws_is_killed_during_a_step(deployment: Deployment, check: Check) -> None:
    run = deployment.trigger()
    run.wait_for_step("ingest", "RUNNING")
    deployment.kill("local_aws")
    deployment.start("local_aws")
    check(run, "failed", cause=(WAIT, "local_aws was restarted"))


@pytest.mark.slow
def test_a_nightly_run_is_late(deployment: Deployment, check: Check) -> None:
    due = datetime.now(UTC) - timedelta(hours=9)
    check_late(deployment.trigger(logical_date=due, run_after=due), check)


@pytest.mark.slow
def test_a_run_without_a_logical_date_is_late(deployment: Deployment, check: Check) -> None:
    check_late(deployment.trigger(run_after=datetime.now(UTC) - timedelta(hours=9)), check)


def check_late(run: Run, check: Check) -> None:
    """Check that the team receives one alert about a run that is late, and that the run continues."""
    alert = f"run {run.run_id} of fruit_features is still running 8 hours after its due time; http://"
    wait_until(lambda: check.deployment.alerts_of(run), "the alert")
    check(run, "success")
    (message,) = check.deployment.alerts_of(run)
    assert message.startswith(alert)


@pytest.mark.slow
def test_plan_fails(deployment: Deployment, check: Check) -> None:
    check(
        deployment.trigger("s3://no-such-bucket-of-orchard/images/"), "failed", clusters=0, cause=("plan", "CannotList")
    )


def plugins_with_prices(folder: Path, changes: Mapping[str, Any]) -> str:
    """Return a copy of the plugins folder whose file of prices is changed."""
    copy = folder / "plugins"
    shutil.copytree(ROOT / "plugins", copy)
    prices = copy / "orchard/cluster/prices.json"
    prices.write_text(json.dumps(json.loads(prices.read_text()) | changes))
    return str(copy)


@pytest.mark.slow
def test_the_prices_are_out_of_date(deployment: Deployment, check: Check, tmp_path: Path) -> None:
    plugins = plugins_with_prices(tmp_path, {"date": "2020-01-01"})
    with deployment.setting("AIRFLOW__CORE__PLUGINS_FOLDER", plugins):
        run = deployment.trigger()
        check(run, "success")
    assert "days old, of 2020-01-01, so that the estimate may be wrong" in run.log("plan")


@pytest.mark.slow
def test_the_prices_are_damaged(deployment: Deployment, check: Check, tmp_path: Path) -> None:
    plugins = plugins_with_prices(tmp_path, {"usd_per_hour": {"m5.xlarge": "cheap"}})
    with deployment.setting("AIRFLOW__CORE__PLUGINS_FOLDER", plugins):
        check(deployment.trigger(), "failed", clusters=0, cause=("plan", "BadPrices"))


@pytest.mark.slow
def test_the_history_of_another_dataset_is_missing(deployment: Deployment, check: Check) -> None:
    other = deployment.trigger()
    assert other.wait_for_end() == "success"
    with deployment.catalog() as catalog:
        rows = catalog.load_table((deployment.settings.catalog_database, "runs"))
        tasks = [task for task in rows.scan().plan_files() if task.file.partition[0] == other.dataset_uri]
    for task in tasks:
        bucket, key = split_uri(task.file.file_path)
        deployment.s3.delete_object(Bucket=bucket, Key=key)
    run = deployment.trigger()
    check(run, "success")
    assert "the earlier runs cannot be read, so that estimates use default rates" in run.log("plan")


@pytest.mark.slow
def test_the_history_is_odd(deployment: Deployment, check: Check) -> None:
    now = datetime.now(UTC)
    row = {"dataset": "s3://odd/images/", "published_at": now, "new": -1, "changed": 10**15, "images": 0}
    odd = [
        row | {"run_id": "1", "ready_seconds": -1e9, "task_slots": 0, "step_seconds": [("ingest", None)]},
        row | {"run_id": "5", "ready_seconds": 300.0, "task_slots": 4, "cluster_minutes": -float("inf")},
        row | {"run_id": "2", "ready_seconds": float("nan"), "step_seconds": [("features", float("inf"))]},
        row | {"run_id": "3", "published_at": now + timedelta(days=1), "bytes_read": -1, "task_slots": -4},
        {"dataset": "s3://odd/images/", "published_at": now, "run_id": "4"},
    ]
    with deployment.catalog() as catalog:
        append(catalog, deployment.settings, "runs", odd)
    check(deployment.trigger(), "success")
