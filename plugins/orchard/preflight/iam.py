"""Check the roles of a RunJobFlow request. Each check returns one sentence per fault."""

import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from orchard.cluster.request import spot_instances
from orchard.preflight.simulation import simulate

if TYPE_CHECKING:
    from mypy_boto3_iam import IAMClient

log = logging.getLogger(__name__)

Request = Mapping[str, Any]

SPOT_ROLE = "AWSServiceRoleForEC2Spot"
POLICY_V2 = "AmazonEMRServicePolicy_v2"
ASSUME_ROLE = "sts:AssumeRole"
# The simulation may report these keys as missing, because other statements of the policies have conditions on them.
# They do not exist in a call of PassRole.
KEYS_OF_OTHER_ACTIONS = ("aws:requesttag/", "aws:resourcetag/", "ec2:")


def unusable_service_role(iam: "IAMClient", request: Request) -> list[str]:
    """Check that the cluster's service role exists, and that EMR may assume it."""
    role = request["ServiceRole"]
    try:
        found = iam.get_role(RoleName=_name(role))["Role"]
    except ClientError as error:
        return [f"service role {role!r}: {_no_such_entity(error)}; set ORCHARD_SERVICE_ROLE to a role that exists"]
    if not trusts(found.get("AssumeRolePolicyDocument"), "elasticmapreduce"):
        return [
            f"service role {role!r} does not trust EMR; allow elasticmapreduce.amazonaws.com to call {ASSUME_ROLE} in "
            "its trust policy, or set ORCHARD_SERVICE_ROLE to a role that does"
        ]
    log.info("preflight: service role %s exists", role)
    return []


def unusable_instance_profile(iam: "IAMClient", request: Request) -> list[str]:
    """Check that the nodes' instance profile exists and has a role, and that EC2 may assume the role."""
    profile = request["JobFlowRole"]
    try:
        found = iam.get_instance_profile(InstanceProfileName=_name(profile))["InstanceProfile"]
    except ClientError as error:
        return [
            f"instance profile {profile!r}: {_no_such_entity(error)}; set ORCHARD_INSTANCE_PROFILE to one that exists"
        ]
    if not found["Roles"]:
        return [
            f"instance profile {profile!r} has no role; add one with `aws iam add-role-to-instance-profile "
            f"--instance-profile-name {_name(profile)} --role-name ROLE`"
        ]
    (role,) = found["Roles"]  # the limit of IAM
    if not trusts(role.get("AssumeRolePolicyDocument"), "ec2"):
        return [
            f"role {role['RoleName']!r} of instance profile {profile!r} does not trust EC2; allow ec2.amazonaws.com to "
            f"call {ASSUME_ROLE} in its trust policy"
        ]
    log.info("preflight: instance profile %s exists", profile)
    return []


def uses_policy_v2(iam: "IAMClient", request: Request) -> bool:
    """Return whether the service role has EMR's managed policy, whose permissions depend on tags and names.

    Other policies are not checked: what they need is not known. If there is no such role, another check reports it.
    """
    role = request["ServiceRole"]
    pages = iam.get_paginator("list_attached_role_policies").paginate(RoleName=_name(role))
    try:
        arns = [policy["PolicyArn"] for page in pages for policy in page["AttachedPolicies"]]
    except ClientError as error:
        _no_such_entity(error)
        return False
    if any(arn.partition(":iam::")[2] == f"aws:policy/service-role/{POLICY_V2}" for arn in arns):
        return True
    log.info("preflight: service role %s does not have %s: tags and iam:PassRole are not checked", role, POLICY_V2)
    return False


