import json
from typing import TYPE_CHECKING

import pytest

from orchard.storage import DeletionFailed, delete_objects, find_json, split_uri, write_json
from tests.plugins.answers import answering

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


def test_a_json_object_that_does_not_exist_is_none(s3: "S3Client", bucket: str) -> None:
    write_json(s3, f"s3://{bucket}/a.json", {"images": 3})
    assert find_json(s3, f"s3://{bucket}/a.json") == {"images": 3}
    assert find_json(s3, f"s3://{bucket}/b.json") is None


def test_objects_are_deleted_and_those_that_s3_refuses_are_named(s3: "S3Client", bucket: str) -> None:
    keys = [f"lot#{number}/a b?.json" for number in range(12)]
    for key in keys:
        write_json(s3, f"s3://{bucket}/{key}", {})
    delete_objects(s3, bucket, [])
    delete_objects(s3, bucket, keys[:11])
    assert [item["Key"] for item in s3.list_objects_v2(Bucket=bucket)["Contents"]] == keys[11:]

    refused = [{"Key": key, "Code": "AccessDenied", "Message": "Access Denied"} for key in keys]
    with (
        answering(s3, "DeleteObjects", {"Errors": refused}),
        pytest.raises(DeletionFailed, match=r"^12 objects: lot#0/a b\?.json: Access Denied; .*lot#9.*; …$"),
    ):
        delete_objects(s3, bucket, keys)
