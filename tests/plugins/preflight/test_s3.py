import uuid
from dataclasses import replace
from typing import TYPE_CHECKING

import boto3
import pytest
from botocore.exceptions import ClientError

from orchard.preflight.s3 import (
    PROBE,
    bucket_region,
    damaged_release,
    distant_dataset,
    misplaced_bucket,
    unreadable_dataset,
    unwritable_output,
)
from orchard.settings import Settings
from tests.plugins.answers import answering, failing

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@pytest.fixture(scope="module")
def bucket_in_paris(aws_url: str) -> str:
    name = f"test-{uuid.uuid4().hex[:12]}"
    paris = boto3.client("s3", endpoint_url=aws_url, region_name="eu-west-3")
    paris.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-west-3"})
    return name


def keys(s3: "S3Client", bucket: str) -> list[str]:
    return [item["Key"] for item in s3.list_objects_v2(Bucket=bucket).get("Contents", [])]


@pytest.mark.parametrize(
    ("location", "region"), [(None, "us-east-1"), ("", "us-east-1"), ("EU", "eu-west-1"), ("eu-west-3", "eu-west-3")]
)
def test_the_location_names_of_the_two_oldest_regions_are_translated(
    s3: "S3Client", bucket: str, location: str | None, region: str
) -> None:
    with answering(s3, "HeadBucket", {}), answering(s3, "GetBucketLocation", {"LocationConstraint": location}):
        assert bucket_region(s3, bucket) == region


def test_a_bucket_in_the_region_of_the_cluster_passes(s3: "S3Client", bucket: str) -> None:
    assert misplaced_bucket(s3, Settings(bucket=bucket, release="1")) == []


def test_a_bucket_in_another_region_is_reported_with_both_regions(s3: "S3Client", bucket_in_paris: str) -> None:
    assert misplaced_bucket(s3, Settings(bucket=bucket_in_paris, release="1")) == [
        f"bucket '{bucket_in_paris}' is in eu-west-3, but the cluster would be in eu-west-1; set ORCHARD_REGION to "
        "eu-west-3, or ORCHARD_BUCKET to a bucket in eu-west-1"
    ]


def test_a_missing_bucket_is_reported_with_its_remedy(s3: "S3Client") -> None:
    assert misplaced_bucket(s3, Settings(bucket="no-such-bucket", release="1")) == [
        "bucket 'no-such-bucket' does not exist; create it, or set ORCHARD_BUCKET to one that exists"
    ]


def test_a_complete_release_is_logged_with_its_number_of_files(
    s3: "S3Client", released: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "orchard")
    assert damaged_release(s3, released) == []
    assert f"preflight: release {released.release_uri} is complete: 8 files, " in caplog.text


def test_all_damaged_files_of_a_release_are_one_fault_with_one_remedy(s3: "S3Client", released: Settings) -> None:
    prefix = f"releases/{released.release}"
    s3.delete_object(Bucket=released.bucket, Key=f"{prefix}/spark/pca.py")
    s3.put_object(Bucket=released.bucket, Key=f"{prefix}/wheels/numpy.whl", Body=b"cut")
    (fault,) = damaged_release(s3, released)
    assert f"release {released.release_uri} is incomplete:" in fault
    assert "spark/pca.py is missing" in fault
    assert "wheels/numpy.whl has 3 bytes, not 16" in fault
    assert f"delete its manifest.json, upload it again with `make release BUCKET={released.bucket}`" in fault


def test_a_missing_release_is_a_fault(s3: "S3Client", released: Settings) -> None:
    (fault,) = damaged_release(s3, replace(released, release="ffff"))
    assert "release 'ffff' is not in" in fault


def test_a_dataset_in_another_bucket_of_the_region_passes(s3: "S3Client", bucket: str) -> None:
    assert distant_dataset(s3, Settings(bucket="another", release="1"), f"s3://{bucket}/images/") == []