def unpassable_role(iam: "IAMClient", request: Request) -> list[str]:
    """Check that the service role may pass the role of the instance profile to EC2.

    AmazonEMRServicePolicy_v2 passes only a role that is named EMR_EC2_DefaultRole:
    https://docs.aws.amazon.com/aws-managed-policy/latest/reference/AmazonEMRServicePolicy_v2.html
    """
    service_role, profile = request["ServiceRole"], request["JobFlowRole"]
    try:
        source = iam.get_role(RoleName=_name(service_role))["Role"]["Arn"]
    except ClientError as error:
        _no_such_entity(error)
        return []  # a check above reports it
    passed = nodes_role(iam, request)
    if passed is None:
        return []
    service = f"ec2.amazonaws.com{'.cn' if passed.startswith('arn:aws-cn:') else ''}"
    (result,) = simulate(iam, source, ["iam:PassRole"], passed, {"iam:PassedToService": service})
    if result.decision == "allowed":
        log.info("preflight: service role %s may pass role %s to EC2", service_role, passed)
        return []
    unknown = [key for key in result.missing if not key.lower().startswith(KEYS_OF_OTHER_ACTIONS)]
    if unknown:
        log.warning(
            "preflight: whether service role %s may pass role %s is not checked: it depends on %s",
            service_role,
            passed,
            ", ".join(unknown),
        )
        return []
    refused = f"service role {service_role!r} may not pass role {passed!r} of instance profile {profile!r} to EC2"
    if result.decision == "explicitDeny":
        return [f"{refused}: a policy denies iam:PassRole; remove the statement with the Effect Deny"]
    grant = {
        "Effect": "Allow",
        "Action": "iam:PassRole",
        "Resource": passed,
        "Condition": {"StringEquals": {"iam:PassedToService": service}},
    }
    policy = json.dumps({"Version": "2012-10-17", "Statement": [grant]})
    return [
        f"{refused}: {POLICY_V2} passes only a role named EMR_EC2_DefaultRole; run `aws iam put-role-policy "
        f"--role-name {_name(service_role)} --policy-name pass-role-of-nodes --policy-document '{policy}'`"
    ]


def nodes_role(iam: "IAMClient", request: Request) -> str | None:
    """Return the ARN of the instance profile's role, or None if it is missing. Another check reports a missing role."""
    try:
        profile = iam.get_instance_profile(InstanceProfileName=_name(request["JobFlowRole"]))["InstanceProfile"]
    except ClientError as error:
        _no_such_entity(error)
        return None
    return profile["Roles"][0]["Arn"] if profile["Roles"] else None


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


def trusts(policy: Any, service: str) -> bool:
    """Return whether a trust policy, as botocore decodes it, lets a service assume the role. Conditions are ignored.

    >>> statement = {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}
    >>> trusts({"Statement": [statement]}, "ec2"), trusts({"Statement": [statement]}, "elasticmapreduce")
    (True, False)
    """
    if not isinstance(policy, Mapping):
        return False
    about = [item for item in _as_list(policy.get("Statement", [])) if _is_about(item, service)]
    denied = any(item.get("Effect") == "Deny" and not item.get("Condition") for item in about)
    return not denied and any(item.get("Effect") == "Allow" for item in about)


def _is_about(statement: Mapping[str, Any], service: str) -> bool:
    """Return whether a statement of a trust policy is about AssumeRole by a service."""
    actions = {str(action).lower() for action in _as_list(statement.get("Action", []))}
    principal = statement.get("Principal", {})
    names = _as_list(principal.get("Service", [])) if isinstance(principal, Mapping) else [principal]
    # In China, the names of some services end in .cn.
    wanted = {f"{service}.amazonaws.com", f"{service}.amazonaws.com.cn", "*"}
    return bool(actions & {ASSUME_ROLE.lower(), "sts:*", "*"}) and bool(wanted & set(names))


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _name(name_or_arn: str) -> str:
    return name_or_arn.rpartition("/")[2]


def _no_such_entity(error: ClientError) -> ClientError:
    """Return IAM's error if it means that the entity does not exist. Raise any other error."""
    if error.response["Error"]["Code"] != "NoSuchEntity":
        raise error
    return error
