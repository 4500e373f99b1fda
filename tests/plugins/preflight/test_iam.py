import json
import shlex
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError

from orchard.preflight.checks import Clients
from orchard.preflight.iam import (
    POLICY_V2,
    SPOT_ROLE,
    missing_spot_role,
    trusts,
    unpassable_role,
    unusable_instance_profile,
    unusable_service_role,
    uses_policy_v2,
)
from sandbox import aws
from tests.local_aws.user import default_node_role
from tests.plugins.answers import failing
from tests.plugins.preflight.accounts import Account, create_account
from tests.plugins.preflight.cluster_requests import cluster_request

if TYPE_CHECKING:
    from mypy_boto3_iam import IAMClient


def test_existing_roles_pass_by_name_and_by_arn(iam: "IAMClient") -> None:
    role = f"role-{uuid.uuid4().hex[:8]}"
    aws.create_role(iam, role, "elasticmapreduce")
    aws.create_role(iam, f"{role}-nodes", "ec2")
    iam.create_instance_profile(InstanceProfileName=role)
    iam.add_role_to_instance_profile(InstanceProfileName=role, RoleName=f"{role}-nodes")
    for prefix in ("", "arn:aws:iam::123456789012:role/service-role/"):
        assert unusable_service_role(iam, cluster_request(service_role=f"{prefix}{role}")) == []
    for prefix in ("", "arn:aws:iam::123456789012:instance-profile/"):
        assert unusable_instance_profile(iam, cluster_request(instance_profile=f"{prefix}{role}")) == []


def test_missing_roles_are_named_with_their_settings(iam: "IAMClient") -> None:
    request = cluster_request(service_role="nobody", instance_profile="nothing")
    (role_fault,), (profile_fault,) = unusable_service_role(iam, request), unusable_instance_profile(iam, request)
    assert role_fault.startswith("service role 'nobody': ")
    assert role_fault.endswith("set ORCHARD_SERVICE_ROLE to a role that exists")
    assert profile_fault.startswith("instance profile 'nothing': ")
    assert profile_fault.endswith("set ORCHARD_INSTANCE_PROFILE to one that exists")


@pytest.fixture
def no_spot_role(iam: "IAMClient") -> None:
    """Delete the service-linked role for Spot. An account has only one, and other tests create it, too."""
    with suppress(iam.exceptions.NoSuchEntityException):
        iam.delete_role(RoleName=SPOT_ROLE)


@pytest.mark.usefixtures("no_spot_role")
def test_a_request_with_spot_instances_needs_the_service_linked_role_of_ec2(iam: "IAMClient") -> None:
    request = cluster_request(workers=1, spot=3)
    assert missing_spot_role(iam, cluster_request(workers=4)) == [], "without Spot, the role is not needed"
    (fault,) = missing_spot_role(iam, request)
    assert fault.startswith(f"service-linked role '{SPOT_ROLE}': ")
    assert "`aws iam create-service-linked-role --aws-service-name spot.amazonaws.com`" in fault
    iam.create_service_linked_role(AWSServiceName="spot.amazonaws.com")
    assert missing_spot_role(iam, request) == []


@pytest.fixture(scope="module")
def roles(aws_url: str, iam: "IAMClient") -> Account:
    """Roles of which the service role may pass that of the nodes."""
    regional: Any = {name: aws.client(name, aws_url) for name in ("s3", "ec2", "emr", "glue", "sns")}
    return create_account(Clients(iam=iam, **regional))


def request(account: Account, **settings: Any) -> dict[str, Any]:
    roles: dict[str, Any] = {"service_role": account.name, "instance_profile": account.name}
    return cluster_request(**{**roles, **settings})


