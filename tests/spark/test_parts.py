from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark import SparkContext

from orchard_spark import parts, schemas
from orchard_spark.parts import Part

NUMBERS = pa.schema([("number", pa.int64())])


def write(folder: str, *counts: int) -> list[Part]:
    """Write one file per row count; the numbers in all rows are 0, 1, 2, …"""
    written, first = [], 0
    for count in counts:
        numbers = pa.table({"number": list(range(first, first + count))}, schema=NUMBERS)
        written.append(parts.write_table(folder, numbers))
        first += count
    return written


def files_in(folder: str) -> list[Path]:
    return sorted(Path(folder.removeprefix("file://")).glob("**/*"))


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return f"file://{tmp_path}/numbers"


def test_a_written_file_is_described_by_its_uri_rows_and_bytes(folder: str) -> None:
    one, two = write(folder, 2, 5)
    assert [one.rows, two.rows, parts.count_rows([one, two])] == [2, 5, 7]
    assert {Path(part.uri.removeprefix("file://")): part.bytes for part in (one, two)} == {
        file: file.stat().st_size for file in files_in(folder)
    }


def test_a_file_must_have_the_columns_that_are_read(folder: str) -> None:
    part = parts.write_table(folder, pa.table({"other": [1]}))
    with pytest.raises(schemas.WrongColumns, match=rf"{part.uri} has no column number, letter"):
        list(parts.read(part, ["number", "other", "letter"], 10))


def test_a_file_is_read_in_order_in_batches(folder: str) -> None:
    (part,) = write(folder, 10)
    batches = list(parts.read(part, ["number"], batch_rows=4))
    assert [batch["number"].to_pylist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def double(part: Part) -> Iterator[pa.RecordBatch]:
    for batch in parts.read(part, ["number"], 2):
        yield pa.RecordBatch.from_pydict({"number": [2 * one.as_py() for one in batch["number"]]}, schema=NUMBERS)


def test_each_file_is_one_task_that_reports_its_usage(folder: str, context: SparkContext) -> None:
    found, usage = write(folder, 3, 1, 4), parts.task_usage(context)
    results = parts.map_tasks(context, lambda part: part.rows, found, usage)
    assert results.getNumPartitions() == 3
    assert results.collect() == [3, 1, 4]
    assert len(usage.value) == 3
    assert all(task.seconds > 0 and task.peak_bytes > 10e6 for task in usage.value)


def test_a_written_dataset_has_one_file_per_input_file_in_the_order_of_the_inputs(
    folder: str, context: SparkContext
) -> None:
    inputs, output = write(folder, 3, 1, 4), f"{folder}-doubled"
    written = parts.write_dataset(context, inputs, double, output, NUMBERS, parts.task_usage(context))
    assert [part.rows for part in written] == [3, 1, 4]
    assert [number for part in written for number in read_numbers(part)] == [0, 2, 4, 6, 8, 10, 12, 14]


def test_a_second_write_changes_no_file_of_the_first(folder: str, context: SparkContext) -> None:
    inputs, output = write(folder, 3, 1, 4), f"{folder}-doubled"
    first = parts.write_dataset(context, inputs, double, output, NUMBERS, parts.task_usage(context))
    before = {file: file.read_bytes() for file in files_in(output)}
    second = parts.write_dataset(context, inputs[1:2], double, output, NUMBERS, parts.task_usage(context))
    assert [part.rows for part in second] == [1]
    assert {part.uri for part in first}.isdisjoint(part.uri for part in second)
    assert {file: file.read_bytes() for file in before} == before


def test_a_task_without_rows_writes_no_file(folder: str, context: SparkContext) -> None:
    inputs, output = write(folder, 1), f"{folder}-none"
    assert parts.write_dataset(context, inputs, lambda _: iter(()), output, NUMBERS, parts.task_usage(context)) == []
    assert parts.write_dataset(context, [], double, output, NUMBERS, parts.task_usage(context)) == []
    assert files_in(output) == []


def read_numbers(part: Part) -> list[int]:
    return [number for batch in parts.read(part, ["number"], 100) for number in batch["number"].to_pylist()]


def test_a_file_is_uploaded_only_when_complete(folder: str) -> None:
    with parts.Writer(folder, NUMBERS) as writer:
        writer.write(pa.RecordBatch.from_pydict({"number": [1, 2]}, schema=NUMBERS))
        assert files_in(folder) == []
        assert writer.part is None
    assert writer.part is not None
    assert read_numbers(writer.part) == [1, 2]


def test_a_file_is_not_uploaded_after_an_error(folder: str) -> None:
    def fails(writer: parts.Writer) -> None:
        with writer:
            writer.write(pa.RecordBatch.from_pydict({"number": [1, 2]}, schema=NUMBERS))
            raise ZeroDivisionError

    writer = parts.Writer(folder, NUMBERS)
    with pytest.raises(ZeroDivisionError):
        fails(writer)
    assert files_in(folder) == []
    assert writer.part is None


def row_groups(writer: parts.Writer) -> list[int]:
    """Return the number of rows of each row group of a written file."""
    assert writer.part is not None
    with pq.ParquetFile(writer.part.uri.removeprefix("file://")) as file:
        return [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]


def test_a_writer_holds_at_most_one_row_group(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "ROW_GROUP_BYTES", 8 * 10)
    with parts.Writer(folder, NUMBERS) as writer:
        for number in range(25):
            writer.write(pa.RecordBatch.from_pydict({"number": [number]}, schema=NUMBERS))
    assert row_groups(writer) == [10, 10, 5]


def test_a_batch_within_one_row_group_has_at_most_its_rows(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "ROW_GROUP_BYTES", 8 * 4)
    with parts.Writer(folder, NUMBERS) as writer:
        for number in range(10):
            writer.write(pa.RecordBatch.from_pydict({"number": [number]}, schema=NUMBERS))
    assert writer.part is not None
    batches = list(parts.read(writer.part, ["number"], batch_rows=3, within_row_groups=True))
    assert [batch["number"].to_pylist() for batch in batches] == [[0, 1, 2], [3], [4, 5, 6], [7], [8, 9]]


def test_a_large_batch_is_a_row_group_of_its_own(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "ROW_GROUP_BYTES", 8 * 4)
    with parts.Writer(folder, NUMBERS) as writer:
        for count in (1, 9, 1, 1, 9):
            writer.write(pa.RecordBatch.from_pydict({"number": list(range(count))}, schema=NUMBERS))
    assert row_groups(writer) == [1, 9, 2, 9]
