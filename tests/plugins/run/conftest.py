import uuid
from typing import TYPE_CHECKING

import pytest

from tests.plugins.deployed import catalog, deployed, first, second, session, settings

if TYPE_CHECKING:
    from mypy_boto3_iam import IAMClient

__all__ = ["catalog", "deployed", "first", "second", "session", "settings"]


@pytest.fixture(scope="module")
def role(iam: "IAMClient") -> str:
    """The name of a role, and of an instance profile, for the clusters of a module's tests."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    iam.create_role(RoleName=name, AssumeRolePolicyDocument="{}")
    iam.create_instance_profile(InstanceProfileName=name)
    return name