def test_a_role_that_its_service_cannot_assume_is_named(iam: "IAMClient", roles: Account) -> None:
    try:
        roles.set_trust(roles.name, "glue.amazonaws.com")
        assert unusable_service_role(iam, request(roles)) == [
            f"service role '{roles.name}' does not trust EMR; allow elasticmapreduce.amazonaws.com to call "
            "sts:AssumeRole in its trust policy, or set ORCHARD_SERVICE_ROLE to a role that does"
        ]
        roles.set_trust(f"{roles.name}-nodes", "lambda.amazonaws.com")
        assert unusable_instance_profile(iam, request(roles)) == [
            f"role '{roles.name}-nodes' of instance profile '{roles.name}' does not trust EC2; allow ec2.amazonaws.com "
            "to call sts:AssumeRole in its trust policy"
        ]
    finally:
        roles.set_trust(roles.name, "elasticmapreduce.amazonaws.com")
        roles.set_trust(f"{roles.name}-nodes", "ec2.amazonaws.com")


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ({}, True),
        ({"Action": ["sts:AssumeRole", "sts:TagSession"]}, True),
        ({"Action": "sts:*"}, True),
        ({"Principal": "*"}, True),
        ({"Principal": {"Service": ["glue.amazonaws.com", "ec2.amazonaws.com"]}}, True),
        ({"Principal": {"Service": "ec2.amazonaws.com.cn"}}, True),
        # The trust policy of EMR's documentation has conditions on the account and the cluster.
        ({"Condition": {"StringEquals": {"aws:SourceAccount": "123456789012"}}}, True),
        ({"Principal": {"AWS": "*"}}, False),
        ({"Principal": {"Service": "elasticmapreduce.amazonaws.com"}}, False),
        ({"Action": "sts:TagSession"}, False),
        ({"Effect": "Deny"}, False),
    ],
)
def test_a_trust_policy_names_the_service(statement: dict[str, Any], expected: bool) -> None:
    allow = {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}
    assert trusts({"Statement": [{**allow, **statement}]}, "ec2") is expected
    assert trusts({"Statement": {**allow, **statement}}, "ec2") is expected
    deny = {**allow, "Effect": "Deny"}
    assert not trusts({"Statement": [{**allow, **statement}, deny]}, "ec2")


@pytest.mark.parametrize("policy", [{}, {"Statement": []}, None, ""])
def test_a_role_without_a_trust_policy_trusts_no_service(policy: Any) -> None:
    assert not trusts(policy, "ec2")


def test_an_instance_profile_without_a_role_is_named_with_the_command(iam: "IAMClient") -> None:
    name = f"empty-{uuid.uuid4().hex[:8]}"
    iam.create_instance_profile(InstanceProfileName=name)
    for prefix in ("", "arn:aws:iam::123456789012:instance-profile/"):
        assert unusable_instance_profile(iam, cluster_request(instance_profile=f"{prefix}{name}")) == [
            f"instance profile '{prefix}{name}' has no role; add one with `aws iam add-role-to-instance-profile "
            f"--instance-profile-name {name} --role-name ROLE`"
        ]


def test_only_the_managed_policy_of_aws_counts(iam: "IAMClient", roles: Account) -> None:
    assert uses_policy_v2(iam, request(roles))
    assert uses_policy_v2(iam, request(roles, service_role=f"arn:aws:iam::123456789012:role/{roles.name}"))
    assert not uses_policy_v2(iam, request(roles, service_role="nobody")), "the check of the role reports it"
    own = f"own-{uuid.uuid4().hex[:8]}"
    aws.create_role(iam, own, "elasticmapreduce")
    document = json.dumps({"Version": "2012-10-17", "Statement": [roles.pass_role()]})
    copied = iam.create_policy(PolicyName=POLICY_V2, Path="/service-role/", PolicyDocument=document)["Policy"]["Arn"]
    iam.attach_role_policy(RoleName=own, PolicyArn=copied)
    assert not uses_policy_v2(iam, request(roles, service_role=own))


def test_the_role_of_the_nodes_needs_a_grant_unless_it_has_the_default_name(
    iam: "IAMClient", roles: Account, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "orchard")
    assert unpassable_role(iam, request(roles)) == []
    assert f"preflight: service role {roles.name} may pass role {roles.node_role} to EC2" in caplog.messages
    try:
        iam.delete_role_policy(RoleName=roles.name, PolicyName="pass-role")
        (fault,) = unpassable_role(iam, request(roles))
        start, command, _ = fault.split("`")
        assert start == (
            f"service role '{roles.name}' may not pass role '{roles.node_role}' of instance profile '{roles.name}' to "
            "EC2: AmazonEMRServicePolicy_v2 passes only a role named EMR_EC2_DefaultRole; run "
        )
        # The command repairs it.
        words = shlex.split(command)
        assert words[:3] == ["aws", "iam", "put-role-policy"]
        options = dict(zip(words[3::2], words[4::2], strict=True))
        iam.put_role_policy(
            RoleName=options["--role-name"],
            PolicyName=options["--policy-name"],
            PolicyDocument=options["--policy-document"],
        )
        assert unpassable_role(iam, request(roles)) == []
        iam.delete_role_policy(RoleName=roles.name, PolicyName=options["--policy-name"])
    finally:
        roles.grant(roles.pass_role())


