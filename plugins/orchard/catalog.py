"""Publish a run: check that its parts agree, and write the summary that makes it a finished one."""

import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orchard.dataset import split_uri

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

SUMMARY = "summary.json"


class InconsistentRun(RuntimeError):
    """The steps of a run do not agree on how many images it has."""


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


def publish_run(s3: "S3Client", run: Mapping[str, Any], cluster_id: str) -> dict[str, Any]:
    """Write the run's `summary.json`, last of all its files, and return it.

    Raises:
        InconsistentRun: a step has lost or added images; nothing is written.
    """
    bucket, prefix = split_uri(run["run_uri"])
    metrics = {
        name: json.loads(s3.get_object(Bucket=bucket, Key=f"{prefix}/{name}.metrics.json")["Body"].read())
        for name in ("ingest", "features", "pca")
    }
    summary = summarise(run, metrics, cluster_id)
    s3.put_object(Bucket=bucket, Key=f"{prefix}/{SUMMARY}", Body=json.dumps(summary, indent=2).encode())
    log.info("published %s: %s", run["run_uri"], json.dumps(summary))
    return summary
