"""Spot instances that EC2 takes away, and Spot capacity that EC2 does not have."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from local_aws.client import LocalAwsClient, Refused
from local_aws.emr.life import Timings
from local_aws.server import LocalAws
from tests.local_aws.user import LOG_URI, QUICK_JVM, User, bash, command, until, wait_until

TYPES = [{"InstanceType": name, "WeightedCapacity": 1} for name in ("m5.xlarge", "m6i.xlarge")]
SWITCH = {"TimeoutDurationMinutes": 5, "TimeoutAction": "SWITCH_TO_ON_DEMAND"}
TERMINATE = {"TimeoutDurationMinutes": 5, "TimeoutAction": "TERMINATE_CLUSTER"}
# A task writes a file when it starts: its number and the executor that runs it. It then takes some time.
PROGRAM = """
import json, os, sys, time, uuid
from pathlib import Path
from pyspark import SparkContext

folder, seconds = sys.argv[1], float(sys.argv[2])

def square(number):
    daemon = os.getppid()
    executor = int(Path(f"/proc/{daemon}/stat").read_text().rpartition(")")[2].split()[1])
    (Path(folder) / f"{number}-{executor}-{uuid.uuid4().hex}").touch()
    time.sleep(seconds)
    return number * number

context = SparkContext.getOrCreate()
print(json.dumps(context.parallelize(range(12), 12).map(square).collect()))
"""


def fleets(*, spot: int = 3, weight: int = 1, specification: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the Instances of a cluster with an On-Demand primary and core node, and a task fleet on Spot."""
    types = [{**item, "WeightedCapacity": weight} for item in TYPES]
    task = {
        "InstanceFleetType": "TASK",
        "TargetSpotCapacity": spot,
        "InstanceTypeConfigs": types,
        "LaunchSpecifications": {"SpotSpecification": specification or SWITCH},
    }
    on_demand = [
        {"InstanceFleetType": role, "TargetOnDemandCapacity": 1, "InstanceTypeConfigs": TYPES[:1]}
        for role in ("MASTER", "CORE")
    ]
    return {"InstanceFleets": [*on_demand, task]}


def start(user: User, instances: dict[str, Any], *steps: Any, **request: Any) -> str:
    """Create a cluster that waits for steps, and return its id."""
    created = user.emr.run_job_flow(
        Name="spot",
        ReleaseLabel="emr-7.14.0",
        ServiceRole="EMR_DefaultRole",
        JobFlowRole="EMR_EC2_DefaultRole",
        Steps=list(steps),
        Instances={**instances, "KeepJobFlowAliveWhenNoSteps": True},  # type: ignore[typeddict-item]
        **request,
    )
    return created["JobFlowId"]


def instances_of(user: User, cluster_id: str, *states: Any) -> list[Any]:
    return list(user.emr.list_instances(ClusterId=cluster_id, InstanceStates=states)["Instances"])


def markets(user: User, cluster_id: str, role: str = "TASK") -> list[str]:
    running: Any = {"InstanceFleetType": role, "InstanceStates": ["RUNNING"]}
    return [item["Market"] for item in user.emr.list_instances(ClusterId=cluster_id, **running)["Instances"]]


