"""S3 URIs, and small JSON objects on S3."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def split_uri(uri: str) -> tuple[str, str]:
    """Return the bucket and the key of an S3 URI.

    `urllib.parse` would cut a key at # or ?, which S3 allows in keys.

    >>> split_uri("s3://bucket/lot#3/")
    ('bucket', 'lot#3/')
    """
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def write_json(s3: "S3Client", uri: str, content: Mapping[str, Any]) -> None:
    """Write a JSON object to S3."""
    bucket, key = split_uri(uri)
    s3.put_object(Bucket=bucket, Key=key, Body=json.dumps(content, indent=2).encode())


def read_json(s3: "S3Client", uri: str) -> dict[str, Any]:
    """Read a JSON object from S3.

    Raises:
        botocore.exceptions.ClientError: NoSuchKey: it does not exist.
    """
    bucket, key = split_uri(uri)
    content: dict[str, Any] = json.loads(s3.get_object(Bucket=bucket, Key=key)["Body"].read())
    return content


def find_json(s3: "S3Client", uri: str) -> dict[str, Any] | None:
    """Read a JSON object from S3. Return None if it does not exist."""
    try:
        return read_json(s3, uri)
    except s3.exceptions.NoSuchKey:
        return None


# The limit of DeleteObjects: https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObjects.html
MOST_DELETED = 1000
# How many objects an error names.
NAMED = 10


class DeletionFailed(RuntimeError):
    """S3 has not deleted objects."""


def delete_objects(s3: "S3Client", bucket: str, keys: Sequence[str]) -> None:
    """Delete objects. In a versioned bucket, each gets a delete marker.

    Raises:
        DeletionFailed: S3 refuses to delete some of them. Those of the next thousands are not tried.
    """
    for start in range(0, len(keys), MOST_DELETED):
        objects: Any = [{"Key": key} for key in keys[start : start + MOST_DELETED]]
        answer = s3.delete_objects(Bucket=bucket, Delete={"Objects": objects, "Quiet": True})
        if errors := answer.get("Errors"):
            named = [f"{error.get('Key')}: {error.get('Message')}" for error in errors[:NAMED]]
            raise DeletionFailed(f"{len(errors)} objects: {'; '.join(named)}{'; …' if len(errors) > NAMED else ''}")
