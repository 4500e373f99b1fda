from datetime import timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.local_aws.user import REGION, ROLES, User, bash, until


def ids(user: User, **filters: Any) -> list[str]:
    """The clusters that ListClusters gives."""
    pages = user.emr.get_paginator("list_clusters").paginate(**filters)
    return [cluster["Id"] for page in pages for cluster in page["Clusters"]]


@pytest.fixture(scope="module")
def ended(user: User, waiting: str) -> str:
    """A cluster, later than `waiting`, that ran a step that works and one that fails."""
    return user.run(bash("true"), bash("exit 1"), Name="the ended one")


def test_clusters_are_listed_newest_first(user: User, waiting: str, ended: str) -> None:
    assert [cluster_id for cluster_id in ids(user) if cluster_id in (waiting, ended)] == [ended, waiting]


@pytest.mark.parametrize(
    ("states", "found"),
    [
        (["WAITING"], (True, False)),
        (["TERMINATED"], (False, True)),
        (["WAITING", "TERMINATED"], (True, True)),
        (["STARTING", "TERMINATED_WITH_ERRORS"], (False, False)),
    ],
)
def test_clusters_are_listed_by_state(
    user: User, waiting: str, ended: str, states: list[Any], found: tuple[bool, bool]
) -> None:
    listed = ids(user, ClusterStates=states)
    assert (waiting in listed, ended in listed) == found


def test_clusters_are_listed_by_the_time_of_their_creation(user: User, waiting: str, ended: str) -> None:
    first, second = (user.cluster(name)["Status"]["Timeline"]["CreationDateTime"] for name in (waiting, ended))
    between = first + (second - first) / 2
    assert (waiting in ids(user, CreatedBefore=between), ended in ids(user, CreatedBefore=between)) == (True, False)
    assert (waiting in ids(user, CreatedAfter=between), ended in ids(user, CreatedAfter=between)) == (False, True)
    assert ids(user, CreatedAfter=second + timedelta(hours=1)) == []


def test_clusters_are_listed_by_region(user: User, ended: str) -> None:
    elsewhere = boto3.Session(aws_access_key_id="user", aws_secret_access_key="secret", region_name="us-west-2")
    client = elsewhere.client("emr", endpoint_url=user.endpoint_url)
    assert client.list_clusters()["Clusters"] == []
    one: Any = {"MasterInstanceType": "m5.xlarge", "InstanceCount": 1}
    made = client.run_job_flow(Name="far away", ReleaseLabel="emr-7.14.0", Instances=one, **ROLES)
    assert [cluster["Name"] for cluster in client.list_clusters()["Clusters"]] == ["far away"]
    assert ":us-west-2:" in made["ClusterArn"]
    assert made["JobFlowId"] not in ids(user)
    assert ended in ids(user)


def test_a_listed_cluster_is_the_described_one(user: User, ended: str) -> None:
    (listed,) = [cluster for cluster in user.emr.list_clusters()["Clusters"] if cluster["Id"] == ended]
    described = dict(user.cluster(ended))
    assert listed["Name"] == "the ended one"
    assert {**described, **listed} == described


def test_a_described_cluster_shows_what_it_was_asked_for(user: User) -> None:
    session = boto3.Session(aws_access_key_id="user", aws_secret_access_key="secret", region_name=REGION)
    iam = session.client("iam", endpoint_url=user.endpoint_url)
    iam.create_role(RoleName="a-service-role", AssumeRolePolicyDocument="{}")
    iam.create_instance_profile(InstanceProfileName="a-profile")
    subnet = session.client("ec2", endpoint_url=user.endpoint_url).describe_subnets()["Subnets"][0]["SubnetId"]
    asked: dict[str, Any] = {
        "Name": "as asked for",
        "Applications": [{"Name": "Spark"}],
        "ServiceRole": "a-service-role",
        "Configurations": [{"Classification": "spark-defaults", "Properties": {"spark.x": "1"}}],
    }
    cluster = user.cluster(user.start(**asked, JobFlowRole="a-profile", Instances={"Ec2SubnetId": subnet}))
    assert {key: cluster.get(key) for key in asked} == asked
    assert cluster["Ec2InstanceAttributes"]["IamInstanceProfile"] == "a-profile"
    assert cluster["Ec2InstanceAttributes"]["Ec2SubnetId"] == subnet
    assert (cluster["ReleaseLabel"], cluster["AutoTerminate"]) == ("emr-7.14.0", True)


def test_steps_are_listed_newest_first_by_state_and_by_id(user: User, ended: str) -> None:
    def listed(**filters: Any) -> list[str]:
        return [step["Id"] for step in user.emr.list_steps(ClusterId=ended, **filters)["Steps"]]

    works, fails = (step["Id"] for step in user.steps(ended))
    assert listed() == [fails, works]
    assert listed(StepStates=["COMPLETED"]) == [works]
    assert listed(StepStates=["FAILED", "PENDING"]) == [fails]
    assert listed(StepIds=[works]) == [works]
    assert listed(StepIds=[works], StepStates=["FAILED"]) == []


def test_a_described_step_shows_what_it_was_asked_for(user: User, ended: str) -> None:
    step = user.steps(ended)[0]
    assert step["Name"] == "bash -c true"
    assert step["Config"] == {"Jar": "command-runner.jar", "Properties": {}, "Args": ["bash", "-c", "true"]}


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
def test_instances_are_those_that_were_asked_for(
    user: User, instances: dict[str, Any], kind: str, types: list[str]
) -> None:
    made = user.emr.run_job_flow(Name="instances", ReleaseLabel="emr-7.14.0", Instances=instances, **ROLES)  # type: ignore[arg-type]
    listed = user.emr.list_instances(ClusterId=made["JobFlowId"])["Instances"]
    assert [instance["InstanceType"] for instance in listed] == types
    assert len({instance["Ec2InstanceId"] for instance in listed}) == len(types)
    assert user.cluster(made["JobFlowId"])["InstanceCollectionType"] == kind


def test_an_instance_lives_as_long_as_its_cluster(user: User, tmp_path: Path) -> None:
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
def test_instances_are_listed_by_state_and_by_role(
    user: User, instances: dict[str, Any], filters: dict[str, Any], types: list[str]
) -> None:
    made = user.emr.run_job_flow(
        Name="instances",
        ReleaseLabel="emr-7.14.0",
        **ROLES,
        Instances={**instances, "KeepJobFlowAliveWhenNoSteps": True},  # type: ignore[typeddict-item]
    )
    user.wait_for(made["JobFlowId"], "WAITING")
    listed = user.emr.list_instances(ClusterId=made["JobFlowId"], **filters)["Instances"]
    assert [instance["InstanceType"] for instance in listed] == types


def tags(user: User, cluster_id: str) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in user.cluster(cluster_id)["Tags"]}


def test_tags_are_set_changed_and_removed(user: User) -> None:
    cluster_id = user.start(Tags=[{"Key": "team", "Value": "fruit"}, {"Key": "cost", "Value": "1"}])
    user.emr.add_tags(ResourceId=cluster_id, Tags=[{"Key": "cost", "Value": "2"}, {"Key": "empty"}])
    assert tags(user, cluster_id) == {"team": "fruit", "cost": "2", "empty": ""}
    user.emr.remove_tags(ResourceId=cluster_id, TagKeys=["team", "unknown"])
    assert tags(user, cluster_id) == {"cost": "2", "empty": ""}
