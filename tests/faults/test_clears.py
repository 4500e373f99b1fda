"""The outcome of a run after a user has cleared some of its tasks, through Airflow's API.

Airflow adds the setups and the teardown of the cleared tasks, except when only failed tasks are cleared.
"""

from typing import Any

import pytest

from tests.faults.conftest import Check
from tests.faults.deployment import Deployment, Run

pytestmark = pytest.mark.slow


def failed_run(deployment: Deployment, step: str, **params: Any) -> Run:
    """Return a run that has failed because one of its steps was killed. Its cluster is gone."""
    run = deployment.trigger(**params)
    deployment.aws.kill_step(*run.wait_for_step(step, "RUNNING", timeout_seconds=180))
    assert run.wait_for_end() == "failed"
    assert run.active_clusters() == []
    run.failures = 1
    return run


def test_a_failed_wait_step_is_cleared_with_downstream(deployment: Deployment, check: Check) -> None:
    run = failed_run(deployment, "pca")
    run.clear("pca.wait_step")
    check(run, "success", clusters=2)


def test_a_failed_wait_step_is_cleared_alone(deployment: Deployment, check: Check) -> None:
    """The step completes. The tasks after it, which were not cleared, have not run, so the run has failed."""
    run = failed_run(deployment, "ingest")
    run.clear("ingest.wait_step", downstream=False)
    check(run, "failed", clusters=2)
    assert run.tasks()["ingest.wait_step"] == "success"


def test_all_failed_tasks_are_cleared_after_the_first_step_failed(deployment: Deployment, check: Check) -> None:
    run = failed_run(deployment, "ingest")
    run.clear_run(only_failed=True)
    check(run, "success", clusters=2)
    check.recovery(run)


def test_all_failed_tasks_are_cleared_after_a_later_step_failed(deployment: Deployment, check: Check) -> None:
    run = failed_run(deployment, "features")
    run.clear_run(only_failed=True)
    check(run, "success", clusters=2)


def test_all_failed_tasks_are_cleared_and_the_step_fails_again(deployment: Deployment, check: Check) -> None:
    run = failed_run(deployment, "ingest")
    run.clear_run(only_failed=True)
    deployment.aws.kill_step(*run.wait_for_step("ingest", "RUNNING", timeout_seconds=180))
    check(run, "failed", clusters=2)


def test_a_failed_wait_step_is_cleared_with_its_failed_downstream_tasks(deployment: Deployment, check: Check) -> None:
    run = failed_run(deployment, "pca")
    run.clear("pca.wait_step", only_failed=True)
    check(run, "success", clusters=2)


def test_all_failed_tasks_are_cleared_after_no_cluster_has_started(deployment: Deployment, check: Check) -> None:
    deployment.aws.end_cluster("BOOTSTRAP_FAILURE")
    run = deployment.trigger()
    assert run.wait_for_end() == "failed"
    run.failures = 1
    deployment.aws.clear()
    run.clear_run(only_failed=True)
    check(run, "success", clusters=4)


def test_all_failed_tasks_are_cleared_while_another_run_uses_the_dataset(deployment: Deployment, check: Check) -> None:
    # Otherwise the other run would leave nothing to do.
    run = failed_run(deployment, "ingest", full_refresh=True)
    other = deployment.trigger(run.dataset_uri)
    other.wait_for("wait_turn", "success")
    run.clear_run(only_failed=True)
    assert other.wait_for_end() == "success"
    check(run, "success", clusters=2)
    newest = run.clusters()[0]["Status"]["Timeline"]["CreationDateTime"]
    assert other.times("publish")[1] < newest
    assert other.times("cluster_gone")[1] < newest


def test_a_task_group_is_cleared_with_downstream(deployment: Deployment, check: Check) -> None:
    run = failed_run(deployment, "features")
    run.clear("features.add_step", "features.wait_step")
    check(run, "success", clusters=2)


def test_the_whole_run_is_cleared(deployment: Deployment, check: Check) -> None:
    run = failed_run(deployment, "ingest")
    run.clear_run()
    check(run, "success", clusters=2)


