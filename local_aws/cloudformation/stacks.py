"""Create, update and delete stacks. A failure rolls back what was done before it.

Each call returns when the stack is complete. On AWS, it returns at once, and the stack is IN_PROGRESS for minutes.
"""

import logging
import secrets
import string
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final

from botocore.exceptions import BotoCoreError, ClientError
from moto.core import DEFAULT_ACCOUNT_ID

from local_aws.cloudformation.resources import KINDS, Made, Services, arguments, kind_of
from local_aws.cloudformation.template import (
    BadTemplate,
    Scope,
    Template,
    creation_order,
    parameter_values,
    read_template,
)
from local_aws.state import StateFolder

log = logging.getLogger(__name__)

STACKS: Final = "stacks"
DELETED: Final = "DELETE_COMPLETE"
_LETTERS: Final = string.ascii_uppercase + string.digits


class StackError(Exception):
    """An error response of CloudFormation; `code` is what boto3 shows as Error.Code."""

    def __init__(self, message: str, code: str = "ValidationError") -> None:
        super().__init__(message)
        self.message, self.code = message, code  # moto's serializer reads both


@dataclass(frozen=True)
class Resource:
    """A resource of a stack, with the properties with which it was created or changed last."""

    logical_id: str
    type: str
    id: str
    properties: Mapping[str, Any]
    attributes: Mapping[str, str]
    status: str = "CREATE_COMPLETE"
    time: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass(frozen=True)
class Event:
    """One line of the history of a stack."""

    logical_id: str
    type: str
    physical_id: str
    status: str
    reason: str = ""
    time: datetime = field(default_factory=lambda: datetime.now(UTC))
    id: str = field(default_factory=lambda: secrets.token_hex(16))


