import json
from typing import TYPE_CHECKING, Any

import pytest

from orchard.run.plan import RunPlan
from orchard.run.summary import InconsistentRun, Metrics, read_metrics, summarise, write_summary

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

METRICS: dict[str, dict[str, Any]] = {
    "ingest": {"rows_in": 10, "rows_out": 9, "rejects": 1, "reject_reasons": {"empty": 1}},
    "features": {"rows_in": 9, "rows_out": 9, "model": "mobilenet"},
    "pca": {"rows_in": 9, "rows_out": 9, "n_components": 4, "explained_variance": 0.96, "pca_model": "pca-4-ab"},
}


def planned(bucket: str) -> RunPlan:
    """Return the plan of a run, without the requests, which a summary does not need."""
    return {
        "dataset_uri": f"s3://{bucket}/images/",
        "run_uri": f"s3://{bucket}/runs/images/run-1",
        "images": 10,
        "cluster_name": "orchard",
        "cluster": {},
        "ingest_step": {},
        "features_step": {},
        "pca_step": {},
    }


def write_run(s3: "S3Client", bucket: str) -> RunPlan:
    """Write the metrics of a run's steps, and return the run's plan."""
    for name, metrics in step_metrics().items():
        s3.put_object(Bucket=bucket, Key=f"runs/images/run-1/{name}.metrics.json", Body=json.dumps(metrics).encode())
    return planned(bucket)


def step_metrics(**changed: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the metrics of the steps, with changed values for some steps."""
    common = {"run_id": "run-1", "seconds": 2.5, "images_per_second": 3.6}
    return {name: {**common, **metrics, **changed.get(name, {})} for name, metrics in METRICS.items()}


def test_a_summary_contains_the_counts_of_the_steps_and_is_in_the_runs_folder(s3: "S3Client", bucket: str) -> None:
    run = write_run(s3, bucket)
    summary = summarise(run, read_metrics(s3, run["run_uri"]).steps, "j-1")
    write_summary(s3, summary)
    content = s3.get_object(Bucket=bucket, Key="runs/images/run-1/summary.json")["Body"].read()
    assert json.loads(content) == summary
    assert (summary["images_listed"], summary["images_ingested"], summary["images_rejected"]) == (10, 9, 1)
    assert (summary["features_rows"], summary["embeddings_rows"], summary["n_components"]) == (9, 9, 4)
    assert summary["cluster_id"] == "j-1"
    assert summary["step_seconds"] == {"ingest": 2.5, "features": 2.5, "pca": 2.5}


def test_the_dataset_was_read_when_ingest_wrote_its_metrics(s3: "S3Client", bucket: str) -> None:
    run = write_run(s3, bucket)
    written = s3.head_object(Bucket=bucket, Key="runs/images/run-1/ingest.metrics.json")["LastModified"]
    assert read_metrics(s3, run["run_uri"]) == Metrics(step_metrics(), written)


@pytest.mark.parametrize(
    ("step", "changed"),
    [
        ("ingest", {"rows_in": 11}),
        ("features", {"rows_in": 8}),
        ("features", {"rows_out": 8}),
        ("pca", {"rows_in": 8}),
        ("pca", {"rows_out": 10}),
    ],
)
def test_steps_that_disagree_have_no_summary(step: str, changed: dict[str, int]) -> None:
    with pytest.raises(InconsistentRun, match="s3://b/runs/images/run-1 is not published"):
        summarise(planned("b"), step_metrics(**{step: changed}), "j-1")


def test_a_run_without_the_metrics_of_a_step_has_no_summary(s3: "S3Client", bucket: str) -> None:
    run = write_run(s3, bucket)
    s3.delete_object(Bucket=bucket, Key="runs/images/run-1/pca.metrics.json")
    with pytest.raises(s3.exceptions.NoSuchKey):
        read_metrics(s3, run["run_uri"])


def test_a_summary_has_the_ignored_objects_by_ending() -> None:
    ignored = {".heic": 3, ".gif": 1}
    assert summarise(planned("b"), step_metrics(ingest={"ignored": ignored}), "j-1")["ignored"] == ignored
    assert summarise(planned("b"), step_metrics(), "j-1")["ignored"] == {}  # a release that did not count them
