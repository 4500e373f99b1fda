import json
from typing import TYPE_CHECKING, Any

import pytest

from orchard.run.plan import RunPlan
from orchard.run.plan_files import NoPlan
from orchard.run.summary import InconsistentRun, Metrics, read_metrics, read_summary, summarise, write_summary

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# Ten objects, of which seven are read: six images, one of them twice and one known, and a reject.
METRICS: dict[str, dict[str, Any]] = {
    "plan": {
        "dataset": "s3://b/images/",
        "base_run_id": "run-0",
        "listed": 10,
        "new": 5,
        "changed": 2,
        "deleted": 4,
        "unchanged": 3,
        "images_kept": 2,
        "rejects_kept": 1,
        "kept_reject_reasons": {"empty": 1},
        "ignored": {".heic": 3, ".gif": 1},
    },
    "ingest": {"rows_in": 7, "rows_out": 6, "rejects": 1, "reject_reasons": {"undecodable": 1}},
    "features": {"rows_in": 6, "rows_out": 4, "known": 1, "duplicates": 1, "model": "mobilenet"},
    "pca": {
        "rows_in": 8,
        "rows_out": 8,
        "duplicates": 1,
        "n_components": 4,
        "explained_variance": 0.96,
        "pca_model": "pca-4-ab",
        "pca_mode": "refit",
        "drift": {"new": 0.1, "fit": 0.04},
    },
}
ROWS = {
    "plan": {"inventory": 7, "kept_images": 2, "kept_rejects": 1, "features": 100, "basis": 0},
    "ingest": {"images": 6, "rejects": 1},
    "features": {"features": 4, "new_images": 6},
    "pca": {"embeddings": 8, "pca_model": 1, "compacted": 50, "replaced": 50},
}


def planned(bucket: str) -> RunPlan:
    """Return the plan of a run, without the requests, which a summary does not need."""
    return {
        "dataset_uri": "s3://b/images/",
        "run_uri": f"s3://{bucket}/runs/images/run-1",
        "scratch_uri": f"s3://{bucket}/scratch/images/run-1",
        "cluster_name": "orchard",
        "cluster": {},
        "ingest_step": {},
        "features_step": {},
        "pca_step": {},
    }


def metrics_of(
    changed: dict[str, dict[str, Any]] | None = None, rows: dict[str, dict[str, int]] | None = None
) -> Metrics:
    """Return the metrics of a run, with changed values, and with changed rows of files."""
    common = {"run_id": "run-1", "plan_id": "1", "seconds": 2.5, "images_per_second": 3.6}
    content = {
        name: {
            **common,
            **metrics,
            **(changed or {}).get(name, {}),
            "files": {
                dataset: [{"uri": f"s3://b/{dataset}/{part}", "rows": part, "bytes": 1} for part in parts(count)]
                for dataset, count in {**ROWS[name], **(rows or {}).get(name, {})}.items()
            },
        }
        for name, metrics in METRICS.items()
    }
    return Metrics(content.pop("plan"), content)


def parts(rows: int) -> list[int]:
    """Return the rows of the files of a dataset."""
    return [part for part in (min(1, rows), rows - 1) if part > 0]


def write_run(s3: "S3Client", bucket: str) -> RunPlan:
    """Write the metrics of a run's plan and steps, and return the run's plan."""
    metrics = metrics_of()
    for name, content in {"plan": metrics.plan, **metrics.steps}.items():
        s3.put_object(Bucket=bucket, Key=f"runs/images/run-1/{name}.metrics.json", Body=json.dumps(content).encode())
    return planned(bucket)


def test_a_summary_contains_the_counts_of_the_plan_and_the_steps_and_is_in_the_runs_folder(
    s3: "S3Client", bucket: str
) -> None:
    run = write_run(s3, bucket)
    assert read_summary(s3, run["run_uri"]) is None
    summary = summarise(run, read_metrics(s3, run["run_uri"]), "j-1")
    write_summary(s3, summary)
    assert read_summary(s3, run["run_uri"]) == summary
    assert summary["run_id"] == "run-1"
    assert (summary["images_listed"], summary["images_ingested"], summary["images_rejected"]) == (10, 8, 2)
    assert {name: summary[name] for name in ("new", "changed", "deleted", "unchanged")} == {
        "new": 5,
        "changed": 2,
        "deleted": 4,
        "unchanged": 3,
    }
    assert summary["reject_reasons"] == {"empty": 1, "undecodable": 1}
    assert summary["ignored"] == {".heic": 3, ".gif": 1}
    assert (summary["inferences"], summary["known"], summary["duplicates"]) == (4, 1, 1)
    assert (summary["features_rows"], summary["embeddings_rows"], summary["n_components"]) == (4, 8, 4)
    assert (summary["cluster_id"], summary["base_run_id"], summary["pca_mode"]) == ("j-1", "run-0", "refit")
    assert summary["step_seconds"] == {"ingest": 2.5, "features": 2.5, "pca": 2.5}


