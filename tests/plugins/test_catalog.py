import json
from typing import TYPE_CHECKING, Any

import pytest

from orchard.catalog import InconsistentRun, publish_run

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

METRICS: dict[str, dict[str, Any]] = {
    "ingest": {"rows_in": 10, "rows_out": 9, "rejects": 1, "reject_reasons": {"empty": 1}},
    "features": {"rows_in": 9, "rows_out": 9, "model": "mobilenet"},
    "pca": {"rows_in": 9, "rows_out": 9, "n_components": 4, "explained_variance": 0.96, "pca_model": "pca-4-ab"},
}


def write_run(s3: "S3Client", bucket: str, **changed: dict[str, Any]) -> dict[str, Any]:
    """Write the metrics of a run's steps, some of them changed; return its plan."""
    for name, metrics in METRICS.items():
        common = {"run_id": "run-1", "seconds": 2.5, "images_per_second": 3.6}
        body = json.dumps({**common, **metrics, **changed.get(name, {})}).encode()
        s3.put_object(Bucket=bucket, Key=f"runs/images/run-1/{name}.metrics.json", Body=body)
    return {
        "run_uri": f"s3://{bucket}/runs/images/run-1",
        "dataset_uri": f"s3://{bucket}/images/",
        "images": 10,
    }


def written_keys(s3: "S3Client", bucket: str) -> set[str]:
    return {item["Key"].rsplit("/", 1)[1] for item in s3.list_objects_v2(Bucket=bucket).get("Contents", [])}


def test_a_published_run_has_a_summary_of_its_steps(s3: "S3Client", bucket: str) -> None:
    summary = publish_run(s3, write_run(s3, bucket), "j-1")
    content = s3.get_object(Bucket=bucket, Key="runs/images/run-1/summary.json")["Body"].read()
    assert json.loads(content) == summary
    assert (summary["images_listed"], summary["images_ingested"], summary["images_rejected"]) == (10, 9, 1)
    assert (summary["features_rows"], summary["embeddings_rows"], summary["n_components"]) == (9, 9, 4)
    assert summary["cluster_id"] == "j-1"
    assert summary["step_seconds"] == {"ingest": 2.5, "features": 2.5, "pca": 2.5}


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
def test_a_run_whose_steps_disagree_is_not_published(
    s3: "S3Client", bucket: str, step: str, changed: dict[str, int]
) -> None:
    run = write_run(s3, bucket, **{step: changed})
    with pytest.raises(InconsistentRun, match=f"{run['run_uri']} is not published"):
        publish_run(s3, run, "j-1")
    assert "summary.json" not in written_keys(s3, bucket)


def test_a_run_without_the_metrics_of_a_step_is_not_published(s3: "S3Client", bucket: str) -> None:
    run = write_run(s3, bucket)
    s3.delete_object(Bucket=bucket, Key="runs/images/run-1/pca.metrics.json")
    with pytest.raises(s3.exceptions.NoSuchKey):
        publish_run(s3, run, "j-1")
    assert "summary.json" not in written_keys(s3, bucket)
