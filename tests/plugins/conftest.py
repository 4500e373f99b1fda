from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from demo import stack
from infra import release
from orchard.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_emr import EMRClient
    from mypy_boto3_s3 import S3Client


@pytest.fixture(scope="session")
def emr(aws_url: str) -> "EMRClient":
    client: EMRClient = stack.client("emr", aws_url)
    return client


@pytest.fixture(scope="session")
def ec2(aws_url: str) -> Any:
    return stack.client("ec2", aws_url)


@pytest.fixture
def released(s3: "S3Client", bucket: str, parts: Path) -> Settings:
    """The settings of a deployment whose release is on S3; its wheels and model are small files."""
    return Settings(bucket=bucket, release=release.upload(s3, bucket, release.collect(parts)))
