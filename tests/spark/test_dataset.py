import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import obstore
import pyarrow as pa
import pytest
from botocore.exceptions import ClientError

from orchard.dataset import listing
from orchard.run import params
from orchard_spark import dataset, images, objects, schemas
from orchard_spark.dataset import Listed, ObjectChanged, ObjectGone, UnreadableKey, list_images, read_all
from orchard_spark.rejects import RejectedObject
from tests.plugins import dataset_uris
from tests.spark.http_server import Answer, s3_that_answers

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
XML = {"Content-Type": "application/xml"}


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


def test_airflow_and_the_steps_agree_on_which_classes_are_archives() -> None:
    assert dataset.ARCHIVES == listing.ARCHIVES


@pytest.mark.parametrize("key", [*UNREADABLE, "k/./1.jpg", "k/../1.jpg", "/1.jpg", "k/new\nline.jpg", "k/nul\0.jpg"])
def test_airflow_and_the_steps_agree_on_which_keys_are_unreadable(key: str) -> None:
    ((_, content),) = read_all([Listed(f"s3://bucket/{key}", "e", 5, datetime.now(UTC))])
    assert isinstance(content, UnreadableKey)
    assert listing.reject_reason({"Key": key, "Size": 5}, dataset.DEFAULT_MAX_BYTES) == content.reason


def test_airflow_and_the_steps_agree_on_which_keys_are_readable() -> None:
    # The steps read these keys: see above.
    assert {listing.reject_reason({"Key": key, "Size": 5}, dataset.DEFAULT_MAX_BYTES) for key in STRANGE} == {""}


@pytest.mark.parametrize("size", [0, 9, 10, 11])
@pytest.mark.parametrize("storage_class", ["STANDARD", "GLACIER"])
@pytest.mark.parametrize("key", ["k/1.jpg", "k//1.jpg"])
def test_airflow_and_the_steps_agree_on_the_reason_of_a_reject(
    key: str, storage_class: Any, size: int, s3: "S3Client", steps_bucket: str
) -> None:
    s3.put_object(Bucket=steps_bucket, Key=key, Body=b"x" * size, StorageClass=storage_class)
    ((_, content),) = read_all(rows_of(list_images(f"s3://{steps_bucket}/", max_bytes=10)))
    (item,) = s3.list_objects_v2(Bucket=steps_bucket)["Contents"]
    reason = listing.reject_reason(item, max_bytes=10)
    if isinstance(content, RejectedObject):
        assert reason == content.reason
    else:
        # The steps find out that an object has no bytes when they decode it.
        assert reason == ("" if content else "empty")


def test_airflow_and_the_steps_agree_on_the_largest_objects_and_images() -> None:
    assert params.DEFAULT_MAX_BYTES == dataset.DEFAULT_MAX_BYTES
    assert params.LARGEST_MAX_BYTES == dataset.LARGEST_MAX_BYTES
    assert params.DEFAULT_MAX_PIXELS == images.DEFAULT_MAX_PIXELS


@pytest.mark.parametrize("uri", dataset_uris.ACCEPTED_URIS, ids=ascii)
def test_the_steps_take_every_dataset_uri_that_airflow_accepts(uri: str) -> None:
    assert dataset.checked_uri(uri) == uri


# Airflow also refuses a URI without a final "/", which the steps add, and a name that is not UTF-8, which a local file
# may have.
ONLY_AIRFLOW_REFUSES = ("images", "images/\udce9t\udce9/")


@pytest.mark.parametrize("prefix", sorted({*dataset_uris.REFUSED} - {*ONLY_AIRFLOW_REFUSES}), ids=ascii)
def test_the_steps_refuse_every_prefix_that_airflow_refuses(prefix: str) -> None:
    with pytest.raises(dataset.BadDatasetUri):
        dataset.checked_uri(f"s3://fruits-data/{prefix}")


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


def test_objects_that_are_not_images_are_counted_by_their_last_ending_in_lower_case(root: str) -> None:
    ignored: Counter[str] = Counter()
    list_images(f"{root}/images/", ignored=ignored)
    assert ignored == {"hidden": 3, ".txt": 1}


