import httpx
import pytest

from local_aws.client import LocalAwsClient
from tests.local_aws.user import User


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "message"),
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
            "/_local_aws/faults/1/2 does not exist; use one of GET /_local_aws/faults, POST /_local",
        ),
        ("GET", "/", b"", 404, "POST /_local_aws/clusters/<cluster_id>/lose-instances"),
        ("GET", "", b"", 404, "DELETE /_local_aws/faults/<fault_id>"),
        ("POST", "/clusters/j-NONE/steps/s-NONE/kill", b'{"number": 9}', 400, "number of a signal"),
    ],
)
def test_an_invalid_request_gets_a_status_and_a_message(
    own: User, method: str, path: str, content: bytes, status: int, message: str
) -> None:
    answer = httpx.request(method, f"{own.endpoint_url}/_local_aws{path}", content=content)
    assert answer.status_code == status
    assert message in answer.json()["message"]


def test_a_web_page_cannot_add_faults(own: User, local_aws: LocalAwsClient) -> None:
    rule = {"on": "s3", "lose_answer": True}
    headers = {"Origin": "https://evil.example"}
    assert httpx.post(f"{own.endpoint_url}/_local_aws/faults", json=rule, headers=headers).status_code == 403
    assert local_aws.faults() == []
