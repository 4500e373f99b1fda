from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from botocore.stub import Stubber

from orchard.dataset.listing import CannotList, DatasetSize, NoImages, describe_rejects, measure_dataset

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

MAX_BYTES = 1000


def test_images_are_counted_and_other_objects_are_not(s3: "S3Client", bucket: str) -> None:
    for key in ("images/Kiwi/1.jpg", "images/Kiwi/2.PNG", "images/Kiwi/._1.jpg", "images/notes.txt", "other/3.jpg"):
        s3.put_object(Bucket=bucket, Key=key, Body=b"12345")
    assert measure_dataset(s3, f"s3://{bucket}/images/", MAX_BYTES) == DatasetSize(images=2, bytes=10)


def test_a_prefix_may_contain_characters_that_are_special_in_other_uris(s3: "S3Client", bucket: str) -> None:
    for key in ("lot#3/a?b/1.jpg", "lot/2.jpg", "lots/3.jpg"):
        s3.put_object(Bucket=bucket, Key=key, Body=b"12345")
    assert measure_dataset(s3, f"s3://{bucket}/lot#3/a?b/", MAX_BYTES).images == 1


def test_all_pages_of_a_listing_are_counted(s3: "S3Client", bucket: str) -> None:
    for number in range(1001):
        s3.put_object(Bucket=bucket, Key=f"images/{number}.jpg", Body=b"1")
    assert measure_dataset(s3, f"s3://{bucket}/images/", MAX_BYTES).images == 1001


def test_a_prefix_without_images_is_reported_with_the_endings_of_images(s3: "S3Client", bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="images/notes.txt", Body=b"1")
    with pytest.raises(NoImages) as error:
        measure_dataset(s3, f"s3://{bucket}/images/", MAX_BYTES)
    assert f"no images below s3://{bucket}/images/ (other objects: 1)" in str(error.value)
    assert ".jpg, .jpeg, .png, .webp, .bmp" in str(error.value)


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
        s3.put_object(Bucket=bucket, Key=f"images/{key}", Body=body, StorageClass=storage_class)  # type: ignore[arg-type]
    size = measure_dataset(s3, f"s3://{bucket}/images/", MAX_BYTES)
    assert (size.images, size.readable) == (9, 4)
    assert size.rejects == {"archived": 2, "unreadable_key": 1, "empty": 1, "too_many_bytes": 1}
    assert describe_rejects(size).startswith(
        "2 archived (restore them, or copy them to another storage class); 1 empty"
    )


@pytest.mark.parametrize(
    ("status", "archived"),
    [
        ({}, True),
        ({"IsRestoreInProgress": True}, True),
        ({"IsRestoreInProgress": False, "RestoreExpiryDate": datetime(2026, 12, 1, tzinfo=UTC)}, False),
    ],
)
def test_a_restored_object_counts_as_readable_and_the_listing_asks_for_it(
    s3: "S3Client", bucket: str, status: dict[str, Any], archived: bool
) -> None:
    # The local AWS lists no RestoreStatus.
    item = {"Key": "images/1.jpg", "Size": 5, "StorageClass": "GLACIER", "RestoreStatus": status}
    asked = {"Bucket": bucket, "Prefix": "images/", "OptionalObjectAttributes": ["RestoreStatus"]}
    with Stubber(s3) as stubber:
        stubber.add_response("list_objects_v2", {"Contents": [item]}, asked)
        assert measure_dataset(s3, f"s3://{bucket}/images/", MAX_BYTES).rejects == ({"archived": 1} if archived else {})


def test_a_bucket_that_does_not_exist_is_a_permanent_error(s3: "S3Client") -> None:
    with pytest.raises(
        CannotList, match=r"s3://no-such-bucket/images/ cannot be listed: .*NoSuchBucket.*Use the URI of"
    ):
        measure_dataset(s3, "s3://no-such-bucket/images/", MAX_BYTES)
