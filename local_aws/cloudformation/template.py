"""Read templates, and resolve their functions and conditions."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Any, Final, TypeAlias

from cfnlint.decode import cfn_yaml

Template: TypeAlias = dict[str, Any]

# What AWS::NoValue stands for: the property or the item is left out.
NO_VALUE: Final = object()
_PLACEHOLDER = re.compile(r"\$\{(!?)([^}]+)\}")


class BadTemplate(Exception):
    """A template or parameters that cannot be used. The message names the part, its value and what is wrong."""


def read_template(text: str) -> Template:
    """Return the content of a template in YAML or JSON. Short forms of functions become long ones: `!Ref` is `Ref`.

    Raises:
        BadTemplate: the text is not a template.
    """
    try:
        template = cfn_yaml.loads(text)
    except Exception as error:  # of a YAML parser, or of cfn-lint for duplicate keys
        raise BadTemplate(f"Template format error: {error}") from error
    if not isinstance(template, dict) or not isinstance(template.get("Resources"), dict):
        raise BadTemplate("Template format error: At least one Resources member must be defined.")
    return _plain(template)  # type: ignore[no-any-return]


def _plain(value: Any) -> Any:
    """Return a value of cfn-lint's own types in Python's types, so that it can be stored."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, str) else value


def parameter_values(template: Template, given: Mapping[str, str]) -> dict[str, str | list[str]]:
    """Return the value of each parameter of a template: the given one, or its default. Lists are split.

    Raises:
        BadTemplate: a parameter is unknown, missing or not allowed.
    """
    parameters: Mapping[str, Any] = template.get("Parameters", {})
    if unknown := sorted(given.keys() - parameters.keys()):
        raise BadTemplate(f"Parameters: [{', '.join(unknown)}] do not exist in the template")
    values: dict[str, str | list[str]] = {}
    for name, rules in parameters.items():
        if name not in given and "Default" not in rules:
            raise BadTemplate(f"Parameters: [{name}] must have values")
        value = str(given.get(name, rules.get("Default")))
        _check_parameter(name, value, rules)
        is_list = rules["Type"] == "CommaDelimitedList" or rules["Type"].startswith("List<")
        values[name] = [item.strip() for item in value.split(",")] if is_list else value
    return values


def _check_parameter(name: str, value: str, rules: Mapping[str, Any]) -> None:
    hint = f" {rules['ConstraintDescription']}" if "ConstraintDescription" in rules else ""
    pattern, allowed = rules.get("AllowedPattern"), rules.get("AllowedValues")
    if pattern is not None and not re.fullmatch(pattern, value):
        raise BadTemplate(f"Parameter '{name}' is {value!r}: it must match pattern {pattern}.{hint}")
    if allowed is not None and value not in [str(item) for item in allowed]:
        raise BadTemplate(f"Parameter '{name}' must be one of AllowedValues {allowed}, and is {value!r}.{hint}")
    if rules["Type"] == "Number":
        try:
            number = float(value)
        except ValueError as error:
            raise BadTemplate(f"Parameter '{name}' must be a number, and is {value!r}.{hint}") from error
        if not float(rules.get("MinValue", "-inf")) <= number <= float(rules.get("MaxValue", "inf")):
            raise BadTemplate(f"Parameter '{name}' is {value}, which is out of its range.{hint}")