def test_a_dataset_in_another_region_is_reported_with_both_regions(
    s3: "S3Client", bucket: str, bucket_in_paris: str
) -> None:
    (fault,) = distant_dataset(s3, Settings(bucket=bucket, release="1"), f"s3://{bucket_in_paris}/images/")
    assert f"dataset s3://{bucket_in_paris}/images/ is in eu-west-3, but the cluster would be in eu-west-1" in fault
    assert "copy it to a bucket in eu-west-1" in fault


def test_a_dataset_in_a_missing_bucket_is_a_fault(s3: "S3Client", bucket: str) -> None:
    assert distant_dataset(s3, Settings(bucket=bucket, release="1"), "s3://no-such-bucket/images/") == [
        "dataset s3://no-such-bucket/images/: bucket 'no-such-bucket' does not exist; use another dataset_uri"
    ]


def test_the_first_image_of_a_dataset_is_read(s3: "S3Client", bucket: str, caplog: pytest.LogCaptureFixture) -> None:
    for key in ("images/.hidden.jpg", "images/Kiwi/1.jpg", "images/notes.txt"):
        s3.put_object(Bucket=bucket, Key=key, Body=b"12345")
    caplog.set_level("INFO", "orchard")
    assert unreadable_dataset(s3, f"s3://{bucket}/images/") == []
    assert f"preflight: dataset s3://{bucket}/images/ is readable; tried s3://{bucket}/images/Kiwi/1.jpg" in caplog.text
    with failing(s3, "GetObject", "AccessDenied", 403), pytest.raises(ClientError, match="AccessDenied"):
        unreadable_dataset(s3, f"s3://{bucket}/images/")


def test_an_empty_image_is_readable_because_ingest_rejects_it_later(s3: "S3Client", bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="images/Kiwi/1.jpg", Body=b"")
    assert unreadable_dataset(s3, f"s3://{bucket}/images/") == []


def test_a_dataset_without_images_is_a_fault(s3: "S3Client", bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="images/notes.txt", Body=b"1")
    (fault,) = unreadable_dataset(s3, f"s3://{bucket}/images/")
    assert f"no images below s3://{bucket}/images/ (other objects: 1 .txt). Use a prefix with" in fault


def test_an_archived_dataset_is_reported_with_its_remedy(s3: "S3Client", bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="images/Kiwi/1.jpg", Body=b"1", StorageClass="GLACIER")
    with failing(s3, "GetObject", "InvalidObjectState", 403):
        (fault,) = unreadable_dataset(s3, f"s3://{bucket}/images/")
    assert f"s3://{bucket}/images/Kiwi/1.jpg is archived" in fault
    assert "restore the dataset first" in fault


def test_a_writable_output_folder_is_empty_after_the_check(s3: "S3Client", bucket: str) -> None:
    assert unwritable_output(s3, f"s3://{bucket}/runs/images/1") == []
    assert keys(s3, bucket) == []


@pytest.mark.parametrize("operation", ["PutObject", "DeleteObject"])
def test_the_output_folder_is_empty_after_writing_or_deleting_was_denied(
    s3: "S3Client", bucket: str, operation: str
) -> None:
    with failing(s3, operation, "AccessDenied", 403), pytest.raises(ClientError, match="AccessDenied"):
        unwritable_output(s3, f"s3://{bucket}/runs/images/1")
    assert keys(s3, bucket) == []


def test_the_check_deletes_the_probe_of_an_interrupted_check(s3: "S3Client", bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key=f"runs/images/1/{PROBE}", Body=b"")
    assert unwritable_output(s3, f"s3://{bucket}/runs/images/1") == []
    assert keys(s3, bucket) == []


def test_a_dataset_whose_first_image_is_archived_passes_if_another_can_be_read(
    s3: "S3Client", bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    s3.put_object(Bucket=bucket, Key="images/Kiwi/1.jpg", Body=b"1", StorageClass="DEEP_ARCHIVE")
    s3.put_object(Bucket=bucket, Key="images/Kiwi/2.jpg", Body=b"1")
    caplog.set_level("INFO", "orchard")
    assert unreadable_dataset(s3, f"s3://{bucket}/images/") == []
    assert f"tried s3://{bucket}/images/Kiwi/2.jpg" in caplog.text
