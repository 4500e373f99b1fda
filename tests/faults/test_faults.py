"""What a run comes to when something breaks: real Airflow processes, real Spark steps, an AWS that goes wrong."""

import time
from datetime import UTC, datetime, timedelta

import pytest

from orchard.dataset import split_uri
from tests.faults.conftest import Check
from tests.faults.stand import AIRFLOW, Stand, wait_until

WAIT = "ingest.wait_step"


@pytest.mark.slow
def test_no_fault(stand: Stand, check: Check) -> None:
    check(stand.trigger(), "success")


@pytest.mark.slow
def test_a_step_raises(stand: Stand, check: Check) -> None:
    run = stand.trigger(stand.new_dataset(broken=2), max_reject_ratio=0)
    check(run, "failed", cause=(WAIT, "TooManyRejects"))


def test_a_step_is_killed(stand: Stand, check: Check) -> None:
    run = stand.trigger()
    stand.aws.kill_step(*run.wait_for_step("ingest", "RUNNING"))
    check(run, "failed", cause=(WAIT, "Killed by signal 9"))


@pytest.mark.slow
def test_a_failed_step_is_cleared_when_its_cluster_has_gone(stand: Stand, check: Check) -> None:
    run = stand.trigger()
    stand.aws.kill_step(*run.wait_for_step("ingest", "RUNNING"))
    assert run.wait_for_end() == "failed"
    run.clear("ingest.add_step")
    wait_until(lambda: run.state() not in ("failed",), "the run's second life")
    check(run, "success", clusters=2)


@pytest.mark.slow
def test_every_bootstrap_fails(stand: Stand, check: Check) -> None:
    stand.aws.end_cluster("BOOTSTRAP_FAILURE")
    check(stand.trigger(), "failed", clusters=3, cause=("cluster_ready", "BOOTSTRAP_FAILURE"))


@pytest.mark.slow
def test_the_first_bootstrap_fails(stand: Stand, check: Check) -> None:
    stand.aws.end_cluster("BOOTSTRAP_FAILURE", calls=[1])
    check(stand.trigger(), "success", clusters=2)


def test_the_cluster_is_not_valid(stand: Stand, check: Check) -> None:
    stand.aws.end_cluster("VALIDATION_ERROR")
    check(stand.trigger(), "failed", cause=("cluster_ready", "VALIDATION_ERROR"))


def test_run_job_flow_is_refused(stand: Stand, check: Check) -> None:
    stand.aws.fail("emr:RunJobFlow", "ValidationException")
    check(stand.trigger(), "failed", clusters=0, cause=("create_cluster", "EMR refuses the cluster"))


@pytest.mark.slow
def test_the_answer_of_run_job_flow_is_lost(stand: Stand, check: Check) -> None:
    stand.aws.lose_answer("emr:RunJobFlow", calls=[1])
    check(stand.trigger(), "success")


@pytest.mark.slow
def test_the_answer_of_add_job_flow_steps_is_lost(stand: Stand, check: Check) -> None:
    stand.aws.lose_answer("emr:AddJobFlowSteps", calls=[1])
    run = stand.trigger()
    cluster_id, _ = run.wait_for_step("ingest", "RUNNING", "COMPLETED")
    check(run, "success")
    assert len(stand.emr.list_steps(ClusterId=cluster_id)["Steps"]) == 3


@pytest.mark.slow
def test_describe_cluster_is_throttled_after_the_creation(stand: Stand, check: Check) -> None:
    stand.aws.fail("emr:DescribeCluster", "ThrottlingException", calls=range(1, 8))
    check(stand.trigger(), "success")


@pytest.mark.slow
def test_describe_cluster_is_denied_after_the_creation(stand: Stand, check: Check) -> None:
    stand.aws.fail("emr:DescribeCluster", "AccessDeniedException", calls=[1, 2, 3])
    check(stand.trigger(), "success")


@pytest.mark.slow
def test_the_worker_is_killed_between_run_job_flow_and_its_answer(stand: Stand, check: Check) -> None:
    stand.aws.latency(30, on="emr:RunJobFlow")
    run = stand.trigger()
    run.wait_for_cluster()
    stand.kill_task(run, "create_cluster")
    stand.aws.clear()
    check(run, "success")


@pytest.mark.slow
def test_the_triggerer_is_killed_in_a_step(stand: Stand, check: Check) -> None:
    run = stand.trigger()
    run.wait_for(WAIT, "deferred")
    stand.kill("triggerer")
    stand.start("triggerer")
    check(run, "success")


@pytest.mark.slow
def test_the_scheduler_is_killed_in_a_step(stand: Stand, check: Check) -> None:
    run = stand.trigger()
    run.wait_for(WAIT, "deferred")
    stand.kill("scheduler")
    stand.start("scheduler")
    check(run, "success")


