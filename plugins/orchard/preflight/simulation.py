"""Ask IAM what a role may do."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mypy_boto3_iam import IAMClient


@dataclass(frozen=True)
class Decision:
    """IAM's decision about an action: allowed, implicitDeny or explicitDeny.

    `missing` contains the context keys that the conditions of a policy use, but that the simulation did not get.
    """

    action: str
    decision: str
    missing: tuple[str, ...]


def simulate(
    iam: "IAMClient", role_arn: str, actions: Sequence[str], resource: str, context: Mapping[str, str]
) -> Iterator[Decision]:
    """Yield what IAM decides about each action of a role on a resource, in requests with these context keys.

    IAM evaluates all policies of the role, and its permissions boundary:
    https://docs.aws.amazon.com/IAM/latest/APIReference/API_SimulatePrincipalPolicy.html
    """
    results = iam.simulate_principal_policy(
        PolicySourceArn=role_arn,
        ActionNames=list(actions),
        ResourceArns=[resource],
        ContextEntries=[
            {"ContextKeyName": key, "ContextKeyValues": [value], "ContextKeyType": "string"}
            for key, value in context.items()
        ],
    )["EvaluationResults"]
    for result in results:
        missing = [*result.get("MissingContextValues", [])]
        for specific in result.get("ResourceSpecificResults", []):
            missing += specific.get("MissingContextValues", [])
        yield Decision(result["EvalActionName"], result["EvalDecision"], tuple(sorted(set(missing))))
