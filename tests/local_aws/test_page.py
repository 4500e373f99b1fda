import re
from collections.abc import Iterator

import httpx
import pytest

from tests.local_aws.user import BUCKET, User, bash


@pytest.fixture
def page(user: User) -> Iterator[httpx.Client]:
    """A browser at the server."""
    with httpx.Client(base_url=user.endpoint_url) as client:
        yield client


def test_the_page_shows_clusters_steps_and_buckets(user: User, page: httpx.Client) -> None:
    cluster_id = user.run(bash("exit 0"), bash("echo 'no <fruit>' >&2; exit 3"))
    answer = page.get("/")
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    shown = re.sub(r"\s+", " ", answer.text)
    assert f'{cluster_id} &middot; <span class="TERMINATED">TERMINATED</span>' in shown
    assert '<td class="COMPLETED">COMPLETED</td>' in shown
    assert '<td class="FAILED">FAILED<pre>no &lt;fruit&gt;</pre></td>' in shown
    assert f"<td>{BUCKET}</td>" in shown
    assert 'http-equiv="refresh"' in shown


def test_the_logs_of_a_step_are_a_click_away(user: User, page: httpx.Client) -> None:
    cluster_id = user.run(bash("echo hello"))
    (step,) = user.steps(cluster_id)
    (href,) = re.findall(rf'href="([^"]*/{step["Id"]}/stdout)"', page.get("/").text)
    answer = page.get(href)
    assert (answer.text, answer.headers["Content-Type"]) == ("hello\n", "text/plain; charset=utf-8")


@pytest.mark.parametrize(
    ("log_uri", "said"),
    [
        (None, "No LogUri: the logs are only here."),
        (
            "s3://no-such-bucket/logs/",
            "There is no bucket for LogUri s3://no-such-bucket/logs/: the logs are only here.",
        ),
    ],
)
def test_a_cluster_whose_logs_are_not_in_s3_says_so(
    user: User, page: httpx.Client, log_uri: str | None, said: str
) -> None:
    cluster_id = user.run(bash("exit 0"), LogUri=log_uri)
    after = page.get("/").text.partition(cluster_id)[2].partition("<table>")[0]
    assert said in after


def test_only_logs_can_be_read(user: User, page: httpx.Client) -> None:
    cluster_id = user.run(bash("exit 0"))
    for path in (
        f"{cluster_id}/etc/spark/conf/spark-defaults.conf",
        f"{cluster_id}/var/log/none",
        f"{cluster_id}/var/log/%2e%2e/%2e%2e/etc/spark/conf/spark-defaults.conf",
        "%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    ):
        assert page.get(f"/_local_aws/logs/{path}").status_code == 404, path


def test_a_client_of_s3_still_lists_buckets_at_the_same_address(user: User) -> None:
    assert BUCKET in [bucket["Name"] for bucket in user.s3.list_buckets()["Buckets"]]


def test_each_request_is_logged_with_operation_status_and_time(user: User, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="local_aws.server")
    user.emr.list_clusters()
    user.put("logged", b"1")
    assert re.search(r"ElasticMapReduce\.ListClusters 200 \d+\.\d ms", caplog.text)
    assert re.search(rf"PUT /{BUCKET}/logged 200 \d+\.\d ms", caplog.text)
