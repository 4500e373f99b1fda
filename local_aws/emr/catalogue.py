"""What EMR offers, from the tables that moto ships: the release labels of a region, the instance types of a release."""

import gzip
import json
from functools import cache
from importlib.resources import files
from typing import Any


@cache
def release_labels(region: str) -> tuple[str, ...]:
    """The release labels of a region, newest first; none in an unknown region."""
    return tuple(_table(f"release-labels-{region}") or ())


@cache
def instance_types(label: str) -> tuple[str, ...]:
    """The instance types of a release; none of an unknown one."""
    return tuple(_table(f"instance-types-{label}") or ())


@cache
def instance_type_details() -> dict[str, dict[str, Any]]:
    """What ListSupportedInstanceTypes says of each instance type."""
    table: dict[str, dict[str, Any]] = _table("instance_types")
    return table


def _table(name: str) -> Any:
    table = files("moto") / f"emr/resources/{name}.json.gz"
    return json.loads(gzip.decompress(table.read_bytes())) if table.is_file() else None
