"""Rows in Parquet files on the local disk, and queries over them that need little memory.

DuckDB keeps what exceeds its memory limit on the disk.
"""

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

MEMORY_LIMIT = "512MB"
MAX_THREADS = 4
# The objects that a Spark task reads, on average.
FILE_BYTES = 128 * 1024**2
# About 10 MB of rows.
ROW_GROUP_ROWS = 65_536
# Columns with few distinct values, which a Parquet dictionary compresses.
REPETITIVE = ("label", "format", "reason", "storage_class", "features_run_id")

# Neighbours in a listing often take a similar time, so they go to different files, and therefore to different tasks.
DEAL = "SELECT * EXCLUDE (number) FROM read_parquet($numbered) ORDER BY number % $files, number"


@dataclass(frozen=True)
class LocalFile:
    """A Parquet file on the local disk, with its number of rows."""

    path: Path
    rows: int


class RowWriter:
    """Writes rows into Parquet files in a local folder.

    It holds one row group in memory, and starts another file when one has `file_rows`. `files` are the complete ones:
    all of them when the context is left. Without rows, there is no file.
    """

    def __init__(self, folder: Path, name: str, schema: pa.Schema, file_rows: int | None = None) -> None:
        self._files: list[LocalFile] = []
        self._folder, self._name, self._schema, self._file_rows = folder, name, schema, file_rows
        self._options = {"use_dictionary": [name for name in schema.names if name in REPETITIVE]}
        self._batches: list[pa.RecordBatch] = []
        self._buffered = self._rows = 0
        self._path = folder
        self._parquet: pq.ParquetWriter | None = None

    @property
    def files(self) -> tuple[LocalFile, ...]:
        """The files that are complete."""
        return tuple(self._files)

    @property
    def rows(self) -> int:
        """The number of rows of the complete files."""
        return sum(file.rows for file in self._files)

    def paths(self) -> list[str]:
        """Return the paths of the complete files, or of a file without rows if there are none."""
        if self._files:
            return [str(file.path) for file in self._files]
        empty = self._folder / f"{self._name}-empty.parquet"
        pq.write_table(self._schema.empty_table(), empty)
        return [str(empty)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
        self._close()

    def write(self, batch: pa.RecordBatch) -> None:
        """Add rows, which have the columns of the schema."""
        if batch.num_rows == 0:
            return
        self._batches.append(batch.select(self._schema.names).cast(self._schema))
        self._buffered += batch.num_rows
        if self._buffered >= ROW_GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if not self._batches:
            return
        if self._parquet is None:
            self._path = self._folder / f"{self._name}-{len(self._files)}.parquet"
            self._parquet = pq.ParquetWriter(self._path, self._schema, **self._options)
        self._parquet.write_table(pa.Table.from_batches(self._batches, self._schema))
        self._rows += self._buffered
        self._batches, self._buffered = [], 0
        if self._file_rows is not None and self._rows >= self._file_rows:
            self._close()

    def _close(self) -> None:
        if self._parquet is not None:
            self._parquet.close()
            self._files.append(LocalFile(self._path, self._rows))
        self._parquet, self._rows = None, 0


@contextmanager
def query_rows(folder: Path, query: str, parameters: Mapping[str, Any]) -> Iterator[Iterator[pa.RecordBatch]]:
    """Provide the rows of a query in batches, while DuckDB works on them with a limited memory."""
    config: dict[str, Any] = {
        "memory_limit": MEMORY_LIMIT,
        "threads": min(MAX_THREADS, os.cpu_count() or 1),
        "temp_directory": str(folder / "duckdb"),
        "preserve_insertion_order": False,
    }
    connection: Any  # its types are wrong for relations and parameters
    with duckdb.connect(":memory:", config=config) as connection:
        connection.execute("SET enable_progress_bar = false")  # it would write to the log of the task
        # `sql` with parameters would hold the whole result in memory, above the limit.
        yield connection.execute(query, parameters).to_arrow_reader(ROW_GROUP_ROWS)


def file_count(rows: int, total_bytes: int, task_slots: int) -> int:
    """Return the number of inventory files: of at most 128 MiB of objects on average, the same number per task slot.

    >>> file_count(300, 5_000, 2), file_count(300, 1024**3, 2), file_count(300, 1024**3, 3), file_count(1, 5_000, 2)
    (2, 8, 9, 1)
    """
    return min(rows, task_slots * math.ceil(total_bytes / (FILE_BYTES * task_slots) or 1))


def deal(folder: Path, numbered: Sequence[LocalFile], schema: pa.Schema, files: int) -> tuple[LocalFile, ...]:
    """Deal rows that have a `number` into this number of files, which have a schema without it. Return the files.

    One file has at most one row more than another. A file without rows is left out.
    """
    written: list[LocalFile] = []
    rows = sum(file.rows for file in numbered)
    paths = [str(file.path) for file in numbered]
    if rows:
        with query_rows(folder, DEAL, {"numbered": paths, "files": files}) as batches:
            dealt = _Rows(batches)
            for number in range(files):
                with RowWriter(folder, f"dealt-{number}", schema) as writer:
                    for batch in dealt.take(len(range(number, rows, files))):
                        writer.write(batch)
                written += writer.files
    return tuple(written)


class _Rows:
    """Takes a number of rows from a stream of batches."""

    def __init__(self, batches: Iterable[pa.RecordBatch]) -> None:
        self._batches = iter(batches)
        self._rest: pa.RecordBatch | None = None

    def take(self, count: int) -> Iterator[pa.RecordBatch]:
        while count:
            batch = next(self._batches) if self._rest is None else self._rest
            yield batch.slice(0, count)
            self._rest = batch.slice(count) if batch.num_rows > count else None
            count -= min(count, batch.num_rows)
