import select
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import boto3
import httpx
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError, ReadTimeoutError

from local_aws.client import Answer, LocalAwsClient
from local_aws.server import LocalAws
from tests.local_aws.user import BUCKET, DEADLINE_SECONDS, REGION, ROLES, User, wait_until

if TYPE_CHECKING:
    from mypy_boto3_emr import EMRClient
    from mypy_boto3_s3 import S3Client

ONE: Final[Any] = {"MasterInstanceType": "m5.xlarge", "InstanceCount": 1}


@pytest.fixture
def session() -> boto3.Session:
    return boto3.Session(aws_access_key_id="user", aws_secret_access_key="secret", region_name=REGION)


@pytest.fixture
def emr(own: User, session: boto3.Session) -> "EMRClient":
    """A client without retries and with a read timeout of 0.5 s."""
    config = Config(retries={"total_max_attempts": 1}, read_timeout=0.5)
    return session.client("emr", endpoint_url=own.endpoint_url, config=config)


@pytest.fixture
def s3(own: User, session: boto3.Session) -> "S3Client":
    """A client without retries."""
    config = Config(retries={"total_max_attempts": 1})
    return session.client("s3", endpoint_url=own.endpoint_url, config=config)


def counts(local_aws: LocalAwsClient) -> list[tuple[int, int]]:
    return [(fault["seen"], fault["struck"]) for fault in local_aws.faults()]


@pytest.mark.parametrize(
    ("answer", "status"),
    [("ThrottlingException", 400), ("AccessDeniedException", 400), ("InternalServerException", 500)],
)
def test_the_nth_call_of_an_operation_gets_an_error(
    local_aws: LocalAwsClient, emr: "EMRClient", answer: Answer, status: int
) -> None:
    local_aws.fail("emr:ListClusters", answer, calls=[2])
    emr.list_clusters()
    with pytest.raises(ClientError) as error:
        emr.list_clusters()
    emr.list_clusters()
    assert error.value.response["Error"]["Code"] == answer
    assert error.value.response["Error"]["Message"]
    assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
    assert counts(local_aws) == [(3, 1)]


def test_a_call_that_gets_an_error_is_not_carried_out(own: User, local_aws: LocalAwsClient, emr: "EMRClient") -> None:
    local_aws.fail("emr:RunJobFlow", "ThrottlingException")
    before = len(own.emr.list_clusters()["Clusters"])
    with pytest.raises(ClientError, match="ThrottlingException"):
        emr.run_job_flow(Name="none", ReleaseLabel="emr-7.14.0", Instances=ONE, **ROLES)
    assert len(own.emr.list_clusters()["Clusters"]) == before


def test_a_call_whose_answer_is_lost_is_carried_out(own: User, local_aws: LocalAwsClient, emr: "EMRClient") -> None:
    local_aws.lose_answer("emr:RunJobFlow", calls=[1])
    with pytest.raises(ConnectionClosedError):
        emr.run_job_flow(Name="lost", ReleaseLabel="emr-7.14.0", Instances=ONE, **ROLES)
    assert [cluster["Name"] for cluster in own.emr.list_clusters()["Clusters"]].count("lost") == 1


def test_a_hanging_call_lasts_longer_than_the_read_timeout_of_its_client(
    local_aws: LocalAwsClient, emr: "EMRClient"
) -> None:
    local_aws.hang("emr:ListClusters", 60, calls=[1])
    with pytest.raises(ReadTimeoutError):
        emr.list_clusters()
    emr.list_clusters()
    assert counts(local_aws) == [(2, 1)]


def test_a_hanging_call_ends_without_an_answer_and_is_not_carried_out(
    own: User, local_aws: LocalAwsClient, emr: "EMRClient"
) -> None:
    cluster_id = own.start(keep_alive=True, LogUri=None)
    local_aws.hang("emr:AddTags", 0.05)
    started = time.monotonic()
    with pytest.raises(ConnectionClosedError):
        emr.add_tags(ResourceId=cluster_id, Tags=[{"Key": "k", "Value": "v"}])
    assert time.monotonic() - started >= 0.05
    assert own.cluster(cluster_id)["Tags"] == []


