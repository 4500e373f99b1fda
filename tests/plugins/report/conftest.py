from typing import TYPE_CHECKING

import boto3
import pytest

from orchard.settings import Settings
from tests.plugins.deployed import (
    Deployment,
    bucket,
    catalog,
    deployed,
    first,
    first_of,
    new_deployment,
    other_of,
    second,
    second_of,
    session,
    settings,
    settings_of,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

__all__ = ["bucket", "catalog", "deployed", "first", "second", "session", "settings"]


@pytest.fixture(scope="package")
def origin(s3: "S3Client", aws_url: str) -> Deployment:
    """A deployment with two runs of one dataset, and one of another between them. No test changes its tables."""
    deployed = new_deployment(s3, boto3.Session(), aws_url)
    first = first_of(deployed.settings.bucket)
    for run in (first, other_of(first.bucket), second_of(first)):
        deployed.publish(run)
    return deployed


@pytest.fixture
def empty(bucket: str) -> Settings:
    """The settings of a deployment without tables."""
    return settings_of(bucket)