@pytest.mark.slow
def test_all_of_airflow_is_killed_in_a_step(stand: Stand, check: Check) -> None:
    run = stand.trigger()
    run.wait_for(WAIT, "deferred")
    stand.kill(*AIRFLOW)
    stand.start(*AIRFLOW)
    check(run, "success")


@pytest.mark.slow
def test_the_cluster_loses_its_instances_in_a_step(stand: Stand, check: Check) -> None:
    run = stand.trigger()
    cluster_id, _ = run.wait_for_step("ingest", "RUNNING")
    stand.aws.lose_instances(cluster_id)
    check(run, "failed", cause=(WAIT, "INSTANCE_FAILURE"))


@pytest.mark.slow
def test_the_cluster_is_terminated_by_hand_in_a_step(stand: Stand, check: Check) -> None:
    run = stand.trigger()
    cluster_id, _ = run.wait_for_step("ingest", "RUNNING")
    stand.emr.terminate_job_flows(JobFlowIds=[cluster_id])
    check(run, "failed", cause=(WAIT, "USER_REQUEST"))


@pytest.mark.slow
def test_the_run_is_marked_failed_in_a_step(stand: Stand, check: Check) -> None:
    run = stand.trigger()
    run.wait_for(WAIT, "deferred")
    run.mark("failed")
    check(run, "failed")


@pytest.mark.slow
def test_the_run_is_marked_success_in_a_step(stand: Stand, check: Check) -> None:
    run = stand.trigger()
    run.wait_for(WAIT, "deferred")
    run.mark("success")
    run.wait_for_end()
    wait_until(lambda: not run.live_clusters(), "the end of its cluster")
    assert not run.is_published()
    check.note(run, run.state())


@pytest.mark.slow
def test_terminate_job_flows_is_refused_three_times(stand: Stand, check: Check) -> None:
    stand.aws.fail("emr:TerminateJobFlows", "AccessDeniedException", calls=[1, 2, 3])
    check(stand.trigger(), "success")


@pytest.mark.slow
def test_terminate_job_flows_is_always_refused(stand: Stand, check: Check) -> None:
    stand.aws.fail("emr:TerminateJobFlows", "AccessDeniedException")
    run = stand.trigger()
    stand.aws.kill_step(*run.wait_for_step("ingest", "RUNNING"))
    check.with_janitor(run, "failed")


@pytest.mark.slow
def test_aws_is_silent_for_a_minute(stand: Stand, check: Check) -> None:
    run = stand.trigger()
    run.wait_for(WAIT, "deferred")
    with stand.silent_aws():
        time.sleep(60)
    check(run, "success")


@pytest.mark.slow
def test_s3_is_slowed_down_during_ingest(stand: Stand, check: Check) -> None:
    run = stand.trigger()
    run.wait_for("cluster_ready", "success")
    stand.aws.slow_down(0.2)
    run.wait_for(WAIT, "success")
    stand.aws.clear()
    check(run, "success")


@pytest.mark.slow
def test_an_image_goes_after_it_was_counted(stand: Stand, check: Check) -> None:
    run = stand.trigger()
    run.wait_for("plan", "success")
    bucket, prefix = split_uri(run.dataset_uri)
    gone = stand.s3.list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"][0]["Key"]
    stand.s3.delete_object(Bucket=bucket, Key=gone)
    check(run, "success")


@pytest.mark.slow
def test_two_runs_of_one_dataset(stand: Stand, check: Check) -> None:
    first = stand.trigger()
    second = stand.trigger(first.dataset_uri)
    assert first.wait_for_end() == "success"
    check(second, "success")
    assert len(first.clusters()) == 1


@pytest.mark.slow
def test_publish_is_killed(stand: Stand, check: Check) -> None:
    run = stand.trigger()
    run.wait_for("publish", "running", seconds=180)
    stand.kill_task(run, "publish")
    check(run, "success")


@pytest.mark.slow
def test_aws_is_killed_in_a_step(stand: Stand, check: Check) -> None:
    run = stand.trigger()
    run.wait_for_step("ingest", "RUNNING")
    stand.kill("local_aws")
    stand.start("local_aws")
    check(run, "failed", cause=(WAIT, "local_aws was restarted"))


@pytest.mark.slow
def test_the_run_is_late(stand: Stand, check: Check) -> None:
    run = stand.trigger(due=datetime.now(UTC) - timedelta(hours=9))
    told = f"run {run.run_id} of fruit_features is not over 8 hours after it was due, and goes on"
    wait_until(lambda: told in (stand.folder / "triggerer.log").read_text(), "the alert")
    check(run, "success")
