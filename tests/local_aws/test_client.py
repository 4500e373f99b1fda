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

from local_aws.client import Answer, LocalAwsClient, Refused
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
    """A client that calls once, and waits half a second for an answer."""
    config = Config(retries={"total_max_attempts": 1}, read_timeout=0.5)
    return session.client("emr", endpoint_url=own.endpoint_url, config=config)


@pytest.fixture
def s3(own: User, session: boto3.Session) -> "S3Client":
    """A client that calls once."""
    config = Config(retries={"total_max_attempts": 1})
    return session.client("s3", endpoint_url=own.endpoint_url, config=config)


def counts(local_aws: LocalAwsClient) -> list[tuple[int, int]]:
    return [(fault["seen"], fault["struck"]) for fault in local_aws.faults()]


@pytest.mark.parametrize(
    ("answer", "status"),
    [("ThrottlingException", 400), ("AccessDeniedException", 400), ("InternalServerException", 500)],
)
def test_the_nth_call_of_an_operation_is_answered_with_an_error(
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


def test_a_refused_call_is_not_carried_out(own: User, local_aws: LocalAwsClient, emr: "EMRClient") -> None:
    local_aws.fail("emr:RunJobFlow", "ThrottlingException")
    before = len(own.emr.list_clusters()["Clusters"])
    with pytest.raises(ClientError, match="ThrottlingException"):
        emr.run_job_flow(Name="none", ReleaseLabel="emr-7.14.0", Instances=ONE, **ROLES)
    assert len(own.emr.list_clusters()["Clusters"]) == before


def test_a_lost_answer_is_of_a_call_that_was_carried_out(
    own: User, local_aws: LocalAwsClient, emr: "EMRClient"
) -> None:
    local_aws.lose_answer("emr:RunJobFlow", calls=[1])
    with pytest.raises(ConnectionClosedError):
        emr.run_job_flow(Name="lost", ReleaseLabel="emr-7.14.0", Instances=ONE, **ROLES)
    assert [cluster["Name"] for cluster in own.emr.list_clusters()["Clusters"]].count("lost") == 1


def test_a_hanging_call_outlasts_the_patience_of_its_client(local_aws: LocalAwsClient, emr: "EMRClient") -> None:
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


def test_a_removed_rule_lets_go_of_a_hanging_call(own: User, local_aws: LocalAwsClient) -> None:
    local_aws.hang("s3", 60)
    with ThreadPoolExecutor() as pool:
        hanging = pool.submit(own.put, "faults/hanging", b"x")
        wait_until(lambda: local_aws.faults()[0]["struck"], "the call that hangs")
        local_aws.clear()
        # Its client calls again by itself.
        assert hanging.result(DEADLINE_SECONDS)


def test_s3_slows_down_for_the_same_share_of_the_calls_each_time(own: User, local_aws: LocalAwsClient) -> None:
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


def test_a_slow_down_is_an_error_of_s3(local_aws: LocalAwsClient, s3: "S3Client") -> None:
    local_aws.fail("s3", "SlowDown")
    with pytest.raises(ClientError) as error:
        s3.list_buckets()
    assert error.value.response["Error"]["Code"] == "SlowDown"
    assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 503


def test_an_upload_is_read_before_it_is_refused(own: User, local_aws: LocalAwsClient) -> None:
    local_aws.fail("s3", "SlowDown")
    connection = HTTPConnection(urlsplit(own.endpoint_url).netloc)
    headers = {"Authorization": f"AWS4-HMAC-SHA256 Credential=user/20260101/{REGION}/s3/aws4_request"}
    connection.request("PUT", f"/{BUCKET}/large", headers={**headers, "Content-Length": "10"})
    # Who answers at once and closes breaks the connection of a client that still sends.
    assert select.select([connection.sock], [], [], 0.2)[0] == []
    connection.send(b"0123456789")
    assert connection.getresponse().status == 503
    connection.close()


def test_boto3_by_itself_gets_over_a_slow_down(own: User, local_aws: LocalAwsClient) -> None:
    local_aws.fail("s3", "SlowDown", calls=[1, 2])
    own.put("faults/slow", b"x" * 100_000)
    assert counts(local_aws) == [(3, 2)]
    assert own.s3.get_object(Bucket=BUCKET, Key="faults/slow")["Body"].read() == b"x" * 100_000


def test_latency_delays_what_it_is_about_and_nothing_else(
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


def test_rules_are_listed_as_given_and_removed_one_by_one(local_aws: LocalAwsClient, emr: "EMRClient") -> None:
    first = local_aws.fail("emr:ListClusters", "ThrottlingException", calls=[2, 3])
    second = local_aws.latency(0.001)
    rules = [(fault["id"], fault["rule"]) for fault in local_aws.faults()]
    latency = {"on": "s3", "latency_seconds": 0.001, "share": 1.0, "seed": 0}
    assert rules == [
        (first, {"on": "emr:ListClusters", "answer": "ThrottlingException", "calls": [2, 3]}),
        (second, latency),
    ]
    local_aws.remove(first)
    assert [fault["id"] for fault in local_aws.faults()] == [second]
    local_aws.clear()
    assert local_aws.faults() == []


@pytest.mark.parametrize(
    ("wrong", "status", "complaint"),
    [
        (lambda client: client.fail("emr:Describe", "ThrottlingException"), 400, "emr:Describe"),
        (lambda client: client.remove("999"), 404, "there is no fault '999'"),
        (lambda client: client.lose_instances("j-NONE"), 404, "j-NONE"),
        (lambda client: client.kill_step("j-NONE", "s-NONE"), 404, "j-NONE"),
        (lambda client: client.kill_step("j-NONE", "s-NONE", 999), 400, "number of a signal"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_no_rule(
    local_aws: LocalAwsClient, wrong: Any, status: int, complaint: str
) -> None:
    with pytest.raises(Refused, match=complaint) as refused:
        wrong(local_aws)
    assert refused.value.status == status
    assert local_aws.faults() == []


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "said"),
    [
        ("POST", "/faults", b"{bad", 400, "the body is not JSON: "),
        ("POST", "/faults", b"\xff", 400, "the body is not JSON: "),
        ("POST", "/faults", b'{"on": "s3", "kind": "x", "lose_answer": true}', 400, "unknown fields ['kind']"),
        ("PUT", "/faults", b"", 405, "PUT /_local_aws/faults: Method Not Allowed"),
        (
            "GET",
            "/faults/1/2",
            b"",
            404,
            "there is no /_local_aws/faults/1/2, but GET /_local_aws/faults, POST /_local",
        ),
        ("GET", "/", b"", 404, "POST /_local_aws/clusters/<cluster_id>/lose-instances"),
        ("GET", "", b"", 404, "DELETE /_local_aws/faults/<fault_id>"),
        ("POST", "/clusters/j-NONE/steps/s-NONE/kill", b'{"number": 9}', 400, "number of a signal"),
    ],
)
def test_a_wrong_request_gets_a_message(
    own: User, method: str, path: str, content: bytes, status: int, said: str
) -> None:
    answer = httpx.request(method, f"{own.endpoint_url}/_local_aws{path}", content=content)
    assert answer.status_code == status
    assert said in answer.json()["message"]


def test_a_web_page_cannot_ask_for_faults(own: User, local_aws: LocalAwsClient) -> None:
    rule = {"on": "s3", "lose_answer": True}
    headers = {"Origin": "https://evil.example"}
    assert httpx.post(f"{own.endpoint_url}/_local_aws/faults", json=rule, headers=headers).status_code == 403
    assert local_aws.faults() == []


def test_leaving_a_server_lets_go_of_what_hangs(tmp_path: Path, session: boto3.Session) -> None:
    once = Config(retries={"total_max_attempts": 1}, read_timeout=DEADLINE_SECONDS)
    with ThreadPoolExecutor() as pool:
        with LocalAws(tmp_path) as server:
            local_aws = LocalAwsClient(server.endpoint_url)
            local_aws.hang("emr", 2 * DEADLINE_SECONDS)
            emr = session.client("emr", endpoint_url=server.endpoint_url, config=once)
            hanging = pool.submit(emr.list_clusters)
            wait_until(lambda: local_aws.faults()[0]["struck"], "the call that hangs")
        with pytest.raises(ConnectionClosedError):
            hanging.result()
