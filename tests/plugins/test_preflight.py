import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from botocore.exceptions import ClientError
from botocore.stub import Stubber

from orchard.preflight import NotReady, check, missing_roles
from orchard.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_iam import IAMClient
    from mypy_boto3_s3 import S3Client


@pytest.fixture
def ready(released: Settings, iam: "IAMClient") -> Iterator[Settings]:
    """A deployment with its roles."""
    role = f"role-{uuid.uuid4().hex[:8]}"
    iam.create_role(RoleName=role, AssumeRolePolicyDocument="{}")
    iam.create_instance_profile(InstanceProfileName=role)
    yield replace(released, service_role=role, instance_profile=role)
    iam.delete_instance_profile(InstanceProfileName=role)
    iam.delete_role(RoleName=role)


def test_a_whole_deployment_passes(s3: "S3Client", iam: "IAMClient", ready: Settings) -> None:
    check(s3, iam, ready)


def test_roles_may_be_given_as_arns(s3: "S3Client", iam: "IAMClient", ready: Settings) -> None:
    arn = "arn:aws:iam::123456789012"
    check(
        s3,
        iam,
        replace(
            ready,
            service_role=f"{arn}:role/service-role/{ready.service_role}",
            instance_profile=f"{arn}:instance-profile/{ready.instance_profile}",
        ),
    )


def test_all_that_is_missing_is_told_at_once(s3: "S3Client", iam: "IAMClient", ready: Settings) -> None:
    s3.delete_object(Bucket=ready.bucket, Key=f"releases/{ready.release}/spark/pca.py")
    with pytest.raises(NotReady) as error:
        check(s3, iam, replace(ready, service_role="nobody", instance_profile="nothing"))
    message = str(error.value)
    assert "3 of the checks failed, no cluster was made" in message
    assert "spark/pca.py is missing" in message
    assert "service role 'nobody'" in message
    assert "set ORCHARD_SERVICE_ROLE to one that exists" in message
    assert "instance profile 'nothing'" in message
    assert "set ORCHARD_INSTANCE_PROFILE to one that exists" in message


@pytest.mark.parametrize(
    ("code", "expected"),
    [("AccessDenied", "grant iam:GetRole to Airflow"), ("NoSuchEntity", "set ORCHARD_SERVICE_ROLE")],
)
def test_a_missing_permission_is_not_taken_for_a_missing_role(iam: "IAMClient", code: str, expected: str) -> None:
    with Stubber(iam) as stubber:
        stubber.add_client_error("get_role", code)
        stubber.add_client_error("get_instance_profile", code)
        faults = missing_roles(iam, Settings(bucket="fruits-data", release="1"))
    assert expected in faults[0]


def test_an_error_that_tells_nothing_about_a_role_is_raised(iam: "IAMClient") -> None:
    with Stubber(iam) as stubber:
        stubber.add_client_error("get_role", "Throttling")
        with pytest.raises(ClientError, match="Throttling"):
            missing_roles(iam, Settings(bucket="fruits-data", release="1"))