def test_local_files_that_are_not_images_are_counted_like_objects(tmp_path: Path) -> None:
    names = [
        "a.HEIC",
        "b.heic",
        "c.Tif",
        "d.jpg.gz",
        "e.jpg.tmp",
        "f",
        "g.jpg",
        "h.JPG.jpg",
        ".DS_Store",
        "i.avif",
        "k.1 (2)",
    ]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    ignored: Counter[str] = Counter()
    assert list_images(str(tmp_path), ignored=ignored).num_rows == 2
    assert ignored == {
        ".heic": 2,
        ".tif": 1,
        ".gz": 1,
        ".tmp": 1,
        ".avif": 1,
        "no ending": 1,
        "hidden": 1,
        "other endings": 1,
    }


def test_a_dataset_of_countless_endings_has_a_short_list() -> None:
    endings = {f".{number:03}": 1 for number in range(100)} | {".heic": 7, "other endings": 5}
    counted = dataset.most_common_endings(endings)
    assert len(counted) <= dataset.ENDINGS_COUNTED + 1
    assert sum(counted.values()) == 112
    assert (next(iter(counted)), counted["other endings"]) == (".heic", 87)


@pytest.mark.parametrize("archive", ["GLACIER", "DEEP_ARCHIVE"])
def test_an_archived_object_is_rejected_by_the_listing_and_not_read(
    s3: "S3Client", steps_bucket: str, archive: Any
) -> None:
    s3.put_object(Bucket=steps_bucket, Key="k/1.jpg", Body=b"x", StorageClass=archive)
    rows = rows_of(list_images(f"s3://{steps_bucket}/"))
    s3.delete_object(Bucket=steps_bucket, Key="k/1.jpg")  # a read would find it deleted
    ((_, content),) = read_all(rows)
    assert isinstance(content, RejectedObject)
    assert content.reason == "archived"
    assert f"s3://{steps_bucket}/k/1.jpg is in {archive}: restore it with `aws s3api restore-object`" in str(content)


