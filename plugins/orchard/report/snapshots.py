"""The rows of a table as a run published them, also after later runs have replaced them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.catalog import Catalog
from pyiceberg.expressions import And, BooleanExpression
from pyiceberg.table import Table

from orchard.errors import PermanentError
from orchard.run.record import rows_of_run
from orchard.settings import Settings
from orchard.tables.catalog import find_table
from orchard.tables.rows import ALL_ROWS, BATCH_ROWS, stream_rows, where
from orchard.tables.state import MixedRuns


class RunNotPublished(PermanentError):
    """The tables have never shown a run, or show only a part of it."""

    def __init__(self, dataset: str, run_id: str) -> None:
        super().__init__(
            f"run {run_id} of {dataset} is not published: the table runs has no row of it. If the run has failed, fix "
            "the cause and clear the failed task. If forget_dataset has removed the dataset, trigger a new run"
        )


class SnapshotExpired(PermanentError):
    """The tables show a later run, and the snapshot that showed this one has been removed."""

    def __init__(self, table: str, dataset: str, run_id: str) -> None:
        super().__init__(
            f"table {table} has no rows of run {run_id} of {dataset} any more: a later run has replaced them, and the "
            "snapshot has expired. Open the report of a later run, or report.html in the folder of this run. "
            "ORCHARD_KEPT_RUNS sets how many runs of each dataset keep their snapshots"
        )


@dataclass(frozen=True)
class PublishedRows:
    """The rows of a dataset in a table as a run published them.

    Without a `table` there are no rows. Without a `snapshot_id` they are in the current snapshot.
    """

    table: Table | None
    dataset: str
    run_id: str
    snapshot_id: int | None = None

    def count(self) -> int:
        """Return the number of rows, from the metadata of the table."""
        if self.table is None:
            return 0
        return self.table.scan(where(dataset=self.dataset), snapshot_id=self.snapshot_id).count()

    def stream(
        self, columns: Sequence[str], chosen: BooleanExpression = ALL_ROWS, batch_rows: int = BATCH_ROWS
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows that match a filter, in batches, with the given columns and run_id.

        Raises:
            MixedRuns: rows are of another run.
        """
        if self.table is None:
            return
        wanted = [*columns, *{"run_id"}.difference(columns)]
        row_filter: Any = And(where(dataset=self.dataset), chosen)
        for batch in stream_rows(self.table, row_filter, wanted, batch_rows, snapshot_id=self.snapshot_id):
            found = pc.unique(batch["run_id"]).to_pylist()
            if found not in ([], [self.run_id]):
                raise MixedRuns(".".join(self.table.name()), self.dataset, sorted(map(str, {*found, self.run_id})))
            yield batch


def find_row(catalog: Catalog, settings: Settings, dataset: str, run_id: str) -> dict[str, Any] | None:
    """Return the row of a run in the table `runs`. Return None if there is none.

    Raises:
        WrongWarehouse: the table is of another deployment.
        OldLayout: the table has the columns of an earlier release.
    """
    table = find_table(catalog, settings, "runs")
    rows = [] if table is None else rows_of_run(table, dataset, run_id)
    return rows[-1] if rows else None


def published_rows(catalog: Catalog, settings: Settings, name: str, dataset: str, run_id: str) -> PublishedRows:
    """Find the rows of a dataset in the table `images`, `rejects` or `embeddings` as a run published them.

    They are in the current snapshot while the table shows the run, else in the snapshot that the row of the run in
    `runs` names.

    Raises:
        RunNotPublished: the table does not show the run, and `runs` has no row of it.
        SnapshotExpired: the table does not show the run, and the snapshot that did is gone.
        WrongWarehouse: the tables are of another deployment.
        OldLayout: a table has the columns of an earlier release.
    """
    row = find_row(catalog, settings, dataset, run_id)
    if row is not None and _rows_in(row, name) == 0:
        return PublishedRows(None, dataset, run_id)
    table = find_table(catalog, settings, name)
    if table is not None and _shown_run(table, dataset) == run_id:
        return PublishedRows(table, dataset, run_id)
    if row is None:
        raise RunNotPublished(dataset, run_id)
    snapshot_id = dict(row["snapshots"] or ()).get(name)
    if table is None or snapshot_id is None or table.snapshot_by_id(snapshot_id) is None:
        raise SnapshotExpired(f"{settings.catalog_database}.{name}", dataset, run_id)
    return PublishedRows(table, dataset, run_id, snapshot_id)


def _rows_in(row: dict[str, Any], name: str) -> int | None:
    """Return how many rows a run has in a table, by its row in `runs`."""
    if name == "rejects":
        return None if row["rejects"] is None else sum(dict(row["rejects"]).values())
    images: int | None = row["images"]
    return images


def _shown_run(table: Table, dataset: str) -> str | None:
    """Return the run_id of the first row of a dataset in a table. All rows of a dataset are of the same run."""
    batches = stream_rows(table, where(dataset=dataset), ["run_id"], batch_rows=1)
    first = next((batch for batch in batches if batch.num_rows), None)
    return None if first is None else str(first["run_id"][0])
