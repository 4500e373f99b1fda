"""The record of calls, as IAM sees them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from local_aws.server import LocalAws
from sandbox import aws

ACCOUNT = "123456789012"
CLUSTERS = f"arn:aws:elasticmapreduce:{aws.REGION}:{ACCOUNT}:cluster/"
GLUE = f"arn:aws:glue:{aws.REGION}:{ACCOUNT}:"


class Recorded:
    """A local AWS that records, a user of it, and the calls of this user."""

    def __init__(self, url: str, file: Path) -> None:
        self._session = boto3.Session("pear", "secret", region_name=aws.REGION)
        self._url, self._file = url, file

    def client(self, service: str) -> Any:
        return self._session.client(service, endpoint_url=self._url)  # type: ignore[call-overload]

    def calls(self, action: str) -> list[tuple[list[str], dict[str, str]]]:
        """Return the resources and the context of each call of an action."""
        lines = [json.loads(line) for line in self._file.read_text().splitlines()]
        found = [line for line in lines if line["action"] == action]
        assert {line["principal"] for line in found} <= {"pear"}
        return [(line["resources"], line["context"]) for line in found]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    folder = tmp_path_factory.mktemp("aws")
    with LocalAws(folder / "data", calls=folder / "calls/all.jsonl") as server:
        recorded = Recorded(server.endpoint_url, folder / "calls/all.jsonl")
        recorded.client("s3").create_bucket(
            Bucket="fruits-calls", CreateBucketConfiguration={"LocationConstraint": aws.REGION}
        )
        yield recorded


def test_calls_on_objects_have_the_object_and_calls_on_buckets_the_prefix(recorded: Recorded) -> None:
    s3, bucket = recorded.client("s3"), "arn:aws:s3:::fruits-calls"
    s3.put_object(Bucket="fruits-calls", Key="a/1 é.jpg", Body=b"1")
    s3.head_object(Bucket="fruits-calls", Key="a/1 é.jpg")
    s3.copy_object(Bucket="fruits-calls", Key="b", CopySource={"Bucket": "fruits-calls", "Key": "a/1 é.jpg"})
    s3.list_objects_v2(Bucket="fruits-calls", Prefix="a/")
    s3.head_bucket(Bucket="fruits-calls")
    s3.get_bucket_location(Bucket="fruits-calls")
    s3.delete_objects(Bucket="fruits-calls", Delete={"Objects": [{"Key": "b"}, {"Key": "c"}]})
    s3.delete_object(Bucket="fruits-calls", Key="d")
    upload = s3.create_multipart_upload(Bucket="fruits-calls", Key="e")["UploadId"]
    s3.upload_part(Bucket="fruits-calls", Key="e", UploadId=upload, PartNumber=1, Body=b"1")
    s3.abort_multipart_upload(Bucket="fruits-calls", Key="e", UploadId=upload)
    assert recorded.calls("s3:PutObject") == [([f"{bucket}/{key}"], {}) for key in ("a/1 é.jpg", "b", "e")]
    assert recorded.calls("s3:GetObject") == [([f"{bucket}/a/1 é.jpg"], {})]
    assert recorded.calls("s3:ListBucket") == [([bucket], {"s3:prefix": "a/"}), ([bucket], {})]
    assert recorded.calls("s3:GetBucketLocation") == [([bucket], {})]
    assert recorded.calls("s3:DeleteObject") == [([f"{bucket}/{key}"], {}) for key in ("b", "c", "d")]
    assert recorded.calls("s3:AbortMultipartUpload") == [([f"{bucket}/e"], {})]


def test_a_new_cluster_needs_its_tags_and_both_roles_and_later_calls_have_its_tags(recorded: Recorded) -> None:
    iam, emr = recorded.client("iam"), recorded.client("emr")
    for name in ("service", "nodes"):
        iam.create_role(RoleName=name, AssumeRolePolicyDocument="{}", Path="/fruits/")
    iam.create_instance_profile(InstanceProfileName="profile")
    iam.add_role_to_instance_profile(InstanceProfileName="profile", RoleName="nodes")
    cluster_id = emr.run_job_flow(
        Name="calls",
        ReleaseLabel="emr-7.14.0",
        Instances={"InstanceCount": 1, "MasterInstanceType": "m5.xlarge", "KeepJobFlowAliveWhenNoSteps": True},
        ServiceRole="service",
        JobFlowRole="profile",
        Tags=[{"Key": "owner", "Value": "fruits"}],
    )["JobFlowId"]
    emr.describe_cluster(ClusterId=cluster_id)
    emr.terminate_job_flows(JobFlowIds=[cluster_id])
    requested, own = {"aws:RequestTag/owner": "fruits"}, {"aws:ResourceTag/owner": "fruits"}
    assert recorded.calls("elasticmapreduce:RunJobFlow") == [(["*"], requested)]
    assert recorded.calls("elasticmapreduce:AddTags") == [([f"{CLUSTERS}j-NEW"], requested)]
    assert recorded.calls("iam:PassRole") == [
        ([f"arn:aws:iam::{ACCOUNT}:role/fruits/service"], {"iam:PassedToService": "elasticmapreduce.amazonaws.com"}),
        ([f"arn:aws:iam::{ACCOUNT}:role/fruits/nodes"], {"iam:PassedToService": "ec2.amazonaws.com"}),
    ]
    for action in ("DescribeCluster", "TerminateJobFlows"):
        assert recorded.calls(f"elasticmapreduce:{action}") == [([f"{CLUSTERS}{cluster_id}"], own)]


def test_calls_on_a_table_have_its_catalog_and_its_database(recorded: Recorded) -> None:
    glue = recorded.client("glue")
    glue.create_database(DatabaseInput={"Name": "fruits"})
    glue.create_table(DatabaseName="fruits", TableInput={"Name": "images"})
    glue.get_table(DatabaseName="fruits", Name="images")
    glue.get_tables(DatabaseName="fruits")
    glue.get_databases()
    database, table = f"{GLUE}database/fruits", f"{GLUE}table/fruits/images"
    assert recorded.calls("glue:CreateDatabase") == [([f"{GLUE}catalog", database], {})]
    for action in ("CreateTable", "GetTable"):
        assert recorded.calls(f"glue:{action}") == [([f"{GLUE}catalog", database, table], {})]
    assert recorded.calls("glue:GetTables") == [([f"{GLUE}catalog", database, f"{GLUE}table/fruits/*"], {})]
    assert recorded.calls("glue:GetDatabases") == [([f"{GLUE}catalog"], {})]


def test_a_repeated_call_is_recorded_once_and_one_that_fails_too(recorded: Recorded) -> None:
    s3 = recorded.client("s3")
    for _ in range(3):
        with pytest.raises(s3.exceptions.NoSuchKey):
            s3.get_object(Bucket="fruits-calls", Key="missing")
    assert recorded.calls("s3:GetObject").count((["arn:aws:s3:::fruits-calls/missing"], {})) == 1


def test_the_topic_of_a_message_is_recorded(recorded: Recorded) -> None:
    sns = recorded.client("sns")
    arn = sns.create_topic(Name="fruits")["TopicArn"]
    sns.publish(TopicArn=arn, Message="pears")
    assert recorded.calls("sns:Publish") == [([arn], {})]