@dataclass
class Stack:
    """A stack. `resources` is in the order of creation."""

    name: str
    region: str
    body: str
    parameters: Mapping[str, str]
    tags: list[dict[str, str]]
    status: str = "CREATE_IN_PROGRESS"
    reason: str = ""
    id: str = ""
    created: datetime = field(default_factory=lambda: datetime.now(UTC))
    updated: datetime | None = None
    deleted: datetime | None = None
    resources: dict[str, Resource] = field(default_factory=dict)
    outputs: list[dict[str, str]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    def note(self, status: str, reason: str = "") -> None:
        """Set the status of the stack."""
        self.status, self.reason = status, reason
        self.events.append(Event(self.name, "AWS::CloudFormation::Stack", self.id, status, reason))
        log.info("stack %s: %s%s", self.name, status, f" {reason}" if reason else "")


class Stacks:
    """The stacks of all regions."""

    def __init__(self, state: StateFolder, services: Callable[[str], Services]) -> None:
        """Create no stack. `services` returns the services of a region."""
        self._state = state
        self._services = services
        self._stacks: dict[tuple[str, str], Stack] = {}
        self._deleted: list[Stack] = []
        self._lock = threading.Lock()

    def restore(self) -> None:
        """Load the stacks that an earlier server saved.

        Raises:
            local_aws.state.UnusableState: they cannot be read.
        """
        for stack in self._state.read(STACKS):
            self._stacks[stack.region, stack.name] = stack

    def find(self, region: str, name: str) -> Stack:
        """Return a stack by its name or id. A deleted one is found by its id only.

        Raises:
            StackError: it does not exist.
        """
        for stack in [*self._stacks.values(), *self._deleted]:
            if stack.region == region and (stack.id == name or (stack.name == name and stack.status != DELETED)):
                return stack
        raise StackError(f"Stack with id {name} does not exist")

    def all(self, region: str) -> list[Stack]:
        """Return the stacks of a region that are not deleted."""
        return [stack for stack in self._stacks.values() if stack.region == region]

    def create(
        self, region: str, name: str, body: str, parameters: Mapping[str, str], tags: list[dict[str, str]]
    ) -> Stack:
        """Create a stack.

        Raises:
            StackError: the stack exists, or the template or a parameter is wrong.
        """
        with self._lock:
            if (region, name) in self._stacks:
                raise StackError(f"Stack [{name}] already exists", "AlreadyExistsException")
            scope, order = self._scope(region, name, body, parameters)
            identifier = f"arn:aws:cloudformation:{region}:{DEFAULT_ACCOUNT_ID}:stack/{name}/{secrets.token_hex(16)}"
            stack = Stack(name, region, body, dict(parameters), tags, id=identifier)
            scope.values = {**scope.values, "AWS::StackId": identifier}
            stack.note("CREATE_IN_PROGRESS", "User Initiated")
            self._stacks[region, name] = stack
            if fault := self._apply(stack, scope, order):
                stack.note("ROLLBACK_IN_PROGRESS", fault)
                self._remove(stack, list(stack.resources), created=True)
                stack.note("ROLLBACK_COMPLETE")
            else:
                stack.outputs = _outputs(scope)
                stack.note("CREATE_COMPLETE")
            self._save(stack)
            return stack

    def update(self, region: str, name: str, body: str | None, parameters: Mapping[str, str | None]) -> Stack:
        """Change a stack. Without a body, its template stays. A parameter that is None keeps its value.

        Raises:
            StackError: the stack does not exist, nothing changes, or the template or a parameter is wrong.
        """
        with self._lock:
            stack = self.find(region, name)
            if stack.status.startswith("ROLLBACK"):
                raise StackError(f"Stack:{stack.id} is in {stack.status} state and can not be updated.")
            text = stack.body if body is None else body
            given = {
                key: stack.parameters[key] if value is None else value
                for key, value in parameters.items()
                if value is not None or key in stack.parameters
            }
            scope, order = self._scope(region, stack.name, text, given)
            scope.values = {**scope.values, "AWS::StackId": stack.id}
            if text == stack.body and given == stack.parameters:
                raise StackError("No updates are to be performed.")
            before, old_resources = replace(stack), dict(stack.resources)
            stack.note("UPDATE_IN_PROGRESS", "User Initiated")
            if fault := self._apply(stack, scope, order):
                stack.note("UPDATE_ROLLBACK_IN_PROGRESS", fault)
                old_scope, old_order = self._scope(region, stack.name, before.body, before.parameters)
                old_scope.values = {**old_scope.values, "AWS::StackId": stack.id}
                again = self._apply(stack, old_scope, old_order)
                self._remove(stack, [key for key in stack.resources if key not in old_resources], created=True)
                stack.note("UPDATE_ROLLBACK_FAILED" if again else "UPDATE_ROLLBACK_COMPLETE", again)
            else:
                gone = [key for key in stack.resources if key not in order]
                self._remove(stack, gone, created=False)
                stack.body, stack.parameters, stack.outputs = text, given, _outputs(scope)
                stack.note("UPDATE_COMPLETE")
            stack.updated = datetime.now(UTC)
            self._save(stack)
            return stack

    def delete(self, region: str, name: str) -> None:
        """Delete a stack, except for resources that its template retains. As on AWS, a missing stack is no error."""
        with self._lock:
            try:
                stack = self.find(region, name)
            except StackError:
                return
            if stack.status == DELETED:
                return
            stack.note("DELETE_IN_PROGRESS", "User Initiated")
            if fault := self._remove(stack, list(stack.resources), created=False):
                stack.note("DELETE_FAILED", fault)
                self._save(stack)
                return
            stack.note(DELETED)
            stack.deleted = datetime.now(UTC)
            del self._stacks[region, stack.name]
            self._deleted.append(stack)
            self._state.remove(STACKS, f"{region}/{stack.name}")

    def _save(self, stack: Stack) -> None:
        self._state.write(STACKS, f"{stack.region}/{stack.name}", stack)

    def _scope(self, region: str, name: str, body: str, parameters: Mapping[str, str]) -> tuple[Scope, list[str]]:
        """Return what the functions of a template refer to, and the resources whose condition holds, in their order."""
        try:
            template = read_template(body)
            values: dict[str, Any] = {
                **parameter_values(template, parameters),
                "AWS::AccountId": DEFAULT_ACCOUNT_ID,
                "AWS::Region": region,
                "AWS::StackName": name,
                "AWS::StackId": "",
                "AWS::Partition": "aws",
                "AWS::URLSuffix": "amazonaws.com",
            }
            scope = Scope(template, values, lambda: self._zones(region))
            order = [key for key in creation_order(template) if scope.holds(_condition(template, key))]
            for key in order:
                resource = template["Resources"][key]
                arguments(resource["Type"], resource.get("Properties", {}))
        except BadTemplate as error:
            raise StackError(str(error)) from error
        return scope, order

    def _zones(self, region: str) -> list[str]:
        found = self._services(region)("ec2").describe_availability_zones()["AvailabilityZones"]
        return sorted(zone["ZoneName"] for zone in found)

    def _apply(self, stack: Stack, scope: Scope, order: list[str]) -> str:
        """Create or change the resources of a template. Return why that failed, or an empty string."""
        services = self._services(stack.region)
        replaced = []
        for logical_id in order:
            definition = scope.template["Resources"][logical_id]
            before = stack.resources.get(logical_id)
            try:
                properties = scope.resolve(definition.get("Properties", {}))
                if before is None or before.properties != properties:
                    made = self._put(stack, logical_id, definition["Type"], properties, before, services)
                    if before is not None and made.id != before.id:
                        replaced.append((before, definition.get("UpdateReplacePolicy")))
            except (BadTemplate, BotoCoreError, ClientError, KeyError, TypeError, ValueError) as error:
                status = "CREATE_FAILED" if before is None else "UPDATE_FAILED"
                stack.events.append(Event(logical_id, definition["Type"], "", status, str(error)))
                return f"The following resource(s) failed to {status[:6].lower()}: [{logical_id}]. {error}"
            resource = stack.resources[logical_id]
            scope.refs[logical_id], scope.attributes[logical_id] = resource.id, resource.attributes
        for old, policy in reversed(replaced):
            if policy != "Retain":
                self._delete_resource(stack, old, services)
        return ""

    def _put(
        self,
        stack: Stack,
        logical_id: str,
        type_name: str,
        properties: Mapping[str, Any],
        before: Resource | None,
        services: Services,
    ) -> Made:
        its = kind_of(type_name)
        existing = None if before is None or its.replaced else before.id
        suffix = "".join(secrets.choice(_LETTERS) for _ in range(12))
        name = f"{stack.name[:24]}-{logical_id}-{suffix}"
        made = its.put(services, name, existing, **arguments(type_name, properties))
        status = "CREATE_COMPLETE" if existing is None else "UPDATE_COMPLETE"
        stack.resources[logical_id] = Resource(logical_id, type_name, made.id, properties, made.attributes, status)
        stack.events.append(Event(logical_id, type_name, made.id, status))
        return made

    def _remove(self, stack: Stack, logical_ids: list[str], *, created: bool) -> str:
        """Delete resources in the reverse order of their creation. Return why that failed, or an empty string.

        Their DeletionPolicy counts. `created` means that the operation that created them is rolled back.
        """
        definitions = read_template(stack.body)["Resources"]
        services, failed = self._services(stack.region), []
        for logical_id in reversed(logical_ids):
            resource = stack.resources[logical_id]
            policy = definitions.get(logical_id, {}).get("DeletionPolicy", "")
            retained = policy == "Retain" or (policy == "RetainExceptOnCreate" and not created)
            if not retained and not self._delete_resource(stack, resource, services):
                failed.append(logical_id)
                continue
            del stack.resources[logical_id]
        return f"The following resource(s) failed to delete: [{', '.join(failed)}]." if failed else ""

    def _delete_resource(self, stack: Stack, resource: Resource, services: Services) -> bool:
        try:
            KINDS[resource.type].delete(services, resource.id, resource.properties)
        except (BotoCoreError, ClientError) as error:
            if "NotFound" not in str(error) and "NoSuch" not in str(error):  # somebody has deleted it already
                stack.events.append(Event(resource.logical_id, resource.type, resource.id, "DELETE_FAILED", str(error)))
                return False
        stack.events.append(Event(resource.logical_id, resource.type, resource.id, DELETED))
        return True


def _condition(template: Template, logical_id: str) -> str | None:
    condition: str | None = template["Resources"][logical_id].get("Condition")
    return condition


def _outputs(scope: Scope) -> list[dict[str, str]]:
    return [
        {
            "OutputKey": key,
            "OutputValue": str(scope.resolve(output["Value"])),
            **({"Description": output["Description"]} if "Description" in output else {}),
        }
        for key, output in scope.template.get("Outputs", {}).items()
        if scope.holds(output.get("Condition"))
    ]
