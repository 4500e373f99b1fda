from typing import Any

import pytest

from tests.local_aws.user import ROLES, User, refusal

MASTER_FLEET = {
    "InstanceFleetType": "MASTER",
    "TargetOnDemandCapacity": 1,
    "InstanceTypeConfigs": [{"InstanceType": "m5.xlarge"}],
}
CORE_FLEET = {
    "Name": "core",
    "InstanceFleetType": "CORE",
    "TargetOnDemandCapacity": 4,
    "TargetSpotCapacity": 3,
    "InstanceTypeConfigs": [{"InstanceType": "r5.xlarge", "WeightedCapacity": 2}, {"InstanceType": "r6g.xlarge"}],
}
GROUPS = [
    {"InstanceRole": "MASTER", "InstanceType": "m5.xlarge", "InstanceCount": 1},
    {"InstanceRole": "CORE", "InstanceType": "r5.xlarge", "InstanceCount": 2, "Name": "core", "Market": "SPOT"},
]


def start(user: User, **instances: Any) -> str:
    """Create a cluster with these groups or fleets, and wait until it is WAITING."""
    created = user.emr.run_job_flow(
        Name="operations",
        ReleaseLabel="emr-7.14.0",
        **ROLES,
        Instances={**instances, "KeepJobFlowAliveWhenNoSteps": True},  # type: ignore[typeddict-item]
    )
    user.wait_for(created["JobFlowId"], "WAITING")
    return created["JobFlowId"]


@pytest.fixture(scope="module")
def groups(user: User) -> str:
    return start(user, InstanceGroups=GROUPS)


@pytest.fixture(scope="module")
def fleets(user: User) -> str:
    return start(user, InstanceFleets=[MASTER_FLEET, CORE_FLEET])


@pytest.fixture(scope="module")
def ended(user: User) -> str:
    return user.run()


def test_groups_are_listed_as_requested(user: User, groups: str) -> None:
    master, core = user.emr.list_instance_groups(ClusterId=groups)["InstanceGroups"]
    assert (master["InstanceGroupType"], master["InstanceType"], master["Market"]) == (
        "MASTER",
        "m5.xlarge",
        "ON_DEMAND",
    )
    assert (core["Name"], core["Market"], core["Status"]["State"]) == ("core", "SPOT", "RUNNING")
    assert (core["RequestedInstanceCount"], core["RunningInstanceCount"]) == (2, 2)
    listed = user.emr.list_instances(ClusterId=groups, InstanceGroupId=core["Id"])["Instances"]
    assert [(instance["InstanceType"], instance["InstanceGroupId"]) for instance in listed] == [
        ("r5.xlarge", core["Id"])
    ] * 2


def test_fleets_are_listed_as_requested_with_instances_by_weight(user: User, fleets: str) -> None:
    _, core = user.emr.list_instance_fleets(ClusterId=fleets)["InstanceFleets"]
    assert (core["InstanceFleetType"], core["Name"], core["Status"]["State"]) == ("CORE", "core", "RUNNING")
    assert (core["TargetOnDemandCapacity"], core["ProvisionedSpotCapacity"]) == (4, 3)
    assert [kind["InstanceType"] for kind in core["InstanceTypeSpecifications"]] == ["r5.xlarge", "r6g.xlarge"]
    listed = user.emr.list_instances(ClusterId=fleets, InstanceFleetId=core["Id"])["Instances"]
    assert [instance["Market"] for instance in listed] == ["ON_DEMAND", "ON_DEMAND", "SPOT", "SPOT"]


def test_a_prioritized_fleet_has_instances_of_its_highest_priority(user: User) -> None:
    configs = [
        {"InstanceType": "m6i.xlarge", "WeightedCapacity": 1, "Priority": 1.0},
        {"InstanceType": "m5.xlarge", "WeightedCapacity": 1, "Priority": 0.0},
        {"InstanceType": "m7i.xlarge", "WeightedCapacity": 1},
    ]
    specification = {"OnDemandSpecification": {"AllocationStrategy": "prioritized"}}
    core = {
        **CORE_FLEET,
        "TargetSpotCapacity": 0,
        "InstanceTypeConfigs": configs,
        "LaunchSpecifications": specification,
    }
    cluster_id = start(user, InstanceFleets=[MASTER_FLEET, core])
    _, fleet = user.emr.list_instance_fleets(ClusterId=cluster_id)["InstanceFleets"]
    assert fleet["LaunchSpecifications"] == specification
    listed = [(kind["InstanceType"], kind.get("Priority")) for kind in fleet["InstanceTypeSpecifications"]]
    assert listed == [("m6i.xlarge", 1), ("m5.xlarge", 0), ("m7i.xlarge", None)]
    instances = user.emr.list_instances(ClusterId=cluster_id, InstanceFleetId=fleet["Id"])["Instances"]
    assert [instance["InstanceType"] for instance in instances] == ["m5.xlarge"] * 4


