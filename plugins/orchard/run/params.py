"""The params of a run, parsed once: by the task `plan`, before anything is requested or created."""

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Self

from orchard.cluster.instances import INSTANCE_TYPES
from orchard.cluster.memory import executor_memory, python_mib_needed
from orchard.dataset.uri import check_dataset_uri
from orchard.errors import PermanentError

MAX_CORE_INSTANCES = 20
DEFAULT_TARGET_MINUTES = 20
MAX_HOLD_MINUTES = 240
# MobileNetV2 has this many features per image, and a PCA at most as many components.
MAX_COMPONENTS = 1280
# Photographs are smaller. A worker holds an object several times while it packs it.
DEFAULT_MAX_BYTES = 64 * 1024**2
# A record batch of the steps can hold less than 2 GiB of content.
LARGEST_MAX_BYTES = 1024**3
# The default of ingest.py, which Airflow cannot import. A test compares the two.
DEFAULT_MAX_PIXELS = 50_000_000
# Fit the PCA to the images of the run, or use the basis that the dataset's published run has.
PCA_MODES = REFIT, FROZEN = "refit", "frozen"


class UnknownParams(PermanentError):
    """The run was triggered with params that the DAG does not have. Airflow accepts them silently."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(f"unknown params {', '.join(map(_with_nearest, names))}: use {', '.join(PARAMS)}")


class BadParams(PermanentError):
    """At least one param has a value that a run cannot use. The message lists every fault."""


@dataclass(frozen=True, kw_only=True)
class RunParams:
    """The params of a run, valid and with the type that they are used as.

    `n_components` is a whole number of components, or the share of the variance to keep. If `pca_mode` is "frozen", it
    is not used. An object of more than `max_bytes`, or an image of more than `max_pixels`, is rejected. With
    `retry_rejects`, the run reads objects again that an earlier run rejected; with `full_refresh`, all objects.

    The dataset may have lost a share of at most `max_lost_ratio` of the images of its published run.

    Without `core_instances`, the run has as many workers as it needs to finish within `target_minutes`. A run whose
    estimated price is above `max_cost_usd` is refused.

    The cluster is kept for `hold_minutes` after `publish`, so that a person can look around on it.
    """

    dataset_uri: str
    n_components: int | float
    pca_mode: str
    max_reject_ratio: float
    max_lost_ratio: float
    max_bytes: int
    max_pixels: int
    retry_rejects: bool
    full_refresh: bool
    instance_type: str
    core_instances: int | None
    target_minutes: float
    max_cost_usd: float | None
    hold_minutes: int

    @classmethod
    def parse(cls, params: Mapping[str, Any]) -> Self:
        """Parse the params that Airflow's form or API hands over.

        JSON does not distinguish 2 from 2.0, so a whole float counts as a whole number. Text never counts as a number.

        Raises:
            UnknownParams: a param is misspelt. Without this check the run would use the nightly run's value.
            BadParams: a param is missing, its value is invalid, or the workers have too little memory for the images.
        """
        unknown = sorted(set(params) - set(PARAMS))
        if unknown:
            raise UnknownParams(unknown)
        faults: list[str] = []
        values: dict[str, Any] = {}
        for name, parse in PARSERS.items():
            if name not in params:
                faults.append(f"{name} is missing")
                continue
            try:
                values[name] = parse(params[name])
            except ValueError as error:
                faults.append(f"{name} is {params[name]!r}: {error}")
        if faults:
            raise BadParams("; ".join(faults))
        parsed = cls(**values)
        parsed._check_memory()
        return parsed

    def _check_memory(self) -> None:
        needed_mib = python_mib_needed(self.instance_type, self.max_bytes, self.max_pixels)
        given_mib = executor_memory(self.instance_type).python_mib
        if needed_mib > given_mib:
            raise BadParams(
                f"max_bytes is {self.max_bytes} and max_pixels is {self.max_pixels}: images up to these sizes take "
                f"{needed_mib:,} MiB of a worker's memory, and {self.instance_type} has {given_mib:,} MiB for them. "
                "Use smaller values, or an instance_type with more memory"
            )


PARAMS = tuple(field.name for field in fields(RunParams))


def _with_nearest(unknown: str) -> str:
    """Return the name of an unknown param, with the param that it may stand for."""
    nearest = difflib.get_close_matches(unknown, PARAMS, 1)
    return f"{unknown!r} (did you mean {nearest[0]}?)" if nearest else repr(unknown)


def _n_components(value: object) -> int | float:
    number = _number(value)
    if number is not None and 0 < number < 1:
        return float(number)
    if number is not None and number == math.floor(number) and 1 <= number <= MAX_COMPONENTS:
        return int(number)
    raise ValueError(
        f"use a whole number of components from 1 to {MAX_COMPONENTS}, or a share of the variance between 0 and 1"
    )


def _ratio(value: object) -> float:
    number = _number(value)
    if number is None or not 0 <= number <= 1:
        raise ValueError("use a number from 0 to 1")
    return float(number)


def _pca_mode(value: object) -> str:
    if not isinstance(value, str) or value not in PCA_MODES:
        raise ValueError(f"choose from {', '.join(PCA_MODES)}")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("use true or false")
    return value


def _instance_type(value: object) -> str:
    if not isinstance(value, str) or value not in INSTANCE_TYPES:
        raise ValueError(f"choose from {', '.join(INSTANCE_TYPES)}")
    return value


def _positive(value: object) -> float:
    number = _number(value)
    if number is None or number <= 0:
        raise ValueError("use a number above 0")
    return float(number)


def _optional(parse: Callable[[object], Any], value: object) -> Any:
    return None if value is None else parse(value)


def _whole_number(value: object, largest: int | None = None, least: int = 1) -> int:
    number = _number(value)
    if number is None or number != math.floor(number) or number < least or (largest is not None and number > largest):
        raise ValueError(f"use a whole number from {least}" + ("" if largest is None else f" to {largest}"))
    return int(number)


def _number(value: object) -> int | float | None:
    """Return a finite number, or None for anything else. In Python a bool is an int."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if isinstance(value, int) or math.isfinite(value) else None


PARSERS: Mapping[str, Callable[[object], Any]] = {
    "dataset_uri": check_dataset_uri,
    "n_components": _n_components,
    "pca_mode": _pca_mode,
    "max_reject_ratio": _ratio,
    "max_lost_ratio": _ratio,
    "max_bytes": partial(_whole_number, largest=LARGEST_MAX_BYTES),
    "max_pixels": _whole_number,
    "retry_rejects": _flag,
    "full_refresh": _flag,
    "instance_type": _instance_type,
    "core_instances": partial(_optional, partial(_whole_number, largest=MAX_CORE_INSTANCES)),
    "target_minutes": _positive,
    "max_cost_usd": partial(_optional, _positive),
    "hold_minutes": partial(_whole_number, largest=MAX_HOLD_MINUTES, least=0),
}
