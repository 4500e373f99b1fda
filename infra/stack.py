"""The CloudFormation stack of a deployment: its state, and the settings that it gives to Orchard."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

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