def test_rejects_that_were_kept_and_found_for_the_same_reason_are_added_up() -> None:
    metrics = metrics_of({"ingest": {"reject_reasons": {"empty": 1}}})
    assert summarise(planned("b"), metrics, None)["reject_reasons"] == {"empty": 2}


@pytest.mark.parametrize(
    ("step", "name", "count"),
    [
        ("ingest", "rows_in", 8),
        ("ingest", "rejects", 2),
        ("ingest", "rows_out", 5),
        ("features", "rows_in", 5),
        ("features", "rows_out", 5),
        ("pca", "rows_in", 6),
        ("pca", "rows_out", 9),
        ("plan", "images_kept", 3),
        ("plan", "rejects_kept", 0),
    ],
)
def test_a_plan_and_steps_that_disagree_have_no_summary(step: str, name: str, count: int) -> None:
    with pytest.raises(InconsistentRun, match=rf"s3://b/runs/images/run-1 is not published: .*{count}.*Clear the task"):
        summarise(planned("b"), metrics_of({step: {name: count}}), "j-1")


@pytest.mark.parametrize(
    ("step", "dataset"),
    [
        ("plan", "inventory"),
        ("plan", "kept_images"),
        ("plan", "kept_rejects"),
        ("ingest", "rejects"),
        ("features", "features"),
        ("features", "new_images"),
        ("pca", "embeddings"),
        ("pca", "compacted"),
        ("pca", "replaced"),
    ],
)
@pytest.mark.parametrize("difference", [-1, 1])
def test_files_with_other_rows_than_the_metrics_count_have_no_summary(step: str, dataset: str, difference: int) -> None:
    rows = {step: {dataset: ROWS[step][dataset] + difference}}
    with pytest.raises(InconsistentRun, match="s3://b/runs/images/run-1 is not published"):
        summarise(planned("b"), metrics_of(rows=rows), "j-1")


@pytest.mark.parametrize(
    "changed",
    [{"plan": {"run_id": "run-2"}}, {"pca": {"run_id": "run-2"}}, {"plan": {"dataset": "s3://b/apples/"}}],
)
def test_metrics_of_another_run_or_dataset_have_no_summary(changed: dict[str, dict[str, Any]]) -> None:
    with pytest.raises(InconsistentRun, match=r"its metrics are of the runs .*(run-2|apples)"):
        summarise(planned("b"), metrics_of(changed), "j-1")


def test_steps_that_worked_on_an_earlier_plan_have_no_summary() -> None:
    changed: dict[str, dict[str, Any]] = {"ingest": {"plan_id": "0"}, "pca": {"plan_id": None}}
    with pytest.raises(InconsistentRun, match=r"it was planned again, but ingest, pca worked on an earlier plan\."):
        summarise(planned("b"), metrics_of(changed), "j-1")


def test_a_run_without_a_plan_has_no_summary(s3: "S3Client", bucket: str) -> None:
    run = write_run(s3, bucket)
    s3.delete_object(Bucket=bucket, Key="runs/images/run-1/plan.metrics.json")
    with pytest.raises(NoPlan, match=r"runs/images/run-1/plan\.metrics\.json does not exist\. Clear `plan`"):
        read_metrics(s3, run["run_uri"])


@pytest.mark.parametrize("name", ["ingest", "features", "pca"])
def test_a_run_without_the_metrics_of_a_step_has_no_summary(s3: "S3Client", bucket: str, name: str) -> None:
    run = write_run(s3, bucket)
    s3.delete_object(Bucket=bucket, Key=f"runs/images/run-1/{name}.metrics.json")
    with pytest.raises(s3.exceptions.NoSuchKey):
        read_metrics(s3, run["run_uri"])
