"""The release labels of each region and the instance types of each release, from the tables that moto ships."""

import gzip
import json
from functools import cache
from importlib.resources import files
from typing import Any


@cache
def release_labels(region: str) -> tuple[str, ...]:
    """Return the release labels of a region, newest first; none for an unknown region."""
    return tuple(_table(f"release-labels-{region}") or ())


@cache
def instance_types(label: str) -> tuple[str, ...]:
    """Return the instance types of a release; none for an unknown release."""
    return tuple(_table(f"instance-types-{label}") or ())


@cache
def instance_type_details() -> dict[str, dict[str, Any]]:
    """Return the SupportedInstanceType of ListSupportedInstanceTypes by instance type."""
    table: dict[str, dict[str, Any]] = _table("instance_types")
    return table


def _table(name: str) -> Any:
    table = files("moto") / f"emr/resources/{name}.json.gz"
    return json.loads(gzip.decompress(table.read_bytes())) if table.is_file() else None
