from datetime import UTC, datetime, timedelta
from typing import Any

from orchard.report.airflow_run import AirflowRun, Task

START = datetime(2026, 11, 27, 2, tzinfo=UTC)


def task(task_id: str, state: str | None, start: float | None = 0, end: float | None = 1) -> Task:
    """Return a task that started and ended so many seconds after the start of the run."""
    start_at, end_at = (None if at is None else START + timedelta(seconds=at) for at in (start, end))
    return Task(task_id, state, start_at, end_at)


def run_of(*tasks: Task, state: str = "failed", xcoms: dict[tuple[str, str], Any] | None = None) -> AirflowRun:
    return AirflowRun("fruit_features", "manual__1", state, START, START, None, tasks, xcoms or {})


def test_the_first_failure_is_the_task_that_failed_first() -> None:
    run = run_of(
        task("verdict", "failed", 30, 31),
        task("features.wait_step", "failed", 10, 20),
        task("publish", "upstream_failed", None, None),
        xcoms={("features.wait_step", "cause"): "StepFailed: no memory", ("verdict", "cause"): "the run has failed"},
    )
    assert run.first_failure() == ("features.wait_step", "StepFailed: no memory")


def test_a_failure_with_a_cause_is_better_than_an_earlier_one_without() -> None:
    failed = task("ingest.wait_step", "failed", 0, 5), task("terminate_cluster", "failed", 6, 9)
    run = run_of(*failed, xcoms={("terminate_cluster", "cause"): "AccessDenied"})
    assert run.first_failure() == ("terminate_cluster", "AccessDenied")
    without = run_of(failed[0]).first_failure()
    assert without is not None
    assert "see its log" in without[1]


def test_a_run_without_failed_tasks_has_no_failure() -> None:
    assert run_of(task("plan", "success"), state="success").first_failure() is None


def test_the_running_step_is_the_one_that_is_waited_for() -> None:
    done, running = task("ingest.wait_step", "success"), task("features.wait_step", "deferred", 2, None)
    assert run_of(done, running, task("pca.wait_step", None, None, None)).running_step == "features"
    assert run_of(done).running_step == ""


def test_xcoms_of_other_types_count_as_none() -> None:
    odd = {("plan", "return_value"): "text", ("plan", "summary"): [1], ("create_cluster", "return_value"): {"a": 1}}
    run = run_of(xcoms=odd)
    assert (run.plan, run.changes, run.cluster_ids) == ({}, {}, ())


def test_a_task_that_planned_again_has_the_counts() -> None:
    run = run_of(xcoms={("plan", "summary"): {"new": 1}, ("wait_turn", "summary"): {"new": 2}})
    assert run.changes == {"new": 2}


HOLD = {
    "cluster_id": "j-1",
    "instance_id": "i-1",
    "region": "eu-west-1",
    "until": (START + timedelta(minutes=90)).isoformat(),
}
HELD = {("hold_cluster", "hold"): HOLD}


def test_a_run_is_held_while_its_task_waits_with_a_hold() -> None:
    waiting, ended = task("hold_cluster", "deferred", 2, None), task("hold_cluster", "success", 2, 9)
    assert run_of(waiting, xcoms=HELD).is_held
    assert not run_of(ended, xcoms=HELD).is_held
    assert not run_of(waiting, xcoms={}).is_held, "it waits for publish"
    assert not run_of(waiting, xcoms={("hold_cluster", "hold"): {"until": "soon"}}).is_held
    assert run_of(ended, xcoms=HELD).hold is not None


def test_a_hold_that_a_user_marked_failed_is_no_failure_and_one_with_a_cause_is() -> None:
    marked = task("hold_cluster", "failed", 2, 9)
    assert run_of(marked, state="success", xcoms=HELD).first_failure() is None
    cause = {("hold_cluster", "cause"): "ClientError: denied"}
    assert run_of(marked, xcoms=cause).first_failure() == ("hold_cluster", "ClientError: denied")
    other = task("publish", "failed", 10, 11)
    assert run_of(marked, other, xcoms=cause | {("publish", "cause"): "LostRows"}).first_failure() == (
        "publish",
        "LostRows",
    )


def test_each_cluster_of_a_run_is_named_once() -> None:
    waited = task("pca.wait_step", "success")
    ids = {("create_cluster", "return_value"): "j-1", ("cluster_ready", "return_value"): "j-1"}
    assert run_of(waited, xcoms={**ids, ("pca.wait_step", "return_value"): "j-2"}).cluster_ids == ("j-1", "j-2")
