"""Check the buckets, the release, the dataset and the run's folder on S3. Each check returns one sentence per fault."""

import logging
from collections import Counter
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

from orchard.dataset.keys import count_ignored, is_archived, is_image, most_common_endings
from orchard.release import NoRelease, damaged_files, read_release
from orchard.settings import Settings
from orchard.storage import split_uri

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

PROBE = ".preflight"


def bucket_region(s3: "S3Client", bucket: str) -> str:
    """Return the region of a bucket.

    GetBucketLocation is called only if HeadBucket returns no region. It has other names for the two oldest regions:
    https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetBucketLocation.html
    """
    region = s3.head_bucket(Bucket=bucket).get("BucketRegion")
    if region:
        return region
    location = s3.get_bucket_location(Bucket=bucket).get("LocationConstraint") or "us-east-1"
    return "eu-west-1" if location == "EU" else location


def misplaced_bucket(s3: "S3Client", settings: Settings) -> list[str]:
    """Check that the deployment's bucket exists and is in the cluster's region."""
    try:
        found = bucket_region(s3, settings.bucket)
    except ClientError as error:
        if error.response["Error"]["Code"] == "404":
            return [f"bucket {settings.bucket!r} does not exist; create it, or set ORCHARD_BUCKET to one that exists"]
        raise
    if found != settings.region:
        return [
            f"bucket {settings.bucket!r} is in {found}, but the cluster would be in {settings.region}; set "
            f"ORCHARD_REGION to {found}, or ORCHARD_BUCKET to a bucket in {settings.region}"
        ]
    log.info("preflight: bucket %s is in %s", settings.bucket, found)
    return []


def damaged_release(s3: "S3Client", settings: Settings) -> list[str]:
    """Check that every file of the release is on S3, with the checksum of the manifest."""
    try:
        release = read_release(s3, settings)
    except NoRelease as error:
        return [str(error)]
    damages = damaged_files(s3, settings, release)
    if damages:
        return [
            f"release {release.uri} is incomplete: {', '.join(damages)}; delete its manifest.json, upload it again "
            f"with `make release BUCKET={settings.bucket}`, and set ORCHARD_RELEASE to the version that it prints"
        ]
    log.info(
        "preflight: release %s is complete: %d files, %.1f MB", release.uri, len(release.files), release.bytes / 1e6
    )
    return []


def distant_dataset(s3: "S3Client", settings: Settings, dataset_uri: str) -> list[str]:
    """Check that the dataset is in the cluster's region. Otherwise each run would pay for data transfer."""
    bucket, _ = split_uri(dataset_uri)
    if bucket == settings.bucket:
        return []
    try:
        found = bucket_region(s3, bucket)
    except ClientError as error:
        if error.response["Error"]["Code"] == "404":
            return [f"dataset {dataset_uri}: bucket {bucket!r} does not exist; use another dataset_uri"]
        raise
    if found != settings.region:
        return [
            f"dataset {dataset_uri} is in {found}, but the cluster would be in {settings.region}, and each run would "
            f"pay for data transfer; copy it to a bucket in {settings.region}, or use a dataset_uri there"
        ]
    log.info("preflight: dataset %s is in %s", dataset_uri, found)
    return []


def unreadable_dataset(s3: "S3Client", dataset_uri: str) -> list[str]:
    """Check that the dataset's prefix contains an image, and that the first one that is not archived can be read."""
    # Imported here because PyArrow takes longer to import than the rest of Orchard, and each parse of the DAG imports
    # this module.
    from orchard.dataset.listing import NoImages

    bucket, prefix = split_uri(dataset_uri)
    ignored: Counter[str] = Counter()
    first = ""
    try:
        for page in s3.get_paginator("list_objects_v2").paginate(
            Bucket=bucket, Prefix=prefix, OptionalObjectAttributes=["RestoreStatus"]
        ):
            items = page.get("Contents", [])
            images = [item for item in items if is_image(item["Key"].removeprefix(prefix))]
            # The plan tolerates some archived images.
            readable = [
                item["Key"]
                for item in images
                if not is_archived(
                    item.get("StorageClass"), restored="RestoreExpiryDate" in item.get("RestoreStatus", {})
                )
            ]
            first = next(iter(readable), first or (images[0]["Key"] if images else ""))
            if readable:
                break
            count_ignored(ignored, (item["Key"].removeprefix(prefix) for item in items))
        if not first:
            return [str(NoImages(dataset_uri, most_common_endings(ignored)))]
        s3.get_object(Bucket=bucket, Key=first, Range="bytes=0-0")["Body"].close()
    except ClientError as error:
        if error.response["Error"]["Code"] == "InvalidObjectState":
            return [f"dataset {dataset_uri}: s3://{bucket}/{first} is archived ({error}); restore the dataset first"]
        if error.response["Error"]["Code"] != "InvalidRange":  # S3's response for an object of 0 bytes
            raise
    log.info("preflight: dataset %s is readable; tried s3://%s/%s", dataset_uri, bucket, first)
    return []


def unwritable_output(s3: "S3Client", run_uri: str) -> list[str]:
    """Check that objects can be written to and deleted from the run's folder. Raise the error if access is denied."""
    bucket, prefix = split_uri(run_uri)
    key = f"{prefix}/{PROBE}"
    # Deleting a missing object succeeds. Without permission to delete, this fails before an object is written.
    s3.delete_object(Bucket=bucket, Key=key)
    s3.put_object(Bucket=bucket, Key=key, Body=b"")
    s3.delete_object(Bucket=bucket, Key=key)
    log.info("preflight: output %s is writable", run_uri)
    return []
