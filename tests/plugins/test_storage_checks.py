import uuid
from dataclasses import replace
from typing import TYPE_CHECKING

import boto3
import pytest
from botocore.exceptions import ClientError

from orchard.settings import Settings
from orchard.storage_checks import (
    PROBE,
    bucket_region,
    damaged_release,
    distant_dataset,
    misplaced_bucket,
    unreadable_dataset,
    unwritable_output,
)
from tests.plugins.answers import answering, failing

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@pytest.fixture(scope="module")
def far_bucket(aws_url: str) -> str:
    """A bucket in Paris."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    paris = boto3.client("s3", endpoint_url=aws_url, region_name="eu-west-3")
    paris.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-west-3"})
    return name


def keys(s3: "S3Client", bucket: str) -> list[str]:
    return [item["Key"] for item in s3.list_objects_v2(Bucket=bucket).get("Contents", [])]


@pytest.mark.parametrize(
    ("location", "region"), [(None, "us-east-1"), ("", "us-east-1"), ("EU", "eu-west-1"), ("eu-west-3", "eu-west-3")]
)
def test_the_oldest_regions_have_other_names_as_locations(
    s3: "S3Client", bucket: str, location: str | None, region: str
) -> None:
    with answering(s3, "HeadBucket", {}), answering(s3, "GetBucketLocation", {"LocationConstraint": location}):
        assert bucket_region(s3, bucket) == region


def test_a_bucket_of_the_clusters_region_is_as_it_should_be(s3: "S3Client", bucket: str) -> None:
    assert misplaced_bucket(s3, Settings(bucket=bucket, release="1")) == []


def test_a_bucket_of_another_region_is_named_with_both_regions(s3: "S3Client", far_bucket: str) -> None:
    assert misplaced_bucket(s3, Settings(bucket=far_bucket, release="1")) == [
        f"bucket '{far_bucket}' is in eu-west-3, the cluster would be in eu-west-1; set ORCHARD_REGION to eu-west-3, "
        "or ORCHARD_BUCKET to a bucket in eu-west-1"
    ]


def test_a_bucket_that_does_not_exist_is_named_with_the_way_out(s3: "S3Client") -> None:
    assert misplaced_bucket(s3, Settings(bucket="no-such-bucket", release="1")) == [
        "bucket 'no-such-bucket' does not exist; create it, or set ORCHARD_BUCKET to one that does"
    ]


def test_a_whole_release_is_told_with_its_figures(
    s3: "S3Client", released: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "orchard")
    assert damaged_release(s3, released) == []
    assert f"preflight: release {released.release_uri} is whole, 8 files, " in caplog.text


def test_all_damages_of_a_release_are_one_fault_with_one_way_out(s3: "S3Client", released: Settings) -> None:
    prefix = f"releases/{released.release}"
    s3.delete_object(Bucket=released.bucket, Key=f"{prefix}/spark/pca.py")
    s3.put_object(Bucket=released.bucket, Key=f"{prefix}/wheels/numpy.whl", Body=b"cut")
    (fault,) = damaged_release(s3, released)
    assert f"release {released.release_uri} is not whole:" in fault
    assert "spark/pca.py is missing" in fault
    assert "wheels/numpy.whl has 3 bytes, not 16" in fault
    assert f"delete its manifest.json, upload it anew with `make release BUCKET={released.bucket}`" in fault


def test_a_release_that_is_not_there_is_a_fault(s3: "S3Client", released: Settings) -> None:
    (fault,) = damaged_release(s3, replace(released, release="ffff"))
    assert "no release 'ffff'" in fault


def test_a_dataset_may_be_in_another_bucket_of_the_region(s3: "S3Client", bucket: str) -> None:
    assert distant_dataset(s3, Settings(bucket="another", release="1"), f"s3://{bucket}/images/") == []


def test_a_dataset_of_another_region_is_named_with_both_regions(s3: "S3Client", bucket: str, far_bucket: str) -> None:
    (fault,) = distant_dataset(s3, Settings(bucket=bucket, release="1"), f"s3://{far_bucket}/images/")
    assert f"dataset s3://{far_bucket}/images/ is in eu-west-3, the cluster would be in eu-west-1" in fault
    assert "copy it to a bucket in eu-west-1" in fault


def test_a_dataset_without_a_bucket_is_a_fault(s3: "S3Client", bucket: str) -> None:
    assert distant_dataset(s3, Settings(bucket=bucket, release="1"), "s3://no-such-bucket/images/") == [
        "dataset s3://no-such-bucket/images/: there is no bucket 'no-such-bucket'; give another dataset_uri"
    ]


def test_the_first_image_of_a_dataset_is_read(s3: "S3Client", bucket: str, caplog: pytest.LogCaptureFixture) -> None:
    for key in ("images/.hidden.jpg", "images/Kiwi/1.jpg", "images/notes.txt"):
        s3.put_object(Bucket=bucket, Key=key, Body=b"12345")
    caplog.set_level("INFO", "orchard")
    assert unreadable_dataset(s3, f"s3://{bucket}/images/") == []
    assert (
        f"preflight: dataset s3://{bucket}/images/ can be read, for one s3://{bucket}/images/Kiwi/1.jpg" in caplog.text
    )
    with failing(s3, "GetObject", "AccessDenied", 403), pytest.raises(ClientError, match="AccessDenied"):
        unreadable_dataset(s3, f"s3://{bucket}/images/")


def test_an_empty_image_is_readable_as_it_is_for_ingest_to_refuse_it(s3: "S3Client", bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="images/Kiwi/1.jpg", Body=b"")
    assert unreadable_dataset(s3, f"s3://{bucket}/images/") == []


def test_a_dataset_without_an_image_is_a_fault(s3: "S3Client", bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="images/notes.txt", Body=b"1")
    (fault,) = unreadable_dataset(s3, f"s3://{bucket}/images/")
    assert f"no image below s3://{bucket}/images/: 1 other objects are there. Give a prefix whose objects end" in fault


def test_an_archived_dataset_is_a_fault_with_the_way_out(s3: "S3Client", bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="images/Kiwi/1.jpg", Body=b"1", StorageClass="GLACIER")
    with failing(s3, "GetObject", "InvalidObjectState", 403):
        (fault,) = unreadable_dataset(s3, f"s3://{bucket}/images/")
    assert f"s3://{bucket}/images/Kiwi/1.jpg is archived" in fault
    assert "restore the dataset first" in fault


def test_nothing_is_left_behind_in_an_output_that_can_be_written(s3: "S3Client", bucket: str) -> None:
    assert unwritable_output(s3, f"s3://{bucket}/runs/images/1") == []
    assert keys(s3, bucket) == []


@pytest.mark.parametrize("operation", ["PutObject", "DeleteObject"])
def test_nothing_is_left_behind_either_where_writing_or_deleting_is_denied(
    s3: "S3Client", bucket: str, operation: str
) -> None:
    with failing(s3, operation, "AccessDenied", 403), pytest.raises(ClientError, match="AccessDenied"):
        unwritable_output(s3, f"s3://{bucket}/runs/images/1")
    assert keys(s3, bucket) == []


def test_what_a_broken_off_probe_left_is_gone_after_the_next(s3: "S3Client", bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key=f"runs/images/1/{PROBE}", Body=b"")
    assert unwritable_output(s3, f"s3://{bucket}/runs/images/1") == []
    assert keys(s3, bucket) == []
