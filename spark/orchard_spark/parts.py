"""The Parquet files of a dataset. Each task reads some and writes one.

A task can run more than once: after an error, when its executor is lost, or for speculation. Two attempts can even run
at the same time. So each attempt writes a file of its own, under a name that is never used again, and nothing is ever
overwritten or deleted. Spark returns the result of one attempt of each task to the driver. The files of these attempts
are the dataset; the step lists them in its metrics, and readers ignore all others.

Spark schedules the tasks and reruns the tasks of lost executors, but the data do not pass through it. Spark's own
Parquet reader packs and splits files by bytes, which makes tasks uneven. DataFrames copy each row through the JVM, and
loading the query planner and compiler takes longer than the work on thousands of images.
"""

import resource
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark import RDD, Accumulator, SparkContext
from pyspark.accumulators import AccumulatorParam

from orchard_spark import objects, schemas
from orchard_spark.turns import scratch_folder

Item = TypeVar("Item")
Result = TypeVar("Result")
Indices: TypeAlias = npt.NDArray[np.int64]

# The size of a request to S3 and of a column's read buffer: a whole column of images can be 128 MiB.
BUFFER_BYTES = 4 * 1024**2
# How much a writer collects before it compresses. Large row groups are fast to read, but take about twice this memory.
ROW_GROUP_BYTES = 16 * 1024**2


@dataclass(frozen=True)
class Part:
    """A Parquet file of a dataset, with its number of rows and its size in bytes. No file of a dataset is empty."""

    uri: str
    rows: int
    bytes: int


@dataclass(frozen=True)
class TaskUsage:
    """What one task used: wall-clock seconds, and the peak memory of its worker process so far."""

    seconds: float
    peak_bytes: int


class _TaskUsages(AccumulatorParam[list[TaskUsage]]):
    def zero(self, value: list[TaskUsage]) -> list[TaskUsage]:  # noqa: ARG002  # PySpark's signature
        return []

    def addInPlace(self, value1: list[TaskUsage], value2: list[TaskUsage]) -> list[TaskUsage]:  # noqa: N802  # PySpark's name
        return value1 + value2


def task_usage(context: SparkContext) -> Accumulator[list[TaskUsage]]:
    """Return an accumulator for the usage of finished tasks."""
    return context.accumulator([], _TaskUsages())


def count_rows(parts: Iterable[Part]) -> int:
    """Return the total number of rows of the files."""
    return sum(part.rows for part in parts)


