"""Evaluate the policies of IAM roles. moto stores them, and does not evaluate them as AWS does.

The rules are those of https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic.html. There
are no policy variables, and no policies of resources, sessions and organizations. A condition with an operator for
numbers, dates or IP addresses counts as not met.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from moto.core import DEFAULT_ACCOUNT_ID
from moto.iam.models import iam_backends

Statement = Mapping[str, Any]
# The values of the context keys of a request. The names of keys are in lower case, because they are case-insensitive.
Context = Mapping[str, Sequence[str]]

ALLOWED, DENIED, NOT_ALLOWED = "allowed", "explicitDeny", "implicitDeny"


@dataclass(frozen=True)
class Decision:
    """One of ALLOWED, DENIED and NOT_ALLOWED, and the context keys that the request lacks.

    The keys are those in conditions of statements for the action and the resource.
    """

    value: str
    missing_keys: tuple[str, ...] = ()


def find_role(name_or_arn: str) -> Any:
    """Return moto's role with a name, or with an ARN, which ends with a path and the name. None if there is none."""
    roles = iam_backends[DEFAULT_ACCOUNT_ID]["aws"].roles.values()
    return next((role for role in roles if role.name == name_or_arn.rpartition("/")[2]), None)


def find_instance_profile(name_or_arn: str) -> Any:
    """Return moto's instance profile with a name or an ARN. None if there is none."""
    profiles = iam_backends[DEFAULT_ACCOUNT_ID]["aws"].instance_profiles.values()
    return next((profile for profile in profiles if profile.name == name_or_arn.rpartition("/")[2]), None)


def decide(role: Any, action: str, resource: str, context: Context) -> Decision:
    """Return whether the policies and the permissions boundary of a role allow an action on a resource."""
    managed = role.managed_policies.values()
    documents = [*role.policies.values(), *(_default_version(policy) for policy in managed)]
    decision = evaluate(documents, action, resource, context)
    boundary = role.permissions_boundary_arn
    if decision.value != ALLOWED or not boundary:
        return decision
    policies = iam_backends[DEFAULT_ACCOUNT_ID]["aws"].managed_policies
    limits = [_default_version(policies[boundary])] if boundary in policies else []
    return evaluate(limits, action, resource, context)


def trusts(role: Any, service: str) -> bool:
    """Return whether a role's trust policy lets a service assume it, whatever the conditions are."""
    statements = [
        statement
        for statement in _statements(role.assume_role_policy_document)
        if _names_action(statement, "sts:AssumeRole") and _names_service(statement, service)
    ]
    is_denied = any(statement.get("Effect") == "Deny" and not statement.get("Condition") for statement in statements)
    return not is_denied and any(statement.get("Effect") == "Allow" for statement in statements)


def evaluate(documents: Iterable[str], action: str, resource: str, context: Context) -> Decision:
    """Return the decision of policies, each the text of a document, on an action on a resource.

    >>> policy = '{"Statement": {"Effect": "Allow", "Action": "s3:Get*", "Resource": "arn:aws:s3:::fruits/*"}}'
    >>> evaluate([policy], "s3:GetObject", "arn:aws:s3:::fruits/kiwi.jpg", {}).value
    'allowed'
    >>> evaluate([policy], "s3:PutObject", "arn:aws:s3:::fruits/kiwi.jpg", {}).value
    'implicitDeny'
    """
    statements = [
        statement
        for document in documents
        for statement in _statements(document)
        if _names_action(statement, action) and _names_resource(statement, resource)
    ]
    conditions = [
        (key, values)
        for statement in statements
        for keys in statement.get("Condition", {}).values()
        for key, values in keys.items()
    ]
    missing = tuple(sorted({key for key, _ in conditions if key.lower() not in context}))
    effects = {statement.get("Effect") for statement in statements if _is_met(statement.get("Condition", {}), context)}
    if "Deny" in effects:
        return Decision(DENIED, missing)
    return Decision(ALLOWED if "Allow" in effects else NOT_ALLOWED, missing)


def _default_version(policy: Any) -> str:
    versions: dict[str, str] = {version.version_id: version.document for version in policy.versions}
    return versions[policy.default_version_id]


def _statements(document: str) -> list[Statement]:
    try:
        return _as_list(json.loads(document).get("Statement", []))
    except ValueError:  # IAM rejects such a document, moto stores it
        return []


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _names_action(statement: Statement, action: str) -> bool:
    return _names(statement, "Action", action.lower(), str.lower)


def _names_resource(statement: Statement, resource: str) -> bool:
    return _names(statement, "Resource", resource)


def _names(statement: Statement, element: str, value: str, convert: Callable[[str], str] = str) -> bool:
    """Return whether a statement's element, for example Action or NotAction, applies to a value."""
    if element in statement:
        return any(_is_like(value, convert(pattern)) for pattern in _as_list(statement[element]))
    patterns = _as_list(statement.get(f"Not{element}", "*"))
    return not any(_is_like(value, convert(pattern)) for pattern in patterns)


def _names_service(statement: Statement, service: str) -> bool:
    principal = statement.get("Principal", {})
    if isinstance(principal, str):
        return principal == "*"
    # The principals of some regions end in .cn.
    return bool({service, f"{service}.cn"} & set(_as_list(principal.get("Service", []))))


@cache
def _glob(pattern: str) -> re.Pattern[str]:
    return re.compile("".join({"*": ".*", "?": "."}.get(char, re.escape(char)) for char in pattern), re.DOTALL)


def _is_like(value: str, pattern: str) -> bool:
    return _glob(pattern).fullmatch(value) is not None


_OPERATORS: Mapping[str, Callable[[str, str], bool]] = {
    "StringEquals": lambda value, wanted: value == wanted,
    "StringEqualsIgnoreCase": lambda value, wanted: value.lower() == wanted.lower(),
    "StringLike": _is_like,
    "ArnEquals": _is_like,
    "ArnLike": _is_like,
    "Bool": lambda value, wanted: value.lower() == wanted.lower(),
}


def _is_met(condition: Mapping[str, Mapping[str, Any]], context: Context) -> bool:
    return all(
        _is_met_by(operator, [str(value) for value in _as_list(values)], context.get(key.lower(), ()))
        for operator, keys in condition.items()
        for key, values in keys.items()
    )


def _is_met_by(operator: str, wanted: list[str], given: Sequence[str]) -> bool:
    """Return whether the values of a context key meet one line of a condition.

    https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_elements_condition_operators.html
    """
    if operator == "Null":
        return (not given) == (wanted[0].lower() == "true")
    quantifier, _, name = operator.rpartition(":")
    if not given and (name.endswith("IfExists") or quantifier == "ForAllValues"):
        return True
    name = name.removesuffix("IfExists")
    negated = "Not" in name
    compare = _OPERATORS.get(name.replace("Not", "", 1))
    if compare is None:
        return False
    if not given:
        return negated
    matches = [any(compare(value, pattern) for pattern in wanted) != negated for value in given]
    return all(matches) if quantifier == "ForAllValues" or (negated and not quantifier) else any(matches)
