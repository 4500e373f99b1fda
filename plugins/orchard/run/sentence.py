"""One line about a run that a person reads: what a plan will do, and what a published run has done."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

MINUTES_PER_HOUR = 60
NO_CHANGES = "no changes"
NO_HOLD = "hold_minutes has no effect without a cluster: set full_refresh"


@dataclass(frozen=True)
class Spent:
    """The minutes since the start of a run, and the cost of its clusters in USD, so far. None is unknown."""

    minutes: float | None = None
    usd: float | None = None


UNKNOWN = Spent()


def plan_sentence(changes: Mapping[str, Any]) -> str:
    """Return what a run will do, from the counts of its plan. See `orchard.run.changes.plan_changes`.

    >>> estimate = {"core_instances": 1, "task_instances": 2, "minutes": 8.2, "usd": 0.1134}
    >>> plan_sentence({"listed": 22688, "new": 31, "changed": 2, "deleted": 1, "estimate": estimate})
    '22,688 images, 31 new, 2 changed, 1 deleted; 3 workers, about 8 min, about $0.11'
    """
    if changes.get("nothing_to_do"):
        return nothing_to_do_sentence(changes)
    what = ", ".join([plural(changes["listed"], "image"), *_changes(changes, changes["listed"])])
    estimate = changes.get("estimate")
    if not estimate:
        return what
    workers = plural(estimate["core_instances"] + estimate["task_instances"], "worker")
    held = changes.get("hold_minutes")
    took = f"{duration(estimate['minutes'])}{f', of which {duration(held)} on hold' if held else ''}"
    return f"{what}; {workers}, about {took}, about {dollars(estimate['usd'])}"


def nothing_to_do_sentence(changes: Mapping[str, Any]) -> str:
    """Return that a run has nothing to do, from the counts of its plan.

    >>> nothing_to_do_sentence({"listed": 22688, "rejects_kept": 2, "dataset": "s3://fruits/images/"})
    'nothing to do: 22,688 images below s3://fruits/images/, 2 rejected, no changes'
    >>> nothing_to_do_sentence({"listed": 9, "dataset": "s3://b/", "hold_minutes": 60})
    'nothing to do: 9 images below s3://b/, no changes; hold_minutes has no effect without a cluster: set full_refresh'
    """
    parts = [f"{plural(changes['listed'], 'image')} below {changes['dataset']}"]
    counts = ", ".join([*parts, *_counted(changes.get("rejects_kept"), "rejected"), NO_CHANGES])
    return f"nothing to do: {counts}{f'; {NO_HOLD}' if changes.get('hold_minutes') else ''}"


def run_sentence(summary: Mapping[str, Any], spent: Spent) -> str:
    """Return what a published run has done, from its summary. What is unknown in `spent` is left out.

    >>> counts = {"images_listed": 22688, "new": 31, "changed": 0, "deleted": 0, "images_rejected": 2}
    >>> run_sentence(counts, Spent(minutes=8.3, usd=0.1134))
    '22,688 images, 31 new, 2 rejected, 8 min, $0.11'
    """
    listed = summary["images_listed"]
    parts = [
        plural(listed, "image"),
        *_changes(summary, listed),
        *_counted(summary["images_rejected"], "rejected"),
        *([] if spent.minutes is None else [duration(spent.minutes)]),
        *([] if spent.usd is None else [dollars(spent.usd)]),
    ]
    return ", ".join(parts)


def _changes(counts: Mapping[str, Any], listed: int) -> list[str]:
    """Return the numbers of new, changed and deleted images that are not zero."""
    if listed > 1 and counts["new"] == listed:
        return ["all new", *_counted(counts["deleted"], "deleted")]
    return [part for name in ("new", "changed", "deleted") for part in _counted(counts[name], name)] or [NO_CHANGES]


def _counted(count: int | None, what: str) -> list[str]:
    return [f"{count:,} {what}"] if count else []


def plural(count: int, noun: str) -> str:
    """Return a number of things.

    >>> plural(1, "image"), plural(22688, "image")
    ('1 image', '22,688 images')
    """
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def duration(minutes: float) -> str:
    """Return a time as a person says it. A time before the start counts as 0, because clocks differ.

    >>> duration(0.75), duration(8.2), duration(80), duration(120)
    ('45 s', '8 min', '1 h 20 min', '2 h')
    """
    seconds = max(0, math.floor(60 * minutes + 0.5))
    if seconds < 60:
        return f"{seconds} s"
    hours, rest = divmod(math.floor(seconds / 60 + 0.5), MINUTES_PER_HOUR)
    parts = [f"{hours:,} h"] if hours else []
    return " ".join([*parts, f"{rest} min"] if rest else parts)


def dollars(usd: float) -> str:
    """Return a price in USD, with cents from 1 cent to 10 dollars, and with one significant digit below that.

    >>> dollars(0.0042), dollars(0.1134), dollars(1.5), dollars(12.34), dollars(0)
    ('$0.004', '$0.11', '$1.50', '$12', '$0')
    """
    if round(usd, 2) >= 10:
        return f"${math.floor(usd + 0.5):,}"
    if round(usd, 3) >= 0.01:
        return f"${usd:.2f}"
    if usd <= 0:
        return "$0"
    return f"${Decimal(f'{usd:.1g}'):f}"
