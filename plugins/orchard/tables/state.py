"""What the tables contain before a run: the input of the task `plan`. Nothing here creates or changes a table."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.catalog import Catalog
from pyiceberg.table import Table

from orchard.errors import PermanentError
from orchard.settings import Settings
from orchard.tables.catalog import find_table
from orchard.tables.rows import stream_rows, where


class DeletedRows(PermanentError):
    """Another program has deleted rows of `features` without rewriting their file."""

    def __init__(self, table: str, file: str) -> None:
        super().__init__(
            f"table {table}: another program has deleted rows of {file} with a delete file, and Orchard's steps do not "
            "read delete files. Rewrite the data file with Spark's rewrite_data_files, or with OPTIMIZE in Athena"
        )


class MixedRuns(PermanentError):
    """The rows of a dataset are of several runs, which no publisher writes."""

    def __init__(self, table: str, dataset: str, runs: Sequence[str]) -> None:
        super().__init__(
            f"table {table} has rows of several runs for {dataset}: {', '.join(runs)}. Another program has written to "
            "it. Roll the table back to a snapshot from before, or run the DAG forget_dataset for this dataset"
        )


@dataclass(frozen=True)
class PublishedState:
    """The run whose rows a dataset has in `images`, and how it was made: None if `runs` has no row of the run.

    The tables change one after the other. The publication is complete if all of them show the run as `runs` describes
    it. It is not while the run is being published, after its publication was broken off, or after somebody has rolled
    back one of the tables.
    """

    run_id: str
    is_complete: bool = False
    model: str | None = None
    decoder: str | None = None
    pca_model: str | None = None
    pca_mode: str | None = None
    n_components: float | None = None
    max_bytes: int | None = None
    max_pixels: int | None = None
    images: int | None = None


_ATTRIBUTES = ("model", "decoder", "pca_model", "pca_mode", "n_components", "max_bytes", "max_pixels", "images")


def published_state(catalog: Catalog, settings: Settings, dataset: str) -> PublishedState | None:
    """Return the state of a dataset in the tables. Return None if `images` has no rows of it.

    Raises:
        MixedRuns: the rows are of several runs.
        WrongWarehouse: the tables are of another deployment.
        OldLayout: a table has the columns of an earlier release.
    """
    images = find_table(catalog, settings, "images")
    run_id = None if images is None else run_of_rows(images, dataset)
    if run_id is None:
        return None
    runs = find_table(catalog, settings, "runs")
    columns = (*_ATTRIBUTES, "rejects")
    rows = [] if runs is None else list(stream_rows(runs, where(dataset=dataset, run_id=run_id), columns))
    found: list[dict[str, Any]] = [row for batch in rows for row in batch.to_pylist()]
    if not found:
        return PublishedState(run_id)
    rows_of_images, rejects = found[-1]["images"], sum(dict(found[-1].pop("rejects") or ()).values())
    is_complete = (
        count_rows(images, dataset) == rows_of_images
        and shows_run(find_table(catalog, settings, "embeddings"), dataset, run_id, rows_of_images)
        and shows_run(find_table(catalog, settings, "rejects"), dataset, run_id, rejects)
    )
    return PublishedState(run_id, is_complete, **found[-1])


def count_rows(table: Table | None, dataset: str) -> int:
    """Return the number of rows of a dataset in a table."""
    return 0 if table is None else table.scan(where(dataset=dataset)).count()


def shows_run(table: Table | None, dataset: str, run_id: str, rows: int) -> bool:
    """Return whether a table has this number of rows of a dataset, all of them of a run.

    Raises:
        MixedRuns: the rows are of several runs.
    """
    return count_rows(table, dataset) == rows and (table is None or run_of_rows(table, dataset) in (run_id, None))


def run_of_rows(table: Table, dataset: str) -> str | None:
    """Return the run_id of a dataset's rows in a table. Return None if there are no rows.

    Raises:
        MixedRuns: the rows are of several runs.
    """
    found: set[str] = set()
    for batch in stream_rows(table, where(dataset=dataset), ["run_id"]):
        found.update(pc.unique(batch["run_id"]).to_pylist())
    if len(found) > 1:
        raise MixedRuns(".".join(table.name()), dataset, sorted(map(str, found)))
    return next(iter(found), None)


def dataset_rows(
    catalog: Catalog, settings: Settings, table: str, dataset: str, columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a dataset in a table, in batches. Yield nothing if the table does not exist.

    Raises:
        WrongWarehouse: the table is of another deployment.
        OldLayout: the table has the columns of an earlier release.
    """
    found = find_table(catalog, settings, table)
    if found is not None:
        yield from stream_rows(found, where(dataset=dataset), columns)


def feature_files(catalog: Catalog, settings: Settings) -> list[dict[str, Any]]:
    """Return the data files of the table `features`, each with its `uri`, `rows` and `bytes`.

    Raises:
        WrongWarehouse: the table is of another deployment.
        OldLayout: the table has the columns of an earlier release.
    """
    table = find_table(catalog, settings, "features")
    tasks = [] if table is None else list(table.scan().plan_files())
    for task in tasks:
        if table is not None and task.delete_files:
            raise DeletedRows(".".join(table.name()), task.file.file_path)
    files = [task.file for task in tasks]
    return [{"uri": file.file_path, "rows": file.record_count, "bytes": file.file_size_in_bytes} for file in files]


def pca_basis(catalog: Catalog, settings: Settings, dataset: str, pca_model: str) -> pa.Table | None:
    """Return the row of a fitted basis of a dataset in `pca_models`. Return None if there is none.

    Raises:
        WrongWarehouse: the table is of another deployment.
        OldLayout: the table has the columns of an earlier release.
    """
    table = find_table(catalog, settings, "pca_models")
    if table is None:
        return None
    batches = list(stream_rows(table, where(dataset=dataset, pca_model=pca_model)))
    return pa.Table.from_batches(batches).slice(0, 1) if batches else None
