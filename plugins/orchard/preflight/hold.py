"""Check the role of the nodes of a cluster that is held after its run. Each check returns one sentence per fault."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orchard.cluster.request import NOTEBOOKS, keeps_notebooks
from orchard.preflight.iam import nodes_role
from orchard.preflight.simulation import simulate
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

    A decision that depends on a value that only the real request has counts as allowed.
    """
    if not keeps_notebooks(request):
        return []
    arn = nodes_role(iam, request)
    if arn is None:
        return []
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
    for result in simulate(iam, role_arn, need.actions, need.resource, need.context):
        if result.decision == "allowed":
            continue
        if result.missing and result.decision != "explicitDeny":
            log.warning(
                "preflight: whether role %s may call %s is not checked: it depends on %s",
                *(role_arn, result.action, ", ".join(result.missing)),
            )
            continue
        yield result.action
