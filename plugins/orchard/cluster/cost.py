"""What a run's clusters have cost, from the time that EMR reports for each of their instances."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from orchard.cluster.emr_clusters import EXISTING, TERMINATED, clusters_named
from orchard.cluster.prices import Prices

if TYPE_CHECKING:
    from mypy_boto3_emr import EMRClient

# EC2 and EMR charge per second, and at least this time: https://aws.amazon.com/emr/pricing/.
SHORTEST_CHARGE = timedelta(minutes=1)
# ListClusters compares a time of EMR's clock with one of Airflow's.
CLOCK_TOLERANCE = timedelta(minutes=5)


class NoPrice(ValueError):
    """An instance is of a type that the file of prices does not have."""

    def __init__(self, instance_type: str) -> None:
        super().__init__(f"instance type {instance_type} has no price in prices.json")


@dataclass(frozen=True)
class ClusterCost:
    """What a cluster took and cost, so far if it has not terminated.

    `ready_seconds` is the time from its creation until it accepted steps, or None if it never did.
    """

    cluster_id: str
    minutes: float
    ready_seconds: float | None
    instances: int
    usd: float


@dataclass(frozen=True)
class RunCost:
    """What the clusters of a run took and cost together. `ready_seconds` is of the last cluster that became ready."""

    minutes: float
    ready_seconds: float | None
    usd: float
    clusters: Sequence[ClusterCost]


def cost_of_run(emr: "EMRClient", cluster_name: str, since: datetime, prices: Prices, now: datetime) -> RunCost:
    """Return what the clusters of a run have cost until now. `since` is a time before the first one was created.

    Spot instances count with the upper end of the range of Spot prices: EMR does not report what EC2 charged.

    Raises:
        NoPrice: an instance is of a type without a price.
    """
    found = clusters_named(emr, cluster_name, (*EXISTING, *TERMINATED), since - CLOCK_TOLERANCE)
    costs = [_cost_of_cluster(emr, cluster, prices, now) for cluster in found]
    ready = [cost.ready_seconds for cost in costs if cost.ready_seconds is not None]
    return RunCost(
        minutes=round(sum(cost.minutes for cost in costs), 2),
        ready_seconds=ready[0] if ready else None,
        usd=round(sum(cost.usd for cost in costs), 4),
        clusters=costs,
    )


def _cost_of_cluster(emr: "EMRClient", cluster: Mapping[str, Any], prices: Prices, now: datetime) -> ClusterCost:
    timeline = cluster["Status"]["Timeline"]
    created, ready = timeline["CreationDateTime"], timeline.get("ReadyDateTime")
    pages = emr.get_paginator("list_instances").paginate(ClusterId=cluster["Id"])
    instances: list[Any] = [instance for page in pages for instance in page["Instances"]]
    return ClusterCost(
        cluster_id=cluster["Id"],
        minutes=round((timeline.get("EndDateTime", now) - created).total_seconds() / 60, 2),
        ready_seconds=round((ready - created).total_seconds(), 1) if ready else None,
        instances=len(instances),
        usd=round(sum(_cost_of_instance(instance, prices, now) for instance in instances), 4),
    )


def _cost_of_instance(instance: Mapping[str, Any], prices: Prices, now: datetime) -> float:
    """Return the price of an instance in USD, from its creation until its end, or until now."""
    timeline, price = instance["Status"]["Timeline"], prices.by_type.get(instance["InstanceType"])
    if price is None:
        raise NoPrice(instance["InstanceType"])
    if "CreationDateTime" not in timeline:
        return 0.0
    lived = max(timeline.get("EndDateTime", now) - timeline["CreationDateTime"], SHORTEST_CHARGE)
    per_hour = price.spot[1] if instance.get("Market") == "SPOT" else price.on_demand
    return float(per_hour * (lived / timedelta(hours=1)))
