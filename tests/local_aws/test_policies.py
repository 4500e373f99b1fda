import json
import uuid
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from local_aws.policies import evaluate, find_role, trusts
from tests.local_aws.user import REGION, User

if TYPE_CHECKING:
    from mypy_boto3_iam import IAMClient

ROLE = "arn:aws:iam::123456789012:role/nodes"
TO_EC2 = {"iam:passedtoservice": ["ec2.amazonaws.com"]}


def document(*statements: dict[str, Any]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)})


def allow(**elements: Any) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": "iam:PassRole", "Resource": ROLE, **elements}


def deny(**elements: Any) -> dict[str, Any]:
    return {**allow(**elements), "Effect": "Deny"}


def without(element: str, statement: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in statement.items() if key != element}


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        ([], "implicitDeny"),
        ([allow()], "allowed"),
        ([allow(Action=["s3:*", "IAM:passrole"])], "allowed"),
        ([allow(Action="iam:Pass?ole")], "allowed"),
        ([allow(Action="*")], "allowed"),
        ([allow(Action="iam:GetRole")], "implicitDeny"),
        ([without("Action", allow(NotAction="s3:*"))], "allowed"),
        ([without("Action", allow(NotAction="iam:*"))], "implicitDeny"),
        ([allow(Resource="*")], "allowed"),
        ([allow(Resource=["arn:aws:iam::*:role/other", "arn:aws:iam::*:role/n*"])], "allowed"),
        ([allow(Resource="arn:aws:iam::123456789012:role/Nodes")], "implicitDeny"),
        ([allow(Resource="arn:aws:iam::123456789012:role/[n]odes")], "implicitDeny"),
        ([without("Resource", allow(NotResource="arn:aws:iam::*:role/admin"))], "allowed"),
        ([without("Resource", allow(NotResource="arn:aws:iam::*:role/*"))], "implicitDeny"),
        ([allow(), deny(Action="iam:*")], "explicitDeny"),
        ([deny(Resource="arn:aws:iam::*:role/admin"), allow()], "allowed"),
    ],
)
def test_a_policy_allows_what_a_statement_allows_and_none_denies(
    statements: list[dict[str, Any]], expected: str
) -> None:
    assert evaluate([document(*statements)], "iam:PassRole", ROLE, TO_EC2).value == expected


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ({"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}}, True),
        ({"StringEquals": {"IAM:passedToService": ["a", "ec2.amazonaws.com"]}}, True),
        ({"StringEquals": {"iam:PassedToService": "ec2.*"}}, False),
        ({"StringLike": {"iam:PassedToService": "ec2.amazonaws.com*"}}, True),
        ({"StringEqualsIgnoreCase": {"iam:PassedToService": "EC2.amazonaws.com"}}, True),
        ({"StringNotEquals": {"iam:PassedToService": ["a", "ec2.amazonaws.com"]}}, False),
        ({"StringNotLike": {"iam:PassedToService": "elastic*"}}, True),
        ({"StringEquals": {"aws:PrincipalTag/team": "fruit"}}, False),
        ({"StringNotEquals": {"aws:PrincipalTag/team": "fruit"}}, True),
        ({"StringEqualsIfExists": {"aws:PrincipalTag/team": "fruit"}}, True),
        ({"ForAllValues:StringEquals": {"aws:TagKeys": "a"}}, True),
        ({"ForAnyValue:StringEquals": {"aws:TagKeys": "a"}}, False),
        ({"ForAnyValue:StringLike": {"tags": "a*"}}, True),
        ({"ForAllValues:StringLike": {"tags": "a*"}}, False),
        ({"ForAllValues:StringLike": {"tags": ["a*", "b*"]}}, True),
        ({"ForAllValues:StringNotEquals": {"tags": ["a1"]}}, False),
        ({"ForAnyValue:StringNotEquals": {"tags": ["a1"]}}, True),
        ({"Null": {"iam:PassedToService": "false"}}, True),
        ({"Null": {"aws:PrincipalTag/team": True}}, True),
        ({"Null": {"iam:PassedToService": "true"}}, False),
        ({"Bool": {"aws:SecureTransport": True}}, True),
        ({"ArnLike": {"arn": "arn:aws:ec2:*:*:instance/*"}}, True),
        ({"ArnNotEquals": {"arn": "arn:aws:ec2:*"}}, False),
        ({"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}}, False),
        # All lines of a condition must be met.
        ({"StringLike": {"iam:PassedToService": "ec2*", "arn": "arn:aws:s3:*"}}, False),
    ],
)
def test_a_condition_is_met_as_on_aws(condition: dict[str, Any], expected: bool) -> None:
    context = {
        **TO_EC2,
        "tags": ["a1", "b1"],
        "aws:securetransport": ["true"],
        "arn": ["arn:aws:ec2:eu-west-1:123456789012:instance/i-1"],
    }
    decision = evaluate([document(allow(Condition=condition))], "iam:PassRole", ROLE, context)
    assert (decision.value == "allowed") is expected


def test_the_keys_that_a_request_lacks_are_those_of_statements_for_its_action_and_resource() -> None:
    policy = document(
        allow(Condition={"StringEquals": {"aws:PrincipalTag/team": "fruit", "iam:PassedToService": "x"}}),
        allow(Action="iam:GetRole", Condition={"Bool": {"aws:MultiFactorAuthPresent": True}}),
    )
    assert evaluate([policy], "iam:PassRole", ROLE, TO_EC2).missing_keys == ("aws:PrincipalTag/team",)


@pytest.fixture
def role(iam_of_user: "IAMClient") -> str:
    name = f"policies-{uuid.uuid4().hex[:8]}"
    iam_of_user.create_role(RoleName=name, Path="/team/", AssumeRolePolicyDocument="{}")
    return name


@pytest.fixture(scope="module")
def iam_of_user(user: User) -> "IAMClient":
    session = boto3.Session(aws_access_key_id="user", aws_secret_access_key="secret", region_name=REGION)
    client: IAMClient = session.client("iam", endpoint_url=user.endpoint_url)
    return client


def simulate(iam: "IAMClient", role: str, *resources: str, action: str = "iam:PassRole") -> dict[str, Any]:
    service: Any = {
        "ContextKeyName": "iam:PassedToService",
        "ContextKeyValues": ["ec2.amazonaws.com"],
        "ContextKeyType": "string",
    }
    (result,) = iam.simulate_principal_policy(
        PolicySourceArn=f"arn:aws:iam::123456789012:role/team/{role}",
        ActionNames=[action],
        ContextEntries=[service],
        ResourceArns=list(resources) or ["*"],
    )["EvaluationResults"]
    return dict(result)


def test_a_simulation_evaluates_inline_and_managed_policies(iam_of_user: "IAMClient", role: str) -> None:
    iam = iam_of_user
    assert simulate(iam, role, ROLE)["EvalDecision"] == "implicitDeny"
    condition = {"StringLike": {"iam:PassedToService": "ec2.*"}}
    iam.put_role_policy(RoleName=role, PolicyName="a", PolicyDocument=document(allow(Condition=condition)))
    result = simulate(iam, role, ROLE)
    assert (result["EvalActionName"], result["EvalResourceName"], result["EvalDecision"]) == (
        "iam:PassRole",
        ROLE,
        "allowed",
    )
    assert simulate(iam, role, f"{ROLE}-2")["EvalDecision"] == "implicitDeny"
    created = iam.create_policy(PolicyName=role, PolicyDocument=document(allow()))["Policy"]["Arn"]
    iam.create_policy_version(PolicyArn=created, PolicyDocument=document(deny()), SetAsDefault=True)
    iam.attach_role_policy(RoleName=role, PolicyArn=created)
    assert simulate(iam, role, ROLE)["EvalDecision"] == "explicitDeny"


def test_a_permissions_boundary_limits_what_the_policies_allow(iam_of_user: "IAMClient", role: str) -> None:
    iam = iam_of_user
    iam.put_role_policy(RoleName=role, PolicyName="a", PolicyDocument=document(allow(Action="*", Resource="*")))
    boundary = iam.create_policy(PolicyName=role, PolicyDocument=document(allow()))["Policy"]["Arn"]
    iam.put_role_permissions_boundary(RoleName=role, PermissionsBoundary=boundary)
    assert simulate(iam, role, ROLE)["EvalDecision"] == "allowed"
    assert simulate(iam, role, f"{ROLE}-2")["EvalDecision"] == "implicitDeny"


def test_missing_context_keys_are_reported_with_the_resource(iam_of_user: "IAMClient", role: str) -> None:
    condition = {"StringEquals": {"aws:PrincipalTag/team": "fruit"}}
    policy = document(allow(Resource="*", Condition=condition))
    iam_of_user.put_role_policy(RoleName=role, PolicyName="a", PolicyDocument=policy)
    result = simulate(iam_of_user, role, ROLE)
    (specific,) = result["ResourceSpecificResults"]
    assert specific["EvalResourceDecision"] == "implicitDeny"
    assert (specific["MissingContextValues"], result["MissingContextValues"]) == (["aws:PrincipalTag/team"], [])
    assert simulate(iam_of_user, role)["MissingContextValues"] == ["aws:PrincipalTag/team"]


@pytest.mark.parametrize("arn", ["arn:aws:iam::123456789012:role/none", "arn:aws:iam::123456789012:user/me"])
def test_only_roles_can_be_simulated(iam_of_user: "IAMClient", arn: str) -> None:
    with pytest.raises(iam_of_user.exceptions.NoSuchEntityException, match=arn):
        iam_of_user.simulate_principal_policy(PolicySourceArn=arn, ActionNames=["iam:PassRole"])


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        ([], False),
        ([{"Principal": {"Service": "ec2.amazonaws.com"}}], True),
        ([{"Principal": {"Service": ["elasticmapreduce.amazonaws.com", "ec2.amazonaws.com.cn"]}}], True),
        ([{"Principal": "*"}], True),
        ([{"Principal": {"Service": "elasticmapreduce.amazonaws.com"}}], False),
        ([{"Principal": {"AWS": "123456789012"}}], False),
        ([{"Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:TagSession"}], False),
        ([{"Principal": {"Service": "ec2.amazonaws.com"}, "Action": ["sts:*"]}], True),
        ([{"Principal": {"Service": "ec2.amazonaws.com"}}, {"Principal": "*", "Effect": "Deny"}], False),
    ],
)
def test_a_role_trusts_the_services_of_its_trust_policy(
    iam_of_user: "IAMClient", statements: list[dict[str, Any]], expected: bool
) -> None:
    role = f"trusted-{uuid.uuid4().hex[:8]}"
    full = [{"Effect": "Allow", "Action": "sts:AssumeRole", **statement} for statement in statements]
    iam_of_user.create_role(RoleName=role, AssumeRolePolicyDocument=document(*full))
    assert trusts(find_role(role), "ec2.amazonaws.com") is expected
