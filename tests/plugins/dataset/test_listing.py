import gc
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import boto3
import pyarrow as pa
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from hypothesis import given, settings
from hypothesis import strategies as st

from local_aws.client import LocalAwsClient
from orchard.dataset.keys import is_image
from orchard.dataset.listing import (
    CLIENT_CONFIG,
    LISTED,
    WORKERS,
    CannotList,
    Listing,
    NoImages,
    UnorderedBucket,
    list_images,
)
from orchard.dataset.pages import OBJECTS_BETWEEN_COLLECTIONS
from sandbox import aws
from tests.plugins.answers import failing
from tests.plugins.dataset.stub_listing import XML, StubListing, page_body
from tests.spark.http_server import s3_that_answers

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

MAX_BYTES = 1000
PYTHONS_THRESHOLD = 700
STRANGE = ["a b/1.jpg", "Äpfel/#%41.PNG", "x+y&z/q?'\".WebP", "deep/er/still/1.bmp", "a//b.jpg", "k/tab\t.jpg"]


def client(url: str, **settings: Any) -> "S3Client":
    """Return a client as the plan uses one, except for these settings."""
    config = CLIENT_CONFIG.merge(Config(**settings))
    s3: S3Client = boto3.client("s3", endpoint_url=url, region_name=aws.REGION, config=config)
    return s3


def put(s3: "S3Client", bucket: str, *keys: str, body: bytes = b"12345", storage_class: Any = "STANDARD") -> None:
    for key in keys:
        s3.put_object(Bucket=bucket, Key=key, Body=body, StorageClass=storage_class)


def list_rows(s3: "S3Client", uri: str, max_bytes: int = MAX_BYTES) -> tuple[Listing, list[dict[str, Any]]]:
    """Return a listing and its rows, in the order of their paths."""
    batches: list[pa.RecordBatch] = []
    listing = list_images(s3, uri, max_bytes, batches.append)
    rows = [row for batch in batches for row in batch.to_pylist()]
    return listing, sorted(rows, key=lambda row: str(row["path"]))


def list_paths(s3: "S3Client", uri: str) -> list[str]:
    return [row["path"] for row in list_rows(s3, uri)[1]]


def test_images_are_listed_and_other_objects_are_counted_by_their_ending(s3: "S3Client", bucket: str) -> None:
    put(s3, bucket, *(f"images/{key}" for key in ("Kiwi/1.jpg", "Kiwi/2.PNG", "Kiwi/._1.jpg", "notes.txt", "Kiwi/")))
    put(s3, bucket, "other/3.jpg", "imagesX/4.jpg")
    listing, rows = list_rows(s3, f"s3://{bucket}/images/")
    assert listing == Listing(images=2, bytes=10, reasons={}, ignored={".txt": 1, "hidden": 1})
    assert [row["path"] for row in rows] == [f"s3://{bucket}/images/Kiwi/1.jpg", f"s3://{bucket}/images/Kiwi/2.PNG"]


def test_a_batch_has_what_s3_says_of_each_image(s3: "S3Client", bucket: str) -> None:
    put(s3, bucket, "images/Kiwi/1.jpg", storage_class="STANDARD_IA")
    batches: list[pa.RecordBatch] = []
    before = datetime.now(UTC)
    list_images(s3, f"s3://{bucket}/images/", MAX_BYTES, batches.append)
    (batch,) = batches
    assert batch.schema == LISTED
    (row,) = batch.to_pylist()
    assert abs((row.pop("modified") - before).total_seconds()) < 60
    assert row == {
        "path": f"s3://{bucket}/images/Kiwi/1.jpg",
        "label": "Kiwi",
        "etag": s3.head_object(Bucket=bucket, Key="images/Kiwi/1.jpg")["ETag"].strip('"'),
        "size": 5,
        "storage_class": "STANDARD_IA",
        "reason": None,
        "message": None,
    }


def test_the_time_of_the_last_change_is_exact_to_the_microsecond() -> None:
    with s3_that_answers(StubListing(["k/1.jpg"])) as url:
        (row,) = list_rows(client(url), "s3://bucket/k/")[1]
    assert row["modified"] == datetime(2026, 11, 22, 2, 0, 0, 250_000, tzinfo=UTC)


