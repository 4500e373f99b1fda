"""The query protocol of CloudFormation: read a request, call its operation, and return the response or error."""

import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import boto3
from botocore.config import Config
from moto.core.parse import QueryParser
from moto.core.serialize import QuerySerializer
from moto.core.utils import get_service_model
from werkzeug.wrappers import Request, Response

from local_aws.cloudformation.resources import Services
from local_aws.cloudformation.stacks import Event, Resource, Stack, StackError, Stacks
from local_aws.cloudformation.template import BadTemplate, read_template
from local_aws.signature import region_of
from local_aws.state import StateFolder

log = logging.getLogger(__name__)

SERVICE = "cloudformation"
Wire: TypeAlias = dict[str, Any]


class CloudFormationApi:
    """Responds to HTTP requests for CloudFormation."""

    def __init__(self, endpoint_url: str, state: StateFolder) -> None:
        self.stacks = Stacks(state, lambda region: _services(endpoint_url, region))
        self._model = get_service_model(SERVICE)

    def respond(self, request: Request) -> Response:
        """Return the response to an HTTP request."""
        name = request.form.get("Action", "")
        result: Any
        if name not in OPERATIONS:
            text = f"the local AWS does not support {name or 'a request without Action'}; it supports "
            result = StackError(text + ", ".join(OPERATIONS))
            name = "CreateStack" if name not in self._model.operation_names else name
        else:
            try:
                # The parser of moto wants the parts of a request that its own server passes.
                parameters = QueryParser(self._model.operation_model(name)).parse(_parts(request))
                result = OPERATIONS[name](self.stacks, region_of(request.environ), parameters)
            except StackError as error:
                result = error
            except Exception:
                log.exception("%s failed", name)
                result = StackError(f"{name} failed; see the log of the local AWS", "InternalFailure")
        response = QuerySerializer(self._model.operation_model(name)).serialize(result)
        return Response(response["body"], status=response["status_code"], content_type="text/xml")


def _parts(request: Request) -> Any:
    return {
        "body": request.get_data(),
        "headers": request.headers,
        "method": request.method,
        "url_params": {},
        "url_path": request.path,
        "values": request.values,
    }


def _services(endpoint_url: str, region: str) -> Services:
    """Return a function that returns the boto3 client for a service of this local AWS."""
    session = boto3.Session("local", "local", region_name=region)

    def client(service: str) -> Any:
        return session.client(service, endpoint_url=endpoint_url, config=Config(retries={"total_max_attempts": 1}))  # type: ignore[call-overload]

    return client


def _create_stack(stacks: Stacks, region: str, request: Wire) -> Wire:
    stack = stacks.create(region, request["StackName"], _body(request), _given(request), request.get("Tags", []))
    return {"StackId": stack.id}


def _update_stack(stacks: Stacks, region: str, request: Wire) -> Wire:
    body = None if request.get("UsePreviousTemplate") else _body(request)
    parameters = {
        item["ParameterKey"]: None if item.get("UsePreviousValue") else item["ParameterValue"]
        for item in request.get("Parameters", [])
    }
    return {"StackId": stacks.update(region, request["StackName"], body, parameters).id}


def _delete_stack(stacks: Stacks, region: str, request: Wire) -> Wire:
    stacks.delete(region, request["StackName"])
    return {}


def _describe_stacks(stacks: Stacks, region: str, request: Wire) -> Wire:
    name = request.get("StackName")
    found = [stacks.find(region, name)] if name else stacks.all(region)
    return {"Stacks": [_described(stack) for stack in found]}


def _list_stacks(stacks: Stacks, region: str, request: Wire) -> Wire:
    wanted = request.get("StackStatusFilter")
    return {
        "StackSummaries": [
            {key: value for key, value in _described(stack).items() if key not in ("Outputs", "Parameters", "Tags")}
            for stack in stacks.all(region)
            if not wanted or stack.status in wanted
        ]
    }


def _described(stack: Stack) -> Wire:
    times = {"LastUpdatedTime": stack.updated, "DeletionTime": stack.deleted}
    return {
        "StackId": stack.id,
        "StackName": stack.name,
        "CreationTime": stack.created,
        "StackStatus": stack.status,
        "StackStatusReason": stack.reason,
        "Parameters": [{"ParameterKey": key, "ParameterValue": value} for key, value in stack.parameters.items()],
        "Outputs": stack.outputs,
        "Tags": stack.tags,
        **{key: time for key, time in times.items() if time is not None},
    }


def _describe_stack_events(stacks: Stacks, region: str, request: Wire) -> Wire:
    stack = stacks.find(region, request["StackName"])
    return {"StackEvents": [_event(stack, event) for event in reversed(stack.events)]}


def _event(stack: Stack, event: Event) -> Wire:
    return {
        "StackId": stack.id,
        "EventId": event.id,
        "StackName": stack.name,
        "LogicalResourceId": event.logical_id,
        "PhysicalResourceId": event.physical_id,
        "ResourceType": event.type,
        "Timestamp": event.time,
        "ResourceStatus": event.status,
        **({"ResourceStatusReason": event.reason} if event.reason else {}),
    }


def _describe_stack_resources(stacks: Stacks, region: str, request: Wire) -> Wire:
    stack = stacks.find(region, request["StackName"])
    wanted = request.get("LogicalResourceId")
    found = [resource for resource in stack.resources.values() if wanted in (None, resource.logical_id)]
    return {
        "StackResources": [
            {"StackName": stack.name, "StackId": stack.id, "Timestamp": resource.time, **_resource(resource)}
            for resource in found
        ]
    }


def _list_stack_resources(stacks: Stacks, region: str, request: Wire) -> Wire:
    stack = stacks.find(region, request["StackName"])
    found = stack.resources.values()
    return {"StackResourceSummaries": [{"LastUpdatedTimestamp": item.time, **_resource(item)} for item in found]}


def _resource(resource: Resource) -> Wire:
    return {
        "LogicalResourceId": resource.logical_id,
        "PhysicalResourceId": resource.id,
        "ResourceType": resource.type,
        "ResourceStatus": resource.status,
    }


def _get_template(stacks: Stacks, region: str, request: Wire) -> Wire:
    return {"TemplateBody": stacks.find(region, request["StackName"]).body}


def _validate_template(stacks: Stacks, region: str, request: Wire) -> Wire:
    try:
        template = read_template(_body(request))
    except BadTemplate as error:
        raise StackError(str(error)) from error
    return {
        "Description": template.get("Description", ""),
        "Parameters": [
            {
                "ParameterKey": key,
                "Description": rules.get("Description", ""),
                **({"DefaultValue": str(rules["Default"])} if "Default" in rules else {}),
            }
            for key, rules in template.get("Parameters", {}).items()
        ],
    }


def _body(request: Wire) -> str:
    if "TemplateBody" not in request:
        raise StackError("the local AWS supports TemplateBody only, not TemplateURL")
    return str(request["TemplateBody"])


def _given(request: Wire) -> dict[str, str]:
    return {item["ParameterKey"]: item["ParameterValue"] for item in request.get("Parameters", [])}


OPERATIONS: Mapping[str, Callable[[Stacks, str, Wire], Wire]] = {
    "CreateStack": _create_stack,
    "UpdateStack": _update_stack,
    "DeleteStack": _delete_stack,
    "DescribeStacks": _describe_stacks,
    "ListStacks": _list_stacks,
    "DescribeStackEvents": _describe_stack_events,
    "DescribeStackResources": _describe_stack_resources,
    "ListStackResources": _list_stack_resources,
    "GetTemplate": _get_template,
    "ValidateTemplate": _validate_template,
}