@pytest.fixture(scope="module")
def own(user: User, tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    """A user of a server whose fleets wait for Spot capacity for half a second."""
    with LocalAws(tmp_path_factory.mktemp("own"), timings=Timings(spot_timeout_seconds=0.5)) as server:
        yield User(server.endpoint_url)


def test_interrupted_spot_instances_are_terminated_and_replaced_while_the_step_runs(
    own: User, local_aws: LocalAwsClient, tmp_path: Path
) -> None:
    cluster_id = start(own, fleets(), bash(until(tmp_path / "end")))
    own.wait_for(cluster_id, "RUNNING")
    before = {item["Ec2InstanceId"]: item["Market"] for item in instances_of(own, cluster_id)}
    spot = {name for name, market in before.items() if market == "SPOT"}
    assert len(spot) == 3
    taken, killed = local_aws.interrupt_spot(cluster_id, replace_seconds=0.5)
    assert (set(taken), killed) == (spot, [])
    terminated = instances_of(own, cluster_id, "TERMINATED")
    assert {item["Ec2InstanceId"] for item in terminated} == spot
    for item in terminated:
        reason = item["Status"]["StateChangeReason"]
        assert reason["Code"] == "INSTANCE_FAILURE"
        assert f"{item['Ec2InstanceId']} was terminated. Server.SpotInstanceTermination" in reason["Message"]
        assert item["Status"]["Timeline"]["EndDateTime"] >= item["Status"]["Timeline"]["CreationDateTime"]
    replacements = instances_of(own, cluster_id, "PROVISIONING")
    assert [item["Market"] for item in replacements] == ["SPOT"] * 3
    assert len({item["Ec2InstanceId"] for item in [*replacements, *instances_of(own, cluster_id)]}) == 8
    assert {item["Ec2InstanceId"] for item in instances_of(own, cluster_id, "RUNNING")} == before.keys() - spot
    with pytest.raises(Refused, match="has no Spot instance that runs"):
        local_aws.interrupt_spot(cluster_id)  # the replacements are not ready
    wait_until(lambda: markets(own, cluster_id) == ["SPOT"] * 3, "the replacements to run")
    again, _ = local_aws.interrupt_spot(cluster_id)
    assert set(again) == {item["Ec2InstanceId"] for item in replacements}
    assert len(instances_of(own, cluster_id, "TERMINATED")) == 6
    assert markets(own, cluster_id) == ["SPOT"] * 3
    (tmp_path / "end").touch()
    own.wait_for(cluster_id, "WAITING")
    assert own.step_states(cluster_id) == ["COMPLETED"]
    own.terminate(cluster_id)
    own.wait_for(cluster_id, "TERMINATED")
    assert len(instances_of(own, cluster_id, "TERMINATED")) == 11


def test_spot_instances_of_groups_are_interrupted_but_never_the_primary_node(
    own: User, local_aws: LocalAwsClient
) -> None:
    groups = [
        {"InstanceRole": role, "InstanceType": "m5.xlarge", "InstanceCount": count, "Market": market}
        for role, count, market in (("MASTER", 1, "SPOT"), ("CORE", 2, "SPOT"), ("TASK", 1, "ON_DEMAND"))
    ]
    cluster_id = start(own, {"InstanceGroups": groups})
    own.wait_for(cluster_id, "WAITING")
    core = own.emr.list_instances(ClusterId=cluster_id, InstanceGroupTypes=["CORE"])["Instances"]
    taken, _ = local_aws.interrupt_spot(cluster_id)
    assert taken == [item["Ec2InstanceId"] for item in core]


def test_a_cluster_without_spot_instances_and_one_that_does_not_run_cannot_be_interrupted(
    own: User, local_aws: LocalAwsClient
) -> None:
    cluster_id = start(own, fleets(spot=0))
    own.wait_for(cluster_id, "WAITING")
    with pytest.raises(Refused, match="has no Spot instance that runs") as raised:
        local_aws.interrupt_spot(cluster_id)
    assert raised.value.status == 409
    own.terminate(cluster_id)
    own.wait_for(cluster_id, "TERMINATED")
    with pytest.raises(Refused, match=f"{cluster_id} is TERMINATED"):
        local_aws.interrupt_spot(cluster_id)


@pytest.mark.parametrize("seconds", [-1, "1", True, None])
def test_an_invalid_time_until_the_replacement_is_refused(own: User, local_aws: LocalAwsClient, seconds: Any) -> None:
    with pytest.raises(Refused, match="replace_seconds"):
        local_aws.interrupt_spot("j-NONE", seconds)


@pytest.mark.parametrize(
    ("available", "weight", "expected"),
    [
        (0, 1, ["ON_DEMAND"] * 4),
        (1, 1, ["SPOT", "ON_DEMAND", "ON_DEMAND", "ON_DEMAND"]),
        (1, 2, ["SPOT", "ON_DEMAND"]),
        (4, 1, ["SPOT"] * 4),
    ],
)
def test_on_demand_instances_replace_missing_spot_capacity_after_the_timeout(
    own: User, local_aws: LocalAwsClient, available: int, weight: int, expected: list[str]
) -> None:
    local_aws.limit_spot(available)
    started = time.monotonic()
    cluster_id = start(own, fleets(spot=4, weight=weight), bash("exit 0"))
    if "ON_DEMAND" in expected:
        assert own.cluster(cluster_id)["Status"]["State"] == "STARTING"
        provisioning = own.emr.list_instances(ClusterId=cluster_id, InstanceFleetType="TASK")["Instances"]
        assert [item["Market"] for item in provisioning] == ["SPOT"] * available
    own.wait_for(cluster_id, "WAITING")
    assert (time.monotonic() - started > 0.5) == ("ON_DEMAND" in expected)
    assert markets(own, cluster_id) == expected
    assert own.step_states(cluster_id) == ["COMPLETED"]
    *_, task = own.emr.list_instance_fleets(ClusterId=cluster_id)["InstanceFleets"]
    provisioned = task["ProvisionedOnDemandCapacity"], task["ProvisionedSpotCapacity"]
    assert provisioned == tuple(weight * expected.count(market) for market in ("ON_DEMAND", "SPOT"))
    assert (task["TargetOnDemandCapacity"], task["TargetSpotCapacity"]) == (0, 4)


def test_on_demand_instances_in_place_of_spot_instances_are_not_interrupted(
    own: User, local_aws: LocalAwsClient
) -> None:
    local_aws.limit_spot(1)
    cluster_id = start(own, fleets())
    own.wait_for(cluster_id, "WAITING")
    taken, _ = local_aws.interrupt_spot(cluster_id)
    assert len(taken) == 1
    assert markets(own, cluster_id) == ["SPOT", "ON_DEMAND", "ON_DEMAND"]


def test_a_fleet_that_may_not_switch_ends_its_cluster_without_spot_capacity(
    own: User, local_aws: LocalAwsClient
) -> None:
    local_aws.limit_spot(2, calls=[2])
    unaffected, ended = (start(own, fleets(specification=TERMINATE)) for _ in range(2))
    status = own.wait_for(ended, "TERMINATED_WITH_ERRORS")["Status"]
    assert status["StateChangeReason"]["Code"] == "INSTANCE_FLEET_TIMEOUT"
    assert "(TASK) lacks 1 Spot instances" in status["StateChangeReason"]["Message"]
    own.wait_for(unaffected, "WAITING")
    assert markets(own, unaffected) == ["SPOT"] * 3


def test_a_cluster_that_waits_for_spot_capacity_can_be_terminated(own: User, local_aws: LocalAwsClient) -> None:
    local_aws.limit_spot(0)
    cluster_id = start(own, fleets())
    own.terminate(cluster_id)
    own.wait_for(cluster_id, "TERMINATED")


@pytest.mark.usefixtures("user")  # creates the bucket: moto's buckets belong to the process
@pytest.mark.slow
@pytest.mark.parametrize("master", ["local-cluster[2,1,512]", "standalone[2,1,512]"])
def test_a_step_completes_with_the_same_result_although_its_executors_are_taken_away_twice(
    tmp_path: Path, master: str
) -> None:
    started = tmp_path / "started"
    started.mkdir()

    def running_on() -> set[int]:
        return {int(file.name.split("-")[1]) for file in started.iterdir()}

    with LocalAws(tmp_path / "aws", master=master) as server:
        user, faults = User(server.endpoint_url), LocalAwsClient(server.endpoint_url)
        program = user.put("spot/program.py", PROGRAM)
        python = ("--conf", f"spark.pyspark.python={sys.executable}")
        step = command("spark-submit", *QUICK_JVM, *python, program, str(started), "2")
        cluster_id = start(user, fleets(), step, LogUri=LOG_URI)
        gone: set[int] = set()
        for _ in range(2):
            wait_until(lambda: len(running_on() - gone) >= 2, "tasks on two executors", seconds=120)  # noqa: B023
            taken, killed = faults.interrupt_spot(cluster_id)
            assert (len(taken), len(killed)) == (3, 1), "the core instance keeps the other executor"
            assert set(killed) <= running_on()
            gone |= set(killed)
        user.wait_for(cluster_id, "WAITING")
        (step_id,) = (item["Id"] for item in user.steps(cluster_id))
        assert user.step_states(cluster_id) == ["COMPLETED"]
        stdout = user.read_log(f"{LOG_URI}{cluster_id}/steps/{step_id}/stdout.gz")
        (line,) = [line for line in stdout.splitlines() if line.startswith("[")]
        assert json.loads(line) == [number * number for number in range(12)]
        attempts = [file.name.split("-")[0] for file in started.iterdir()]
        assert set(attempts) == {str(number) for number in range(12)}
        assert 12 < len(attempts) <= 14, "each interruption has cost the tasks of one executor"