def test_strange_keys_are_listed_with_the_label_of_their_folder(s3: "S3Client", bucket: str) -> None:
    put(s3, bucket, *(f"images/{key}" for key in STRANGE))
    _, rows = list_rows(s3, f"s3://{bucket}/images/")
    expected = {"a b": 1, "Äpfel": 1, "x+y&z": 1, "still": 1, "": 1, "k": 1}
    assert [row["path"] for row in rows] == sorted(f"s3://{bucket}/images/{key}" for key in STRANGE)
    assert Counter(row["label"] for row in rows) == expected


def test_a_prefix_may_contain_characters_that_are_special_in_other_uris(s3: "S3Client", bucket: str) -> None:
    put(s3, bucket, "lot#3/a?b/1.jpg", "lot/2.jpg", "lots/3.jpg")
    assert list_paths(s3, f"s3://{bucket}/lot#3/a?b/") == [f"s3://{bucket}/lot#3/a?b/1.jpg"]


def test_a_whole_bucket_may_be_a_dataset(s3: "S3Client", bucket: str) -> None:
    put(s3, bucket, "1.jpg", "Kiwi/2.jpg")
    _, rows = list_rows(s3, f"s3://{bucket}/")
    assert [row["label"] for row in rows] == [bucket, "Kiwi"]


def test_a_prefix_without_images_is_reported_with_the_endings_of_its_objects(s3: "S3Client", bucket: str) -> None:
    put(s3, bucket, "images/notes.txt", "images/1.HEIC", "images/2.heic")
    with pytest.raises(NoImages) as error:
        list_rows(s3, f"s3://{bucket}/images/")
    assert f"no images below s3://{bucket}/images/ (other objects: 2 .heic, 1 .txt)" in str(error.value)
    assert ".jpg, .jpeg, .png, .webp, .bmp" in str(error.value)
    assert error.value.ignored == {".heic": 2, ".txt": 1}


def test_a_prefix_without_objects_is_reported(s3: "S3Client", bucket: str) -> None:
    with pytest.raises(NoImages, match=r"\(other objects: none\)"):
        list_rows(s3, f"s3://{bucket}/images/")


def test_images_that_ingest_will_reject_whatever_they_contain_are_counted_by_reason(
    s3: "S3Client", bucket: str
) -> None:
    for key, body, storage_class in (
        ("Kiwi/1.jpg", b"1", "STANDARD"),
        ("Kiwi/2.jpg", b"1", "GLACIER_IR"),
        ("Kiwi/3.jpg", b"1", "INTELLIGENT_TIERING"),
        ("Kiwi/4.jpg", b"1", "GLACIER"),
        ("Kiwi/5.jpg", b"1", "DEEP_ARCHIVE"),
        ("Kiwi/notes.txt", b"1", "GLACIER"),
        ("Kiwi//6.jpg", b"1", "STANDARD"),
        ("Kiwi/7.jpg", b"", "STANDARD"),
        ("Kiwi/8.jpg", b"x" * MAX_BYTES, "STANDARD"),
        ("Kiwi/9.jpg", b"x" * (MAX_BYTES + 1), "STANDARD"),
        ("Kiwi/notes2.txt", b"x" * (MAX_BYTES + 1), "STANDARD"),
    ):
        put(s3, bucket, f"images/{key}", body=body, storage_class=storage_class)
    listing, rows = list_rows(s3, f"s3://{bucket}/images/")
    assert listing.images == 9
    assert listing.reasons == {"archived": 2, "unreadable_key": 1, "empty": 1, "too_many_bytes": 1}
    # `ingest` finds out the other reasons itself.
    root = f"s3://{bucket}/images/Kiwi"
    remedy = "restore it with `aws s3api restore-object`, or copy it to the class STANDARD"
    assert {row["path"]: (row["reason"], row["message"]) for row in rows if row["reason"]} == {
        f"{root}/4.jpg": ("archived", f"{root}/4.jpg is in GLACIER: {remedy}"),
        f"{root}/5.jpg": ("archived", f"{root}/5.jpg is in DEEP_ARCHIVE: {remedy}"),
        f"{root}/9.jpg": ("too_many_bytes", "1001 bytes, over 1000"),
    }


