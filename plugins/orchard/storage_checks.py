"""What preflight asks of S3: the bucket, the release, the dataset, the run's folder. Each gives a sentence a fault."""

import logging
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

from orchard.dataset import NoImages, is_image, split_uri
from orchard.release import NoRelease, damaged_files, read_release
from orchard.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

PROBE = ".preflight"


def bucket_region(s3: "S3Client", bucket: str) -> str:
    """The region of a bucket.

    GetBucketLocation, asked only where HeadBucket does not tell, has other names for the two oldest regions:
    https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetBucketLocation.html
    """
    region = s3.head_bucket(Bucket=bucket).get("BucketRegion")
    if region:
        return region
    location = s3.get_bucket_location(Bucket=bucket).get("LocationConstraint") or "us-east-1"
    return "eu-west-1" if location == "EU" else location


def misplaced_bucket(s3: "S3Client", settings: Settings) -> list[str]:
    """Whether our bucket is missing, or in another region than the cluster."""
    try:
        found = bucket_region(s3, settings.bucket)
    except ClientError as error:
        if error.response["Error"]["Code"] == "404":
            return [f"bucket {settings.bucket!r} does not exist; create it, or set ORCHARD_BUCKET to one that does"]
        raise
    if found != settings.region:
        return [
            f"bucket {settings.bucket!r} is in {found}, the cluster would be in {settings.region}; set ORCHARD_REGION "
            f"to {found}, or ORCHARD_BUCKET to a bucket in {settings.region}"
        ]
    log.info("preflight: bucket %s is in %s", settings.bucket, found)
    return []


def damaged_release(s3: "S3Client", settings: Settings) -> list[str]:
    """Whether a file of the release is missing, or not the one that was uploaded."""
    try:
        release = read_release(s3, settings)
    except NoRelease as error:
        return [str(error)]
    damages = damaged_files(s3, settings, release)
    if damages:
        return [
            f"release {release.uri} is not whole: {', '.join(damages)}; delete its manifest.json, upload it anew with "
            f"`make release BUCKET={settings.bucket}`, and set ORCHARD_RELEASE to the version that it prints"
        ]
    log.info("preflight: release %s is whole, %d files, %.1f MB", release.uri, len(release.files), release.bytes / 1e6)
    return []


def distant_dataset(s3: "S3Client", settings: Settings, dataset_uri: str) -> list[str]:
    """Whether the dataset is in another region than the cluster, so that each run would pay for its transfer."""
    bucket, _ = split_uri(dataset_uri)
    if bucket == settings.bucket:
        return []
    try:
        found = bucket_region(s3, bucket)
    except ClientError as error:
        if error.response["Error"]["Code"] == "404":
            return [f"dataset {dataset_uri}: there is no bucket {bucket!r}; give another dataset_uri"]
        raise
    if found != settings.region:
        return [
            f"dataset {dataset_uri} is in {found}, the cluster would be in {settings.region}, and each run would pay "
            f"for the transfer; copy it to a bucket in {settings.region}, or give a dataset_uri there"
        ]
    log.info("preflight: dataset %s is in %s", dataset_uri, found)
    return []


def unreadable_dataset(s3: "S3Client", dataset_uri: str) -> list[str]:
    """Whether there is no image below the dataset's prefix, or the first one cannot be read."""
    bucket, prefix = split_uri(dataset_uri)
    others = 0
    first = ""
    try:
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            keys = [item["Key"] for item in page.get("Contents", [])]
            first = next((key for key in keys if is_image(key.removeprefix(prefix))), "")
            if first:
                break
            others += len(keys)
        else:
            return [str(NoImages(dataset_uri, others))]
        s3.get_object(Bucket=bucket, Key=first, Range="bytes=0-0")["Body"].close()
    except ClientError as error:
        if error.response["Error"]["Code"] == "InvalidObjectState":
            return [f"dataset {dataset_uri}: s3://{bucket}/{first} is archived ({error}); restore the dataset first"]
        if error.response["Error"]["Code"] != "InvalidRange":  # S3's answer for an object of 0 bytes
            raise
    log.info("preflight: dataset %s can be read, for one s3://%s/%s", dataset_uri, bucket, first)
    return []


def unwritable_output(s3: "S3Client", run_uri: str) -> list[str]:
    """Whether the run's folder takes no object; a refusal is raised."""
    bucket, prefix = split_uri(run_uri)
    key = f"{prefix}/{PROBE}"
    # Deleting what is not there succeeds. Without the right to delete this raises before there is anything to delete.
    s3.delete_object(Bucket=bucket, Key=key)
    s3.put_object(Bucket=bucket, Key=key, Body=b"")
    s3.delete_object(Bucket=bucket, Key=key)
    log.info("preflight: output %s can be written", run_uri)
    return []
