"""What EMR refuses: requests that do not fit botocore's model of the service, and those that break EMR's own rules."""

import gzip
import json
from functools import cache
from importlib.resources import files
from typing import Any

from botocore.model import ListShape, MapShape, OperationModel, Shape, StructureShape
from botocore.validate import ParamValidator

from local_aws.emr.errors import ValidationFailed
from local_aws.emr.model import Wire

MAX_BOOTSTRAP_ACTIONS = 16


@cache
def release_labels(region: str) -> frozenset[str]:
    """The release labels that moto knows in a region; none in an unknown region."""
    table = files("moto") / f"emr/resources/release-labels-{region}.json.gz"
    return frozenset(json.loads(gzip.decompress(table.read_bytes()))) if table.is_file() else frozenset()


def check_cluster(request: Wire, region: str) -> None:
    """Check a RunJobFlow request by EMR's own rules.

    Raises:
        ValidationFailed: it breaks one.
    """
    label = request.get("ReleaseLabel")
    if label not in release_labels(region):
        raise ValidationFailed(f"The supplied release label is invalid: {label}.")
    if len(request.get("BootstrapActions", [])) > MAX_BOOTSTRAP_ACTIONS:
        raise ValidationFailed("The maximum number of bootstrap actions is 16.")


def check_parameters(model: OperationModel, parameters: Wire) -> None:
    """Check a request against the service model: required members, types, lengths, and enums.

    Raises:
        ValidationFailed: it does not fit; the message lists every fault.
    """
    shape = model.input_shape
    if shape is None:
        return
    report = ParamValidator().validate(parameters, shape)
    faults = [report.generate_report()] if report.has_errors() else []
    # botocore's validator leaves enums to the service, and that is us.
    faults += [] if report.has_errors() else _wrong_enums(shape, parameters, "")
    if faults:
        raise ValidationFailed(f"{len(faults)} validation error(s) in {model.name}: {'; '.join(faults)}")


def _wrong_enums(shape: Shape | None, value: Any, name: str) -> list[str]:
    match shape:
        case StructureShape():
            known = [(member, value[member]) for member in shape.members if member in value]
            return [fault for key, item in known for fault in _wrong_enums(shape.members[key], item, f"{name}.{key}")]
        case ListShape():
            return [
                fault
                for index, item in enumerate(value)
                for fault in _wrong_enums(shape.member, item, f"{name}[{index}]")
            ]
        case MapShape():
            return [fault for key, item in value.items() for fault in _wrong_enums(shape.value, item, f"{name}.{key}")]
    allowed = getattr(shape, "enum", [])
    if allowed and value not in allowed:
        return [f"Value '{value}' at '{name.lstrip('.')}' must be one of [{', '.join(allowed)}]"]
    return []
