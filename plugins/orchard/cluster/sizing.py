"""How many workers a run needs, how long its cluster works, and what that costs."""

import math
from dataclasses import dataclass

from orchard.cluster.instances import task_slots
from orchard.cluster.prices import Prices

# More workers would wait for Spark longer than they work.
MIN_SECONDS_PER_WORKER = 60
STEPS_PER_RUN = 3


@dataclass(frozen=True)
class Work:
    """What a run does: it reads objects, of which each may need an inference, and computes vectors of all images."""

    objects: int
    images: int


@dataclass(frozen=True)
class Speed:
    """How fast a cluster works. The rates are per task slot, which is a vCPU.

    They were measured on a machine of another type, with an x86_64 processor: see docs/performance.md. They were not
    measured on Graviton. The two times are assumptions, because the local AWS has no virtual machines to start, and no
    YARN.
    """

    ready_seconds: float = 420
    """From the creation of the cluster until it accepts steps."""
    step_seconds: float = 30
    """What a step takes besides its tasks."""
    objects_per_second: float = 500
    inferences_per_second: float = 145
    vectors_per_second: float = 3000

    def fixed_seconds(self) -> float:
        """Return the time that does not depend on the number of workers."""
        return self.ready_seconds + STEPS_PER_RUN * self.step_seconds

    def task_seconds(self, work: Work) -> float:
        """Return the time that the tasks of all steps take on one task slot."""
        return (
            work.objects / self.objects_per_second
            + work.objects / self.inferences_per_second
            + work.images / self.vectors_per_second
        )


@dataclass(frozen=True)
class Estimate:
    """The time and the On-Demand price of a run, from the creation of its cluster to its end."""

    core_instances: int
    minutes: float
    usd: float


def workers_needed(work: Work, instance_type: str, target_minutes: float, most: int, speed: Speed) -> int:
    """Return the smallest number of workers with which a run takes at most `target_minutes`.

    There are at most `most`, and no more than have a minute of work each.

    >>> work = Work(objects=1_000_000, images=1_000_000)
    >>> workers_needed(work, "m5.xlarge", 20, 20, Speed()), workers_needed(work, "m5.xlarge", 60, 20, Speed())
    (4, 1)
    """
    worker_seconds = speed.task_seconds(work) / task_slots(instance_type, 1)
    seconds = max(60 * target_minutes - speed.fixed_seconds(), MIN_SECONDS_PER_WORKER)
    return max(1, min(most, math.ceil(worker_seconds / seconds)))


def estimate(work: Work, instance_type: str, core_instances: int, prices: Prices, speed: Speed) -> Estimate:
    """Return what a run takes on a primary node and this many workers.

    >>> from orchard.cluster.prices import read_prices
    >>> estimate(Work(objects=1_000_000, images=1_000_000), "m5.xlarge", 4, read_prices(), Speed())
    Estimate(core_instances=4, minutes=18.1, usd=0.4)
    """
    seconds = speed.fixed_seconds() + speed.task_seconds(work) / task_slots(instance_type, core_instances)
    usd = seconds / 3600 * (1 + core_instances) * prices.by_type[instance_type].on_demand
    return Estimate(core_instances, round(seconds / 60, 1), round(usd, 2))
