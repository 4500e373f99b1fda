"""What the earlier runs of a deployment show about the speed of its clusters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from statistics import median

from orchard.cluster.sizing import Speed, Work

# The last runs count: a deployment can change its subnets, its instance types and its images.
RUNS_TO_LEARN_FROM = 10
# Spark's start takes a large share of a shorter step, and says nothing about its tasks.
MIN_STEP_SECONDS = 60
# No instance type is so much slower or faster. Such a value has another cause, for instance a wrong clock.
MAX_FACTOR = 5
# EMR takes minutes to start a cluster, the local AWS a second.
READY_SECONDS_RANGE = (0.5, 3600)
# A longer time has another cause, for instance a second cluster of the run, or a task that was cleared by hand.
OTHER_SECONDS_RANGE = (0.5, 1800)
# The rates of Speed that a step has.
RATES: Mapping[str, Sequence[str]] = {
    "ingest": ("objects_per_second", "verified_bytes_per_second"),
    "features": ("inferences_per_second", "decoded_bytes_per_second"),
    "pca": ("vectors_per_second",),
}


@dataclass(frozen=True)
class PastRun:
    """What a run had to do, and what it took. A value is None if the run's release did not record it.

    `ready_seconds` is the time from the creation of the cluster until it accepted steps, and `cluster_seconds` the time
    until its end.
    """

    ready_seconds: float | None
    cluster_seconds: float | None
    task_slots: int | None
    objects: int | None
    bytes: int | None
    inferences: int | None
    images: int | None
    step_seconds: Mapping[str, float | None]


def learn(runs: Sequence[PastRun], default: Speed) -> Speed:
    """Return the default speed as earlier runs correct it. `runs` has the last run first.

    `ready_seconds` and `other_seconds` are medians. The rates of a step are divided by the median of the factor by
    which its tasks took longer than the default predicts. The factor applies to all rates of the step, because a run
    does not show how much of the time its bytes took. Runs without a value, and values that cannot be true, do not
    count.

    >>> runs = [PastRun(300.0, 480.0, 4, 0, 0, 0, 0, {}), PastRun(-1, -1, 0, 1, 1, 1, 1, {})]
    >>> learn(runs, Speed()).ready_seconds, learn(runs, Speed()).other_seconds
    (300.0, 180.0)
    """
    times = {
        "ready_seconds": _median([run.ready_seconds for run in runs], *READY_SECONDS_RANGE),
        "other_seconds": _median([_other_seconds(run, default) for run in runs], *OTHER_SECONDS_RANGE),
    }
    learnt = {name: seconds for name, seconds in times.items() if seconds is not None}
    for step, rates in RATES.items():
        factor = _median([_factor(run, step, default) for run in runs], 1 / MAX_FACTOR, MAX_FACTOR)
        if factor is not None:
            learnt |= {name: getattr(default, name) / factor for name in rates}
    return replace(default, **learnt)


def differences(learnt: Speed, default: Speed) -> dict[str, float]:
    """Return what earlier runs have shown, by the name of the field."""
    values = {field.name: float(getattr(learnt, field.name)) for field in fields(Speed)}
    return {name: value for name, value in values.items() if value != getattr(default, name)}


def _other_seconds(run: PastRun, default: Speed) -> float | None:
    """Return how long the cluster of a run existed besides its start and the tasks of the steps.

    The duration of a short step is mostly Spark's start. The prediction for its tasks is subtracted instead.
    """
    if run.cluster_seconds is None or run.ready_seconds is None or run.task_slots is None or run.task_slots <= 0:
        return None
    other = run.cluster_seconds - run.ready_seconds
    for step in RATES:
        seconds, work = run.step_seconds.get(step), _work_of_step(run, step)
        if seconds is not None and seconds >= MIN_STEP_SECONDS:
            other -= seconds
        elif work is not None:
            other -= default.step_task_seconds(work)[step] / run.task_slots
    return round(other, 1)


def _factor(run: PastRun, step: str, default: Speed) -> float | None:
    """Return how many times longer the tasks of a step took than the default predicts."""
    seconds, work = run.step_seconds.get(step), _work_of_step(run, step)
    if seconds is None or run.task_slots is None or work is None or not seconds >= MIN_STEP_SECONDS:
        return None
    predicted = default.step_task_seconds(work)[step]
    return seconds * run.task_slots / predicted if predicted > 0 else None


def _work_of_step(run: PastRun, step: str) -> Work | None:
    """Return what a step of a run had to do. `features` decodes and infers only contents that no run has seen."""
    if step == "pca":
        return None if run.images is None else Work(objects=0, images=run.images)
    if run.objects is None or run.bytes is None or run.objects <= 0:
        return None
    if step == "ingest":
        return Work(objects=run.objects, images=0, bytes=run.bytes)
    if run.inferences is None:
        return None
    return Work(objects=run.inferences, images=0, bytes=run.bytes * run.inferences // run.objects)


def _median(values: Sequence[float | None], least: float, most: float) -> float | None:
    """Return the median of the first values within limits. Return None if there is none."""
    credible = [value for value in values if value is not None and least <= value <= most]
    return float(median(credible[:RUNS_TO_LEARN_FROM])) if credible else None