def test_removing_a_rule_releases_a_hanging_call(own: User, local_aws: LocalAwsClient) -> None:
    local_aws.hang("s3", 60)
    with ThreadPoolExecutor() as pool:
        hanging = pool.submit(own.put, "faults/hanging", b"x")
        wait_until(lambda: local_aws.faults()[0]["struck"], "the hanging call")
        local_aws.clear()
        # The client retries, and its second call succeeds.
        assert hanging.result(DEADLINE_SECONDS)


def test_a_seed_selects_the_same_calls_for_slow_down_each_time(own: User, local_aws: LocalAwsClient) -> None:
    address = f"{own.endpoint_url}/{BUCKET}"
    signed = {"Authorization": f"AWS4-HMAC-SHA256 Credential=user/20260101/{REGION}/s3/aws4_request"}

    def statuses() -> list[int]:
        local_aws.slow_down(0.5, seed=3)
        answers = [httpx.get(address, headers=signed).status_code for _ in range(12)]
        assert counts(local_aws) == [(12, answers.count(503))]
        local_aws.clear()
        return answers

    first = statuses()
    assert set(first) == {200, 503}
    assert statuses() == first


def test_slow_down_is_an_s3_error_with_status_503(local_aws: LocalAwsClient, s3: "S3Client") -> None:
    local_aws.fail("s3", "SlowDown")
    with pytest.raises(ClientError) as error:
        s3.list_buckets()
    assert error.value.response["Error"]["Code"] == "SlowDown"
    assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 503


def test_the_body_of_an_upload_is_read_before_the_error_is_sent(own: User, local_aws: LocalAwsClient) -> None:
    local_aws.fail("s3", "SlowDown")
    connection = HTTPConnection(urlsplit(own.endpoint_url).netloc)
    headers = {"Authorization": f"AWS4-HMAC-SHA256 Credential=user/20260101/{REGION}/s3/aws4_request"}
    connection.request("PUT", f"/{BUCKET}/large", headers={**headers, "Content-Length": "10"})
    # If the server responds at once and closes the connection, it breaks for a client that is still sending.
    assert select.select([connection.sock], [], [], 0.2)[0] == []
    connection.send(b"0123456789")
    assert connection.getresponse().status == 503
    connection.close()


def test_boto3_retries_after_slow_down(own: User, local_aws: LocalAwsClient) -> None:
    local_aws.fail("s3", "SlowDown", calls=[1, 2])
    own.put("faults/slow", b"x" * 100_000)
    assert counts(local_aws) == [(3, 2)]
    assert own.s3.get_object(Bucket=BUCKET, Key="faults/slow")["Body"].read() == b"x" * 100_000


def test_latency_delays_only_the_calls_of_its_rule(
    own: User, local_aws: LocalAwsClient, s3: "S3Client", session: boto3.Session
) -> None:
    iam = session.client("iam", endpoint_url=own.endpoint_url)
    local_aws.latency(0.3)
    started = time.monotonic()
    s3.list_buckets()
    assert time.monotonic() - started >= 0.3
    iam.list_roles()
    own.emr.list_clusters()
    assert counts(local_aws) == [(1, 1)]


def test_stopping_a_server_releases_hanging_calls(tmp_path: Path, session: boto3.Session) -> None:
    once = Config(retries={"total_max_attempts": 1}, read_timeout=DEADLINE_SECONDS)
    with ThreadPoolExecutor() as pool:
        with LocalAws(tmp_path) as server:
            local_aws = LocalAwsClient(server.endpoint_url)
            local_aws.hang("emr", 2 * DEADLINE_SECONDS)
            emr = session.client("emr", endpoint_url=server.endpoint_url, config=once)
            hanging = pool.submit(emr.list_clusters)
            wait_until(lambda: local_aws.faults()[0]["struck"], "the hanging call")
        with pytest.raises(ConnectionClosedError):
            hanging.result()
