from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from orchard_spark import objects, parts, tables
from orchard_spark.parts import Part

NUMBERS = pa.schema([("number", pa.int64())])


def write(folder: str, *counts: int) -> list[str]:
    """Files of so many rows each; all rows together are 0, 1, 2, …"""
    uris, first = [], 0
    for file, count in enumerate(counts):
        uris.append(f"{folder}/part-{file}.parquet")
        numbers = pa.table({"number": list(range(first, first + count))}, schema=NUMBERS)
        objects.write_table(uris[-1], numbers)
        first += count
    return uris


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return f"file://{tmp_path}/numbers"


def test_the_files_of_a_dataset_are_those_that_have_rows(folder: str) -> None:
    one, _, three = write(folder, 2, 0, 5)
    found = parts.find(folder, NUMBERS)
    assert found == [Part(one, 2), Part(three, 5)]
    assert parts.rows(found) == 7


def test_what_spark_hides_is_no_file_of_a_dataset(folder: str) -> None:
    (one,) = write(folder, 2)
    for name in ("_SUCCESS", ".part-0.parquet.crc", "_temporary/0/part-9.parquet"):
        objects.write(f"{folder}/{name}", b"not to be read")
    assert [part.uri for part in parts.find(folder, NUMBERS)] == [one]


def test_a_dataset_without_files_is_an_error(folder: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"no Parquet file below .*/numbers"):
        parts.find(folder, NUMBERS)


def test_each_file_must_have_the_columns(folder: str) -> None:
    write(folder, 2, 2)
    objects.write_table(f"{folder}/part-1.parquet", pa.table({"other": [1]}))
    with pytest.raises(tables.WrongColumns, match=r"part-1.parquet: no column number; unknown column other"):
        parts.find(folder, NUMBERS)


def test_a_file_is_read_in_order_and_in_small_batches(folder: str) -> None:
    (uri,) = write(folder, 10)
    batches = list(parts.read(Part(uri, 10), ["number"], batch_rows=4))
    assert [batch["number"].to_pylist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_each_file_is_one_task_and_tells_what_it_took(folder: str, spark: SparkSession) -> None:
    write(folder, 3, 0, 1, 4)
    found = parts.find(folder, NUMBERS)
    tasks = parts.task_list(spark.sparkContext)

    def double(part: Part) -> Iterator[pa.RecordBatch]:
        for batch in parts.read(part, ["number"], 2):
            yield pa.RecordBatch.from_pydict({"number": [2 * one.as_py() for one in batch["number"]]}, schema=NUMBERS)

    frame = parts.each(spark, found, double, NUMBERS, tasks)
    assert frame.rdd.getNumPartitions() == 3
    assert [row["number"] for row in frame.collect()] == [0, 2, 4, 6, 8, 10, 12, 14]
    assert len(tasks.value) == 3
    assert all(task.seconds > 0 and task.peak_bytes > 10e6 for task in tasks.value)


def test_no_files_are_a_frame_without_rows(spark: SparkSession) -> None:
    tasks = parts.task_list(spark.sparkContext)
    frame = parts.each(spark, [], lambda part: parts.read(part, ["number"], 1), NUMBERS, tasks)
    assert frame.collect() == []
    assert frame.columns == ["number"]


def test_a_ranged_file_reads_as_any_file_does(tmp_path: Path) -> None:
    (tmp_path / "letters").write_bytes(b"abcdefghij")
    file = objects.RangedFile(f"file://{tmp_path}/letters")
    assert file.read(3) == b"abc"
    assert file.tell() == 3
    assert file.seek(-2, 2) == 8
    assert file.read() == b"ij"
    assert file.read(5) == b""
    assert file.seek(1) == 1
    assert file.read(100) == b"bcdefghij"
    assert pq.ParquetFile(objects.RangedFile(write(f"file://{tmp_path}", 3)[0])).read()["number"].to_pylist() == [
        0,
        1,
        2,
    ]
