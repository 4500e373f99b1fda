import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from infra import release
from orchard.settings import Settings
from sandbox import aws

if TYPE_CHECKING:
    from mypy_boto3_emr import EMRClient
    from mypy_boto3_s3 import S3Client


@pytest.fixture(scope="session")
def emr(aws_url: str) -> "EMRClient":
    client: EMRClient = aws.client("emr", aws_url)
    return client


@pytest.fixture(scope="session")
def ec2(aws_url: str) -> Any:
    return aws.client("ec2", aws_url)


@pytest.fixture
def released(s3: "S3Client", bucket: str, parts: Path) -> Settings:
    """The settings of a deployment whose release is on S3. Its wheels and its model are small files.

    It has a database of its own, because all local AWSes of a process have the same databases.
    """
    version = release.upload(s3, bucket, release.collect(parts))
    return Settings(bucket=bucket, release=version, catalog_database=f"db_{uuid.uuid4().hex}")
