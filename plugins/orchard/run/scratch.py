"""Delete what runs needed only until they were published: their folders below `scratch/`."""

import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from orchard.run.summary import read_summary
from orchard.settings import Settings
from orchard.storage import DeletionFailed, delete_objects, split_uri

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ObjectTypeDef

log = logging.getLogger(__name__)

# A run that has not been published may still be cleared, and then needs its folder.
UNPUBLISHED_DAYS = 7
TIME_FORMAT = "%Y%m%dT%H%M%S"


def delete_scratch(s3: "S3Client", settings: Settings, scratch_uri: str, *, now: datetime) -> list[str]:
    """Delete the scratch folder of a published run, and old ones of the same dataset. Return their URIs.

    The folder of a published run is kept for `keep_scratch_days`. Any other folder is kept for at least seven days
    after its last change. A failure is only logged: nothing depends on these folders being gone.
    """
    deleted: list[str] = []
    dataset_uri, own = scratch_uri.rsplit("/", 1)
    try:
        for name in folders_in(s3, dataset_uri):
            uri = f"{dataset_uri}/{name}"
            if (name == own and settings.keep_scratch_days == 0) or _is_old(s3, settings, uri, now):
                count = _delete_folder(s3, uri)
                log.info("deleted %s with %d objects", uri, count)
                deleted.append(uri)
    except (ClientError, BotoCoreError, DeletionFailed) as error:
        log.warning("scratch folders below %s are not all deleted; the next run tries again: %s", dataset_uri, error)
    return deleted


def _is_old(s3: "S3Client", settings: Settings, uri: str, now: datetime) -> bool:
    """Return whether a folder can be deleted because of its age."""
    name = uri.rsplit("/", 1)[1]
    try:
        named = datetime.strptime(name.split("-", 1)[0], TIME_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        return False  # not a run's folder
    limit = now - timedelta(days=settings.keep_scratch_days)
    if named > limit:
        return False
    run_uri = uri.replace("/scratch/", "/runs/", 1)
    if read_summary(s3, run_uri) is None:
        limit = min(limit, now - timedelta(days=UNPUBLISHED_DAYS))
        if named > limit:
            return False
    # A run can be cleared long after the time in its name.
    return all(item["LastModified"] <= limit for item in _objects(s3, uri))


def folders_in(s3: "S3Client", uri: str) -> Iterator[str]:
    """Yield the names of the folders in a folder of S3."""
    bucket, prefix = split_uri(f"{uri}/")
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, Delimiter="/"):
        for folder in page.get("CommonPrefixes", []):
            yield folder["Prefix"].removeprefix(prefix).rstrip("/")


def _objects(s3: "S3Client", uri: str) -> Iterator["ObjectTypeDef"]:
    bucket, prefix = split_uri(f"{uri}/")
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        yield from page.get("Contents", [])


def _delete_folder(s3: "S3Client", uri: str) -> int:
    bucket, _ = split_uri(uri)
    keys = [item["Key"] for item in _objects(s3, uri)]
    delete_objects(s3, bucket, keys)
    return len(keys)
