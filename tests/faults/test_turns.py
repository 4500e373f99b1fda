"""The turns of runs that use one dataset, with real Airflow processes and real Spark steps."""

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

from tests.faults.conftest import Check
from tests.faults.deployment import RUN_TIMEOUT_SECONDS, Deployment, Run, wait_until

pytestmark = pytest.mark.slow


def assert_one_after_the_other(*runs: Run) -> None:
    """Check that each run began to work only after the run before it had ended, by Airflow's and by EMR's times."""
    for run in runs:
        (cluster,) = run.clusters()
        timeline = cluster["Status"]["Timeline"]
        assert run.times("create_cluster")[0] <= timeline["CreationDateTime"]
    for before, after in pairwise(runs):
        # `verdict` gives the turn back, and so its end may be a moment later.
        for task_id in ("publish", "terminate_cluster", "cluster_gone"):
            assert before.times(task_id)[1] < after.times("create_cluster")[0]
        assert before.times("verdict")[0] < after.times("wait_turn")[1]


def test_two_runs_of_one_dataset(deployment: Deployment, check: Check) -> None:
    first = deployment.trigger(full_refresh=True)
    second = deployment.trigger(first.dataset_uri, full_refresh=True)
    for run in (first, second):
        assert run.wait_for_end(timeout_seconds=2 * RUN_TIMEOUT_SECONDS) == "success"
    # They are triggered within moments of each other, so that either may come first.
    before, after = sorted((first, second), key=lambda run: run.times("create_cluster")[0])
    assert_one_after_the_other(before, after)
    check(after, "success")


def test_two_runs_of_one_dataset_that_are_triggered_at_the_same_moment(deployment: Deployment, check: Check) -> None:
    dataset_uri = deployment.new_dataset()
    start = threading.Barrier(2)

    def trigger(_: int) -> Run:
        start.wait()
        return deployment.trigger(dataset_uri, full_refresh=True)

    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(trigger, range(2)))
    for run in runs:
        assert run.wait_for_end(timeout_seconds=2 * RUN_TIMEOUT_SECONDS) == "success"
    first, second = sorted(runs, key=lambda run: run.times("create_cluster")[0])
    assert_one_after_the_other(first, second)
    check(second, "success")


def three_runs(deployment: Deployment) -> tuple[Run, Run, Run]:
    """Trigger three runs of one dataset. The first has its turn, and the others wait in this order."""
    first = deployment.trigger(full_refresh=True)
    first.wait_for("wait_turn", "success")
    second = deployment.trigger(first.dataset_uri, full_refresh=True)
    second.wait_for("wait_turn", "up_for_reschedule")
    third = deployment.trigger(first.dataset_uri, full_refresh=True)
    third.wait_for("wait_turn", "up_for_reschedule")
    return first, second, third


def test_three_runs_of_one_dataset_work_in_the_order_in_which_they_came(deployment: Deployment, check: Check) -> None:
    first, second, third = three_runs(deployment)
    for run in (first, second, third):
        assert run.wait_for_end(timeout_seconds=2 * RUN_TIMEOUT_SECONDS) == "success"
    assert_one_after_the_other(first, second, third)
    check(third, "success")


def test_a_run_that_waits_is_marked_failed_and_another_that_fails_gives_its_turn_back(
    deployment: Deployment, check: Check
) -> None:
    first, second, third = three_runs(deployment)
    second.mark("failed")
    deployment.aws.kill_step(*first.wait_for_step("ingest", "RUNNING"))
    check(third, "success")
    assert (first.state(), second.state()) == ("failed", "failed")
    assert second.clusters() == []


def test_a_run_that_has_the_turn_is_deleted_before_it_has_a_cluster(deployment: Deployment, check: Check) -> None:
    deployment.aws.hang("emr:RunJobFlow", seconds=60)
    first = deployment.trigger()
    first.wait_for("create_cluster", "running")
    second = deployment.trigger(first.dataset_uri)
    second.wait_for("wait_turn", "up_for_reschedule")
    wait_until(lambda: deployment.delete(first), f"the deletion of {first.run_id}")
    deployment.aws.clear()
    check(second, "success")


def test_a_dataset_has_not_changed(deployment: Deployment, check: Check) -> None:
    first = deployment.trigger()
    assert first.wait_for_end() == "success"
    events = len(deployment.events())
    second = deployment.trigger(first.dataset_uri)
    check(second, "success", clusters=0, published=False)
    states = second.tasks()
    assert {task_id for task_id, state in states.items() if state == "success"} == {"plan"}
    assert {state for task_id, state in states.items() if task_id != "plan"} == {"skipped"}
    summary = second.summary()
    assert summary is not None
    assert (summary["listed"], summary["unchanged"], summary["nothing_to_do"]) == (12, 12, True)
    messages = [line for line in second.log("plan").splitlines() if "endgroup" not in line]
    assert "plan: nothing to do: 12 images below" in messages[-1]
    assert first.is_published()
    assert len(deployment.events()) == events
    assert deployment.locks() == []


def test_a_run_has_nothing_to_do_after_it_has_waited_for_another_one(deployment: Deployment, check: Check) -> None:
    first = deployment.trigger()
    first.wait_for("wait_turn", "success")
    second = deployment.trigger(first.dataset_uri)
    second.wait_for("wait_turn", "up_for_reschedule")
    assert first.wait_for_end() == "success"
    check(second, "success", clusters=0, published=False)
    states = second.tasks()
    assert (states["plan"], states["wait_turn"], states["publish"], states["verdict"]) == (
        *("success", "skipped", "skipped", "success"),
    )
    summary = second.summary("wait_turn")
    assert summary is not None
    assert summary["nothing_to_do"]
    assert first.is_published()
    assert deployment.locks() == []


def test_a_run_reads_only_what_is_new_after_it_has_waited_for_another_one(deployment: Deployment, check: Check) -> None:
    first = deployment.trigger()
    first.wait_for("wait_turn", "success")
    deployment.add_image(first.dataset_uri)
    second = deployment.trigger(first.dataset_uri)
    second.wait_for("wait_turn", "up_for_reschedule")
    assert first.wait_for_end() == "success"
    check(second, "success")
    planned, planned_again = second.summary(), second.summary("wait_turn")
    assert planned is not None
    assert planned_again is not None
    assert (planned["new"], planned_again["new"], planned_again["unchanged"]) == (13, 1, 12)
