"""Record what a run has cost, in its folder and in its row of the table `runs`."""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pyiceberg.catalog import Catalog

from orchard.cluster.cost import RunCost
from orchard.run.names import run_id_of
from orchard.run.record import rows_of_run, set_values
from orchard.settings import Settings
from orchard.storage import write_json
from orchard.tables.catalog import DATASET, RUN_ID, add_missing_columns, find_table
from orchard.tables.commit import commit

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
    found = find_table(catalog, settings, "runs")
    rows = [] if found is None else rows_of_run(found, dataset, run_id)
    images = sum(rows[0][name] or 0 for name in ("new", "changed")) if rows else None
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
    if found is not None and rows:
        values = {
            # The estimates of other runs learn from it. The start of a held cluster takes longer: it has JupyterHub.
            "ready_seconds": None if plan.get("hold_minutes") else cost.ready_seconds,
            "cluster_minutes": cost.minutes,
            "cost_usd": cost.usd,
            "cost_usd_per_million": content["usd_per_million"],
        }
        table = add_missing_columns(found, "runs")
        properties = {RUN_ID: run_id, DATASET: dataset}
        commit(table, f"the cost of {run_uri}", lambda now: set_values(s3, now, dataset, run_id, values), properties)
    return content


def usd_per_million(usd: float, images: int | None) -> float | None:
    """Return the cost per million images that a run has read. Return None if it has read none.

    >>> usd_per_million(0.11, 22_000)
    5.0
    """
    return round(usd * MILLION / images, 2) if images else None
