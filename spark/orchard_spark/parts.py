"""The Parquet files of a dataset: a task reads one, and writes one of the same name into the dataset that it makes.

Spark gives each task its file and does again what a lost executor has not finished; the files themselves go past it.
Its own reader packs and splits files by their bytes, so that tasks are uneven; its frames hand each row through the
JVM, and loading what plans and compiles them takes longer than the work on thousands of images.
"""

import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark import RDD, Accumulator, SparkContext
from pyspark.accumulators import AccumulatorParam

from orchard_spark import objects, tables

Item = TypeVar("Item")
Result = TypeVar("Result")

FOOTERS_AT_ONCE = 16
# What is asked of S3 at a time, and held of each column: a whole column of images may be 128 MiB.
BUFFER_BYTES = 4 * 1024**2
# What a writer gathers before it compresses: large groups read fast, and a worker holds about twice as much.
ROW_GROUP_BYTES = 16 * 1024**2


@dataclass(frozen=True)
class Part:
    """One Parquet file of a dataset; a file without rows is none."""

    uri: str
    rows: int

    @property
    def name(self) -> str:
        """The file's name, which is the same in every dataset that is made from this file."""
        return self.uri.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Task:
    """What one task took: wall-clock seconds, and the most memory that its worker process has ever held."""

    seconds: float
    peak_bytes: int


class _Tasks(AccumulatorParam[list[Task]]):
    def zero(self, value: list[Task]) -> list[Task]:  # noqa: ARG002  # PySpark's signature
        return []

    def addInPlace(self, value1: list[Task], value2: list[Task]) -> list[Task]:  # noqa: N802  # PySpark's name
        return value1 + value2


def task_list(context: SparkContext) -> Accumulator[list[Task]]:
    """An accumulator of the tasks that were done."""
    return context.accumulator([], _Tasks())


def find(uri: str, schema: pa.Schema) -> list[Part]:
    """The files of a dataset that have rows, ordered by name, each with the columns of the schema.

    Raises:
        FileNotFoundError: there is no file.
        WrongColumns: a file has other columns.
    """

    def look(file: str) -> Part:
        with pq.ParquetFile(objects.RangedFile(file)) as opened:
            tables.check_columns(opened.schema_arrow, schema, file)
            return Part(file, opened.metadata.num_rows)

    files = [file for file in objects.list_files(uri) if file.endswith(".parquet")]
    if not files:
        raise FileNotFoundError(f"there is no Parquet file below {uri}")
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
        return [part for part in pool.map(look, files) if part.rows]


def rows(found: Iterable[Part]) -> int:
    """How many rows the files have together."""
    return sum(part.rows for part in found)


def read(part: Part, columns: Sequence[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
    """The rows of a file, in order, in batches of at most `batch_rows`."""
    with pq.ParquetFile(objects.RangedFile(part.uri), buffer_size=BUFFER_BYTES) as opened:
        yield from opened.iter_batches(batch_rows, columns=list(columns), use_threads=False)


class Writer:
    """One Parquet file, written batch by batch and seen once it is whole; after an error, never.

    Without rows there is no file, nor that of an earlier attempt of the same task.

    It grows on the local disk of the task, in Spark's scratch folder, so that a worker holds one row group and not the
    file. `rows` counts what was written.
    """

    def __init__(self, uri: str, schema: pa.Schema) -> None:
        self.uri = uri
        self.rows = 0
        self._schema = schema
        self._batches: list[pa.RecordBatch] = []
        self._held_bytes = 0
        scratch = os.environ.get("SPARK_LOCAL_DIRS", "").split(",")[0]
        self._file = tempfile.NamedTemporaryFile(dir=scratch or None, suffix=".parquet")  # noqa: SIM115  # ends in exit
        self._parquet = pq.ParquetWriter(self._file, schema, **tables.parquet_options(schema))

    def __enter__(self) -> Self:
        return self

    def write(self, batch: pa.RecordBatch) -> None:
        """Take the rows of a batch, which has the columns of the schema."""
        self.rows += batch.num_rows
        self._batches.append(batch)
        self._held_bytes += batch.nbytes
        if self._held_bytes >= ROW_GROUP_BYTES:
            self._write_row_group()

    def _write_row_group(self) -> None:
        self._parquet.write_table(pa.Table.from_batches(self._batches, self._schema))
        self._batches, self._held_bytes = [], 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if kind is None and self._batches:
                self._write_row_group()
            self._parquet.close()
            if kind is None and self.rows:
                self._file.flush()
                objects.upload(self.uri, self._file.name)
            elif kind is None:
                objects.delete(self.uri)


def each(
    context: SparkContext, items: Sequence[Item], work: Callable[[Item], Result], tasks: Accumulator[list[Task]]
) -> RDD[Result]:
    """What `work` makes of every item, such as a file or some files, in their order, each in a task of its own.

    `tasks` collects what each task took.
    """

    def run_task(item: Item) -> Result:
        started = time.monotonic()
        result = work(item)
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        tasks.add([Task(time.monotonic() - started, peak_bytes)])
        return result

    return context.parallelize(items, max(1, len(items))).map(run_task)


def make(
    context: SparkContext,
    found: Sequence[Part],
    work: Callable[[Part], Iterator[pa.RecordBatch]],
    uri: str,
    schema: pa.Schema,
    tasks: Accumulator[list[Task]],
) -> int:
    """Make a dataset of what `work` makes of every file, a file of each, in place of what was there; count its rows."""

    def write(part: Part) -> int:
        with Writer(f"{uri}/{part.name}", schema) as writer:
            for batch in work(part):
                writer.write(batch)
        return writer.rows

    objects.clear(uri)
    written = sum(each(context, found, write, tasks).collect())
    show_columns(uri, schema, written)
    return written


def show_columns(uri: str, schema: pa.Schema, written: int) -> None:
    """Give a dataset into which no rows were written a file without rows, which tells its columns."""
    if not written:
        objects.write_table(f"{uri}/part-00000.parquet", schema.empty_table())
