import gzip
import re
from collections.abc import Iterator
from html import unescape

import httpx
import pytest

from tests.local_aws.user import BUCKET, REGION, User, bash


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


def test_a_cluster_has_a_page_of_its_own(user: User, page: httpx.Client) -> None:
    cluster_id, other = user.run(bash("exit 0"), Name="<i>mine</i>"), user.run()
    assert f'<a href="/_local_aws/clusters/{cluster_id}">' in page.get("/").text
    html = page.get(f"/_local_aws/clusters/{cluster_id}").text
    assert f'<a href="/_local_aws/clusters/{cluster_id}">&lt;i&gt;mine&lt;/i&gt;</a>' in html
    assert "COMPLETED" in html
    assert other not in html
    assert "<h2>Buckets</h2>" not in html
    answer = page.get("/_local_aws/clusters/j-0%3Cb%3E")
    assert answer.status_code == 404
    assert "<b>" not in answer.text


# Browsers change paths that contain the first two, and the others end a path or an attribute.
STRANGE = ("a//b.txt", "../up.txt", "a?b#c&d.txt", "100%25.txt", "\"<img src=x onerror=alert(1)>'.txt", "é + ü.txt")


@pytest.mark.parametrize("name", STRANGE)
def test_every_object_is_reached_by_the_links_of_the_pages_whatever_its_key(
    user: User, page: httpx.Client, name: str
) -> None:
    user.put(f"browse/{name}", f"content of {name}")
    path = "/_local_aws/s3?bucket=local-aws-tests&prefix=browse%2F"
    for part in name.split("/"):
        html = page.get(path).text
        assert "<img" not in html
        links = {unescape(text): unescape(href) for href, text in re.findall(r'<td><a href="([^"]*)">(.*?)</a>', html)}
        path = links.get(part) or links[f"{part}/"]
    assert page.get(path).text == f"content of {name}"


def test_the_pages_lead_from_the_buckets_to_a_folder_and_back(user: User, page: httpx.Client) -> None:
    user.put("walk/down/file.json", "{}")
    user.put("walk/down/below/file.json", "{}")
    html = page.get("/").text
    assert f'<td>{BUCKET}</td><td><a href="/_local_aws/s3?bucket={BUCKET}">' in html
    html = page.get(f"/_local_aws/s3?bucket={BUCKET}&prefix=walk%2Fdown%2F").text
    assert re.findall(r"<td><a [^>]*>(.*?)</a></td><td class=\"number\">(.*?)</td>", html) == [
        ("below/", ""),
        ("file.json", "2"),
    ]
    assert f'<a href="/_local_aws/s3?bucket={BUCKET}&amp;prefix=walk%2F">walk</a>' in html


def test_a_compressed_log_is_shown_as_text(user: User, page: httpx.Client) -> None:
    user.put("shown/stdout.gz", gzip.compress(b"<script>alert(1)</script>\n"))
    answer = page.get(f"/_local_aws/s3?bucket={BUCKET}&key=shown%2Fstdout.gz")
    assert (answer.text, answer.headers["Content-Type"]) == (
        "<script>alert(1)</script>\n",
        "text/plain; charset=utf-8",
    )


@pytest.mark.parametrize(
    ("name", "content", "kind", "policy"),
    [
        ("evil.svg", b"<svg onload='alert(1)'/>", "text/plain; charset=utf-8", "default-src 'none'"),
        ("evil", b"<script>alert(1)</script>", "text/plain; charset=utf-8", "default-src 'none'"),
        ("evil.JPG", b"<script>alert(1)</script>", "image/jpeg", "default-src 'none'"),
        ("evil.xhtml", b"<script>alert(1)</script>", "application/octet-stream", "default-src 'none'"),
        ("evil.js", b"alert(1)", "application/octet-stream", "default-src 'none'"),
        ("damaged.html.gz", b"<script>alert(1)</script>", "application/octet-stream", "default-src 'none'"),
        ("report.html", b"<script>draw()</script>", "text/html; charset=utf-8", "sandbox allow-scripts; default-src"),
    ],
)
def test_no_object_can_act_in_the_name_of_the_server(
    user: User, page: httpx.Client, name: str, content: bytes, kind: str, policy: str
) -> None:
    user.s3.put_object(Bucket=BUCKET, Key=f"evil/{name}", Body=content, ContentType="text/html")
    answer = page.get(f"/_local_aws/s3?bucket={BUCKET}&key=evil%2F{name}")
    assert (answer.status_code, answer.content, answer.headers["Content-Type"]) == (200, content, kind)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Content-Security-Policy"].startswith(policy)
    assert "allow-same-origin" not in answer.headers["Content-Security-Policy"]


def test_an_object_or_a_bucket_that_does_not_exist_is_not_found(user: User, page: httpx.Client) -> None:
    for query in ("bucket=no-such-bucket", f"bucket={BUCKET}&key=no%2Fsuch%3Cb%3E", ""):
        answer = page.get(f"/_local_aws/s3?{query}")
        assert answer.status_code == 404, query
        assert "<b>" not in answer.text
    empty = page.get(f"/_local_aws/s3?bucket={BUCKET}&prefix=nothing%2Fhere%2F")
    assert "No objects below this prefix" in empty.text


def test_the_page_of_a_large_folder_shows_the_first_objects(
    user: User, page: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("local_aws.page.MOST_ENTRIES", 2)
    for number in range(5):
        user.put(f"many/{number}", "")
    html = page.get(f"/_local_aws/s3?bucket={BUCKET}&prefix=many%2F").text
    assert re.findall(r"<td><a [^>]*>(.*?)</a>", html) == ["0", "1"]
    assert "3 more are not shown." in html


def test_a_deleted_object_is_not_shown(user: User, page: httpx.Client) -> None:
    user.put("gone/file", "")
    user.s3.delete_object(Bucket=BUCKET, Key="gone/file")
    assert "No objects below this prefix" in page.get(f"/_local_aws/s3?bucket={BUCKET}&prefix=gone%2F").text


def test_the_page_shows_a_versioned_bucket_whose_object_is_deleted(user: User, page: httpx.Client) -> None:
    bucket = "page-versions"
    user.s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
    user.s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    user.s3.put_object(Bucket=bucket, Key="a", Body=b"1")
    user.s3.delete_object(Bucket=bucket, Key="a")
    assert f'<td>{bucket}</td><td><a href="/_local_aws/s3?bucket={bucket}">0</a></td>' in page.get("/").text