@dataclass
class Scope:
    """What functions refer to: parameters and pseudo parameters, conditions, and the resources that exist.

    `refs` holds what `Ref` returns, and `attributes` what `Fn::GetAtt` returns, by the logical id of a resource.
    """

    template: Template
    values: Mapping[str, Any]
    zones: Callable[[], list[str]]
    refs: dict[str, str] = field(default_factory=dict)
    attributes: dict[str, Mapping[str, str]] = field(default_factory=dict)

    def holds(self, condition: str | None) -> bool:
        """Return whether a condition of the template holds. An item without a condition is always used."""
        if condition is None:
            return True
        conditions = self.template.get("Conditions", {})
        if condition not in conditions:
            raise BadTemplate(f"Template validation error: condition {condition} is not defined")
        return bool(self.resolve(conditions[condition]))

    def resolve(self, value: Any) -> Any:
        """Return a value of the template with the results of its functions.

        Raises:
            BadTemplate: a function is not supported, or refers to something that does not exist.
        """
        if isinstance(value, list):
            items = [self.resolve(item) for item in value]
            return [item for item in items if item is not NO_VALUE]
        if not isinstance(value, dict):
            return value
        if len(value) == 1:
            ((name, argument),) = value.items()
            if name in ("Ref", "Condition") and isinstance(argument, str):
                return self._ref(argument) if name == "Ref" else self.holds(argument)
            if name.startswith("Fn::"):
                return self._call(name.removeprefix("Fn::"), argument)
        resolved = {key: self.resolve(item) for key, item in value.items()}
        return {key: item for key, item in resolved.items() if item is not NO_VALUE}

    def _ref(self, name: str) -> Any:
        if name == "AWS::NoValue":
            return NO_VALUE
        if name in self.values:
            return self.values[name]
        if name in self.refs:
            return self.refs[name]
        raise BadTemplate(f"Template validation error: Ref {name} does not exist, or its condition does not hold")

    def _attribute(self, name: str, attribute: str) -> str:
        try:
            return self.attributes[name][attribute]
        except KeyError as error:
            raise BadTemplate(f"Template validation error: Fn::GetAtt {name}.{attribute} does not exist") from error

    def _call(self, name: str, argument: Any) -> Any:
        match name:
            case "GetAtt":
                logical_id, attribute = argument.split(".", 1) if isinstance(argument, str) else argument
                return self._attribute(logical_id, attribute)
            case "Sub":
                return self._substitute(argument)
            case "If":
                condition, then, otherwise = argument
                return self.resolve(then if self.holds(condition) else otherwise)
            case "Equals":
                first, second = (self.resolve(item) for item in argument)
                return str(first) == str(second)
            case "Not":
                return not self.resolve(argument[0])
            case "And":
                return all(self.resolve(item) for item in argument)
            case "Or":
                return any(self.resolve(item) for item in argument)
            case "Join":
                separator, items = argument
                return separator.join(str(item) for item in self.resolve(items))
            case "Select":
                number, items = argument
                return self.resolve(items)[int(number)]
            case "GetAZs":
                return self.zones()
        raise BadTemplate(f"the local AWS does not support the function Fn::{name}")

    def _substitute(self, argument: Any) -> str:
        text, own = (argument, {}) if isinstance(argument, str) else argument
        values = {key: self.resolve(item) for key, item in own.items()}

        def replacement(found: re.Match[str]) -> str:
            literal, name = found.groups()
            if literal:
                return f"${{{name}}}"
            if name in values:
                return str(values[name])
            return str(self._attribute(*name.split(".", 1)) if "." in name else self._ref(name))

        return _PLACEHOLDER.sub(replacement, text)


def references(value: Any) -> Iterator[str]:
    """Yield the names that the functions in a value refer to."""
    if isinstance(value, list):
        for item in value:
            yield from references(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key == "Ref":
                yield item
            elif key == "Fn::GetAtt":
                yield item.split(".", 1)[0] if isinstance(item, str) else item[0]
            elif key == "Fn::Sub":
                text, own = (item, {}) if isinstance(item, str) else item
                yield from (name.split(".", 1)[0] for literal, name in _PLACEHOLDER.findall(text) if not literal)
                yield from references(own)
            else:
                yield from references(item)


def creation_order(template: Template) -> list[str]:
    """Return the logical ids of the resources so that each comes after those that it depends on.

    Raises:
        BadTemplate: resources depend on each other.
    """
    resources = template["Resources"]
    graph = {}
    for logical_id, resource in resources.items():
        explicit = resource.get("DependsOn", [])
        needed = {*references(resource.get("Properties", {})), *([explicit] if isinstance(explicit, str) else explicit)}
        graph[logical_id] = sorted(needed & resources.keys())
    try:
        return list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise BadTemplate(f"Circular dependency between resources: [{', '.join(error.args[1])}]") from error
