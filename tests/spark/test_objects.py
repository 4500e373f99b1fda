import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import boto3
import pyarrow as pa
import pytest
from botocore.exceptions import ClientError

from local_aws.server import LocalAws
from orchard.dataset import IMAGE_ENDINGS, is_image
from orchard_spark import objects, tables
from orchard_spark.objects import Listed, ObjectChanged, ObjectGone, UnreadableKey, list_images, read_all

BUCKET = "pictures"


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    with LocalAws(tmp_path_factory.mktemp("aws")) as aws, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", aws.endpoint_url)
        objects.store.cache_clear()
        client = boto3.client("s3")
        client.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
        for key in KEYS:
            client.put_object(Bucket=BUCKET, Key=key, Body=f"bytes of {key}".encode())
        yield client
        objects.store.cache_clear()


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


def listed(key: str, etag: str = "x") -> Listed:
    return Listed(f"s3://{BUCKET}/{key}", etag, 5, datetime.now(UTC))


def listing(table: pa.Table) -> list[Listed]:
    return [Listed.from_row(row) for row in table.to_pylist()]


def test_a_listing_has_the_images_below_the_prefix_and_nothing_else(s3: object) -> None:
    table = list_images(f"s3://{BUCKET}/images")
    assert table.schema == tables.INVENTORY
    assert table["path"].to_pylist() == sorted(f"s3://{BUCKET}/{key}" for key in [*STRANGE, *UNREADABLE])
    assert set(table["label"].to_pylist()) == {"a b", "Äpfel", "x+y&z", "still", "", "k"}


def test_strange_keys_are_read_and_an_unreadable_one_is_a_fault_of_its_own(s3: object) -> None:
    rows = listing(list_images(f"s3://{BUCKET}/images/"))
    contents = {item.path.removeprefix(f"s3://{BUCKET}/"): content for item, content in read_all(rows)}
    assert {key: contents[key] for key in STRANGE} == {key: f"bytes of {key}".encode() for key in STRANGE}
    assert all(isinstance(contents[key], UnreadableKey) for key in UNREADABLE)


def test_a_deleted_and_a_changed_object_are_faults_of_their_own(s3: object) -> None:
    (gone, changed) = read_all([listed("images/never.jpg"), listed(STRANGE[0], etag="0" * 32)])
    assert isinstance(gone[1], ObjectGone)
    assert isinstance(changed[1], ObjectChanged)
    assert "never.jpg" in str(gone[1])


def test_a_bucket_that_is_not_there_is_an_error_not_a_fault_of_each_object(s3: object) -> None:
    with pytest.raises(ClientError, match="NoSuchBucket"):
        list_images("s3://no-such-bucket/images/")


def test_order_is_kept_and_reading_ahead_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "READ_AHEAD_OBJECTS", 4)
    for number in range(40):
        (tmp_path / f"{number:02}.jpg").write_bytes(bytes([number]))
    rows = listing(list_images(str(tmp_path)))
    asked = 0

    def counted() -> Iterator[Listed]:
        nonlocal asked
        for row in rows:
            asked += 1
            yield row

    seen: list[bytes | Exception] = []
    for _, content in read_all(counted()):
        assert asked - len(seen) <= 4
        seen.append(content)
    assert seen == [bytes([number]) for number in range(40)]


def test_a_reader_that_is_given_up_leaves_no_thread(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    (tmp_path / "b.jpg").write_bytes(b"b")
    rows = listing(list_images(str(tmp_path)))
    reader = read_all(rows)
    next(reader)
    reader.close()
    assert "read-ahead" not in [thread.name for thread in threading.enumerate()]


def test_a_local_file_that_changes_after_the_listing_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    (row,) = listing(list_images(str(tmp_path)))
    (tmp_path / "a.jpg").write_bytes(b"changed")
    ((_, content),) = read_all([row])
    assert isinstance(content, ObjectChanged)


def test_write_and_read_give_the_same_bytes_on_s3_and_on_disk(s3: object, tmp_path: Path) -> None:
    for uri in (f"s3://{BUCKET}/out/a.bin", f"file://{tmp_path}/out/a.bin"):
        objects.write(uri, b"abc")
        assert objects.read(uri) == b"abc"


def test_another_scheme_is_refused() -> None:
    with pytest.raises(objects.BadUri, match="'gs://bucket/x': give s3://"):
        list_images("gs://bucket/x")


def test_a_relative_path_becomes_an_absolute_uri(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    assert objects.absolute("../images/") == f"file://{tmp_path}/images/"


def test_both_sides_of_the_project_agree_on_what_an_image_is() -> None:
    assert objects.IMAGE_ENDINGS == IMAGE_ENDINGS
    assert [objects.is_image(key) for key in KEYS] == [is_image(key) for key in KEYS]
