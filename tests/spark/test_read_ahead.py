import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
import pytest

from orchard_spark import objects, read_ahead
from orchard_spark.read_ahead import Listed, ObjectChanged, ObjectGone, UnreadableKey, read_all
from orchard_spark.rejects import RejectedObject
from tests.spark.http_server import s3_that_answers
from tests.spark.ingested import listed

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

STRANGE = ["images/a b/1.jpg", "images/Äpfel/#%41.PNG", "images/x+y&z/q?'\".WebP", "images/deep/er/still/1.bmp"]
UNREADABLE = ["images/a//b.jpg", "images/k/tab\t.jpg", "images/k/del\x7f.jpg"]
XML = {"Content-Type": "application/xml"}


@pytest.fixture
def root(s3: "S3Client", steps_bucket: str) -> str:
    """The URI of a bucket with STRANGE and UNREADABLE keys."""
    for key in [*STRANGE, *UNREADABLE]:
        s3.put_object(Bucket=steps_bucket, Key=key, Body=f"bytes of {key}".encode())
    return f"s3://{steps_bucket}"


def in_bucket(s3: "S3Client", bucket: str) -> list[Listed]:
    """Return all objects of a bucket as the plan lists them."""
    return [
        Listed(f"s3://{bucket}/{item['Key']}", "k", item["ETag"].strip('"'), item["Size"], item["LastModified"])
        for item in s3.list_objects_v2(Bucket=bucket)["Contents"]
    ]


def in_folder(folder: Path) -> list[Listed]:
    """Return all files of a local folder as the plan lists them."""
    return [Listed(**listed(file)) for file in sorted(folder.iterdir())]


def test_strange_keys_are_read_and_unreadable_keys_are_rejected(s3: "S3Client", steps_bucket: str, root: str) -> None:
    rows = in_bucket(s3, steps_bucket)
    contents = {item.path.removeprefix(f"{root}/"): content for item, content in read_all(rows)}
    assert {key: contents[key] for key in STRANGE} == {key: f"bytes of {key}".encode() for key in STRANGE}
    assert all(isinstance(contents[key], UnreadableKey) for key in UNREADABLE)


def test_deleted_and_changed_objects_are_rejected(root: str) -> None:
    deleted = Listed(f"{root}/images/never.jpg", "k", "x", 5, datetime.now(UTC))
    overwritten = Listed(f"{root}/{STRANGE[0]}", "k", "0" * 32, 5, datetime.now(UTC))
    (gone, changed) = read_all([deleted, overwritten])
    assert isinstance(gone[1], ObjectGone)
    assert isinstance(changed[1], ObjectChanged)
    assert "never.jpg" in str(gone[1])


def test_an_error_that_does_not_concern_one_object_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def deny(*_: object, **__: object) -> None:
        raise PermissionError("no access to the bucket")

    (tmp_path / "a.jpg").write_bytes(b"a")
    monkeypatch.setattr(obstore, "get_async", deny)
    with pytest.raises(PermissionError):
        list(read_all(in_folder(tmp_path)))


def test_reading_keeps_the_order_and_limits_the_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_ahead, "READ_AHEAD_OBJECTS", 4)
    for number in range(40):
        (tmp_path / f"{number:02}.jpg").write_bytes(bytes([number]))
    rows = in_folder(tmp_path)
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
    reader = read_all(in_folder(tmp_path))
    next(reader)
    reader.close()
    assert "read-ahead" not in [thread.name for thread in threading.enumerate()]


def test_a_local_file_that_changes_after_the_listing_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    (row,) = in_folder(tmp_path)
    (tmp_path / "a.jpg").write_bytes(b"changed")
    ((_, content),) = read_all([row])
    assert isinstance(content, ObjectChanged)


@pytest.mark.parametrize("key", [*UNREADABLE, "k/./1.jpg", "k/../1.jpg", "/1.jpg", "k/new\nline.jpg", "k/nul\0.jpg"])
def test_a_key_that_is_no_path_is_unreadable(key: str) -> None:
    ((_, content),) = read_all([Listed(f"s3://bucket/{key}", "k", "e", 5, datetime.now(UTC))])
    assert isinstance(content, UnreadableKey)
    assert repr(f"s3://bucket/{key}") in str(content)


