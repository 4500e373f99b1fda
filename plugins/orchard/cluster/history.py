"""What the earlier runs of a deployment show about the speed of its clusters."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from statistics import median

from orchard.cluster.sizing import Speed, Work

# The last runs count: a deployment can change its subnets, its instance types and its images.
RUNS_TO_LEARN_FROM = 10
# Spark's start takes a large share of a shorter step, and says nothing about its tasks.
MIN_STEP_SECONDS = 60
# A value that differs more from the default has another cause than the speed, for instance a wrong clock.
MAX_FACTOR = 20
# EMR takes minutes to start a cluster, the local AWS a second.
READY_SECONDS_RANGE = (0.5, 3600)


@dataclass(frozen=True)
class PastRun:
    """What a run had to do, and what it took. A value is None if the run's release did not record it.

    `ready_seconds` is the time from the creation of the cluster until it accepted steps.
    """

    ready_seconds: float | None
    task_slots: int | None
    objects: int | None
    bytes: int | None
    inferences: int | None
    images: int | None
    step_seconds: Mapping[str, float | None]


def learn(runs: Sequence[PastRun], default: Speed) -> Speed:
    """Return the default speed, with the medians that earlier runs show instead. `runs` has the last run first.

    Runs without a value, and values that cannot be true, do not count.

    >>> learn([PastRun(300.0, None, None, None, None, None, {}), PastRun(-1, 0, 1, 1, 1, 1, {})], Speed()).ready_seconds
    300.0
    """
    shown: dict[str, Callable[[PastRun], float | None]] = {
        "ready_seconds": lambda run: run.ready_seconds,
        "objects_per_second": lambda run: _rate(run, "ingest", run.objects, run.bytes, default),
        "inferences_per_second": lambda run: _rate(run, "features", run.inferences, _inferred_bytes(run), default),
        "vectors_per_second": lambda run: _rate(run, "pca", run.images, 0, default),
    }
    learnt = {}
    for name, find in shown.items():
        values = [value for value in map(find, runs) if value is not None and _is_credible(name, value, default)]
        if values:
            learnt[name] = float(median(values[:RUNS_TO_LEARN_FROM]))
    return replace(default, **learnt)


def differences(learnt: Speed, default: Speed) -> dict[str, float]:
    """Return what earlier runs have shown, by the name of the field."""
    values = {field.name: float(getattr(learnt, field.name)) for field in fields(Speed)}
    return {name: value for name, value in values.items() if value != getattr(default, name)}


def _inferred_bytes(run: PastRun) -> float | None:
    """Return the size of the images that a run has inferred: it does not decode those whose content is known."""
    if run.bytes is None or not run.objects or run.inferences is None:
        return None
    return run.bytes * run.inferences / run.objects


def _rate(run: PastRun, step: str, count: int | None, size: float | None, default: Speed) -> float | None:
    """Return how many objects, inferences or vectors per second a task slot has done in a step."""
    seconds = run.step_seconds.get(step)
    if seconds is None or run.task_slots is None or count is None or size is None:
        return None
    of_bytes = default.step_task_seconds(Work(objects=0, images=0, bytes=int(size)))[step]
    left = seconds * run.task_slots - of_bytes
    return count / left if seconds >= MIN_STEP_SECONDS and left > 0 and count > 0 else None


def _is_credible(name: str, value: float, default: Speed) -> bool:
    if not math.isfinite(value):
        return False
    if name == "ready_seconds":
        return READY_SECONDS_RANGE[0] <= value <= READY_SECONDS_RANGE[1]
    expected: float = getattr(default, name)
    return expected / MAX_FACTOR <= value <= expected * MAX_FACTOR
