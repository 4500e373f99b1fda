"""How many workers a run needs, how long its cluster works, and what that costs."""

import math
from dataclasses import dataclass

from orchard.cluster.cost import SHORTEST_CHARGE
from orchard.cluster.instances import alternatives, primary_type, task_slots
from orchard.cluster.prices import Prices

# More workers would wait for Spark longer than they work.
MIN_SECONDS_PER_WORKER = 60
MIN_SHARE_FOR_TASKS = 0.25


@dataclass(frozen=True)
class Work:
    """What a run does: it reads objects, of which each may need an inference, and computes vectors of all images."""

    objects: int
    images: int
    bytes: int = 0
    """The size of the objects."""


@dataclass(frozen=True)
class Speed:
    """How fast a cluster works. The rates are per task slot, which is a vCPU.

    The defaults were measured on a machine of another type, with an x86_64 processor: see docs/performance.md. They
    were not measured on Graviton. The two times are assumptions, because the local AWS has no virtual machines to
    start, and no YARN. `orchard.cluster.history` learns from the runs of a deployment.
    """

    ready_seconds: float = 420
    """From the creation of the cluster until it accepts steps."""
    other_seconds: float = 90
    """What the cluster takes besides, for instance to start each step, to wait for `publish` and to terminate."""
    objects_per_second: float = 500
    inferences_per_second: float = 145
    vectors_per_second: float = 3000
    # What large images take in addition. Measured with JPEGs of 0.5 and 3 MB.
    verified_bytes_per_second: float = 45e6
    decoded_bytes_per_second: float = 25e6

    def fixed_seconds(self) -> float:
        """Return the time that does not depend on the number of workers."""
        return self.ready_seconds + self.other_seconds

    def step_task_seconds(self, work: Work) -> dict[str, float]:
        """Return the time that the tasks of each step take on one task slot."""
        return {
            "ingest": work.objects / self.objects_per_second + work.bytes / self.verified_bytes_per_second,
            "features": work.objects / self.inferences_per_second + work.bytes / self.decoded_bytes_per_second,
            "pca": work.images / self.vectors_per_second,
        }

    def task_seconds(self, work: Work) -> float:
        """Return the time that the tasks of all steps take on one task slot."""
        return sum(self.step_task_seconds(work).values())


@dataclass(frozen=True)
class Workers:
    """The workers of a cluster: core instances, which are On-Demand, and task instances, which are on Spot."""

    core: int
    task: int = 0

    @property
    def total(self) -> int:
        """The number of all workers."""
        return self.core + self.task


@dataclass(frozen=True)
class Estimate:
    """The time and the price of a run, from the creation of its cluster to its end.

    `usd` is the price if all instances are On-Demand, as they are if EC2 lacks Spot capacity. `usd_with_spot` is the
    lowest and the highest price if all task instances are on Spot.
    """

    core_instances: int
    minutes: float
    usd: float
    task_instances: int
    usd_with_spot: tuple[float, float]

    @property
    def workers(self) -> Workers:
        """The workers of the cluster."""
        return Workers(self.core_instances, self.task_instances)


def with_spot(workers: int) -> Workers:
    """Return which of a number of workers are on Spot: all but one.

    A cluster needs a core instance. It holds HDFS and the application master, so that it must not be interrupted.

    >>> with_spot(4), with_spot(1)
    (Workers(core=1, task=3), Workers(core=1, task=0))
    """
    return Workers(1, workers - 1)


def workers_needed(work: Work, instance_type: str, target_minutes: float, most: int, speed: Speed) -> int:
    """Return the smallest number of workers with which a run takes at most `target_minutes`.

    There are at most `most`, and no more than have a minute of work each. If the start of a cluster takes most of the
    target, the tasks still get a quarter of it: more workers would wait for the start as long as the others.

    >>> work = Work(objects=1_000_000, images=1_000_000)
    >>> workers_needed(work, "m5.xlarge", 20, 20, Speed()), workers_needed(work, "m5.xlarge", 60, 20, Speed())
    (4, 1)
    """
    worker_seconds = speed.task_seconds(work) / task_slots(instance_type, 1)
    target_seconds = 60 * target_minutes
    seconds = max(target_seconds - speed.fixed_seconds(), MIN_SHARE_FOR_TASKS * target_seconds, MIN_SECONDS_PER_WORKER)
    return max(1, min(most, math.ceil(worker_seconds / seconds)))


def estimate(
    work: Work, instance_type: str, workers: Workers, prices: Prices, speed: Speed, hold_minutes: int = 0
) -> Estimate:
    """Return what a run takes on an On-Demand primary node, On-Demand core instances, and task instances on Spot.

    The cluster is kept for `hold_minutes` after its last step. EC2 chooses the types of the Spot instances, so that
    their price is in the range of all alternatives.

    >>> from orchard.cluster.prices import read_prices
    >>> estimate(Work(objects=1_000_000, images=1_000_000), "m5.xlarge", Workers(core=4), read_prices(), Speed())
    Estimate(core_instances=4, minutes=18.1, usd=0.3955, task_instances=0, usd_with_spot=(0.3955, 0.3955))
    """
    working = speed.fixed_seconds() + speed.task_seconds(work) / task_slots(instance_type, workers.total)
    seconds = working + 60 * hold_minutes
    charged = max(seconds, SHORTEST_CHARGE.total_seconds())
    on_demand = prices.by_type[instance_type].on_demand
    fixed = [prices.by_type[primary_type(instance_type)].on_demand, *[on_demand] * workers.core]
    spot = [prices.by_type[name].spot for name in alternatives(instance_type)]

    def usd(price_of_task_instance: float) -> float:
        # An exact sum: the price does not depend on which of the instances are task instances.
        return round(charged / 3600 * math.fsum([*fixed, *[price_of_task_instance] * workers.task]), 4)

    return Estimate(
        core_instances=workers.core,
        minutes=round(seconds / 60, 1),
        usd=usd(on_demand),
        task_instances=workers.task,
        usd_with_spot=(usd(min(low for low, _ in spot)), usd(max(high for _, high in spot))),
    )
