import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
import pyarrow as pa
import pytest
from botocore.exceptions import ClientError

from orchard.dataset import listing
from orchard_spark import dataset, objects, schemas
from orchard_spark.dataset import Listed, ObjectChanged, ObjectGone, UnreadableKey, list_images, read_all
from orchard_spark.rejects import RejectedObject

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

STRANGE = ["images/a b/1.jpg", "images/Äpfel/#%41.PNG", "images/x+y&z/q?'\".WebP", "images/deep/er/still/1.bmp"]
UNREADABLE = ["images/a//b.jpg", "images/k/tab\t.jpg", "images/k/del\x7f.jpg"]
IGNORED = [
    "images/.hidden.jpg",
    "images/.trash/1.jpg",
    "images/k/._1.jpg",
    "images/k/notes.txt",
    "images/k/",
    "imagesX/1.jpg",
]
KEYS = [*STRANGE, *UNREADABLE, *IGNORED]


@pytest.fixture
def root(s3: "S3Client", steps_bucket: str) -> str:
    """The URI of a bucket with KEYS."""
    for key in KEYS:
        s3.put_object(Bucket=steps_bucket, Key=key, Body=f"bytes of {key}".encode())
    return f"s3://{steps_bucket}"


def rows_of(table: pa.Table) -> list[Listed]:
    return [Listed.from_row(row) for row in table.to_pylist()]


def test_a_listing_has_all_images_below_the_prefix_and_nothing_else(root: str) -> None:
    table = list_images(f"{root}/images")
    assert table.schema == schemas.INVENTORY
    assert table["path"].to_pylist() == sorted(f"{root}/{key}" for key in [*STRANGE, *UNREADABLE])
    assert set(table["label"].to_pylist()) == {"a b", "Äpfel", "x+y&z", "still", "", "k"}


def test_strange_keys_are_read_and_unreadable_keys_are_rejected(root: str) -> None:
    rows = rows_of(list_images(f"{root}/images/"))
    contents = {item.path.removeprefix(f"{root}/"): content for item, content in read_all(rows)}
    assert {key: contents[key] for key in STRANGE} == {key: f"bytes of {key}".encode() for key in STRANGE}
    assert all(isinstance(contents[key], UnreadableKey) for key in UNREADABLE)


def test_deleted_and_changed_objects_are_rejected(root: str) -> None:
    deleted = Listed(f"{root}/images/never.jpg", "x", 5, datetime.now(UTC))
    overwritten = Listed(f"{root}/{STRANGE[0]}", "0" * 32, 5, datetime.now(UTC))
    (gone, changed) = read_all([deleted, overwritten])
    assert isinstance(gone[1], ObjectGone)
    assert isinstance(changed[1], ObjectChanged)
    assert "never.jpg" in str(gone[1])


def test_a_missing_bucket_is_an_error_and_not_a_rejected_object(root: str) -> None:
    with pytest.raises(ClientError, match="NoSuchBucket"):
        list_images("s3://no-such-bucket/images/")


def test_an_error_that_does_not_concern_one_object_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def deny(*_: object, **__: object) -> None:
        raise PermissionError("no access to the bucket")

    (tmp_path / "a.jpg").write_bytes(b"a")
    monkeypatch.setattr(obstore, "get_async", deny)
    with pytest.raises(PermissionError):
        list(read_all(rows_of(list_images(str(tmp_path)))))


def test_reading_keeps_the_order_and_limits_the_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "READ_AHEAD_OBJECTS", 4)
    for number in range(40):
        (tmp_path / f"{number:02}.jpg").write_bytes(bytes([number]))
    rows = rows_of(list_images(str(tmp_path)))
    requested = 0

    def counted() -> Iterator[Listed]:
        nonlocal requested
        for row in rows:
            requested += 1
            yield row

    contents: list[bytes | Exception] = []
    for _, content in read_all(counted()):
        assert requested - len(contents) <= 4
        contents.append(content)
    assert contents == [bytes([number]) for number in range(40)]


def test_closing_the_reader_ends_its_thread(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    (tmp_path / "b.jpg").write_bytes(b"b")
    reader = read_all(rows_of(list_images(str(tmp_path))))
    next(reader)
    reader.close()
    assert "read-ahead" not in [thread.name for thread in threading.enumerate()]


def test_a_local_file_that_changes_after_the_listing_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    (row,) = rows_of(list_images(str(tmp_path)))
    (tmp_path / "a.jpg").write_bytes(b"changed")
    ((_, content),) = read_all([row])
    assert isinstance(content, ObjectChanged)


def test_an_unsupported_scheme_is_refused() -> None:
    with pytest.raises(objects.BadUri, match="'gs://bucket/x': use s3://"):
        list_images("gs://bucket/x")


def test_airflow_and_the_steps_agree_on_what_an_image_is() -> None:
    assert dataset.IMAGE_ENDINGS == listing.IMAGE_ENDINGS
    assert [dataset.is_image(key) for key in KEYS] == [listing.is_image(key) for key in KEYS]


def test_an_object_of_more_bytes_than_the_limit_is_rejected_and_not_read(s3: "S3Client", steps_bucket: str) -> None:
    for key, size in {"k/at.jpg": 10, "k/over.jpg": 11}.items():
        s3.put_object(Bucket=steps_bucket, Key=key, Body=b"x" * size)
    rows = rows_of(list_images(f"s3://{steps_bucket}/", max_bytes=10))
    s3.delete_object(Bucket=steps_bucket, Key="k/over.jpg")  # a read would find it deleted
    (_, read), (_, rejected) = read_all(rows)
    assert read == b"x" * 10
    assert isinstance(rejected, RejectedObject)
    assert (rejected.reason, str(rejected)) == ("too_many_bytes", "11 bytes, over 10")


def test_the_read_ahead_counts_the_bytes_in_flight_and_those_that_the_caller_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "READ_AHEAD_BYTES", 10)
    sizes = [4, 4, 1, 1, 4, 11, 4, 4, 10, 1]
    for number, size in enumerate(sizes):
        (tmp_path / f"{number}.jpg").write_bytes(bytes(size))
    started: list[int] = []
    read_object = dataset._read_object

    def counted(listed: Listed) -> object:
        started.append(listed.size)
        return read_object(listed)

    monkeypatch.setattr(dataset, "_read_object", counted)
    done = 0
    for count, (item, _) in enumerate(read_all(rows_of(list_images(str(tmp_path))))):
        held = sum(started) - done
        assert held <= 10 or held == item.size == 11
        assert count == 0 or len(started) > count
        done += item.size
    assert started == sizes


def test_a_local_file_that_grows_after_the_listing_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    (row,) = rows_of(list_images(str(tmp_path)))
    with (tmp_path / "a.jpg").open("r+b") as file:
        file.truncate(10**12)  # more than any machine could read
    ((_, content),) = read_all([row])
    assert isinstance(content, ObjectChanged)
