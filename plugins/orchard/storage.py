"""S3 URIs, and small JSON objects on S3."""

import json
from collections.abc import Mapping
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