@pytest.mark.parametrize(
    "storage", ["STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "GLACIER_IR", "REDUCED_REDUNDANCY"]
)
def test_objects_of_other_storage_classes_are_read(s3: "S3Client", steps_bucket: str, storage: Any) -> None:
    s3.put_object(Bucket=steps_bucket, Key="k/1.jpg", Body=b"x", StorageClass=storage)
    ((_, content),) = read_all(rows_of(list_images(f"s3://{steps_bucket}/")))
    assert content == b"x"


def answer_of_list(storage: str, restore: str) -> bytes:
    return (
        '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Contents>'
        "<Key>k/1.jpg</Key><LastModified>2026-11-22T02:00:00.000Z</LastModified><ETag>&quot;e&quot;</ETag>"
        f"<Size>5</Size><StorageClass>{storage}</StorageClass>{restore}</Contents></ListBucketResult>"
    ).encode()


@pytest.mark.parametrize(
    ("restore", "reason"),
    [
        ("", "archived"),
        ("<RestoreStatus><IsRestoreInProgress>true</IsRestoreInProgress></RestoreStatus>", "archived"),
        (
            "<RestoreStatus><IsRestoreInProgress>false</IsRestoreInProgress>"
            "<RestoreExpiryDate>2099-01-01T00:00:00.000Z</RestoreExpiryDate></RestoreStatus>",
            None,
        ),
    ],
)
def test_an_archived_object_is_read_once_it_is_restored(
    restore: str, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    attributes = set()

    def answer(_: str, headers: Mapping[str, str]) -> Answer:
        attributes.add(headers.get("x-amz-optional-object-attributes"))
        return 200, XML, answer_of_list("GLACIER", restore)

    with s3_that_answers(answer) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        (row,) = rows_of(list_images("s3://bucket/k/"))
    assert row.reason == reason
    assert attributes == {"RestoreStatus"}


def read_one_refused(code: str, status: int, monkeypatch: pytest.MonkeyPatch) -> bytes | RejectedObject:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>User is not allowed</Message></Error>".encode()
    with s3_that_answers(lambda *_: (status, XML, body)) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        objects.store.cache_clear()
        try:
            ((_, content),) = read_all([Listed("s3://bucket/k/1.jpg", "e", 5, datetime.now(UTC))])
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
    item = Listed(f"s3://{steps_bucket}/k/1.jpg", answer["ETag"].strip('"'), 1, datetime.now(UTC))
    ((_, content),) = read_all([item])
    assert isinstance(content, RejectedObject)
    assert (content.reason, "Intelligent-Tiering" in str(content)) == ("archived", True)


def test_a_local_file_whose_name_is_not_utf8_is_rejected_and_named(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path)
    os.mkdir(folder + b"/caf\xe9")
    for name in (b"/na\xefve.jpg", b"/caf\xe9/1.jpg", b"/caf\xe9/2.\xe9", "/Äpfel.jpg".encode()):
        Path(os.fsdecode(folder + name)).write_bytes(b"x")
    ignored: Counter[str] = Counter()
    contents = {
        item.path.removeprefix(f"file://{tmp_path}/"): content
        for item, content in read_all(rows_of(list_images(str(tmp_path), ignored=ignored)))
    }
    assert set(contents) == {r"na\xefve.jpg", r"caf\xe9/1.jpg", "Äpfel.jpg"}
    assert contents.pop("Äpfel.jpg") == b"x"
    for path, content in contents.items():
        assert isinstance(content, RejectedObject)
        assert (content.reason, f"{path} is not UTF-8: rename the file" in str(content)) == ("unreadable_key", True)
    assert ignored == {"other endings": 1}


def test_a_folder_whose_name_is_not_utf8_has_rejects_only(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    (folder / "1.jpg").write_bytes(b"x")
    (row,) = rows_of(list_images(str(folder)))
    assert row.reason == "unreadable_key"


@pytest.mark.skipif(os.getuid() == 0, reason="root may read every file")
def test_a_local_file_that_may_not_be_read_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    (tmp_path / "a.jpg").chmod(0)
    ((_, content),) = read_all(rows_of(list_images(str(tmp_path))))
    assert isinstance(content, RejectedObject)
    assert content.reason == "forbidden"


@pytest.mark.parametrize(
    ("uri", "fault"),
    [
        ("s3://b/C//", "an empty, '.' or '..' part"),
        ("s3://b//", "an empty, '.' or '..' part"),
        ("s3://b//C/", "an empty, '.' or '..' part"),
        ("s3://b/C//D", "an empty, '.' or '..' part"),
        ("s3://b/./C/", "an empty, '.' or '..' part"),
        ("s3://b/C/..", "an empty, '.' or '..' part"),
        ("s3://b/C\t/", "a control character"),
        ("s3://b/C\x7f/", "a control character"),
        ("s3:///C/", "no bucket"),
        ("s3://", "no bucket"),
        ("S3://b/C/", "another scheme"),
        ("file://C/D", "no absolute path after file://"),
    ],
)
def test_a_dataset_uri_that_clients_read_differently_is_refused(uri: str, fault: str) -> None:
    with pytest.raises(dataset.BadDatasetUri) as error:
        list_images(uri)
    assert str(error.value) == f"the dataset URI {uri!r} has {fault}: use s3://BUCKET/PREFIX/"


@pytest.mark.parametrize(
    ("uri", "checked"),
    [
        ("s3://b", "s3://b/"),
        ("s3://b/", "s3://b/"),
        ("s3://b/C", "s3://b/C/"),
        ("s3://b/a b/Äpfel/#%41?/", "s3://b/a b/Äpfel/#%41?/"),
        ("s3://b/.../C.D/", "s3://b/.../C.D/"),
        ("/data//fruits/../images", "file:///data/images/"),
        ("file:///data/images/", "file:///data/images/"),
    ],
)
def test_any_other_dataset_uri_is_the_folder_that_it_names(uri: str, checked: str) -> None:
    assert dataset.checked_uri(uri) == checked