@pytest.mark.parametrize(
    ("status", "reason"),
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
def test_an_archived_object_is_readable_once_it_is_restored(status: str, reason: str | None) -> None:
    # The local AWS lists no RestoreStatus.
    entry = b"<StorageClass>STANDARD</StorageClass>"
    archived = f"<StorageClass>GLACIER</StorageClass>{status}".encode()
    body = page_body(["k/1.jpg"], [], "", url=True).replace(entry, archived)
    with s3_that_answers(lambda *_: (200, XML, body)) as url:
        listing, (row,) = list_rows(client(url), "s3://bucket/k/")
    assert row["reason"] == reason
    assert listing.reasons == ({"archived": 1} if reason else {})


def test_a_bucket_that_does_not_exist_is_a_permanent_error(s3: "S3Client") -> None:
    with pytest.raises(
        CannotList, match=r"s3://no-such-bucket/images/ cannot be listed: .*NoSuchBucket.*Use the URI of"
    ):
        list_rows(s3, "s3://no-such-bucket/images/")


@pytest.mark.parametrize(("code", "status"), [("AccessDenied", 403), ("SlowDown", 503)])
def test_an_error_that_may_pass_is_raised_as_it_is(s3: "S3Client", bucket: str, code: str, status: int) -> None:
    with failing(s3, "ListObjectsV2", code, status), pytest.raises(ClientError, match=code):
        list_rows(s3, f"s3://{bucket}/images/")


def test_an_error_of_the_writer_is_raised_as_it_is_and_ends_the_listing() -> None:
    def write(_: pa.RecordBatch) -> None:
        raise ClientError({"Error": {"Code": "NoSuchBucket"}, "ResponseMetadata": {"HTTPStatusCode": 404}}, "PutObject")  # type: ignore[typeddict-item]

    stub = StubListing([f"k/{number:05}.jpg" for number in range(5_000)], page_size=100)
    with s3_that_answers(stub) as url, pytest.raises(ClientError, match="NoSuchBucket"):
        list_images(client(url), "s3://bucket/k/", MAX_BYTES, write)
    assert len(stub.requests) < 40
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("list")]


def test_keys_in_another_order_than_s3s_are_refused_instead_of_lost() -> None:
    body = page_body(["k/2.jpg", "k/1.jpg"], [], "", url=True)
    with s3_that_answers(lambda *_: (200, XML, body)) as url, pytest.raises(UnorderedBucket, match="s3://bucket/k/"):
        list_rows(client(url), "s3://bucket/k/")


def test_garbage_is_collected_less_often_while_a_dataset_is_listed() -> None:
    thresholds: list[int] = []
    of_the_tests = gc.get_threshold()
    gc.set_threshold(PYTHONS_THRESHOLD, *of_the_tests[1:])
    try:
        with s3_that_answers(StubListing(["k/1.jpg"])) as url:
            list_images(client(url), "s3://bucket/k/", MAX_BYTES, lambda _: thresholds.append(gc.get_threshold()[0]))
        assert thresholds == [OBJECTS_BETWEEN_COLLECTIONS]
        assert gc.get_threshold()[0] == PYTHONS_THRESHOLD
    finally:
        gc.set_threshold(*of_the_tests)


