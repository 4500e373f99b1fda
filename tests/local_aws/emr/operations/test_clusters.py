from datetime import timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest

from local_aws.emr.model import SECURITY_GROUPS
from tests.local_aws.user import BUCKET, REGION, ROLES, User, bash, until


def ids(user: User, **filters: Any) -> list[str]:
    """Return the ids of the listed clusters on all pages."""
    pages = user.emr.get_paginator("list_clusters").paginate(**filters)
    return [cluster["Id"] for page in pages for cluster in page["Clusters"]]


@pytest.fixture(scope="module")
def ended(user: User, waiting: str) -> str:
    """The id of a cluster, newer than `waiting`, in which one step succeeded and one failed."""
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


def test_clusters_are_listed_by_creation_time(user: User, waiting: str, ended: str) -> None:
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
    created = client.run_job_flow(Name="far away", ReleaseLabel="emr-7.14.0", Instances=one, **ROLES)
    assert [cluster["Name"] for cluster in client.list_clusters()["Clusters"]] == ["far away"]
    assert ":us-west-2:" in created["ClusterArn"]
    assert created["JobFlowId"] not in ids(user)
    assert ended in ids(user)


def test_a_listed_cluster_matches_the_described_one(user: User, ended: str) -> None:
    (listed,) = [cluster for cluster in user.emr.list_clusters()["Clusters"] if cluster["Id"] == ended]
    described = dict(user.cluster(ended))
    assert listed["Name"] == "the ended one"
    assert {**described, **listed} == described


def test_a_described_cluster_has_the_values_of_its_request(user: User) -> None:
    session = boto3.Session(aws_access_key_id="user", aws_secret_access_key="secret", region_name=REGION)
    iam = session.client("iam", endpoint_url=user.endpoint_url)
    iam.create_role(RoleName="a-service-role", AssumeRolePolicyDocument="{}")
    iam.create_instance_profile(InstanceProfileName="a-profile")
    ec2 = session.client("ec2", endpoint_url=user.endpoint_url)
    first = ec2.describe_subnets(Filters=[{"Name": "default-for-az", "Values": ["true"]}])["Subnets"][0]
    subnet, in_vpc = first["SubnetId"], {"Name": "vpc-id", "Values": [first["VpcId"]]}
    request: dict[str, Any] = {
        "Name": "as requested",
        "Applications": [{"Name": "Spark"}],
        "ServiceRole": "a-service-role",
        "Configurations": [{"Classification": "spark-defaults", "Properties": {"spark.x": "1"}}],
    }
    group = ec2.describe_security_groups(Filters=[in_vpc])["SecurityGroups"][0]
    groups: dict[str, Any] = dict.fromkeys(SECURITY_GROUPS, group["GroupId"])
    groups["AdditionalMasterSecurityGroups"] = [group["GroupId"]]
    instances = {"Ec2SubnetId": subnet, **groups}
    cluster = user.cluster(user.start(**request, JobFlowRole="a-profile", Instances=instances))
    assert {key: cluster.get(key) for key in request} == request
    assert cluster["Ec2InstanceAttributes"]["IamInstanceProfile"] == "a-profile"
    assert cluster["Ec2InstanceAttributes"]["Ec2SubnetId"] == subnet
    assert {key: cluster["Ec2InstanceAttributes"].get(key) for key in groups} == groups
    assert (cluster["ReleaseLabel"], cluster["AutoTerminate"]) == ("emr-7.14.0", True)


@pytest.mark.parametrize("scheme", ["s3", "s3n"])
def test_the_log_uri_is_described_with_s3n_and_logs_are_uploaded(user: User, scheme: str) -> None:
    cluster_id = user.run(bash("echo pears"), LogUri=f"{scheme}://{BUCKET}/{scheme}/")
    assert user.cluster(cluster_id)["LogUri"] == f"s3n://{BUCKET}/{scheme}/"
    keys = [item["Key"] for item in user.s3.list_objects_v2(Bucket=BUCKET, Prefix=f"{scheme}/")["Contents"]]
    assert any(key.endswith("/stdout.gz") for key in keys)


def tags(user: User, cluster_id: str) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in user.cluster(cluster_id)["Tags"]}


def test_tags_are_set_changed_and_removed(user: User) -> None:
    cluster_id = user.start(Tags=[{"Key": "team", "Value": "fruit"}, {"Key": "cost", "Value": "1"}])
    user.emr.add_tags(ResourceId=cluster_id, Tags=[{"Key": "cost", "Value": "2"}, {"Key": "empty"}])
    assert tags(user, cluster_id) == {"team": "fruit", "cost": "2", "empty": ""}
    user.emr.remove_tags(ResourceId=cluster_id, TagKeys=["team", "unknown"])
    assert tags(user, cluster_id) == {"cost": "2", "empty": ""}


def test_the_waiters_of_boto3_work(user: User, tmp_path: Path) -> None:
    quick: Any = {"Delay": 1, "MaxAttempts": 20}
    cluster_id = user.start(bash(until(tmp_path / "go")), keep_alive=True)
    user.emr.get_waiter("cluster_running").wait(ClusterId=cluster_id, WaiterConfig=quick)
    (step,) = user.steps(cluster_id)
    (tmp_path / "go").touch()
    user.emr.get_waiter("step_complete").wait(ClusterId=cluster_id, StepId=step["Id"], WaiterConfig=quick)
    assert user.step_states(cluster_id) == ["COMPLETED"]
    user.terminate(cluster_id)
    user.emr.get_waiter("cluster_terminated").wait(ClusterId=cluster_id, WaiterConfig=quick)
    assert user.state(cluster_id) == "TERMINATED"
