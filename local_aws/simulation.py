"""Answer IAM's SimulatePrincipalPolicy for roles, which moto does not implement.

https://docs.aws.amazon.com/IAM/latest/APIReference/API_SimulatePrincipalPolicy.html
"""

import re
from collections.abc import Mapping, Sequence
from urllib.parse import parse_qs
from xml.etree.ElementTree import Element, SubElement, tostring

from werkzeug.wrappers import Response

from local_aws.policies import Decision, decide, find_role

SIMULATE = "SimulatePrincipalPolicy"
_NAMESPACE = "https://iam.amazonaws.com/doc/2010-05-08/"


def simulate(body: bytes) -> Response:
    """Return the response to a SimulatePrincipalPolicy request: the decision for each action on each resource.

    Only the policies of a role are evaluated. Parameters other than the role, the actions, the resources and the
    context are ignored.
    """
    parameters = {key: values[0] for key, values in parse_qs(body.decode()).items()}
    arn = parameters.get("PolicySourceArn", "")
    role = find_role(arn) if ":role/" in arn else None
    if role is None or role.arn != arn:
        return _error(f"The role with the ARN {arn} cannot be found.")
    names = _members(parameters, r"ContextEntries\.member\.(\d+)\.ContextKeyName")
    context = {
        name.lower(): list(
            _members(parameters, rf"ContextEntries\.member\.{number}\.ContextKeyValues\.member\.(\d+)").values()
        )
        for number, name in names.items()
    }
    actions = _members(parameters, r"ActionNames\.member\.(\d+)").values()
    resources = list(_members(parameters, r"ResourceArns\.member\.(\d+)").values()) or ["*"]
    root = Element(f"{SIMULATE}Response", xmlns=_NAMESPACE)
    result = SubElement(root, f"{SIMULATE}Result")
    SubElement(result, "IsTruncated").text = "false"
    found = SubElement(result, "EvaluationResults")
    for action in actions:
        for resource in resources:
            _add_result(found, action, resource, decide(role, action, resource, context))
    return Response(tostring(root), content_type="text/xml")


def _members(parameters: Mapping[str, str], pattern: str) -> dict[str, str]:
    """Return the parameters whose name matches a pattern, by its group, the number of the member."""
    matches = {name: re.fullmatch(pattern, name) for name in parameters}
    return {match[1]: parameters[name] for name, match in matches.items() if match}


def _add_result(results: Element, action: str, resource: str, decision: Decision) -> None:
    member = SubElement(results, "member")
    SubElement(member, "EvalActionName").text = action
    SubElement(member, "EvalResourceName").text = resource
    SubElement(member, "EvalDecision").text = decision.value
    # IAM reports the missing keys per resource, if the request names resources.
    _add_list(member, "MissingContextValues", decision.missing_keys if resource == "*" else ())
    if resource != "*":
        specific = SubElement(SubElement(member, "ResourceSpecificResults"), "member")
        SubElement(specific, "EvalResourceName").text = resource
        SubElement(specific, "EvalResourceDecision").text = decision.value
        _add_list(specific, "MissingContextValues", decision.missing_keys)


def _add_list(parent: Element, name: str, values: Sequence[str]) -> None:
    items = SubElement(parent, name)
    for value in values:
        SubElement(items, "member").text = value


def _error(message: str) -> Response:
    root = Element("ErrorResponse", xmlns=_NAMESPACE)
    error = SubElement(root, "Error")
    for name, text in (("Type", "Sender"), ("Code", "NoSuchEntity"), ("Message", message)):
        SubElement(error, name).text = text
    return Response(tostring(root), status=404, content_type="text/xml")
