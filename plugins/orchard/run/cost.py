"""Record what a run has cost, in its folder and in its row of the table `runs`."""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.table import Table

from orchard.cluster.cost import RunCost
from orchard.run.names import run_id_of
from orchard.settings import Settings
from orchard.storage import write_json
from orchard.tables.catalog import DATASET, RUN_ID, find_table, open_table
from orchard.tables.commit import Change, commit
from orchard.tables.files import write_files
from orchard.tables.rows import arrow_schema, stream_file, stream_rows, where

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

COST = "cost.json"
MILLION = 1_000_000


def record_cost(
    s3: "S3Client", catalog: Catalog, settings: Settings, plan: Mapping[str, Any], cost: RunCost
) -> dict[str, Any]:
    """Write what a run has cost into its folder. If it is published, also write it into its row of the table `runs`.

    Returns:
        The content of `cost.json`.

    Raises:
        CannotCommit: other publishers changed the table during each attempt.
    """
    run_uri, dataset, run_id = plan["run_uri"], plan["dataset_uri"], run_id_of(plan["run_uri"])
    rows = find_row(catalog, settings, dataset, run_id)
    images = rows[0]["new"] + rows[0]["changed"] if rows else None
    content = asdict(cost) | {"usd_per_million": usd_per_million(cost.usd, images)}
    log.info(
        "cost: %.4f USD for %.1f minutes of %d clusters with %d instances%s",
        cost.usd,
        cost.minutes,
        len(cost.clusters),
        sum(cluster.instances for cluster in cost.clusters),
        f", {content['usd_per_million']:.2f} USD per million images read" if images else "",
    )
    write_json(s3, f"{run_uri}/{COST}", content)
    if rows:
        values = {
            "ready_seconds": cost.ready_seconds,
            "cluster_minutes": cost.minutes,
            "cost_usd": cost.usd,
            "cost_usd_per_million": content["usd_per_million"],
        }
        table = open_table(catalog, settings, "runs")
        properties = {RUN_ID: run_id, DATASET: dataset}
        commit(
            table, f"the cost of {run_uri}", lambda now: change_of_cost(s3, now, dataset, run_id, values), properties
        )
    return content


def usd_per_million(usd: float, images: int | None) -> float | None:
    """Return the cost per million images that a run has read. Return None if it has read none.

    >>> usd_per_million(0.11, 22_000)
    5.0
    """
    return round(usd * MILLION / images, 2) if images else None


def find_row(catalog: Catalog, settings: Settings, dataset: str, run_id: str) -> list[dict[str, Any]]:
    """Return the columns `new` and `changed` of a run's row in the table `runs`: one row, or none."""
    table = find_table(catalog, settings, "runs")
    if table is None:
        return []
    batches = stream_rows(table, where(dataset=dataset, run_id=run_id), ["new", "changed"])
    return [row for batch in batches for row in batch.to_pylist()]


def change_of_cost(
    s3: "S3Client", table: Table, dataset: str, run_id: str, values: Mapping[str, float | None]
) -> Change:
    """Return the change that sets columns of a run's row in the table `runs`."""
    for task in table.scan(where(dataset=dataset, run_id=run_id)).plan_files():
        rows = pa.Table.from_batches(stream_file(table, task), arrow_schema(table.schema())).to_pylist()
        found = [row for row in rows if row["run_id"] == run_id]
        if found and any(row[name] != value for row in found for name, value in values.items()):
            changed = [row | values if row["run_id"] == run_id else row for row in rows]
            batches = pa.Table.from_pylist(changed, arrow_schema(table.schema())).to_batches()
            return Change(write_files(s3, table, batches), [task.file])
    return Change()