def read(
    part: Part, columns: Sequence[str], batch_rows: int, *, within_row_groups: bool = False
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a file, in order, in batches of at most `batch_rows`.

    A batch that stays within one row group has at most its bytes.

    Raises:
        WrongColumns: the file lacks a column.
    """
    with pq.ParquetFile(objects.RangedFile(part.uri), buffer_size=BUFFER_BYTES) as parquet:
        schemas.check_columns(parquet.schema_arrow, columns, part.uri)
        groups = [[group] for group in range(parquet.num_row_groups)] if within_row_groups else [None]
        for group in groups:
            yield from parquet.iter_batches(batch_rows, group, columns=list(columns), use_threads=False)


def read_rows(part: Part, columns: Sequence[str], rows: Indices, batch_rows: int) -> Iterator[pa.RecordBatch]:
    """Yield some rows of a file, in order, in batches of at most `batch_rows` within one row group.

    `rows` are the sorted numbers of the rows. Row groups without any of them are not read.

    Raises:
        WrongColumns: the file lacks a column.
    """
    with pq.ParquetFile(objects.RangedFile(part.uri), buffer_size=BUFFER_BYTES) as parquet:
        schemas.check_columns(parquet.schema_arrow, columns, part.uri)
        first = 0
        for group in range(parquet.num_row_groups):
            end = first + parquet.metadata.row_group(group).num_rows
            wanted = rows[np.searchsorted(rows, first) : np.searchsorted(rows, end)]
            if len(wanted):
                for batch in parquet.iter_batches(batch_rows, [group], columns=list(columns), use_threads=False):
                    taken = wanted[(wanted >= first) & (wanted < first + batch.num_rows)] - first
                    if len(taken):
                        yield batch if len(taken) == batch.num_rows else batch.take(pa.array(taken))
                    first += batch.num_rows
            first = end


class Writer:
    """Writes one Parquet file of a dataset, batch by batch, under a name that no other writer uses.

    The file is uploaded only when complete, and never after an error. `part` is the file when it is uploaded, and None
    if no rows were written. The file grows in Spark's scratch folder on the local disk, so that a worker holds one row
    group and not the whole file.
    """

    def __init__(self, dataset_uri: str, schema: pa.Schema) -> None:
        self.part: Part | None = None
        self._uri = f"{dataset_uri}/part-{uuid.uuid4().hex}.parquet"
        self._rows = 0
        self._schema = schema
        self._batches: list[pa.RecordBatch] = []
        self._buffered_bytes = 0
        self._file = tempfile.NamedTemporaryFile(dir=scratch_folder(), suffix=".parquet")  # noqa: SIM115  # closed in __exit__
        self._parquet = pq.ParquetWriter(self._file, schema, **schemas.parquet_options(schema))

    def __enter__(self) -> Self:
        return self

    def write(self, batch: pa.RecordBatch) -> None:
        """Add the rows of a batch, which has the columns of the schema. A large batch is a row group of its own."""
        if self._batches and self._buffered_bytes + batch.nbytes > ROW_GROUP_BYTES:
            self._write_row_group()
        self._rows += batch.num_rows
        self._batches.append(batch)
        self._buffered_bytes += batch.nbytes
        if self._buffered_bytes >= ROW_GROUP_BYTES:
            self._write_row_group()

    def _write_row_group(self) -> None:
        self._parquet.write_table(pa.Table.from_batches(self._batches, self._schema))
        self._batches, self._buffered_bytes = [], 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if kind is None and self._batches:
                self._write_row_group()
            self._parquet.close()
            if kind is None and self._rows:
                self._file.flush()
                objects.upload(self._uri, self._file.name)
                self.part = Part(self._uri, self._rows, Path(self._file.name).stat().st_size)


def write_table(dataset_uri: str, table: pa.Table) -> Part:
    """Write a table as one file of a dataset.

    Raises:
        ValueError: the table has no rows.
    """
    with Writer(dataset_uri, table.schema) as writer:
        for batch in table.to_batches():
            writer.write(batch)
    if writer.part is None:
        raise ValueError(f"no rows to write into {dataset_uri}")
    return writer.part


def map_tasks(
    context: SparkContext,
    function: Callable[[Item], Result],
    items: Sequence[Item],
    usage: Accumulator[list[TaskUsage]],
) -> RDD[Result]:
    """Apply a function to each item in its own task, and return the results in order; `usage` collects the usage."""

    def run_task(item: Item) -> Result:
        return timed(lambda: function(item), usage)

    return context.parallelize(items, max(1, len(items))).map(run_task)


def timed(function: Callable[[], Result], usage: Accumulator[list[TaskUsage]]) -> Result:
    """Call a function that is the work of a task, add what it used to `usage`, and return its result."""
    started = time.monotonic()
    result = function()
    usage.add([TaskUsage(time.monotonic() - started, peak_bytes())])
    return result


def peak_bytes() -> int:
    """Return the peak memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def write_dataset(
    context: SparkContext,
    inputs: Sequence[Item],
    function: Callable[[Item], Iterator[pa.RecordBatch]],
    uri: str,
    schema: pa.Schema,
    usage: Accumulator[list[TaskUsage]],
) -> list[Part]:
    """Write the results of a function, one file per input, and return the files in the order of the inputs."""

    def write_part(item: Item) -> Part | None:
        with Writer(uri, schema) as writer:
            for batch in function(item):
                writer.write(batch)
        return writer.part

    return [part for part in map_tasks(context, write_part, inputs, usage).collect() if part is not None]
