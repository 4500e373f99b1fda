import json
from typing import TYPE_CHECKING

import pytest

from orchard.storage import split_uri, write_json

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@pytest.mark.parametrize(
    ("uri", "bucket", "key"),
    [
        ("s3://bucket/images/Kiwi/1.jpg", "bucket", "images/Kiwi/1.jpg"),
        ("s3://bucket/", "bucket", ""),
        ("s3://bucket", "bucket", ""),
        ("s3://bucket/lot#3/a?b/50%.jpg", "bucket", "lot#3/a?b/50%.jpg"),
    ],
)
def test_a_uri_is_split_into_bucket_and_key(uri: str, bucket: str, key: str) -> None:
    assert split_uri(uri) == (bucket, key)


def test_a_json_object_can_be_read_back(s3: "S3Client", bucket: str) -> None:
    write_json(s3, f"s3://{bucket}/runs/lot#3/summary.json", {"images": 3})
    content = s3.get_object(Bucket=bucket, Key="runs/lot#3/summary.json")["Body"].read()
    assert json.loads(content) == {"images": 3}
