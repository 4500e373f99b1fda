"""What clusters of the local EMR cost."""

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from local_aws.client import LocalAwsClient
from local_aws.server import LocalAws
from orchard.cluster.cost import NoPrice, RunCost, cost_of_run
from orchard.cluster.prices import read_prices
from tests.local_aws.user import LOG_URI, ROLES, User

PRICES = read_prices()
M5, C6I = PRICES.by_type["m5.xlarge"], PRICES.by_type["c6i.2xlarge"]
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    with LocalAws(tmp_path_factory.mktemp("aws")) as server:
        user = User(server.endpoint_url)
        user.make_bucket()
        yield user


@pytest.fixture
def name() -> str:
    return f"orchard-{uuid.uuid4().hex}"


def fleet(role: str, instance_type: str, *, on_demand: int = 0, spot: int = 0) -> dict[str, Any]:
    configs = [{"InstanceType": instance_type, "WeightedCapacity": 1}]
    capacity = {"TargetOnDemandCapacity": on_demand, "TargetSpotCapacity": spot}
    return {"InstanceFleetType": role, "InstanceTypeConfigs": configs, **capacity}


def start(user: User, name: str, *fleets: dict[str, Any]) -> str:
    """Create a cluster that waits for steps."""
    instances: Any = {"InstanceFleets": list(fleets), "KeepJobFlowAliveWhenNoSteps": True}
    request: Any = {"Name": name, "ReleaseLabel": "emr-7.14.0", "LogUri": LOG_URI, "Instances": instances, **ROLES}
    return user.emr.run_job_flow(**request)["JobFlowId"]


def end(user: User, cluster_id: str) -> None:
    user.terminate(cluster_id)
    user.wait_for(cluster_id, "TERMINATED")


def cost(user: User, name: str, after: timedelta = timedelta(), since: datetime = LONG_AGO) -> RunCost:
    """Return what a run has cost so long from now."""
    return cost_of_run(user.emr, name, since, PRICES, datetime.now(UTC) + after)


def test_each_instance_costs_the_price_of_its_type_and_market_while_it_exists(user: User, name: str) -> None:
    fleets = (
        fleet("MASTER", "m5.xlarge", on_demand=1),
        fleet("CORE", "c6i.2xlarge", on_demand=2),
        fleet("TASK", "m5.xlarge", spot=3),
    )
    cluster_id = start(user, name, *fleets)
    user.wait_for(cluster_id, "WAITING")
    found = cost(user, name, timedelta(hours=2))
    per_hour = M5.on_demand + 2 * C6I.on_demand + 3 * M5.spot[1]
    assert found.minutes == pytest.approx(120, abs=0.5)
    assert found.usd == pytest.approx(2 * per_hour, rel=0.01)
    assert found.clusters[0].instances == 6
    timeline = user.cluster(cluster_id)["Status"]["Timeline"]
    ready = (timeline["ReadyDateTime"] - timeline["CreationDateTime"]).total_seconds()
    assert found.ready_seconds == pytest.approx(ready, abs=0.06)
    end(user, cluster_id)
    ended = cost(user, name, timedelta(hours=2))
    assert ended.minutes < 1, "a cluster that has terminated costs nothing more"
    assert ended.usd == pytest.approx(per_hour / 60, abs=0.0002), "the shortest charge is a minute"


def test_all_clusters_of_a_run_count_and_no_others(user: User, name: str) -> None:
    first, second, other = (
        start(user, of_cluster, fleet("MASTER", "m5.xlarge", on_demand=1)) for of_cluster in (name, name, f"{name}-2")
    )
    for cluster_id in (first, second, other):
        user.wait_for(cluster_id, "WAITING")
        end(user, cluster_id)
    found = cost(user, name)
    assert {cluster.cluster_id for cluster in found.clusters} == {first, second}
    assert found.usd == pytest.approx(2 * M5.on_demand / 60, abs=0.0002)


def test_a_run_without_a_cluster_costs_nothing(user: User, name: str) -> None:
    assert cost(user, name) == RunCost(minutes=0, ready_seconds=None, usd=0, clusters=[])


def test_clusters_from_before_the_run_do_not_count(user: User, name: str) -> None:
    end(user, start(user, name, fleet("MASTER", "m5.xlarge", on_demand=1)))
    assert cost(user, name, since=datetime.now(UTC)).clusters, "clocks may differ by minutes"
    assert not cost(user, name, since=datetime.now(UTC) + timedelta(minutes=10)).clusters


def test_a_cluster_that_was_never_ready_costs_money_too(user: User, name: str) -> None:
    client = LocalAwsClient(user.endpoint_url)
    client.end_cluster("BOOTSTRAP_FAILURE", calls=[1])
    try:
        cluster_id = start(user, name, fleet("MASTER", "m5.xlarge", on_demand=1))
        user.wait_for(cluster_id, "TERMINATED_WITH_ERRORS")
    finally:
        client.clear()
    found = cost(user, name)
    assert found.ready_seconds is None
    assert found.usd > 0


def test_more_instances_than_a_page_of_emr_are_all_counted(user: User, name: str) -> None:
    cluster_id = start(user, name, fleet("MASTER", "m5.xlarge", on_demand=1), fleet("CORE", "m5.xlarge", on_demand=120))
    user.wait_for(cluster_id, "WAITING")
    found = cost(user, name, timedelta(hours=1))
    end(user, cluster_id)
    assert found.clusters[0].instances == 121
    assert found.usd == pytest.approx(121 * M5.on_demand, rel=0.01)


def test_a_cost_with_an_instance_without_a_price_is_unknown(user: User, name: str) -> None:
    end(user, start(user, name, fleet("MASTER", "r5.xlarge", on_demand=1)))
    with pytest.raises(NoPrice, match=r"instance type r5.xlarge has no price in prices.json"):
        cost(user, name)