def test_an_object_that_the_listing_rejects_is_not_read() -> None:
    item = Listed("s3://bucket/k/1.jpg", "k", "e", 11, datetime.now(UTC), "too_many_bytes", "11 bytes, over 10")
    ((_, rejected),) = read_all([item])
    assert isinstance(rejected, RejectedObject)
    assert (rejected.reason, str(rejected)) == ("too_many_bytes", "11 bytes, over 10")


def test_the_read_ahead_counts_the_bytes_in_flight_and_those_that_the_caller_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_ahead, "READ_AHEAD_BYTES", 10)
    sizes = [4, 4, 1, 1, 4, 11, 4, 4, 10, 1]
    for number, size in enumerate(sizes):
        (tmp_path / f"{number}.jpg").write_bytes(bytes(size))
    started: list[int] = []
    read_object = read_ahead._read_object

    def counted(item: Listed) -> object:
        started.append(item.size)
        return read_object(item)

    monkeypatch.setattr(read_ahead, "_read_object", counted)
    done = 0
    for count, (item, _) in enumerate(read_all(in_folder(tmp_path))):
        held = sum(started) - done
        assert held <= 10 or held == item.size == 11
        assert count == 0 or len(started) > count
        done += item.size
    assert started == sizes


def test_a_local_file_that_grows_after_the_listing_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    (row,) = in_folder(tmp_path)
    with (tmp_path / "a.jpg").open("r+b") as file:
        file.truncate(10**12)  # more than any machine could read
    ((_, content),) = read_all([row])
    assert isinstance(content, ObjectChanged)


def read_one_refused(code: str, status: int, monkeypatch: pytest.MonkeyPatch) -> bytes | RejectedObject:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>User is not allowed</Message></Error>".encode()
    with s3_that_answers(lambda *_: (status, XML, body)) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        objects.store.cache_clear()
        try:
            ((_, content),) = read_all([Listed("s3://bucket/k/1.jpg", "k", "e", 5, datetime.now(UTC))])
        finally:
            objects.store.cache_clear()
    return content


@pytest.mark.parametrize(
    ("code", "status", "reason"),
    [
        ("InvalidObjectState", 403, "archived"),
        ("AccessDenied", 403, "forbidden"),
        ("KMS.DisabledException", 400, "forbidden"),
        ("KMS.NotFoundException", 400, "forbidden"),
    ],
)
def test_an_object_that_s3_refuses_is_rejected(
    code: str, status: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = read_one_refused(code, status, monkeypatch)
    assert isinstance(content, RejectedObject)
    assert content.reason == reason
    assert "s3://bucket/k/1.jpg" in str(content)
    assert reason == "archived" or str(content).endswith(f"{code}: User is not allowed")


@pytest.mark.parametrize(
    ("code", "status"),
    [("ExpiredToken", 400), ("InvalidAccessKeyId", 403), ("SignatureDoesNotMatch", 403), ("RequestTimeTooSkewed", 403)],
)
def test_wrong_credentials_are_an_error_and_not_a_rejected_object(
    code: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Exception, match=code):
        read_one_refused(code, status, monkeypatch)


def test_an_object_in_an_archive_tier_that_the_listing_does_not_show_is_rejected(
    s3: "S3Client", steps_bucket: str
) -> None:
    answer = s3.put_object(Bucket=steps_bucket, Key="k/1.jpg", Body=b"x", StorageClass="GLACIER")
    item = Listed(f"s3://{steps_bucket}/k/1.jpg", "k", answer["ETag"].strip('"'), 1, datetime.now(UTC))
    ((_, content),) = read_all([item])
    assert isinstance(content, RejectedObject)
    assert (content.reason, "Intelligent-Tiering" in str(content)) == ("archived", True)


@pytest.mark.skipif(os.getuid() == 0, reason="root may read every file")
def test_a_local_file_that_may_not_be_read_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    (tmp_path / "a.jpg").chmod(0)
    ((_, content),) = read_all(in_folder(tmp_path))
    assert isinstance(content, RejectedObject)
    assert content.reason == "forbidden"
