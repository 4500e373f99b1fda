"""Check that the roles of a RunJobFlow request exist. Each check returns one sentence per fault."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from orchard.cluster.request import spot_instances

if TYPE_CHECKING:
    from mypy_boto3_iam import IAMClient

log = logging.getLogger(__name__)

Request = Mapping[str, Any]

SPOT_ROLE = "AWSServiceRoleForEC2Spot"


def missing_service_role(iam: "IAMClient", request: Request) -> list[str]:
    """Check that the cluster's service role exists."""
    role = request["ServiceRole"]
    try:
        iam.get_role(RoleName=_name(role))
    except ClientError as error:
        return [f"service role {role!r}: {_no_such_entity(error)}; set ORCHARD_SERVICE_ROLE to a role that exists"]
    log.info("preflight: service role %s exists", role)
    return []


def missing_instance_profile(iam: "IAMClient", request: Request) -> list[str]:
    """Check that the nodes' instance profile exists."""
    profile = request["JobFlowRole"]
    try:
        iam.get_instance_profile(InstanceProfileName=_name(profile))
    except ClientError as error:
        return [
            f"instance profile {profile!r}: {_no_such_entity(error)}; set ORCHARD_INSTANCE_PROFILE to one that exists"
        ]
    log.info("preflight: instance profile %s exists", profile)
    return []


def missing_spot_role(iam: "IAMClient", request: Request) -> list[str]:
    """Check that EC2's service-linked role for Spot exists, if the request has Spot instances.

    EC2 creates the role only for users of its console, and AmazonEMRServicePolicy_v2 does not allow EMR to create it:
    https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/service-linked-roles-spot-instance-requests.html
    """
    if not spot_instances(request):
        return []
    try:
        iam.get_role(RoleName=SPOT_ROLE)
    except ClientError as error:
        return [
            f"service-linked role {SPOT_ROLE!r}: {_no_such_entity(error)}; create it once per account with `aws iam "
            "create-service-linked-role --aws-service-name spot.amazonaws.com`, or set core_instances"
        ]
    log.info("preflight: service-linked role %s exists", SPOT_ROLE)
    return []


def _name(name_or_arn: str) -> str:
    return name_or_arn.rpartition("/")[2]


def _no_such_entity(error: ClientError) -> ClientError:
    """Return IAM's error if it means that the entity does not exist. Raise any other error."""
    if error.response["Error"]["Code"] != "NoSuchEntity":
        raise error
    return error
