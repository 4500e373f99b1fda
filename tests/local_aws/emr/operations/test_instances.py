from pathlib import Path
from typing import Any

import pytest

from tests.local_aws.user import ROLES, User, until

GROUPS = {
    "InstanceGroups": [
        {"InstanceRole": "MASTER", "InstanceType": "m5.xlarge", "InstanceCount": 1},
        {"InstanceRole": "CORE", "InstanceType": "r5.xlarge", "InstanceCount": 2, "Market": "SPOT"},
    ]
}

FLEETS = {
    "InstanceFleets": [
        {
            "InstanceFleetType": "MASTER",
            "TargetOnDemandCapacity": 1,
            "InstanceTypeConfigs": [{"InstanceType": "m6g.xlarge"}],
        },
        {
            "InstanceFleetType": "CORE",
            "TargetOnDemandCapacity": 1,
            "TargetSpotCapacity": 1,
            "InstanceTypeConfigs": [{"InstanceType": "r6g.xlarge"}],
        },
    ]
}


@pytest.mark.parametrize(
    ("instances", "kind", "types"),
    [
        (GROUPS, "INSTANCE_GROUP", ["m5.xlarge", "r5.xlarge", "r5.xlarge"]),
        (FLEETS, "INSTANCE_FLEET", ["m6g.xlarge", "r6g.xlarge", "r6g.xlarge"]),
        ({"MasterInstanceType": "m4.large", "InstanceCount": 1}, "INSTANCE_GROUP", ["m4.large"]),
        (
            {"MasterInstanceType": "m4.large", "SlaveInstanceType": "c5.xlarge", "InstanceCount": 3},
            "INSTANCE_GROUP",
            ["m4.large", "c5.xlarge", "c5.xlarge"],
        ),
    ],
)
def test_instances_match_the_request(user: User, instances: dict[str, Any], kind: str, types: list[str]) -> None:
    created = user.emr.run_job_flow(Name="instances", ReleaseLabel="emr-7.14.0", Instances=instances, **ROLES)  # type: ignore[arg-type]
    listed = user.emr.list_instances(ClusterId=created["JobFlowId"])["Instances"]
    assert [instance["InstanceType"] for instance in listed] == types
    assert len({instance["Ec2InstanceId"] for instance in listed}) == len(types)
    assert user.cluster(created["JobFlowId"])["InstanceCollectionType"] == kind


def test_the_state_of_an_instance_follows_its_cluster(user: User, tmp_path: Path) -> None:
    def state(cluster_id: str) -> str:
        (instance,) = user.emr.list_instances(ClusterId=cluster_id)["Instances"]
        return instance["Status"]["State"]

    script = user.put("instance.sh", f"#!/bin/bash\n{until(tmp_path / 'go')}\n")
    cluster_id = user.start(bootstrap=[(script,)], keep_alive=True)
    user.wait_for(cluster_id, "BOOTSTRAPPING")
    assert state(cluster_id) == "BOOTSTRAPPING"
    (tmp_path / "go").touch()
    user.wait_for(cluster_id, "WAITING")
    assert state(cluster_id) == "RUNNING"
    user.terminate(cluster_id)
    user.wait_for(cluster_id, "TERMINATED")
    assert state(cluster_id) == "TERMINATED"


@pytest.mark.parametrize(
    ("instances", "filters", "types"),
    [
        (GROUPS, {"InstanceGroupTypes": ["MASTER"]}, ["m5.xlarge"]),
        (GROUPS, {"InstanceGroupTypes": ["CORE"]}, ["r5.xlarge", "r5.xlarge"]),
        (GROUPS, {"InstanceGroupTypes": ["MASTER", "TASK"]}, ["m5.xlarge"]),
        (GROUPS, {"InstanceGroupTypes": ["TASK"]}, []),
        (GROUPS, {"InstanceStates": ["RUNNING"], "InstanceGroupTypes": ["MASTER"]}, ["m5.xlarge"]),
        (GROUPS, {"InstanceStates": ["TERMINATED", "BOOTSTRAPPING"]}, []),
        (FLEETS, {"InstanceFleetType": "MASTER"}, ["m6g.xlarge"]),
        (FLEETS, {"InstanceFleetType": "CORE"}, ["r6g.xlarge", "r6g.xlarge"]),
    ],
)
def test_instances_are_listed_by_state_and_role(
    user: User, instances: dict[str, Any], filters: dict[str, Any], types: list[str]
) -> None:
    created = user.emr.run_job_flow(
        Name="instances",
        ReleaseLabel="emr-7.14.0",
        **ROLES,
        Instances={**instances, "KeepJobFlowAliveWhenNoSteps": True},  # type: ignore[typeddict-item]
    )
    user.wait_for(created["JobFlowId"], "WAITING")
    listed = user.emr.list_instances(ClusterId=created["JobFlowId"], **filters)["Instances"]
    assert [instance["InstanceType"] for instance in listed] == types
