import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError

from orchard.preflight.checks import Clients
from orchard.preflight.hold import needs_of_hold, unreachable_notebooks
from sandbox import aws
from tests.plugins.answers import failing
from tests.plugins.preflight.accounts import Account, create_account
from tests.plugins.preflight.cluster_requests import SETTINGS, cluster_request

if TYPE_CHECKING:
    from mypy_boto3_iam import IAMClient

NOTEBOOKS = {
    "Effect": "Allow",
    "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"],
    "Resource": "arn:aws:s3:::fruits-data/notebooks/*",
}
LIST = {
    "Effect": "Allow",
    "Action": "s3:ListBucket",
    "Resource": "arn:aws:s3:::fruits-data",
    "Condition": {"StringLike": {"s3:prefix": "notebooks/*"}},
}
SESSIONS = {"Effect": "Allow", "Action": ["ssm:UpdateInstanceInformation", "ssmmessages:*"], "Resource": "*"}


@pytest.fixture(scope="module")
def account(aws_url: str, iam: "IAMClient") -> Account:
    regional: Any = {name: aws.client(name, aws_url) for name in ("s3", "ec2", "emr", "glue", "sns")}
    return create_account(Clients(iam=iam, **regional))


def faults(account: Account, *statements: dict[str, Any], hold_minutes: int = 60, **settings: Any) -> list[str]:
    """Return the faults of a request if the role of the nodes has these statements."""
    iam, role = account.clients.iam, f"{account.name}-nodes"
    if statements:
        document = json.dumps({"Version": "2012-10-17", "Statement": list(statements)})
        iam.put_role_policy(RoleName=role, PolicyName="nodes", PolicyDocument=document)
    request = cluster_request(hold_minutes=hold_minutes, **{"instance_profile": account.name, **settings})
    return unreachable_notebooks(iam, SETTINGS, request)


def test_nodes_that_may_keep_notebooks_and_accept_sessions_pass(account: Account) -> None:
    assert faults(account, NOTEBOOKS, LIST, SESSIONS) == []


@pytest.mark.parametrize(
    ("statements", "missing"),
    [
        ((LIST, SESSIONS), "s3:GetObject, s3:PutObject, s3:DeleteObject"),
        (({**NOTEBOOKS, "Action": "s3:GetObject"}, LIST, SESSIONS), "s3:PutObject, s3:DeleteObject"),
        (({**NOTEBOOKS, "Resource": "arn:aws:s3:::fruits-data/runs/*"}, LIST, SESSIONS), "s3:GetObject, "),
        ((NOTEBOOKS, SESSIONS), "s3:ListBucket"),
        ((NOTEBOOKS, {**LIST, "Condition": {"StringLike": {"s3:prefix": "runs/*"}}}, SESSIONS), "s3:ListBucket"),
        ((NOTEBOOKS, LIST, {**SESSIONS, "Action": "ssmmessages:*"}), "ssm:UpdateInstanceInformation"),
        ((NOTEBOOKS, LIST, {**SESSIONS, "Action": "ssm:*"}), "ssmmessages:CreateControlChannel, "),
        ((NOTEBOOKS, LIST, SESSIONS, {**SESSIONS, "Effect": "Deny", "Action": "ssm:*"}), "ssm:UpdateInstance"),
    ],
)
def test_what_the_nodes_may_not_do_is_named_with_the_parameter_of_the_stack(
    account: Account, statements: tuple[dict[str, Any], ...], missing: str
) -> None:
    (fault,) = faults(account, *statements)
    arn = f"arn:aws:iam::123456789012:role/{account.name}-nodes"
    assert fault.startswith(f"role '{arn}' of the nodes may not call {missing}")
    assert "below s3://fruits-data/notebooks/" in fault
    assert fault.endswith(
        "deploy the stack with HoldClusters=true, grant the actions to the role, or set hold_minutes to 0"
    )


def test_without_a_hold_nothing_is_checked(account: Account) -> None:
    with failing(account.clients.iam, "GetInstanceProfile", "AccessDenied"):
        assert faults(account, hold_minutes=0) == []


def test_a_decision_that_depends_on_the_real_request_is_a_warning(
    account: Account, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "orchard")
    condition = {"StringEquals": {"aws:SourceVpce": "vpce-1"}}
    assert faults(account, {**NOTEBOOKS, "Condition": condition}, LIST, SESSIONS) == []
    found = [record.getMessage() for record in caplog.records if record.name.startswith("orchard.")]
    assert len(found) == 3
    assert all(message.endswith("is not checked: it depends on aws:SourceVpce") for message in found)


def test_a_missing_profile_is_left_to_the_check_that_reports_it(account: Account) -> None:
    assert faults(account, instance_profile="nothing") == []


@pytest.mark.parametrize("operation", ["GetInstanceProfile", "SimulatePrincipalPolicy"])
def test_an_error_of_iam_is_raised(account: Account, operation: str) -> None:
    with failing(account.clients.iam, operation, "AccessDenied"), pytest.raises(ClientError, match="AccessDenied"):
        faults(account, NOTEBOOKS, LIST, SESSIONS)


def test_the_arns_are_of_the_partition_and_the_account_of_the_role() -> None:
    needs = needs_of_hold("arn:aws-cn:iam::210987654321:role/fruits/nodes", SETTINGS)
    assert [need.resource for need in needs] == [
        "arn:aws-cn:s3:::fruits-data/notebooks/jupyter/jovyan/explore.ipynb",
        "arn:aws-cn:s3:::fruits-data",
        "arn:aws-cn:ec2:eu-west-1:210987654321:instance/i-0123456789abcdef0",
        "*",
    ]
