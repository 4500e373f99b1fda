import uuid
from typing import TYPE_CHECKING

import pytest
from botocore.exceptions import ClientError

from orchard.preflight.iam import SPOT_ROLE, missing_instance_profile, missing_service_role, missing_spot_role
from tests.plugins.answers import failing
from tests.plugins.preflight.cluster_requests import cluster_request

if TYPE_CHECKING:
    from mypy_boto3_iam import IAMClient


def test_existing_roles_pass_by_name_and_by_arn(iam: "IAMClient") -> None:
    role = f"role-{uuid.uuid4().hex[:8]}"
    iam.create_role(RoleName=role, AssumeRolePolicyDocument="{}")
    iam.create_instance_profile(InstanceProfileName=role)
    for prefix in ("", "arn:aws:iam::123456789012:role/service-role/"):
        assert missing_service_role(iam, cluster_request(service_role=f"{prefix}{role}")) == []
    for prefix in ("", "arn:aws:iam::123456789012:instance-profile/"):
        assert missing_instance_profile(iam, cluster_request(instance_profile=f"{prefix}{role}")) == []


def test_missing_roles_are_named_with_their_settings(iam: "IAMClient") -> None:
    request = cluster_request(service_role="nobody", instance_profile="nothing")
    (role_fault,), (profile_fault,) = missing_service_role(iam, request), missing_instance_profile(iam, request)
    assert role_fault.startswith("service role 'nobody': ")
    assert role_fault.endswith("set ORCHARD_SERVICE_ROLE to a role that exists")
    assert profile_fault.startswith("instance profile 'nothing': ")
    assert profile_fault.endswith("set ORCHARD_INSTANCE_PROFILE to one that exists")


def test_a_request_with_spot_instances_needs_the_service_linked_role_of_ec2(iam: "IAMClient") -> None:
    request = cluster_request(workers=1, spot=3)
    assert missing_spot_role(iam, cluster_request(workers=4)) == [], "without Spot, the role is not needed"
    (fault,) = missing_spot_role(iam, request)
    assert fault.startswith(f"service-linked role '{SPOT_ROLE}': ")
    assert "`aws iam create-service-linked-role --aws-service-name spot.amazonaws.com`" in fault
    iam.create_service_linked_role(AWSServiceName="spot.amazonaws.com")
    try:
        assert missing_spot_role(iam, request) == []
    finally:
        iam.delete_role(RoleName=SPOT_ROLE)


@pytest.mark.parametrize("code", ["Throttling", "AccessDenied"])
def test_an_error_that_does_not_mean_that_a_role_is_missing_is_raised(iam: "IAMClient", code: str) -> None:
    with failing(iam, "GetRole", code), pytest.raises(ClientError, match=code):
        missing_service_role(iam, cluster_request())
    with failing(iam, "GetRole", code), pytest.raises(ClientError, match=code):
        missing_spot_role(iam, cluster_request(spot=1))
    with failing(iam, "GetInstanceProfile", code), pytest.raises(ClientError, match=code):
        missing_instance_profile(iam, cluster_request())
