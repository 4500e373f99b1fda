"""Evaluate bucket policies as if requests were encrypted, which is what clients of AWS send by default.

moto denies a request if a statement with Deny names its action, also if the condition of the statement does not hold.
"""

import json
from typing import Any

from moto.iam.access_control import IAMPolicy, PermissionResult
from moto.s3.models import FakeBucket

SECURE_TRANSPORT = "aws:SecureTransport"


def requests_are_encrypted() -> None:
    """Make statements that are only for requests without TLS not apply: the local AWS serves HTTP in place of HTTPS."""
    FakeBucket.get_permission = _get_permission


def _get_permission(bucket: FakeBucket, action: str, resource: str) -> Any:
    if bucket.policy is None:
        return PermissionResult.NEUTRAL
    policy = json.loads(bucket.policy)
    statements = policy["Statement"] if isinstance(policy["Statement"], list) else [policy["Statement"]]
    policy["Statement"] = [statement for statement in statements if not _is_for_requests_without_tls(statement)]
    if not policy["Statement"]:
        return PermissionResult.NEUTRAL
    return IAMPolicy(json.dumps(policy)).is_action_permitted(action, resource)


def _is_for_requests_without_tls(statement: dict[str, Any]) -> bool:
    """Return whether a condition of a statement does not hold for encrypted requests."""
    found = statement.get("Condition", {}).get("Bool", {}).get(SECURE_TRANSPORT)
    return found is not None and str(found).lower() == "false"
