"""The Parquet files of a dataset: counted by the driver through their footers, read by the workers, one task a file.

Spark's own reader would pack and split files by their bytes, so that tasks are uneven, and hand each value to Python
through its rows. Read here, a task is a file, all files of a dataset have as many rows, and columns arrive as they lie.
"""

import resource
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark import Accumulator, SparkContext
from pyspark.accumulators import AccumulatorParam
from pyspark.sql import DataFrame, SparkSession

from orchard_spark import objects, tables

FOOTERS_AT_ONCE = 16
# What is asked of S3 at a time, and held of each column: a whole column of images may be 128 MiB.
BUFFER_BYTES = 4 * 1024**2


@dataclass(frozen=True)
class Part:
    """One Parquet file of a dataset; a file without rows is none."""

    uri: str
    rows: int


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


def each(
    spark: SparkSession,
    found: Sequence[Part],
    work: Callable[[Part], Iterator[pa.RecordBatch]],
    schema: pa.Schema,
    tasks: Accumulator[list[Task]],
) -> DataFrame:
    """What `work` makes of every file, as a frame of the schema, computed in one task for each file; no shuffle.

    `tasks` collects what each task took.
    """

    def run_task(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for number in batch["id"].to_pylist():
                started = time.monotonic()
                yield from work(found[number])
                peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
                tasks.add([Task(time.monotonic() - started, peak_bytes)])

    numbers = spark.range(0, len(found), 1, max(1, len(found)))
    return numbers.mapInArrow(run_task, tables.spark_schema(schema))
