"""The files that the plan and the steps of a run list in their metrics: checked, and read."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.io import FileIO
from pyiceberg.io.pyarrow import parquet_file_to_data_file
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table

from orchard.run.summary import InconsistentRun
from orchard.tables.rows import read_parquet

WRITE_AGAIN = "Clear the step's add_step with downstream to write the files again"
# Each file has its `uri`, `rows` and `bytes`.
Listed = Sequence[Mapping[str, Any]]


def read_files(io: FileIO, listed: Listed, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yield the rows of listed files, with the columns of a schema.

    Raises:
        InconsistentRun: a file does not exist, or has other columns.
    """
    for file in listed:
        try:
            for batch in read_parquet(io, file["uri"], schema.names):
                yield batch.cast(schema)
        except FileNotFoundError as error:
            raise missing_file(file) from error
        except ValueError as error:
            raise InconsistentRun(f"{file['uri']} has other columns than expected: {error}") from error


def check_files(io: FileIO, listed: Listed) -> None:
    """Check that files exist and have the listed sizes and numbers of rows.

    Raises:
        InconsistentRun: a file is missing or has changed.
    """

    def check(file: Mapping[str, Any]) -> None:
        found = io.new_input(file["uri"])
        try:
            with found.open() as source:
                rows = pq.read_metadata(source).num_rows
        except FileNotFoundError as error:
            raise missing_file(file) from error
        check_size(file, rows, len(found))

    with ThreadPoolExecutor() as pool:
        list(pool.map(check, listed))


def missing_file(file: Mapping[str, Any]) -> InconsistentRun:
    """Return the error for a listed file that does not exist."""
    return InconsistentRun(
        f"{file['uri']} does not exist, but its step lists it. If the run was published before, its scratch folder has "
        "been deleted: trigger a new run. Otherwise clear the task `plan` with downstream"
    )


def check_size(file: Mapping[str, Any], rows: int, size: int) -> None:
    """Check the number of rows and of bytes of a listed file.

    Raises:
        InconsistentRun: they differ from the listed ones.
    """
    if (rows, size) != (file["rows"], file["bytes"]):
        raise InconsistentRun(
            f"{file['uri']} has {rows} rows and {size} bytes, but its step lists {file['rows']} rows and "
            f"{file['bytes']} bytes: another program has changed it. {WRITE_AGAIN}"
        )


def data_files(table: Table, listed: Listed, dataset: str | None = None) -> list[DataFile]:
    """Return the files that a step lists in its metrics as Iceberg data files. Only footers are read.

    Raises:
        InconsistentRun: a file is missing, has another size or number of rows than listed, does not fit the table, or
            has rows of another dataset than the given one.
    """
    name = ".".join(table.name())

    def data_file(file: Mapping[str, Any]) -> DataFile:
        try:
            found = parquet_file_to_data_file(table.io, table.metadata, file["uri"])
        except FileNotFoundError as error:
            raise missing_file(file) from error
        except ValueError as error:
            raise InconsistentRun(f"{file['uri']} does not fit table {name}: {error}") from error
        check_size(file, found.record_count, found.file_size_in_bytes)
        if dataset is not None and len(table.spec().fields) == 1 and found.partition[0] != dataset:
            raise InconsistentRun(f"{file['uri']} has rows of {found.partition[0]}, not of {dataset}. {WRITE_AGAIN}")
        return found

    with ThreadPoolExecutor() as pool:
        return list(pool.map(data_file, listed))
