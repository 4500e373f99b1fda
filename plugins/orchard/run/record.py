"""The row of a run in the table `runs`: `publish` adds it, and `verdict` adds what the run has cost."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table

from orchard.tables.commit import Change, tasks_of_dataset, tasks_to_merge
from orchard.tables.files import write_files
from orchard.tables.rows import arrow_schema, stream_file, stream_rows, where

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

Row = Mapping[str, Any]


def row_of_run(plan: Mapping[str, Any], summary: Mapping[str, Any], snapshots: Mapping[str, int]) -> dict[str, Any]:
    """Return the row of a run, from the metrics of its plan, its summary, and the ids of the snapshots that show it."""
    estimate = plan.get("estimate", {})
    seconds = {"plan": plan["seconds"], **summary["step_seconds"]}
    return {
        "run_id": summary["run_id"],
        "dataset": summary["dataset_uri"],
        **{key: plan[key] for key in ("model", "decoder")},
        "pca_model": summary["pca_model"],
        **{key: plan[key] for key in ("pca_mode", "max_bytes", "max_pixels")},
        "n_components": float(plan["n_components"]),
        "planned_at": datetime.fromisoformat(plan["planned_at"]),
        "published_at": datetime.now(UTC),
        **{key: plan[key] for key in ("listed", "new", "changed", "deleted", "unchanged")},
        "images": summary["images_ingested"],
        "duplicates": summary["duplicates"],
        "inferences": summary["inferences"],
        "rejects": sorted(summary["reject_reasons"].items()),
        "ignored": sorted(plan["ignored"].items()),
        "step_seconds": sorted((name, float(value)) for name, value in seconds.items()),
        "cluster_id": summary["cluster_id"],
        "snapshots": sorted(snapshots.items()),
        # Plans of earlier releases lack these.
        **{key: plan.get(key) for key in ("instance_type", "task_slots")},
        "bytes_read": plan.get("bytes_to_read"),
        "estimated_minutes": estimate.get("minutes"),
        "estimated_usd": estimate.get("usd"),
        # The upper end of the range, as in the real cost.
        "estimated_usd_with_spot": estimate.get("usd_with_spot", [None])[-1],
        **{key: summary[key] for key in ("explained_variance", "label_accuracy", "label_sample")},
        "drift": summary["drift"].get("shift"),
        "labels": sorted(summary["labels"].items()),
    }


def rows_of_run(table: Table, dataset: str, run_id: str) -> list[dict[str, Any]]:
    """Return the rows of a run in the table `runs`: one, or none."""
    return [row for batch in stream_rows(table, where(dataset=dataset, run_id=run_id)) for row in batch.to_pylist()]


def add_row(s3: "S3Client", table: Table, row: Row) -> Change:
    """Return the change that adds the row of a run to the table `runs`, or replaces it if steps of the run were redone.

    What the run has cost is not compared, because a row that is added does not have it yet.
    """
    dataset, run_id = row["dataset"], row["run_id"]
    present = rows_of_run(table, dataset, run_id)
    compared = row.keys() - {"published_at"}
    if len(present) == 1 and all(present[0].get(name) == row[name] for name in compared):
        return Change()
    others: list[pa.RecordBatch] = []
    removed: list[DataFile] = []
    small = tasks_to_merge(table, dataset)
    for task in small or (tasks_of_dataset(table, dataset) if present else []):
        rows = pa.Table.from_batches(stream_file(table, task), arrow_schema(table.schema()))
        is_run = pc.equal(rows["run_id"], run_id)
        if small or pc.any(is_run).as_py():
            removed.append(task.file)
            others += rows.filter(pc.invert(is_run)).to_batches()
    return Change(write_files(s3, table, [*others, *_batches([row], table)]), removed)


def set_values(s3: "S3Client", table: Table, dataset: str, run_id: str, values: Row) -> Change:
    """Return the change that sets columns of the row of a run in the table `runs`, if there is such a row."""
    for task in table.scan(row_filter=where(dataset=dataset, run_id=run_id)).plan_files():
        rows = pa.Table.from_batches(stream_file(table, task), arrow_schema(table.schema())).to_pylist()
        found = [row for row in rows if row["run_id"] == run_id]
        if any(row[name] != value for row in found for name, value in values.items()):
            changed = [row | values if row["run_id"] == run_id else row for row in rows]
            return Change(write_files(s3, table, _batches(changed, table)), [task.file])
    return Change()


def _batches(rows: Sequence[Row], table: Table) -> list[pa.RecordBatch]:
    batches: list[pa.RecordBatch] = pa.Table.from_pylist(rows, arrow_schema(table.schema())).to_batches()
    return batches
