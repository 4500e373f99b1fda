"""What a run did, in short: the metrics of its steps, checked against each other, as one summary."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from orchard.dataset import split_uri
from orchard.errors import WillNotHeal

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

SUMMARY = "summary.json"


class InconsistentRun(WillNotHeal):
    """The parts of a run do not agree on how many images it has."""


@dataclass(frozen=True)
class Metrics:
    """What the steps of a run wrote about themselves, by step, and when the first of them had read the dataset."""

    steps: Mapping[str, Mapping[str, Any]]
    ingested: datetime


def read_metrics(s3: "S3Client", run_uri: str) -> Metrics:
    """Read the metrics files of a run.

    Raises:
        botocore.exceptions.ClientError: NoSuchKey, as a step has not finished.
    """
    bucket, prefix = split_uri(run_uri)
    answers = {
        name: s3.get_object(Bucket=bucket, Key=f"{prefix}/{name}.metrics.json")
        for name in ("ingest", "features", "pca")
    }
    steps = {name: json.loads(answer["Body"].read()) for name, answer in answers.items()}
    return Metrics(steps, ingested=answers["ingest"]["LastModified"])


def summarise(run: Mapping[str, Any], metrics: Mapping[str, Mapping[str, Any]], cluster_id: str) -> dict[str, Any]:
    """The summary of a run from its plan and the metrics of its steps.

    Raises:
        InconsistentRun: a step has lost or added images.
    """
    ingest, features, pca = metrics["ingest"], metrics["features"], metrics["pca"]
    counts = {
        "images of ingest": ingest["rows_out"],
        "images into features": features["rows_in"],
        "features": features["rows_out"],
        "features into pca": pca["rows_in"],
        "embeddings": pca["rows_out"],
    }
    if len(set(counts.values())) != 1 or ingest["rows_in"] != ingest["rows_out"] + ingest["rejects"]:
        raise InconsistentRun(f"{run['run_uri']} is not published: {counts}, {ingest['rows_in']} listed")
    return {
        "run_id": ingest["run_id"],
        "run_uri": run["run_uri"],
        "dataset_uri": run["dataset_uri"],
        "cluster_id": cluster_id,
        "images_planned": run["images"],
        "images_listed": ingest["rows_in"],
        "images_ingested": ingest["rows_out"],
        "images_rejected": ingest["rejects"],
        "reject_reasons": ingest["reject_reasons"],
        "features_rows": features["rows_out"],
        "embeddings_rows": pca["rows_out"],
        "n_components": pca["n_components"],
        "explained_variance": pca["explained_variance"],
        "model": features["model"],
        "pca_model": pca["pca_model"],
        "step_seconds": {name: step["seconds"] for name, step in metrics.items()},
        "step_images_per_second": {name: step["images_per_second"] for name, step in metrics.items()},
    }


def write_summary(s3: "S3Client", summary: Mapping[str, Any]) -> None:
    """Write a run's `summary.json`, which calls it finished."""
    bucket, prefix = split_uri(summary["run_uri"])
    s3.put_object(Bucket=bucket, Key=f"{prefix}/{SUMMARY}", Body=json.dumps(summary, indent=2).encode())
