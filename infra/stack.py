"""The CloudFormation stack of a deployment: its state, and the settings that it gives to Orchard."""

import logging
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

log = logging.getLogger(__name__)

POLL_SECONDS = 5
TEMPLATE = Path(__file__).with_name("stack.yaml")
# The outputs of the stack that are not settings.
OTHER_OUTPUTS = ("AirflowPolicyArns",)


class StackFailed(RuntimeError):
    """The stack is not in the state that was asked for. The message lists the reasons, and what to do."""


def find_stack(cloudformation: Any, name: str) -> dict[str, Any] | None:
    """Return the description of a stack, or None if it does not exist."""
    try:
        (stack,) = cloudformation.describe_stacks(StackName=name)["Stacks"]
    except ClientError as error:
        if error.response["Error"]["Code"] == "ValidationError" and "does not exist" in str(error):
            return None
        raise
    found: dict[str, Any] = stack
    return found


def outputs(stack: Mapping[str, Any]) -> dict[str, str]:
    """Return the outputs of a stack by their key."""
    return {output["OutputKey"]: output["OutputValue"] for output in stack.get("Outputs", [])}


def settings(stack: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings of Orchard that the outputs of a stack contain.

    >>> settings({"Outputs": [{"OutputKey": "CatalogDatabase", "OutputValue": "orchard"}]})
    {'ORCHARD_CATALOG_DATABASE': 'orchard'}
    """
    return {
        "ORCHARD_" + re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).upper(): value
        for key, value in outputs(stack).items()
        if key not in OTHER_OUTPUTS
    }


def wait(cloudformation: Any, stack_id: str, seen: set[str], wanted: Sequence[str]) -> dict[str, Any]:
    """Wait until a stack is in one of the wanted states, and return its description.

    Raises:
        StackFailed: it ended in another state. The message contains the reason for each resource that failed.
    """
    failed: list[str] = []
    while True:
        stack = find_stack(cloudformation, stack_id)
        if stack is None:
            raise StackFailed(f"stack {stack_id} does not exist any more: somebody has deleted it")
        for event in reversed(events(cloudformation, stack_id)):
            if event["EventId"] in seen:
                continue
            seen.add(event["EventId"])
            reason = event.get("ResourceStatusReason", "")
            line = f"{event['LogicalResourceId']} {event['ResourceStatus']}"
            log.info("%s%s", line, f": {reason}" if reason else "")
            if event["ResourceStatus"].endswith("_FAILED") and "cancelled" not in reason:
                failed.append(f"{line}: {reason}")
        state = stack["StackStatus"]
        if not state.endswith("_IN_PROGRESS"):
            if state in wanted:
                return stack
            reasons = "; ".join(failed) or stack.get("StackStatusReason", "CloudFormation gives no reason")
            raise StackFailed(f"stack {stack['StackName']} is in {state}: {reasons}")
        time.sleep(POLL_SECONDS)


def events(cloudformation: Any, name: str) -> list[dict[str, Any]]:
    """Return the events of a stack, newest first."""
    pages = cloudformation.get_paginator("describe_stack_events").paginate(StackName=name)
    return [event for page in pages for event in page["StackEvents"]]
