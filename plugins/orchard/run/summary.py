"""The summary of a run: the metrics of its steps, checked against each other."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from orchard.errors import PermanentError
from orchard.run.plan import RunPlan
from orchard.run.steps import STEPS
from orchard.storage import split_uri, write_json

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

SUMMARY = "summary.json"


class InconsistentRun(PermanentError):
    """The steps of a run disagree about the number of images."""


@dataclass(frozen=True)
class Metrics:
    """The metrics that the steps of a run wrote, by step, and the time when ingest had read the dataset."""

    steps: Mapping[str, Mapping[str, Any]]
    ingested: datetime

    def files(self, dataset: str) -> Sequence[Mapping[str, Any]]:
        """Return the files of a dataset that a step wrote: each with its `uri`, `rows` and `bytes`."""
        found: Sequence[Mapping[str, Any]] = next(
            step["files"][dataset] for step in self.steps.values() if dataset in step["files"]
        )
        return found


def read_metrics(s3: "S3Client", run_uri: str) -> Metrics:
    """Read the metrics files of a run.

    Raises:
        botocore.exceptions.ClientError: NoSuchKey: a step has not finished.
    """
    bucket, prefix = split_uri(run_uri)
    answers = {name: s3.get_object(Bucket=bucket, Key=f"{prefix}/{name}.metrics.json") for name in STEPS}
    steps = {name: json.loads(answer["Body"].read()) for name, answer in answers.items()}
    return Metrics(steps, ingested=answers["ingest"]["LastModified"])


def summarise(plan: RunPlan, metrics: Mapping[str, Mapping[str, Any]], cluster_id: str) -> dict[str, Any]:
    """Return the summary of a run from its plan and the metrics of its steps.

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
        raise InconsistentRun(
            f"{plan['run_uri']} is not published: {counts}, {ingest['rows_in']} listed, {ingest['rejects']} rejected. "
            "Clear ingest.add_step with downstream; if this persists, it is a bug in Orchard: please report it"
        )
    return {
        "run_id": ingest["run_id"],
        "run_uri": plan["run_uri"],
        "dataset_uri": plan["dataset_uri"],
        "cluster_id": cluster_id,
        "images_planned": plan["images"],
        "images_listed": ingest["rows_in"],
        "images_ingested": ingest["rows_out"],
        "images_rejected": ingest["rejects"],
        "reject_reasons": ingest["reject_reasons"],
        # The objects that are not images, by ending; runs of earlier releases did not count them.
        "ignored": ingest.get("ignored", {}),
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
    """Write a run's `summary.json`, which marks the run as finished."""
    write_json(s3, f"{summary['run_uri']}/{SUMMARY}", summary)
