"""Check the role of the nodes of a cluster that is held after its run. Each check returns one sentence per fault."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from orchard.cluster.request import NOTEBOOKS, keeps_notebooks
from orchard.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_iam import IAMClient

log = logging.getLogger(__name__)

Request = Mapping[str, Any]

# What Session Manager needs on an instance. The first action has resources, the others have none:
# https://docs.aws.amazon.com/systems-manager/latest/userguide/getting-started-create-iam-instance-profile.html
UPDATE_INSTANCE = "ssm:UpdateInstanceInformation"
SESSION_ACTIONS = tuple(
    f"ssmmessages:{action}"
    for action in ("CreateControlChannel", "CreateDataChannel", "OpenControlChannel", "OpenDataChannel")
)
NOTEBOOK_ACTIONS = ("s3:GetObject", "s3:PutObject", "s3:DeleteObject")


@dataclass(frozen=True)
class Need:
    """Actions that a role must be allowed on a resource, in requests with these context keys."""

    actions: Sequence[str]
    resource: str
    context: Mapping[str, str] = field(default_factory=dict)


def needs_of_hold(role_arn: str, settings: Settings) -> list[Need]:
    """Return what the nodes of a held cluster must be allowed to do: keep notebooks on S3, and accept sessions."""
    _, partition, _, _, account, _ = role_arn.split(":", 5)
    bucket = f"arn:{partition}:s3:::{settings.bucket}"
    instance = f"arn:{partition}:ec2:{settings.region}:{account}:instance/i-0123456789abcdef0"
    folder = f"{NOTEBOOKS}/jupyter/jovyan/"
    return [
        Need(NOTEBOOK_ACTIONS, f"{bucket}/{folder}explore.ipynb"),
        Need(["s3:ListBucket"], bucket, {"s3:prefix": folder}),
        Need([UPDATE_INSTANCE], instance),
        Need(SESSION_ACTIONS, "*"),
    ]


def unreachable_notebooks(iam: "IAMClient", settings: Settings, request: Request) -> list[str]:
    """Check that the nodes of a held cluster may keep notebooks on S3, and accept sessions of Session Manager.

    IAM evaluates all policies of the role, and its permissions boundary. A decision that depends on a value that only
    the real request has counts as allowed:
    https://docs.aws.amazon.com/IAM/latest/APIReference/API_SimulatePrincipalPolicy.html
    """
    if not keeps_notebooks(request):
        return []
    profile = request["JobFlowRole"].rpartition("/")[2]
    try:
        roles = iam.get_instance_profile(InstanceProfileName=profile)["InstanceProfile"]["Roles"]
    except ClientError as error:
        if error.response["Error"]["Code"] != "NoSuchEntity":
            raise
        return []  # another check reports it
    if not roles:
        return []
    arn = roles[0]["Arn"]
    refused = [action for need in needs_of_hold(arn, settings) for action in _refused(iam, arn, need)]
    if not refused:
        log.info("preflight: role %s may keep notebooks and accept sessions", arn)
        return []
    return [
        f"role {arn!r} of the nodes may not call {', '.join(refused)}, which a run with hold_minutes needs, for "
        f"notebooks below s3://{settings.bucket}/{NOTEBOOKS}/ and for sessions of Session Manager; deploy the stack "
        "with HoldClusters=true, grant the actions to the role, or set hold_minutes to 0"
    ]


def _refused(iam: "IAMClient", role_arn: str, need: Need) -> Iterator[str]:
    results = iam.simulate_principal_policy(
        PolicySourceArn=role_arn,
        ActionNames=list(need.actions),
        ResourceArns=[need.resource],
        ContextEntries=[
            {"ContextKeyName": key, "ContextKeyValues": [value], "ContextKeyType": "string"}
            for key, value in need.context.items()
        ],
    )["EvaluationResults"]
    for result in results:
        missing = [*result.get("MissingContextValues", [])]
        for specific in result.get("ResourceSpecificResults", []):
            missing += specific.get("MissingContextValues", [])
        if result["EvalDecision"] == "allowed":
            continue
        if missing and result["EvalDecision"] != "explicitDeny":
            names = ", ".join(sorted(set(missing)))
            log.warning(
                "preflight: whether role %s may call %s is not checked: it depends on %s",
                *(role_arn, result["EvalActionName"], names),
            )
            continue
        yield result["EvalActionName"]