def test_groups_terminate_with_their_cluster(user: User, ended: str) -> None:
    (group,) = user.emr.list_instance_groups(ClusterId=ended)["InstanceGroups"]
    assert (group["Status"]["State"], group["RunningInstanceCount"]) == ("TERMINATED", 0)


def test_group_operations_reject_clusters_with_fleets_and_vice_versa(user: User, groups: str, fleets: str) -> None:
    task = {"InstanceRole": "TASK", "InstanceType": "m5.xlarge", "InstanceCount": 1}
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (user.emr.list_instance_groups, {"ClusterId": fleets}, "uses instance fleets"),
        (user.emr.list_instance_fleets, {"ClusterId": groups}, "uses instance groups"),
        (user.emr.add_instance_groups, {"JobFlowId": fleets, "InstanceGroups": [task]}, "uses instance fleets"),
        (user.emr.add_instance_fleet, {"ClusterId": groups, "InstanceFleet": CORE_FLEET}, "uses instance groups"),
    ]
    for call, parameters, uses in cases:
        code, message = refusal(call, **parameters)
        assert code == "InvalidRequestException"
        assert uses in message


def test_a_task_group_is_added_and_resized(user: User) -> None:
    cluster_id = start(user, InstanceGroups=GROUPS)
    task: Any = {"InstanceRole": "TASK", "InstanceType": "c5.xlarge", "InstanceCount": 1}
    (task_id,) = user.emr.add_instance_groups(JobFlowId=cluster_id, InstanceGroups=[task])["InstanceGroupIds"]
    assert len(user.emr.list_instances(ClusterId=cluster_id)["Instances"]) == 4
    user.emr.modify_instance_groups(InstanceGroups=[{"InstanceGroupId": task_id, "InstanceCount": 3}])
    task_instances = user.emr.list_instances(ClusterId=cluster_id, InstanceGroupTypes=["TASK"])["Instances"]
    assert [instance["InstanceType"] for instance in task_instances] == ["c5.xlarge"] * 3


def test_a_task_fleet_is_added_once_and_resized(user: User) -> None:
    cluster_id = start(user, InstanceFleets=[MASTER_FLEET])
    task: Any = {**CORE_FLEET, "InstanceFleetType": "TASK"}
    fleet_id = user.emr.add_instance_fleet(ClusterId=cluster_id, InstanceFleet=task)["InstanceFleetId"]
    code, message = refusal(user.emr.add_instance_fleet, ClusterId=cluster_id, InstanceFleet=task)
    assert (code, "already has a TASK" in message) == ("InvalidRequestException", True)
    user.emr.modify_instance_fleet(
        ClusterId=cluster_id,
        InstanceFleet={"InstanceFleetId": fleet_id, "TargetOnDemandCapacity": 8, "TargetSpotCapacity": 0},
    )
    listed = user.emr.list_instances(ClusterId=cluster_id, InstanceFleetType="TASK")["Instances"]
    assert [instance["Market"] for instance in listed] == ["ON_DEMAND"] * 4


def test_changes_of_masters_and_of_ended_clusters_are_rejected(
    user: User, groups: str, fleets: str, ended: str
) -> None:
    master = user.emr.list_instance_groups(ClusterId=groups)["InstanceGroups"][0]["Id"]
    master_fleet = user.emr.list_instance_fleets(ClusterId=fleets)["InstanceFleets"][0]["Id"]
    ended_group = user.emr.list_instance_groups(ClusterId=ended)["InstanceGroups"][0]["Id"]
    for group, part in [
        (master, "master instance group"),
        (ended_group, "running or waiting"),
        ("ig-0", "'ig-0' is not"),
    ]:
        change = [{"InstanceGroupId": group, "InstanceCount": 2}]
        assert part in refusal(user.emr.modify_instance_groups, InstanceGroups=change)[1]
    change_fleet = {"InstanceFleetId": master_fleet, "TargetOnDemandCapacity": 3}
    assert (
        "master instance fleet"
        in refusal(user.emr.modify_instance_fleet, ClusterId=fleets, InstanceFleet=change_fleet)[1]
    )
    core = {"InstanceRole": "CORE", "InstanceType": "m5.xlarge", "InstanceCount": 1}
    assert "not CORE" in refusal(user.emr.add_instance_groups, JobFlowId=groups, InstanceGroups=[core])[1]
    assert len(user.emr.list_instances(ClusterId=groups)["Instances"]) == 3
