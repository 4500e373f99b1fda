from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from infra import release
from orchard.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@pytest.fixture
def released(s3: "S3Client", bucket: str, parts: Path) -> Settings:
    """The settings of a deployment whose release is on S3; its wheels and model are small files."""
    return Settings(bucket=bucket, release=release.upload(s3, bucket, release.collect(parts)))