LAYOUTS = {
    "100 folders": lambda number: f"fruit-{number % 100:02}/{number}.jpg",
    "one folder": lambda number: f"fruits/{number:05}.jpg",
    "no folder": lambda number: f"{number:05}.jpg",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_large_prefix_is_listed_in_parallel(layout: str) -> None:
    keys = [f"images/{LAYOUTS[layout](number)}" for number in range(20_000)]
    stub = StubListing(keys, page_size=100, delay_seconds=0.1)
    with s3_that_answers(stub) as url:
        paths = list_paths(client(url), "s3://bucket/images/")
    assert paths == sorted(f"s3://bucket/{key}" for key in keys)
    assert WORKERS / 2 < stub.most_at_once <= WORKERS


def test_no_more_requests_are_made_at_once_than_the_client_has_connections() -> None:
    stub = StubListing([f"k/{number}.jpg" for number in range(5_000)], page_size=100, delay_seconds=0.1)
    with s3_that_answers(stub) as url:
        list_rows(client(url, max_pool_connections=5), "s3://bucket/k/")
    assert 2 < stub.most_at_once <= 5


def test_a_slow_writer_holds_up_the_requests() -> None:
    stub = StubListing([f"k/{number:05}.jpg" for number in range(5_000)], page_size=100)
    meanwhile: list[int] = []

    def write(_: pa.RecordBatch) -> None:
        before = len(stub.requests)
        if len(meanwhile) < 20:
            time.sleep(0.1)
        meanwhile.append(len(stub.requests) - before)

    with s3_that_answers(stub) as url:
        list_images(client(url), "s3://bucket/k/", MAX_BYTES, write)
    assert len(meanwhile) >= 50
    assert max(meanwhile) <= WORKERS


# Pieces of keys that are each other's start, neighbours of "/", special in URLs or XML, or not ASCII.
PIECES = ["a", "b", "/", "//", "0", ".", "~", " ", "%", "+", "&", "<", "é", "\uffff", "🍏", "\n", "a/b", ".jpg", ".PNG"]
NAMES = st.lists(st.lists(st.sampled_from(PIECES), max_size=6).map("".join), max_size=80, unique=True)


@pytest.fixture(scope="module")
def switchable() -> Iterator[tuple[list[StubListing], "S3Client"]]:
    """A list, the last of which answers the requests of the client."""
    stubs: list[StubListing] = []
    with s3_that_answers(lambda path, headers: stubs[-1](path, headers)) as url:
        yield stubs, client(url)


@settings(max_examples=60, deadline=None)
@given(names=NAMES, page_size=st.integers(1, 20), prefix=st.sampled_from(["", "p/", "é +/%&/"]))
def test_any_keys_are_listed_once_as_by_a_plain_paginator(
    switchable: tuple[list[StubListing], "S3Client"], names: list[str], page_size: int, prefix: str
) -> None:
    stubs, s3 = switchable
    neighbours = [prefix[:-1], prefix[:-1] + ".jpg", prefix[:-1] + "0.jpg"] if prefix else []
    stubs.append(
        StubListing([key for name in names if (key := prefix + name)] + [*filter(None, neighbours)], page_size)
    )
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket="bucket", Prefix=prefix)
    keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
    images = [f"s3://bucket/{key}" for key in keys if is_image(key.removeprefix(prefix))]
    try:
        listed = list_paths(s3, f"s3://bucket/{prefix}")
    except NoImages:
        listed = []
    assert listed == sorted(images)


@pytest.fixture(scope="module")
def large_bucket(aws_url: str) -> str:
    """The name of a bucket of the local AWS with 1,100 images: a page and a bit."""
    s3, name = aws.client("s3", aws_url), f"test-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": aws.REGION})
    put(s3, name, *(f"images/{number % 3}/{number}.jpg" for number in range(1_100)))
    return name


@pytest.fixture
def faults(aws_url: str) -> Iterator[LocalAwsClient]:
    local_aws = LocalAwsClient(aws_url)
    yield local_aws
    local_aws.clear()


def assert_complete(aws_url: str, bucket: str, **settings: Any) -> None:
    listing, rows = list_rows(client(aws_url, **settings), f"s3://{bucket}/images/")
    assert listing.images == 1_100
    assert {row["path"] for row in rows} == {
        f"s3://{bucket}/images/{number % 3}/{number}.jpg" for number in range(1_100)
    }


def test_a_bucket_of_the_local_aws_is_listed_completely(aws_url: str, large_bucket: str) -> None:
    assert_complete(aws_url, large_bucket)


def test_a_listing_that_s3_throttles_is_complete(aws_url: str, large_bucket: str, faults: LocalAwsClient) -> None:
    faults.fail("s3", "SlowDown", calls=[1, 2, 4, 5])
    assert_complete(aws_url, large_bucket)
    assert faults.faults()[0]["struck"] == 4


def test_a_listing_with_lost_answers_is_complete(aws_url: str, large_bucket: str, faults: LocalAwsClient) -> None:
    faults.lose_answer("s3", calls=[1, 3, 4])
    assert_complete(aws_url, large_bucket)
    assert faults.faults()[0]["struck"] == 3


def test_a_listing_with_pages_that_hang_is_complete(aws_url: str, large_bucket: str, faults: LocalAwsClient) -> None:
    faults.hang("s3", seconds=30, calls=[1, 4])
    assert_complete(aws_url, large_bucket, read_timeout=1)
    assert faults.faults()[0]["struck"] == 2
