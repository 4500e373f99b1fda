import json
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def deny(bucket: str, **statement: Any) -> str:
    rule = {"Effect": "Deny", "Principal": "*", "Action": "s3:PutObject", "Resource": f"arn:aws:s3:::{bucket}/*"}
    return json.dumps({"Version": "2012-10-17", "Statement": [{**rule, **statement}]})


def test_a_policy_that_denies_requests_without_tls_denies_none(s3: "S3Client", bucket: str) -> None:
    s3.put_bucket_policy(
        Bucket=bucket, Policy=deny(bucket, Action="s3:*", Condition={"Bool": {"aws:SecureTransport": "false"}})
    )
    s3.put_object(Bucket=bucket, Key="a", Body=b"1")
    assert s3.get_object(Bucket=bucket, Key="a")["Body"].read() == b"1"
    s3.delete_object(Bucket=bucket, Key="a")


def test_a_policy_that_denies_an_action_denies_it(s3: "S3Client", bucket: str) -> None:
    s3.put_bucket_policy(Bucket=bucket, Policy=deny(bucket))
    with pytest.raises(ClientError, match="Forbidden"):
        s3.put_object(Bucket=bucket, Key="a", Body=b"1")
