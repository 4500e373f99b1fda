"""The recent rows of the table `runs`, from which a plan learns."""

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

from pyiceberg.catalog import Catalog
from pyiceberg.expressions import GreaterThanOrEqual

from orchard.settings import Settings
from orchard.tables.catalog import find_table
from orchard.tables.rows import stream_rows

log = logging.getLogger(__name__)

# Each run adds a small file. With this limit a plan reads about a month's.
HISTORY_DAYS = 30
COLUMNS = (
    *("published_at", "ready_seconds", "cluster_minutes", "task_slots", "bytes_read", "step_seconds"),
    *("new", "changed", "inferences", "images"),
)


def recent_runs(catalog: Catalog, settings: Settings, now: datetime) -> list[dict[str, Any]]:
    """Return COLUMNS of the runs of all datasets that were published in the last days, the last one first.

    A column that an earlier release did not write is None. If the rows cannot be read, log a warning and return none:
    an estimate without history is better than no run.

    Raises:
        WrongWarehouse: the table is of another deployment.
        OldLayout: the table has the columns of an earlier release.
    """
    table = find_table(catalog, settings, "runs")
    if table is None:
        return []
    since = (now - timedelta(days=HISTORY_DAYS)).astimezone(UTC).isoformat()
    newer: Any = GreaterThanOrEqual
    present = [name for name in COLUMNS if name in table.schema().column_names]
    rows: list[dict[str, Any]] = []
    try:
        for batch in stream_rows(table, newer("published_at", since), present):
            rows += batch.to_pylist()
    except Exception as error:  # PyArrow has no common class for what is wrong with a file
        log.warning("the earlier runs cannot be read, so that estimates use default rates: %s", error)
        return []
    rows.sort(key=lambda row: row["published_at"], reverse=True)
    return [dict.fromkeys(COLUMNS) | row | {"step_seconds": dict(row["step_seconds"] or ())} for row in rows]
