from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark import SparkContext

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


def double(part: Part) -> Iterator[pa.RecordBatch]:
    for batch in parts.read(part, ["number"], 2):
        yield pa.RecordBatch.from_pydict({"number": [2 * one.as_py() for one in batch["number"]]}, schema=NUMBERS)


def test_each_file_is_one_task_and_tells_what_it_took(folder: str, context: SparkContext) -> None:
    write(folder, 3, 0, 1, 4)
    found, tasks = parts.find(folder, NUMBERS), parts.task_list(context)
    results = parts.each(context, found, lambda part: part.rows, tasks)
    assert results.getNumPartitions() == 3
    assert results.collect() == [3, 1, 4]
    assert len(tasks.value) == 3
    assert all(task.seconds > 0 and task.peak_bytes > 10e6 for task in tasks.value)


def test_a_dataset_has_a_file_for_each_file_that_it_is_made_of(folder: str, context: SparkContext) -> None:
    write(folder, 3, 0, 1, 4)
    found, made = parts.find(folder, NUMBERS), f"{folder}-doubled"
    assert parts.make(context, found, double, made, NUMBERS, parts.task_list(context)) == 8
    assert [(part.name, part.rows) for part in parts.find(made, NUMBERS)] == [(part.name, part.rows) for part in found]
    numbers = [number for part in parts.find(made, NUMBERS) for number in read_numbers(part)]
    assert numbers == [0, 2, 4, 6, 8, 10, 12, 14]


def test_a_dataset_that_is_made_again_keeps_nothing_of_the_first(folder: str, context: SparkContext) -> None:
    write(folder, 3, 1, 4)
    found, made = parts.find(folder, NUMBERS), f"{folder}-doubled"
    for taken in (found, found[1:2]):
        parts.make(context, taken, double, made, NUMBERS, parts.task_list(context))
    assert [part.rows for part in parts.find(made, NUMBERS)] == [1]


def test_a_dataset_made_of_nothing_shows_its_columns(folder: str, context: SparkContext) -> None:
    assert parts.make(context, [], double, folder, NUMBERS, parts.task_list(context)) == 0
    assert parts.find(folder, NUMBERS) == []


def read_numbers(part: Part) -> list[int]:
    return [number for batch in parts.read(part, ["number"], 100) for number in batch["number"].to_pylist()]


def test_a_written_file_is_not_seen_before_it_is_whole(folder: str) -> None:
    with parts.Writer(f"{folder}/part-0.parquet", NUMBERS) as writer:
        writer.write(pa.RecordBatch.from_pydict({"number": [1, 2]}, schema=NUMBERS))
        assert objects.list_files(folder) == []
    assert read_numbers(Part(f"{folder}/part-0.parquet", 2)) == [1, 2]


def test_a_file_whose_writing_fails_is_never_seen(folder: str) -> None:
    def fails(writer: parts.Writer) -> None:
        with writer:
            writer.write(pa.RecordBatch.from_pydict({"number": [1, 2]}, schema=NUMBERS))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails(parts.Writer(f"{folder}/part-0.parquet", NUMBERS))
    assert objects.list_files(folder) == []


def test_without_rows_there_is_no_file_not_even_that_of_an_earlier_attempt(folder: str) -> None:
    (uri,) = write(folder, 3)
    with parts.Writer(uri, NUMBERS) as writer:
        writer.write(pa.RecordBatch.from_pydict({"number": []}, schema=NUMBERS))
    assert objects.list_files(folder) == []


def test_a_writer_holds_one_row_group(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "ROW_GROUP_BYTES", 8 * 10)
    with parts.Writer(f"{folder}/part-0.parquet", NUMBERS) as writer:
        for number in range(25):
            writer.write(pa.RecordBatch.from_pydict({"number": [number]}, schema=NUMBERS))
    with pq.ParquetFile(f"{folder.removeprefix('file://')}/part-0.parquet") as file:
        assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == [10, 10, 5]


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
