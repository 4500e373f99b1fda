"""The files that a plan writes for the steps. Files of another plan of the same run are not listed, and not read.

SCRATCH/inventory/     new and changed objects, one file per Spark task
SCRATCH/kept_images/   images that the run takes over from the published run
SCRATCH/kept_rejects/  objects that stay rejected without being read
SCRATCH/basis/         the basis of the published run: the PCA's own, if it is frozen, otherwise to compare with
RUN/plan.metrics.json  the counts and all files, written last
"""

import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from boto3.s3.transfer import TransferConfig

from orchard.errors import PermanentError
from orchard.run.difference import INVENTORY, Difference
from orchard.run.row_files import LocalFile, RowWriter, deal, file_count
from orchard.run.steps import STEPS
from orchard.storage import find_json, split_uri, write_json

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PLAN = "plan.metrics.json"
# What another plan makes invalid: the metrics and the progress of the steps, and the marker of a finished run.
MADE_FROM_PLAN = (*(f"{step}.{kind}.json" for step in STEPS for kind in ("metrics", "progress")), "summary.json")
UPLOADS = 8
# The files are uploaded side by side, so that none needs threads of its own.
TRANSFER = TransferConfig(use_threads=False)


class NoPlan(PermanentError):
    """The run's folder has no plan.metrics.json."""

    def __init__(self, run_uri: str) -> None:
        super().__init__(f"{run_uri}/{PLAN} does not exist. Clear `plan` with downstream")


def write_files(
    s3: "S3Client", folder: Path, scratch_uri: str, difference: Difference, basis: pa.Table | None, task_slots: int
) -> dict[str, list[dict[str, Any]]]:
    """Upload the files that the steps read, under names that no other plan uses. Return them by dataset."""
    rows = sum(file.rows for file in difference.inventory)
    count = file_count(rows, difference.bytes_to_read, task_slots)
    files: dict[str, tuple[LocalFile, ...]] = {
        "inventory": deal(folder, difference.inventory, INVENTORY, count),
        "kept_images": difference.kept_images,
        "kept_rejects": difference.kept_rejects,
        "basis": (),
    }
    if basis is not None:
        with RowWriter(folder, "basis", basis.schema) as writer:
            for batch in basis.to_batches():
                writer.write(batch)
        files["basis"] = writer.files
    bucket, prefix = split_uri(scratch_uri)

    def upload(dataset: str, file: LocalFile) -> dict[str, Any]:
        key = f"{prefix}/{dataset}/part-{uuid.uuid4().hex}.parquet"
        s3.upload_file(str(file.path), bucket, key, Config=TRANSFER)
        return {"uri": f"s3://{bucket}/{key}", "rows": file.rows, "bytes": file.path.stat().st_size}

    with ThreadPoolExecutor(UPLOADS) as pool:
        return {dataset: list(pool.map(partial(upload, dataset), local)) for dataset, local in files.items()}


def delete_made_from_plan(s3: "S3Client", run_uri: str) -> None:
    """Delete what an earlier plan of a run has led to, before the files of the next plan are written.

    A run with a `summary.json` is finished, and another run may delete its scratch folder.
    """
    bucket, prefix = split_uri(run_uri)
    for name in MADE_FROM_PLAN:
        s3.delete_object(Bucket=bucket, Key=f"{prefix}/{name}")


def write_plan(s3: "S3Client", run_uri: str, metrics: Mapping[str, Any]) -> None:
    """Write a run's plan.metrics.json, with an id that no other plan has."""
    write_json(s3, f"{run_uri}/{PLAN}", {**metrics, "plan_id": uuid.uuid4().hex})


def read_plan(s3: "S3Client", run_uri: str) -> dict[str, Any]:
    """Return the content of a run's plan.metrics.json.

    Raises:
        NoPlan: there is none.
    """
    metrics = find_json(s3, f"{run_uri}/{PLAN}")
    if metrics is None:
        raise NoPlan(run_uri)
    return metrics
