from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from orchard.report.happened import Difference, Fact, differences, happened, happened_at_publication
from orchard.report.run_folder import RunFolder
from orchard.run.progress import Progress
from tests.plugins.report.test_airflow_run import HELD, START, run_of, task

SUMMARY: dict[str, Any] = {
    "run_id": "20261127T020000-abc123",
    "dataset_uri": "s3://fruits/images/",
    "sentence": "300 images, 300 new",
    "images_listed": 300,
    "images_ingested": 298,
    "images_rejected": 2,
    "new": 300,
    "changed": 0,
    "deleted": 0,
    "inferences": 298,
    "estimate": {"usd": 0.11, "usd_with_spot": [0.05, 0.08]},
    "step_images_per_second": {"features": 74.6},
    "step_seconds": {"ingest": 2.0, "features": 5.0, "pca": 1.0},
    "warnings": ["drift is 0.7"],
}
FOLDER = RunFolder("s3://fruits/runs/images/20261127T020000-abc123", SUMMARY, {"usd": 0.0942, "usd_per_million": 314.0})
NOW = START + timedelta(seconds=100)


def test_a_published_run_shows_its_figures() -> None:
    found = happened(run_of(state="success"), FOLDER, None, NOW)
    assert (found.state, found.sentence) == ("success", "300 images, 300 new")
    assert found.warnings == ["drift is 0.7"]
    assert found.failure is None
    values = {fact.name: fact.value for fact in found.facts}
    assert values == {
        "listed": "300",
        "new": "300",
        "changed": "0",
        "deleted": "0",
        "rejected": "2",
        "inferences": "298",
        "duration": "2 min",
        "images/s": "75",
        "estimated cost": "$0.11",
        "real cost": "$0.09",
    }
    assert Fact("estimated cost", "$0.11", "$0.05 to $0.08 with Spot") in found.facts


def test_a_run_that_is_planned_shows_what_its_plan_counts() -> None:
    changes = {"listed": 12, "new": 3, "changed": 1, "deleted": 0, "dataset": "s3://fruits/a/", "sentence": "12 images"}
    run = run_of(task("plan", "success"), state="running", xcoms={("plan", "summary"): changes})
    found = happened(run, RunFolder(), None, NOW)
    assert (found.sentence, found.dataset_uri) == ("12 images", "s3://fruits/a/")
    assert {fact.name for fact in found.facts} == {"listed", "new", "changed", "deleted", "duration"}


def test_the_dataset_is_the_one_that_was_planned_or_else_asked_for() -> None:
    asked = replace(run_of(), conf={"dataset_uri": "s3://fruits/asked/"})
    assert happened(asked, RunFolder(), None, NOW).dataset_uri == "s3://fruits/asked/"
    planned = replace(asked, xcoms={("plan", "return_value"): {"dataset_uri": "s3://fruits/planned/"}})
    assert happened(planned, RunFolder(), None, NOW).dataset_uri == "s3://fruits/planned/"


def test_a_run_without_a_plan_shows_its_duration_only() -> None:
    found = happened(run_of(state="queued"), RunFolder(), None, NOW)
    assert [fact.name for fact in found.facts] == ["duration"]
    assert {stage.state for stage in found.stages} == {"waiting"}


@pytest.mark.parametrize(("new", "note"), [(999, ""), (1000, "$314 per million images read")])
def test_a_price_per_million_is_shown_for_a_thousand_images_or_more(new: int, note: str) -> None:
    folder = RunFolder("", {**SUMMARY, "new": new}, {"usd": 0.3, "usd_per_million": 314.0})
    assert Fact("real cost", "$0.30", note) in happened(run_of(), folder, None, NOW).facts


@pytest.mark.parametrize("estimate", [None, [], {"usd": None}, {"usd": "1"}, {"usd": 1, "usd_with_spot": ["a"]}])
def test_odd_estimates_do_no_harm(estimate: object) -> None:
    folder = RunFolder("", {**SUMMARY, "estimate": estimate}, {"usd": None})
    assert all(fact.name != "real cost" for fact in happened(run_of(), folder, None, NOW).facts)


