from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark import SparkContext

from orchard_spark import objects, parts, schemas
from orchard_spark.parts import Part

NUMBERS = pa.schema([("number", pa.int64())])


def write(folder: str, *counts: int) -> list[str]:
    """Write one file per row count and return their URIs; the numbers in all rows are 0, 1, 2, …"""
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


def test_empty_files_are_skipped(folder: str) -> None:
    one, _, three = write(folder, 2, 0, 5)
    found = parts.find(folder, NUMBERS)
    assert found == [Part(one, 2), Part(three, 5)]
    assert parts.count_rows(found) == 7


def test_files_that_spark_hides_are_skipped(folder: str) -> None:
    (one,) = write(folder, 2)
    for name in ("_SUCCESS", ".part-0.parquet.crc", "_temporary/0/part-9.parquet"):
        objects.write(f"{folder}/{name}", b"not to be read")
    assert [part.uri for part in parts.find(folder, NUMBERS)] == [one]


def test_a_dataset_without_files_is_an_error(folder: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"no Parquet file below .*/numbers"):
        parts.find(folder, NUMBERS)


def test_each_file_must_have_the_columns_of_the_schema(folder: str) -> None:
    write(folder, 2, 2)
    objects.write_table(f"{folder}/part-1.parquet", pa.table({"other": [1]}))
    with pytest.raises(schemas.WrongColumns, match=r"part-1.parquet: no column number; unknown column other"):
        parts.find(folder, NUMBERS)


def test_a_file_is_read_in_order_in_batches(folder: str) -> None:
    (uri,) = write(folder, 10)
    batches = list(parts.read(Part(uri, 10), ["number"], batch_rows=4))
    assert [batch["number"].to_pylist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def double(part: Part) -> Iterator[pa.RecordBatch]:
    for batch in parts.read(part, ["number"], 2):
        yield pa.RecordBatch.from_pydict({"number": [2 * one.as_py() for one in batch["number"]]}, schema=NUMBERS)


def test_each_file_is_one_task_that_reports_its_usage(folder: str, context: SparkContext) -> None:
    write(folder, 3, 0, 1, 4)
    found, usage = parts.find(folder, NUMBERS), parts.task_usage(context)
    results = parts.map_tasks(context, lambda part: part.rows, found, usage)
    assert results.getNumPartitions() == 3
    assert results.collect() == [3, 1, 4]
    assert len(usage.value) == 3
    assert all(task.seconds > 0 and task.peak_bytes > 10e6 for task in usage.value)


def test_a_written_dataset_has_one_file_per_input_file(folder: str, context: SparkContext) -> None:
    write(folder, 3, 0, 1, 4)
    inputs, output = parts.find(folder, NUMBERS), f"{folder}-doubled"
    assert parts.write_dataset(context, inputs, double, output, NUMBERS, parts.task_usage(context)) == 8
    outputs = parts.find(output, NUMBERS)
    assert [(part.name, part.rows) for part in outputs] == [(part.name, part.rows) for part in inputs]
    numbers = [number for part in outputs for number in read_numbers(part)]
    assert numbers == [0, 2, 4, 6, 8, 10, 12, 14]


def test_a_second_write_replaces_the_whole_dataset(folder: str, context: SparkContext) -> None:
    write(folder, 3, 1, 4)
    found, output = parts.find(folder, NUMBERS), f"{folder}-doubled"
    for inputs in (found, found[1:2]):
        parts.write_dataset(context, inputs, double, output, NUMBERS, parts.task_usage(context))
    assert [part.rows for part in parts.find(output, NUMBERS)] == [1]


def test_a_dataset_without_rows_has_its_columns(folder: str, context: SparkContext) -> None:
    assert parts.write_dataset(context, [], double, folder, NUMBERS, parts.task_usage(context)) == 0
    assert parts.find(folder, NUMBERS) == []


def read_numbers(part: Part) -> list[int]:
    return [number for batch in parts.read(part, ["number"], 100) for number in batch["number"].to_pylist()]


def test_a_file_is_uploaded_only_when_complete(folder: str) -> None:
    with parts.Writer(f"{folder}/part-0.parquet", NUMBERS) as writer:
        writer.write(pa.RecordBatch.from_pydict({"number": [1, 2]}, schema=NUMBERS))
        assert objects.list_files(folder) == []
    assert read_numbers(Part(f"{folder}/part-0.parquet", 2)) == [1, 2]


def test_a_file_is_not_uploaded_after_an_error(folder: str) -> None:
    def fails(writer: parts.Writer) -> None:
        with writer:
            writer.write(pa.RecordBatch.from_pydict({"number": [1, 2]}, schema=NUMBERS))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails(parts.Writer(f"{folder}/part-0.parquet", NUMBERS))
    assert objects.list_files(folder) == []


def test_a_writer_without_rows_deletes_the_file_of_an_earlier_attempt(folder: str) -> None:
    (uri,) = write(folder, 3)
    with parts.Writer(uri, NUMBERS) as writer:
        writer.write(pa.RecordBatch.from_pydict({"number": []}, schema=NUMBERS))
    assert objects.list_files(folder) == []


def test_a_writer_holds_at_most_one_row_group(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "ROW_GROUP_BYTES", 8 * 10)
    with parts.Writer(f"{folder}/part-0.parquet", NUMBERS) as writer:
        for number in range(25):
            writer.write(pa.RecordBatch.from_pydict({"number": [number]}, schema=NUMBERS))
    with pq.ParquetFile(f"{folder.removeprefix('file://')}/part-0.parquet") as file:
        assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == [10, 10, 5]


def test_a_batch_within_one_row_group_has_at_most_its_rows(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "ROW_GROUP_BYTES", 8 * 4)
    with parts.Writer(f"{folder}/part-0.parquet", NUMBERS) as writer:
        for number in range(10):
            writer.write(pa.RecordBatch.from_pydict({"number": [number]}, schema=NUMBERS))
    batches = list(parts.read(Part(writer.uri, 10), ["number"], batch_rows=3, within_row_groups=True))
    assert [batch["number"].to_pylist() for batch in batches] == [[0, 1, 2], [3], [4, 5, 6], [7], [8, 9]]


def test_a_large_batch_is_a_row_group_of_its_own(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "ROW_GROUP_BYTES", 8 * 4)
    with parts.Writer(f"{folder}/part-0.parquet", NUMBERS) as writer:
        for count in (1, 9, 1, 1, 9):
            writer.write(pa.RecordBatch.from_pydict({"number": list(range(count))}, schema=NUMBERS))
    with pq.ParquetFile(f"{folder.removeprefix('file://')}/part-0.parquet") as file:
        assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == [1, 9, 2, 9]
