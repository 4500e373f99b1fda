"""The size of a run's cluster, and what the run is estimated to take and to cost."""

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from orchard.cluster.history import PastRun, differences, learn
from orchard.cluster.prices import read_prices
from orchard.cluster.sizing import Estimate, Speed, Work, Workers, estimate, with_spot, workers_needed
from orchard.errors import PermanentError
from orchard.run.difference import Difference
from orchard.run.params import MAX_CORE_INSTANCES, RunParams
from orchard.settings import Settings

log = logging.getLogger(__name__)


def usd_text(usd: float) -> str:
    """Format a price in USD.

    >>> usd_text(0.01342), usd_text(12.344)
    ('0.0134', '12.34')
    """
    return f"{usd:.2f}" if usd >= 1 else f"{usd:.4f}"


class TooExpensive(PermanentError):
    """The estimated price of a run is above the limit. Nothing exists yet."""

    def __init__(self, dataset_uri: str, work: Work, found: Estimate, params: RunParams) -> None:
        fewer = "fewer core_instances" if params.core_instances else "a longer target_minutes"
        remedies = ["a higher max_cost_usd", *([fewer] if found.workers.total > 1 else []), "a cheaper instance_type"]
        remedies += ["a shorter hold_minutes"] if params.hold_minutes else []
        held = f", of which {params.hold_minutes:g} on hold," if params.hold_minutes else ""
        cluster = f"{found.minutes:g} minutes{held} on 1 + {found.workers.total} {params.instance_type}"
        super().__init__(
            f"a run of {dataset_uri} with {work.objects} objects to read is estimated at {usd_text(found.usd)} USD "
            f"({cluster}), above max_cost_usd {params.max_cost_usd:g}. Set {' or '.join(remedies)}"
        )


def size_run(
    difference: Difference,
    dataset_uri: str,
    params: RunParams,
    settings: Settings,
    now: datetime,
    earlier: Sequence[Mapping[str, Any]],
    existing: Workers | None = None,
) -> Estimate:
    """Return how many workers a run has, how long it takes, and what that costs. Log it.

    `earlier` has rows of the table `runs`, the last run first: see `orchard.tables.history`. The workers are the
    `existing` ones of the run's cluster, if given, or `core_instances` of its params. Without both, the run has as many
    as it needs, all but one on Spot.

    Raises:
        TooExpensive: the estimated price is above the limit of the run.
        BadPrices: the file of prices cannot be used.
    """
    prices, speed = read_prices(), learnt_speed(earlier)
    for fault in prices.faults(settings.region, now.date()):
        log.warning("plan: %s, so that the estimate may be wrong. Refresh them with `make prices`", fault)
    work = Work(objects=difference.new + difference.changed, images=difference.readable, bytes=difference.bytes_to_read)
    needed = workers_needed(work, params.instance_type, params.target_minutes, MAX_CORE_INSTANCES, speed)
    workers = existing or (Workers(params.core_instances) if params.core_instances else with_spot(needed))
    found = estimate(work, params.instance_type, workers, prices, speed, params.hold_minutes)
    working_minutes = found.minutes - params.hold_minutes
    low, high = found.usd_with_spot
    log.info(
        "plan: %d objects to read; cluster of 1 + %d %s, about %.1f minutes%s, %s USD at the On-Demand prices of %s%s",
        work.objects,
        workers.total,
        params.instance_type,
        found.minutes,
        f", of which {params.hold_minutes} on hold" if params.hold_minutes else "",
        usd_text(found.usd),
        prices.region,
        f", {usd_text(low)} to {usd_text(high)} USD with {workers.task} workers on Spot" if workers.task else "",
    )
    if working_minutes > params.target_minutes:
        log.warning(
            "plan: the run takes about %.1f minutes, longer than target_minutes %g: the start of the cluster and the "
            "start of its steps take %.1f minutes, whatever the number of workers",
            working_minutes,
            params.target_minutes,
            speed.fixed_seconds() / 60,
        )
    if params.max_cost_usd is not None and found.usd > params.max_cost_usd:
        raise TooExpensive(dataset_uri, work, found, params)
    return found


def learnt_speed(earlier: Sequence[Mapping[str, Any]]) -> Speed:
    """Return the speed that the earlier runs show. Log what differs from the default."""
    default = Speed()
    speed = learn([_past_run(row) for row in earlier], default)
    shown = {name: f"{value:.4g}" for name, value in differences(speed, default).items()}
    log.info("plan: %d earlier runs show %s", len(earlier), shown or "no other speed than the default")
    return speed


def _past_run(row: Mapping[str, Any]) -> PastRun:
    new, changed = row["new"], row["changed"]
    return PastRun(
        ready_seconds=row["ready_seconds"],
        cluster_seconds=None if row["cluster_minutes"] is None else 60 * row["cluster_minutes"],
        task_slots=row["task_slots"],
        objects=None if new is None or changed is None else new + changed,
        bytes=row["bytes_read"],
        inferences=row["inferences"],
        images=row["images"],
        step_seconds=row["step_seconds"],
    )