def test_the_default_role_is_passed_by_the_managed_policy(iam: "IAMClient", roles: Account) -> None:
    profile = f"default-{uuid.uuid4().hex[:8]}"
    iam.create_instance_profile(InstanceProfileName=profile)
    roles.grant(roles.pass_role(Action="iam:GetRole"))
    with default_node_role(iam) as role:
        iam.add_role_to_instance_profile(InstanceProfileName=profile, RoleName=role)
        assert unpassable_role(iam, request(roles, instance_profile=profile)) == []
        iam.remove_role_from_instance_profile(InstanceProfileName=profile, RoleName=role)
    roles.grant(roles.pass_role())


@pytest.mark.parametrize(
    ("change", "is_fault"),
    [
        ({"Resource": "arn:aws:iam::*:role/orchard-*"}, False),
        ({"Action": ["s3:*", "iam:Pass*"]}, False),
        ({"Condition": {"StringLike": {"iam:PassedToService": "ec2.*"}}}, False),
        ({"Resource": "arn:aws:iam::123456789012:role/other"}, True),
        ({"Condition": {"StringEquals": {"iam:PassedToService": "elasticmapreduce.amazonaws.com"}}}, True),
        ({"Condition": {"StringEquals": {"aws:RequestTag/team": "fruit"}}}, True),
    ],
)
def test_a_grant_must_be_for_the_role_and_for_ec2(
    iam: "IAMClient", roles: Account, change: dict[str, Any], is_fault: bool
) -> None:
    roles.grant(roles.pass_role(**change))
    assert bool(unpassable_role(iam, request(roles))) is is_fault
    roles.grant(roles.pass_role())


def test_a_statement_that_denies_is_named(iam: "IAMClient", roles: Account) -> None:
    roles.grant(roles.pass_role(), {"Effect": "Deny", "Action": "iam:*", "Resource": "*"})
    (fault,) = unpassable_role(iam, request(roles))
    assert fault.endswith("to EC2: a policy denies iam:PassRole; remove the statement with the Effect Deny")
    roles.grant(roles.pass_role())


def test_a_grant_with_a_condition_that_cannot_be_simulated_is_a_warning(
    iam: "IAMClient", roles: Account, caplog: pytest.LogCaptureFixture
) -> None:
    roles.grant(roles.pass_role(Condition={"StringEquals": {"aws:PrincipalTag/team": "fruit"}}))
    assert unpassable_role(iam, request(roles)) == []
    assert [record.getMessage() for record in caplog.records if record.name.startswith("orchard.")] == [
        f"preflight: whether service role {roles.name} may pass role {roles.node_role} is not checked: it depends on "
        "aws:PrincipalTag/team"
    ]
    roles.grant(roles.pass_role())


@pytest.mark.parametrize("missing", ["service_role", "instance_profile"])
def test_a_missing_role_is_left_to_the_check_that_reports_it(iam: "IAMClient", roles: Account, missing: str) -> None:
    assert unpassable_role(iam, request(roles, **{missing: "nobody"})) == []


@pytest.mark.parametrize("code", ["Throttling", "AccessDenied"])
def test_an_error_that_does_not_mean_that_a_role_is_missing_is_raised(iam: "IAMClient", code: str) -> None:
    with failing(iam, "GetRole", code), pytest.raises(ClientError, match=code):
        unusable_service_role(iam, cluster_request())
    with failing(iam, "GetRole", code), pytest.raises(ClientError, match=code):
        missing_spot_role(iam, cluster_request(spot=1))
    with failing(iam, "GetInstanceProfile", code), pytest.raises(ClientError, match=code):
        unusable_instance_profile(iam, cluster_request())
    with failing(iam, "ListAttachedRolePolicies", code), pytest.raises(ClientError, match=code):
        uses_policy_v2(iam, cluster_request())
    with failing(iam, "GetRole", code), pytest.raises(ClientError, match=code):
        unpassable_role(iam, cluster_request())
