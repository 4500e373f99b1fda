from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchard_spark import objects


def test_write_and_read_preserve_the_bytes_on_s3_and_on_disk(steps_bucket: str, tmp_path: Path) -> None:
    for uri in (f"s3://{steps_bucket}/out/a.bin", f"file://{tmp_path}/out/a.bin"):
        objects.write(uri, b"abc")
        assert objects.read(uri) == b"abc"


def test_an_unsupported_scheme_is_refused() -> None:
    with pytest.raises(objects.BadUri, match="'gs://bucket/x': use s3://"):
        objects.absolute("gs://bucket/x")


def test_a_relative_path_becomes_an_absolute_uri(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    assert objects.absolute("../images/") == f"file://{tmp_path}/images/"


def test_a_ranged_file_reads_like_any_other_file(tmp_path: Path) -> None:
    (tmp_path / "letters").write_bytes(b"abcdefghij")
    file = objects.RangedFile(f"file://{tmp_path}/letters")
    assert file.read(3) == b"abc"
    assert file.tell() == 3
    assert file.seek(-2, 2) == 8
    assert file.read() == b"ij"
    assert file.read(5) == b""
    assert file.seek(1) == 1
    assert file.read(100) == b"bcdefghij"


def test_a_written_table_is_read_through_a_ranged_file(tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/numbers.parquet"
    objects.write_table(uri, pa.table({"number": [0, 1, 2]}))
    assert pq.ParquetFile(objects.RangedFile(uri)).read()["number"].to_pylist() == [0, 1, 2]