def test_all_failed_tasks_are_cleared_while_the_teardown_runs(deployment: Deployment, check: Check) -> None:
    run = deployment.trigger()
    cluster_id, step_id = run.wait_for_step("ingest", "RUNNING", timeout_seconds=180)
    # The request takes long, so that `terminate_cluster` is still running when the user acts.
    deployment.aws.latency(20, on="emr:TerminateJobFlows")
    deployment.aws.kill_step(cluster_id, step_id)
    run.wait_for("terminate_cluster", "running", timeout_seconds=180)
    run.clear_run(only_failed=True)
    run.wait_for("ingest.wait_step", "deferred")
    deployment.aws.clear()
    check(run, "success", clusters=2)


def test_the_whole_run_is_cleared_while_a_step_runs(deployment: Deployment, check: Check) -> None:
    """The new plan must not use the step that has completed: it worked on the old plan, on the old cluster."""
    run = deployment.trigger()
    run.wait_for_step("features", "RUNNING", timeout_seconds=300)
    run.clear_run()
    check(run, "success", clusters=2)


def test_a_task_group_is_cleared_without_downstream(deployment: Deployment, check: Check) -> None:
    """The step completes. The tasks after it, which were not cleared, have not run, so the run has failed."""
    run = failed_run(deployment, "ingest")
    run.clear("ingest.add_step", "ingest.wait_step", downstream=False)
    check(run, "failed", clusters=2, cause=("verdict", "did not run"))


def test_a_task_group_is_cleared_while_its_step_runs(deployment: Deployment, check: Check) -> None:
    run = deployment.trigger()
    run.wait_for("ingest.wait_step", "deferred")
    run.clear("ingest.add_step", "ingest.wait_step")
    check(run, "success")


def test_a_wait_step_is_cleared_while_its_step_runs(deployment: Deployment, check: Check) -> None:
    run = deployment.trigger()
    run.wait_for("ingest.wait_step", "deferred")
    run.clear("ingest.wait_step")
    check(run, "success")


def test_publish_is_cleared_after_the_run_has_succeeded(deployment: Deployment, check: Check) -> None:
    run = deployment.trigger()
    assert run.wait_for_end() == "success"
    run.clear("publish")
    check(run, "success")


def test_a_step_is_cleared_after_the_run_has_succeeded_and_then_plan(deployment: Deployment, check: Check) -> None:
    """The files of the run are deleted. The tables show the run, so that a plan finds nothing to do."""
    run = deployment.trigger()
    assert run.wait_for_end() == "success"
    run.clear("pca.add_step")
    assert run.wait_for_end() == "failed"
    assert "is empty, because the files of a run are deleted" in run.log("create_cluster")
    run.failures = 1
    run.clear("plan")
    check(run, "success")
    assert set(run.tasks().values()) == {"success", "skipped"}
    assert [task_id for task_id, state in run.tasks().items() if state == "success"] == ["plan"]


def test_plan_is_cleared_after_the_run_has_succeeded_and_an_image_was_added(
    deployment: Deployment, check: Check
) -> None:
    run = deployment.trigger()
    assert run.wait_for_end() == "success"
    deployment.add_image(run.dataset_uri)
    run.clear("plan")
    check(run, "success", clusters=2)
    summary = run.summary()
    assert summary is not None
    assert (summary["new"], summary["unchanged"]) == (1, 12)


def test_a_step_is_cleared_after_another_run_of_the_dataset_was_published(deployment: Deployment, check: Check) -> None:
    run = failed_run(deployment, "features")
    other = deployment.trigger(run.dataset_uri)
    assert other.wait_for_end() == "success"
    run.clear("features.add_step")
    assert run.wait_for_end() == "failed"
    assert "its first step has finished: clear `plan` with downstream" in run.log("wait_turn")
    run.failures = 2
    run.clear("plan")
    check(run, "success", published=False)


def test_a_step_is_cleared_after_the_run_has_succeeded_while_its_files_are_kept(
    deployment: Deployment, check: Check
) -> None:
    with deployment.setting("ORCHARD_KEEP_SCRATCH_DAYS", "1"):
        run = deployment.trigger()
        assert run.wait_for_end() == "success"
        run.clear("pca.add_step")
        check(run, "success", clusters=2)