def test_a_stage_lasts_from_the_end_of_the_one_before_to_its_last_task() -> None:
    run = run_of(
        task("plan", "success", 0, 4),
        task("preflight", "success", 5, 6),
        task("ingest.add_step", "success", 40, 41),
        task("ingest.wait_step", "deferred", 41, None),
        task("publish", "upstream_failed", 90, 90),
        state="running",
    )
    stages = {stage.name: stage for stage in happened(run, RunFolder(), None, NOW).stages}
    assert (stages["plan"].start, stages["plan"].seconds, stages["plan"].state) == (0, 6, "success")
    assert (stages["ingest"].start, stages["ingest"].seconds, stages["ingest"].state) == (6, 94, "running")
    assert (stages["publish"].start, stages["publish"].state) == (None, "skipped")


def test_a_failed_run_says_why_and_what_to_do() -> None:
    failed = task("features.wait_step", "failed")
    run = run_of(failed, xcoms={("features.wait_step", "cause"): "StepFailed: no space"})
    found = happened(run, RunFolder(), None, NOW).failure
    assert found is not None
    assert (found.task_id, found.cause) == ("features.wait_step", "StepFailed: no space")
    assert "Clear features.add_step with downstream" in found.hint


def test_a_running_step_shows_its_progress() -> None:
    progress = Progress("features", NOW, done=10, total=20, images_per_second=5.0)
    found = happened(run_of(state="running"), RunFolder("", progress=progress), None, NOW)
    assert found.progress.startswith("features: 10 of 20 images")
    assert (found.done, found.total) == (10, 20)


def test_a_held_cluster_shows_until_when_and_how_to_reach_it() -> None:
    run = run_of(task("hold_cluster", "deferred", 60, None), state="running", xcoms=HELD)
    found = happened(run, FOLDER, None, START + timedelta(minutes=30)).held
    assert found is not None
    assert (found.cluster_id, found.until) == ("j-1", "2026-11-27 03:30 UTC, for 1 h")
    assert found.command.startswith("aws ssm start-session --region eu-west-1 --target i-1 ")
    assert (found.url, found.user, found.password) == ("https://127.0.0.1:9443", "jovyan", "jupyter")
    assert happened(run_of(state="success", xcoms=HELD), FOLDER, None, NOW).held is None


def test_the_hold_is_a_stage_of_a_run_whose_cluster_was_held_only() -> None:
    tasks = (
        task("publish", "success", 10, 20),
        task("hold_cluster", "success", 12, 80),
        task("terminate_cluster", "success", 81, 82),
    )
    stages = {stage.name: stage for stage in happened(run_of(*tasks, xcoms=HELD), RunFolder(), None, NOW).stages}
    assert (stages["hold"].start, stages["hold"].seconds) == (10, 60), "from the publication"
    assert stages["teardown"].seconds == 2
    without = run_of(tasks[0], task("hold_cluster", "success", 12, 13), tasks[2])
    assert "hold" not in {stage.name for stage in happened(without, RunFolder(), None, NOW).stages}


def test_differences_are_those_figures_that_read_differently() -> None:
    base = RunFolder("", {**SUMMARY, "images_ingested": 290, "label_accuracy": 0.98701, "explained_variance": None})
    now = RunFolder("", {**SUMMARY, "label_accuracy": 0.98702, "explained_variance": 0.95})
    assert differences(now, base) == [Difference("images", "290", "298")]
    assert differences(now, RunFolder()) == []


def test_at_its_publication_a_run_knows_its_steps() -> None:
    found = happened_at_publication(FOLDER, None, "20261127T020000-abc123")
    assert [(stage.name, stage.start, stage.seconds) for stage in found.stages] == [
        *(("ingest", 0, 2.0), ("features", 2.0, 5.0), ("pca", 7.0, 1.0)),
    ]
    assert found.state == "success"
