import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

import boto3
import pytest

from orchard.settings import Settings
from orchard.tables.catalog import open_catalog
from tests.plugins.deployed import Deployment, bucket, catalog, deployed, first, origin, second, session, settings
from tests.plugins.proxy import Proxy, impatient

if TYPE_CHECKING:
    from mypy_boto3_iam import IAMClient

__all__ = ["bucket", "catalog", "deployed", "first", "origin", "second", "session", "settings"]


@pytest.fixture(scope="module")
def role(iam: "IAMClient") -> str:
    """The name of a role, and of an instance profile, for the clusters of a module's tests."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    iam.create_role(RoleName=name, AssumeRolePolicyDocument="{}")
    iam.create_instance_profile(InstanceProfileName=name)
    return name


@pytest.fixture
def proxy(aws_url: str) -> Iterator[Proxy]:
    with Proxy(aws_url).open() as server:
        yield server


@pytest.fixture
def through_the_proxy(
    proxy: Proxy, session: boto3.Session, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> Deployment:
    """The same deployment, whose requests all go through the proxy."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    return Deployment(impatient("s3", proxy.url), open_catalog(session, settings), settings)
