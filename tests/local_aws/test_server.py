import errno
import socket
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import httpx
import pytest

from local_aws.server import LocalAws
from tests.local_aws.user import BUCKET, REGION, User, bash, grandchild, read_pid, wait_for_death


@pytest.fixture
def session() -> boto3.Session:
    return boto3.Session(aws_access_key_id="user", aws_secret_access_key="secret", region_name=REGION)


def connect(host: str, port: int) -> int:
    with socket.socket() as client:
        return client.connect_ex((host, port))


def test_the_server_listens_only_on_127_0_0_1(user: User) -> None:
    port = urlsplit(user.endpoint_url).port
    assert port is not None
    assert connect("127.0.0.1", port) == 0
    # All of 127/8 is this machine: a server on every interface would answer here.
    assert connect("127.0.0.2", port) == errno.ECONNREFUSED


def test_a_port_in_use_raises(user: User, tmp_path: Path) -> None:
    port = urlsplit(user.endpoint_url).port
    assert port is not None
    with pytest.raises(OSError, match="in use"):
        LocalAws(tmp_path, port)


def test_s3_stores_objects(user: User) -> None:
    user.put("server/object", b"\x00\xff")
    assert user.s3.get_object(Bucket=BUCKET, Key="server/object")["Body"].read() == b"\x00\xff"
    assert user.keys(f"s3://{BUCKET}/server/") == ["object"]


def test_iam_stores_roles(user: User, session: boto3.Session) -> None:
    iam = session.client("iam", endpoint_url=user.endpoint_url)
    iam.create_role(RoleName="node", AssumeRolePolicyDocument="{}")
    assert iam.get_role(RoleName="node")["Role"]["Arn"].endswith(":role/node")


def test_sts_returns_the_account_of_the_clusters(user: User, session: boto3.Session) -> None:
    account = session.client("sts", endpoint_url=user.endpoint_url).get_caller_identity()["Account"]
    cluster = user.cluster(user.start())
    assert cluster["ClusterArn"] == f"arn:aws:elasticmapreduce:{REGION}:{account}:cluster/{cluster['Id']}"


def test_glue_stores_databases_by_region(user: User, session: boto3.Session) -> None:
    glue = session.client("glue", endpoint_url=user.endpoint_url)
    elsewhere = session.client("glue", endpoint_url=user.endpoint_url, region_name="us-west-2")
    name = f"features-{uuid.uuid4().hex}"  # moto's databases belong to the process, and other tests create some
    glue.create_database(DatabaseInput={"Name": name})
    assert glue.get_database(Name=name)["Database"]["Name"] == name
    with pytest.raises(elsewhere.exceptions.EntityNotFoundException):
        elsewhere.get_database(Name=name)


def test_stopping_a_server_kills_the_processes_of_its_clusters_even_if_protected(tmp_path: Path) -> None:
    step, protected = tmp_path / "step.pid", tmp_path / "protected.pid"
    with LocalAws(tmp_path / "data") as server:
        user = User(server.endpoint_url)
        user.start(bash(grandchild(step)), LogUri="s3://none/")
        user.start(bash(grandchild(protected)), Instances={"TerminationProtected": True}, LogUri="s3://none/")
        pids = [read_pid(step), read_pid(protected)]
    for pid in pids:
        wait_for_death(pid)
    port = urlsplit(user.endpoint_url).port
    assert port is not None
    assert connect("127.0.0.1", port) == errno.ECONNREFUSED


@pytest.mark.parametrize("headers", [{"Origin": "https://evil.example"}, {"Host": "evil.example"}])
@pytest.mark.parametrize("method", ["OPTIONS", "POST"])
def test_a_web_page_cannot_start_a_cluster(user: User, method: str, headers: dict[str, str]) -> None:
    request_headers = {
        "X-Amz-Target": "ElasticMapReduce.RunJobFlow",
        "Access-Control-Request-Method": "POST",
        **headers,
    }
    answer = httpx.request(method, user.endpoint_url, headers=request_headers, content=b"{}")
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


def test_glue_rejects_an_update_of_an_outdated_version(user: User, session: boto3.Session) -> None:
    glue: Any = session.client("glue", endpoint_url=user.endpoint_url)
    table = {"DatabaseName": "versions"}
    glue.create_database(DatabaseInput={"Name": "versions"})
    glue.create_table(**table, TableInput={"Name": "table"})
    version = glue.get_table(**table, Name="table")["Table"]["VersionId"]
    glue.update_table(**table, TableInput={"Name": "table", "Description": "first"}, VersionId=version)
    with pytest.raises(glue.exceptions.ConcurrentModificationException, match=f"version {version} is now"):
        glue.update_table(**table, TableInput={"Name": "table", "Description": "second"}, VersionId=version)
    assert glue.get_table(**table, Name="table")["Table"]["Description"] == "first"
    glue.update_table(
        **table, TableInput={"Name": "table", "Description": "third"}
    )  # without VersionId, it replaces any version
