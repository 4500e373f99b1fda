import re
from collections.abc import Iterator

import httpx
import pytest

from tests.local_aws.user import BUCKET, User, bash


@pytest.fixture
def page(user: User) -> Iterator[httpx.Client]:
    """A browser that opens the server."""
    with httpx.Client(base_url=user.endpoint_url) as client:
        yield client


def test_the_page_shows_clusters_steps_and_buckets(user: User, page: httpx.Client) -> None:
    cluster_id = user.run(bash("exit 0"), bash("echo 'no <fruit>' >&2; exit 3"))
    answer = page.get("/")
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    html = re.sub(r"\s+", " ", answer.text)
    assert f'{cluster_id} &middot; <span class="TERMINATED">TERMINATED</span>' in html
    assert '<td class="COMPLETED">COMPLETED</td>' in html
    assert '<td class="FAILED">FAILED<pre>no &lt;fruit&gt;</pre></td>' in html
    assert f"<td>{BUCKET}</td>" in html
    assert 'http-equiv="refresh"' in html


def test_the_page_links_to_the_logs_of_a_step(user: User, page: httpx.Client) -> None:
    cluster_id = user.run(bash("echo hello"))
    (step,) = user.steps(cluster_id)
    (href,) = re.findall(rf'href="([^"]*/{step["Id"]}/stdout)"', page.get("/").text)
    answer = page.get(href)
    assert (answer.text, answer.headers["Content-Type"]) == ("hello\n", "text/plain; charset=utf-8")


@pytest.mark.parametrize(
    ("log_uri", "note"),
    [
        (None, "The cluster has no LogUri: its logs are only on this page."),
        (
            "s3://no-such-bucket/logs/",
            "The bucket of LogUri s3://no-such-bucket/logs/ does not exist: the logs are only on this page.",
        ),
    ],
)
def test_the_page_notes_that_the_logs_of_a_cluster_are_not_in_s3(
    user: User, page: httpx.Client, log_uri: str | None, note: str
) -> None:
    cluster_id = user.run(bash("exit 0"), LogUri=log_uri)
    details = page.get("/").text.partition(cluster_id)[2].partition("<table>")[0]
    assert note in details


def test_no_file_except_logs_can_be_read(user: User, page: httpx.Client) -> None:
    cluster_id = user.run(bash("exit 0"))
    for path in (
        f"{cluster_id}/etc/spark/conf/spark-defaults.conf",
        f"{cluster_id}/var/log/none",
        f"{cluster_id}/var/log/%2e%2e/%2e%2e/etc/spark/conf/spark-defaults.conf",
        "%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    ):
        assert page.get(f"/_local_aws/logs/{path}").status_code == 404, path


def test_an_s3_client_can_list_buckets_at_the_address_of_the_page(user: User) -> None:
    assert BUCKET in [bucket["Name"] for bucket in user.s3.list_buckets()["Buckets"]]


def test_each_request_is_logged_with_operation_status_and_time(user: User, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="local_aws.server")
    user.emr.list_clusters()
    user.put("logged", b"1")
    assert re.search(r"ElasticMapReduce\.ListClusters 200 \d+\.\d ms", caplog.text)
    assert re.search(rf"PUT /{BUCKET}/logged 200 \d+\.\d ms", caplog.text)
