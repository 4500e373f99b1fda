"""The routes of the report in Airflow's own API server, with its users, its database, and published runs."""

import io
import json
import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urljoin

import boto3
import httpx
import pytest
from fastapi import APIRouter, FastAPI, Response
from fastapi.staticfiles import StaticFiles
from PIL import Image
from starlette.routing import BaseRoute, Mount

from local_aws.client import LocalAwsClient
from orchard.airflow.alerts import CAUSE
from orchard.report import app as report_app
from orchard.report import content
from orchard.run.names import run_name
from orchard.settings import Settings
from orchard.storage import split_uri
from orchard.tables.expiry import Retention, expire_snapshots
from tests.plugins.deployed import Deployment, copy_of, new_deployment
from tests.plugins.proxy import Answer, Proxy
from tests.plugins.report.airflow_site import (
    BASE_PATH,
    BASE_URL,
    DAG_ID,
    DAGS,
    OTHER_DAG,
    START,
    Site,
    add_run,
    airflow_site,
    environment,
    forget,
    load_dags,
)
from tests.plugins.runs import Run

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

MARKUP = "<img src=x onerror=alert(1)>"
SCRIPT = "</script><script>alert(1)</script>"
QUOTES = "\"'`&amp;{{7*7}}"
FIRST, SECOND, OTHER = "manual__2026-11-22T02:00:00+00:00", "manual__2026-11-23T02:00:00+00:00", "other"
# Longer than the report waits for a connection and a response.
PATIENCE_SECONDS = 9


class UntrustedRun(Run):
    """A run whose labels, paths and messages have markup and quotes."""

    def _object(self, number: int) -> dict[str, Any]:
        label = (MARKUP, QUOTES, SCRIPT, "Kiwi")[number % 4]
        return {**super()._object(number), "label": label, "path": f"{self.dataset_uri}{label}/{number} {QUOTES}.jpg"}

    def _reject(self, number: int) -> dict[str, Any]:
        return {**super()._reject(number), "message": f"{MARKUP}{SCRIPT}{QUOTES}"}


@dataclass(frozen=True)
class Published:
    """Two runs of a dataset in the tables, one of another dataset, and the environment that leads the report there."""

    site: Site
    deployed: Deployment
    first: Run
    second: Run
    other: Run
    variables: Mapping[str, str | None]

    def get(self, address: str, run_id: str = FIRST, **params: str) -> httpx.Response:
        """Return the answer to a request for an address below a run."""
        answer: httpx.Response = self.site.viewer.get(run_address(run_id) + address, params=params or None)
        return answer


def run_address(run_id: str, dag_id: str = DAG_ID) -> str:
    return f"{BASE_PATH}/orchard/dags/{dag_id}/runs/{quote(run_id)}/"


def of_run(run: Run, **xcoms: Any) -> dict[tuple[str, str], Any]:
    """Return the XComs of a run that has been planned."""
    return {("plan", "return_value"): run.plan, **{("plan", key): value for key, value in xcoms.items()}}


def jpeg(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (number * 20 % 256, 90, 160)).save(buffer, "JPEG")
    return buffer.getvalue()


def put_images(s3: "S3Client", run: Run) -> None:
    """Write the objects of a run: the images can be decoded, the rejects cannot."""
    for name, body in (("images", jpeg), ("rejects", lambda number: b"\xff\xd8\xff broken %d" % number)):
        for number, path in enumerate(run.rows(name)["path"].to_pylist()):
            bucket, key = split_uri(path)
            s3.put_object(Bucket=bucket, Key=key, Body=body(number))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with airflow_site(tmp_path_factory.mktemp("airflow")) as site:
        load_dags()
        yield site


@pytest.fixture(scope="module")
def published(site: Site, s3: "S3Client", aws_url: str) -> Published:
    """The published runs, which no test changes."""
    deployed = new_deployment(s3, boto3.Session(), aws_url)
    settings = deployed.settings
    variables: dict[str, str | None] = {
        "AWS_ENDPOINT_URL": aws_url,
        "ORCHARD_BUCKET": settings.bucket,
        "ORCHARD_RELEASE": settings.release,
        "ORCHARD_CATALOG_DATABASE": settings.catalog_database,
    }
    read = Settings.from_env({key: value for key, value in variables.items() if value}, BASE_URL)
    later = START + timedelta(days=1)
    first, second, other = (
        run_name(due, run_id, read.deployment) for due, run_id in ((START, FIRST), (later, SECOND), (later, OTHER))
    )
    bucket = settings.bucket
    runs = UntrustedRun(bucket, first, f"s3://{bucket}/images/", images=6, rejects=2)
    again = UntrustedRun(bucket, second, runs.dataset_uri, images=9, rejects=1, base=runs, kept=3)
    apples = replace(runs, name=other, dataset_uri=f"s3://{bucket}/apples/", images=12, rejects=0, folder="apples")
    for run in (runs, again, apples):
        put_images(s3, run)
        deployed.publish(run)
    # As in a deployment: an object that no table knows.
    s3.put_object(Bucket=bucket, Key="images/Kiwi/secret.jpg", Body=jpeg(1))
    for run_id, run, due in ((FIRST, runs, START), (SECOND, again, later), (OTHER, apples, later)):
        add_run(run_id, run_after=due, xcoms=of_run(run))
    add_run(FIRST, dag_id=OTHER_DAG)
    add_run("of-another-dag", dag_id=OTHER_DAG)
    return Published(site, deployed, runs, again, apples, variables)


@pytest.fixture(autouse=True)
def report(published: Published) -> Iterator[Published]:
    """The report of the published runs. It has read nothing yet."""
    with environment(**published.variables):
        yield published


# Guards.


def addresses(routes: Sequence[BaseRoute], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the method and the address of each route, also of those in mounted applications, with example values."""
    for route in routes:
        path = prefix + getattr(route, "path", "")
        inner = getattr(route, "routes", None) or []
        if isinstance(route, Mount) and not inner:
            yield "GET", f"{path}/file"
        yield from addresses(inner, path)
        for method in getattr(route, "methods", None) or ([] if isinstance(route, Mount) else ["GET"]):
            yield method, path


def filled(address: str, dag_id: str, run_id: str, path: str = "0") -> str:
    """Return an address of the report with values for its parameters, and for all parameters of a query."""
    found = address.replace("{dag_id}", dag_id).replace("{run_id}", quote(run_id)).replace("{name}", "theme.js")
    return f"{BASE_PATH}/orchard{re.sub('{[^}]*}', '0', found)}?path={quote(path)}&component=0"


ROUTES = sorted(set(addresses(report_app.app.routes)))
OF_RUNS = [(method, address) for method, address in ROUTES if "{run_id}" in address]


def test_the_walk_finds_routes_wherever_they_are_registered() -> None:
    app, mounted, router = FastAPI(openapi_url=None), FastAPI(openapi_url=None), APIRouter(prefix="/router")
    mounted.add_api_route("/deep/{name}", lambda: "", methods=["POST"])
    router.add_api_route("/route", lambda: "")
    router.add_api_websocket_route("/socket", lambda _: None)
    app.include_router(router)
    app.mount("/mounted", mounted)
    app.mount("/files", StaticFiles(directory=DAGS))
    app.add_route("/plain", lambda _: Response(), methods=["GET"])
    assert {
        ("POST", "/mounted/deep/{name}"),
        ("GET", "/router/route"),
        ("GET", "/router/socket"),
        ("GET", "/files/file"),
        ("GET", "/plain"),
    } <= set(addresses(app.routes))


def test_every_route_names_a_dag_and_changes_nothing() -> None:
    assert {method for method, _ in ROUTES} <= {"GET", "HEAD"}
    assert [address for _, address in ROUTES if not address.startswith("/dags/{dag_id}/")] == []
    assert len(OF_RUNS) >= 8


@pytest.mark.parametrize(("method", "address"), ROUTES)
def test_a_route_is_closed_to_strangers(report: Published, method: str, address: str) -> None:
    for dag_id in (DAG_ID, OTHER_DAG, "no_dag", "~", "%7E", "%00"):
        for run_id in (FIRST, "no-run"):
            url = filled(address, dag_id, run_id)
            assert report.site.anonymous.request(method, url).status_code == 401, url
            assert report.site.users["nobody"].request(method, url).status_code == 403, url


@pytest.mark.parametrize(("method", "address"), ROUTES)
def test_a_route_shows_no_other_dag_and_no_run_that_does_not_exist(
    report: Published, method: str, address: str
) -> None:
    places = [(OTHER_DAG, FIRST), ("no_dag", FIRST), ("~", FIRST), ("%00", FIRST)]
    if "{run_id}" in address:
        places += [(DAG_ID, run_id) for run_id in ("no-run", "of-another-dag", FIRST[:-1], "~", "%", "'", "\0", "é")]
    path = report.first.rows("images")["path"][0].as_py().removeprefix(report.first.dataset_uri)
    if "{cluster_id}" not in address:
        assert report.site.viewer.request(method, filled(address, DAG_ID, FIRST, path)).status_code == 200
    for dag_id, run_id in places:
        url = filled(address, dag_id, run_id, path)
        for user in ("viewer", "admin"):
            answer = report.site.users[user].request(method, url)
            assert answer.status_code == 404, (url, answer.text)
            assert "detail" in answer.json()


@pytest.mark.parametrize("token", ["", "x", "a.b.c", f"{'a' * 40}.{'b' * 40}.{'c' * 40}", "é"])
def test_a_token_that_is_not_airflows_opens_nothing(report: Published, token: str) -> None:
    for headers in ({"Cookie": f"_token={token}".encode()}, {"Authorization": f"Bearer {token}".encode()}):
        answer = report.site.anonymous.get(run_address(FIRST), headers=headers)
        assert answer.status_code in (401, 403), answer.text


def assert_protected(answer: httpx.Response) -> None:
    """Check the headers of an answer, whatever it is."""
    policy = dict(part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == "'self'"
    assert policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'self'"
    assert "'unsafe-eval'" not in answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"].split(",")[0] in ("no-store", "private")


def test_every_answer_has_the_headers_that_protect_it(report: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    viewer, anonymous = report.site.viewer, report.site.anonymous
    for method, address in ROUTES:
        assert_protected(viewer.request(method, filled(address, DAG_ID, FIRST)))
        assert_protected(anonymous.request(method, filled(address, DAG_ID, FIRST)))
        assert_protected(viewer.request("DELETE", filled(address, DAG_ID, FIRST)))
    for address, status in (("nothing", 404), ("coordinates?component=x", 422), ("thumbnail", 422)):
        answer = report.get(address)
        assert answer.status_code == status, answer.text
        assert_protected(answer)

    def broken(*_: object) -> None:
        raise RuntimeError("a fault of the report")

    monkeypatch.setattr(content, "map_of", broken)
    answer = report.get("map")
    assert answer.status_code == 500
    assert "fault" not in answer.text
    assert_protected(answer)


# What the pages show.


class Elements(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def links(self) -> set[str]:
        """Return the addresses that the elements lead to."""
        values = (attributes.get(name) for _, attributes in self.found for name in ("href", "src"))
        return {value for value in values if value}


def page_of(answer: httpx.Response) -> Elements:
    """Return the elements of a page, whose scripts are the report's and which has no element of untrusted data."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    page = Elements(answer.text)
    for tag, attributes in page.found:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        if tag == "script":
            assert attributes.get("type") == "application/json" or "/static/" in f"/{attributes['src']}", attributes
        assert tag != "img", attributes
        assert not str(attributes.get("href", "")).lower().startswith(("javascript:", "data:", "//"))
    return page


def test_a_page_leads_to_its_files_and_to_airflow_below_the_base_path(report: Published) -> None:
    pages = [run_address(FIRST), f"{BASE_PATH}/orchard/dags/{DAG_ID}/", f"{BASE_PATH}/orchard/dags/{DAG_ID}/history"]
    links = {urljoin(page, link) for page in pages for link in page_of(report.site.viewer.get(page)).links()}
    assert f"{BASE_PATH}/dags/{DAG_ID}/runs/{quote(FIRST, safe='')}" in links
    assert any(link.startswith(f"{BASE_PATH}/orchard/dags/{DAG_ID}/static/bokeh.min.js") for link in links)
    for link in links:
        assert link.startswith(f"{BASE_PATH}/"), link
        answer = report.site.viewer.get(link)
        assert answer.status_code == 200, link
        if "/static/" in link:
            assert_protected(answer)
            known = report.site.viewer.get(link, headers={"If-None-Match": answer.headers["ETag"]})
            assert (known.status_code, known.content) == (304, b"")


def test_airflow_shows_the_tabs_below_the_base_path(report: Published) -> None:
    plugins = report.site.users["admin"].get(f"{BASE_PATH}/api/v2/plugins").json()["plugins"]
    (views,) = [plugin["external_views"] for plugin in plugins if plugin["name"] == "orchard"]
    assert {view["destination"] for view in views} == {"dag", "dag_run"}
    for view in views:
        address = view["href"].format(DAG_ID=DAG_ID, RUN_ID=quote(FIRST, safe=""))
        assert address.startswith(f"{BASE_PATH}/orchard/")
        page_of(report.site.viewer.get(address))


def test_labels_paths_and_messages_with_markup_are_text(report: Published) -> None:
    figures = page_of(report.get("figures"))
    for text in (MARKUP, QUOTES, SCRIPT):
        assert text in figures.text, text
    assert f"{MARKUP}{SCRIPT}{QUOTES}" in figures.text
    page_of(report.get(""))
    history = page_of(report.site.viewer.get(f"{BASE_PATH}/orchard/dags/{DAG_ID}/history?dataset={quote(MARKUP)}"))
    assert history.found
    for address in ("map", "suspects"):
        answer = report.get(address)
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.status_code == 200
    assert set(report.get("map").json()["labels"]) == {MARKUP, QUOTES, SCRIPT, "Kiwi"}


def test_the_cause_of_a_failure_with_markup_is_text(report: Published) -> None:
    cause = f"StepFailed: {MARKUP}{SCRIPT}{QUOTES}"
    changes = {"sentence": f"{MARKUP} new", "dataset": SCRIPT}
    xcoms = {**of_run(report.first, summary=changes), ("ingest.wait_step", CAUSE): cause}
    run = replace(report.first, name="20261130T020000-ffffff")
    xcoms["plan", "return_value"] = {**run.plan, "dataset_uri": MARKUP}
    run_id = add_run("failed-with-markup", state="failed", tasks={"ingest.wait_step": "failed"}, xcoms=xcoms)
    for address in ("", "happened"):
        page = page_of(report.get(address, run_id))
        assert cause in page.text
        assert f"{MARKUP} new" in page.text
        assert "ingest.wait_step failed." in page.text
        assert "Clear ingest.add_step with downstream" in page.text
        link = f"{BASE_PATH}/dags/{DAG_ID}/runs/{run_id}/tasks/ingest.wait_step"
        assert link in {urljoin(run_address(run_id), found) for found in page.links()}


def test_with_nothing_to_do_the_plan_has_succeeded_and_the_rest_is_skipped(report: Published) -> None:
    instances = dict.fromkeys(("preflight", "wait_turn", "create_cluster", "publish", "verdict"), "skipped")
    xcoms = of_run(report.first, summary={"nothing_to_do": True})
    run_id = add_run("nothing", tasks={"plan": "success", **instances}, xcoms=xcoms)
    rows = report.get("happened", run_id).text.split("<tr ")
    states = {row.split('scope="row">')[1].split("<")[0]: row for row in rows if "scope=" in row}
    assert states["plan"].startswith('class="stage-success"')
    assert states["publish"].startswith('class="stage-skipped"')


@pytest.mark.parametrize("state", ["queued", "running", "failed", "success"])
@pytest.mark.parametrize("planned", ["not planned", "planned", "nothing to do"])
def test_a_run_without_published_images_says_so(report: Published, state: str, planned: str) -> None:
    run = replace(report.first, name=f"20261201T020000-{state[:6]}")
    changes = {"nothing_to_do": True} if planned == "nothing to do" else {"listed": 7, "new": 7}
    xcoms = {} if planned == "not planned" else of_run(run, summary=changes)
    run_id = add_run(f"{state}-{planned.replace(' ', '-')}", state=state, tasks={"plan": "success"}, xcoms=xcoms)
    page = page_of(report.get("", run_id))
    assert state in page.text
    for address in ("map", "figures", "suspects", "coordinates?component=0", "neighbours?path=x", "thumbnail?path=x"):
        answer = report.get(address, run_id)
        assert answer.status_code in (404, 503), (address, answer.text)
        assert "has published no images" in answer.json()["detail"]


def test_a_plan_that_another_user_has_changed_leads_to_no_other_folder(report: Published, s3: "S3Client") -> None:
    elsewhere = report.deployed.settings.bucket
    s3.put_object(Bucket=elsewhere, Key="other/summary.json", Body=b'{"dataset_uri": "s3://secret/"}')
    for number, uri in enumerate(
        (f"s3://{elsewhere}/other", "s3://another-bucket/runs/x", "file:///etc", 7, None, ["x"], {"a": 1})
    ):
        xcoms = {("plan", "return_value"): {"run_uri": uri}}
        run_id = add_run(f"changed-{number}", xcoms=xcoms)
        assert "secret" not in report.get("", run_id).text
        page_of(report.get("", run_id))
        assert report.get("map", run_id).status_code in (404, 503)


@pytest.mark.parametrize(
    "summary",
    [b"", b"{", b"[1]", b'"text"', b"null", b"{}", b'{"run_id": 1}', b'{"run_id": "x", "dataset_uri": ["x"]}', b"\xff"],
)
def test_a_summary_that_is_not_orchards_is_no_error_of_the_server(
    report: Published, s3: "S3Client", summary: bytes
) -> None:
    run = replace(report.first, name=f"20261202T020000-{summary.hex()[:6] or 'empty'}")
    run.put(s3, "summary.json", summary)
    run_id = add_run(f"summary-{summary.hex() or 'empty'}", xcoms=of_run(run))
    for method, address in OF_RUNS:
        answer = report.site.viewer.request(method, filled(address, DAG_ID, run_id))
        assert answer.status_code in (200, 404, 503), (address, answer.text)


def test_a_summary_of_another_dataset_shows_no_images(report: Published, s3: "S3Client") -> None:
    run = replace(report.first, name="20261203T020000-abcdef")
    other = {"run_id": run.name, "dataset_uri": "s3://secret/images/", "pca_model": "x"}
    run.put(s3, "summary.json", json.dumps(other).encode())
    run_id = add_run("summary-of-another-dataset", xcoms=of_run(run))
    for address in ("map", "suspects", "thumbnail?path=1.jpg"):
        answer = report.get(address, run_id)
        assert answer.status_code == 503
        assert "the summary of another dataset" in answer.json()["detail"]


# The images.


def test_the_map_of_an_earlier_run_stays_as_it_was_published(report: Published) -> None:
    first, second = (report.get("map", run_id).json() for run_id in (FIRST, SECOND))
    for run, found in ((report.first, first), (report.second, second)):
        paths = [path.removeprefix(run.dataset_uri) for path in run.rows("images")["path"].to_pylist()]
        assert sorted(found["paths"]) == sorted(paths)
        assert (found["total"], found["shown"]) == (run.images, run.images)
    component = report.get("coordinates", component="1").json()["values"]
    assert component == first["coordinates"][1]
    assert report.get("coordinates", component="2").status_code == 404
    assert report.get("coordinates", component="9" * 30).status_code == 404
    path = first["paths"][0]
    found = report.get("neighbours", path=path).json()
    assert len(found["neighbours"]) == report.first.images - 1
    assert path not in [neighbour["path"] for neighbour in found["neighbours"]]


def test_a_run_whose_snapshot_has_expired_says_so(report: Published, s3: "S3Client") -> None:
    copy = copy_of(report.deployed)
    copied = Deployment(s3, report.deployed.catalog, copy)
    kept = [run for run in copied.runs() if run.run_id == report.second.name]
    for name in ("images", "embeddings", "rejects"):
        expire_snapshots(copied.table(name), Retention(kept, datetime.now(UTC)))
    with environment(**{**report.variables, "ORCHARD_CATALOG_DATABASE": copy.catalog_database}):
        page = page_of(report.get(""))
        assert report.first.dataset_uri in page.text
        for address in ("map", "figures", "suspects"):
            answer = report.get(address)
            assert answer.status_code == 503
            assert "ORCHARD_KEPT_RUNS" in answer.json()["detail"]
            assert "report.html" in answer.json()["detail"]
        assert report.get("map", SECOND).status_code == 200


def test_a_thumbnail_is_a_small_picture_that_the_browser_keeps(report: Published) -> None:
    for path in report.get("map").json()["paths"]:
        answer = report.get("thumbnail", path=path)
        assert answer.status_code == 200, answer.text
        assert answer.headers["Content-Type"] == "image/webp"
        assert answer.headers["Cache-Control"].startswith("private, max-age=")
        assert Image.open(io.BytesIO(answer.content)).size == (40, 30)
        assert_protected(answer)
        address = f"{run_address(FIRST)}thumbnail?path={quote(path)}"
        for known in (answer.headers["ETag"], f'"x", W/{answer.headers["ETag"]}'):
            again = report.site.viewer.get(address, headers={"If-None-Match": known})
            assert (again.status_code, again.content) == (304, b""), known
            assert again.headers["ETag"] == answer.headers["ETag"]
        assert report.site.viewer.get(address, headers={"If-None-Match": '"x"'}).status_code == 200


def test_a_path_that_the_tables_of_the_run_do_not_hold_is_refused(report: Published) -> None:
    bucket = report.deployed.settings.bucket
    paths = report.get("map").json()["paths"]
    last, later = paths[-1], report.get("map", SECOND).json()["paths"]
    rejects = [path.removeprefix(report.first.dataset_uri) for path in report.first.rows("rejects")["path"].to_pylist()]
    only_later = next(path for path in later if path not in (*paths, *rejects))
    elsewhere = next(path for path in report.get("map", OTHER).json()["paths"] if path not in later)
    assert report.get("thumbnail", SECOND, path=only_later).status_code == 200
    assert report.get("thumbnail", OTHER, path=elsewhere).status_code == 200
    refused = [
        "",
        ".",
        "/",
        "Kiwi/",
        "Kiwi/secret.jpg",
        only_later,
        elsewhere,
        f"/{last}",
        f"./{last}",
        f"{last}/",
        f" {last}",
        f"{last} ",
        last.upper(),
        f"../images/{last}",
        f"Kiwi/../{last}",
        f"../apples/{elsewhere}",
        quote(last),
        f"s3://{bucket}/images/{last}",
        f"s3://{bucket}/apples/{elsewhere}",
        f"s3://another-bucket/images/{last}",
        f"../runs/images/{report.first.name}/summary.json",
        f"s3://{bucket}/runs/images/{report.first.name}/summary.json",
        "../warehouse/runs/metadata/version-hint.text",
        "file:///etc/passwd",
        "http://169.254.169.254/latest/meta-data/",
        "\0",
        f"{last}\0",
        f"{last}\n",
        f"{last}\r\nX-Other: 1",
        "\x1b[31m",
        "%2e%2e/",
        "..\\",
        "' OR 1=1 --",
        "é" * 500,
    ]
    for path in refused:
        for address in ("thumbnail", "neighbours"):
            answer = report.get(address, path=path)
            assert answer.status_code == 404, (address, path, answer.text)
            assert "detail" in answer.json()
            assert_protected(answer)
    for address in ("thumbnail", "neighbours"):
        assert report.get(address, path="x" * 2000).status_code == 422


def test_an_object_that_is_gone_or_broken_has_no_thumbnail(report: Published, s3: "S3Client") -> None:
    path = report.get("map", OTHER).json()["paths"][-1]
    s3.delete_object(Bucket=report.deployed.settings.bucket, Key=f"apples/{path}")
    answer = report.get("thumbnail", OTHER, path=path)
    assert answer.status_code == 404
    assert "does not exist any more" in answer.json()["detail"]
    broken = report.second.rows("rejects")["path"][0].as_py().removeprefix(report.second.dataset_uri)
    answer = report.get("thumbnail", SECOND, path=broken)
    assert answer.status_code == 404
    assert "cannot be decoded" in answer.json()["detail"]


def test_each_point_over_time_leads_to_its_run(report: Published) -> None:
    address = f"{BASE_PATH}/orchard/dags/{DAG_ID}/history"
    for run_id, dataset in ((FIRST, report.first.dataset_uri), (SECOND, None), (OTHER, report.other.dataset_uri)):
        answer = report.site.viewer.get(address, params={"dataset": dataset} if dataset else None)
        links = {urljoin(address, link) for link in page_of(answer).links()}
        assert f"{BASE_PATH}/dags/{DAG_ID}/runs/{quote(run_id, safe='')}" in links
        assert json.dumps(run_id) in answer.text
    unknown = page_of(report.site.viewer.get(address, params={"dataset": "s3://no/dataset/"}))
    assert "No run of the dataset" in unknown.text


def test_a_cluster_of_another_run_has_no_spark_ui(report: Published) -> None:
    for cluster_id in ("j-1", "", "%2e%2e", "j-ABC", quote("https://example.com/", safe="")):
        assert report.get(f"spark-ui/{cluster_id}").status_code == 404


# An API server without access.


class WithoutGlue(Proxy):
    """Answers as AWS does for a role that may read S3, but not Glue."""

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer | None:
        if not headers.get("x-amz-target", "").startswith("AWSGlue"):
            return super().answer(method, path, headers, body)
        refusal = {"__type": "AccessDeniedException", "Message": "no identity-based policy allows glue:GetTable"}
        return 400, [("Content-Type", "application/x-amz-json-1.1")], json.dumps(refusal).encode()


def check_unavailable(report: Published, *words: str) -> None:
    """Check that every route says what is wrong, and the page what to do, in bounded time."""
    for method, address in ROUTES:
        start = time.monotonic()
        answer = report.site.viewer.request(method, filled(address, DAG_ID, FIRST))
        assert time.monotonic() - start < PATIENCE_SECONDS, address
        assert answer.status_code in (200, 404, 503), (address, answer.text)
        assert "Traceback" not in answer.text
        assert_protected(answer)
    page = page_of(report.get(""))
    for word in words:
        assert word in page.text
    assert f"{report.first.uri}/report.html" in page.text
    for address in ("map", "figures", "suspects"):
        answer = report.get(address)
        assert answer.status_code == 503
        assert set(answer.json()) == {"detail", "remedy"}


def test_without_a_route_to_aws_the_page_says_so(report: Published) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as closed:
        port = closed.getsockname()[1]
    with environment(**{**report.variables, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}):
        check_unavailable(report, "The API server cannot reach AWS", "network route to S3 and Glue")


def test_without_an_answer_of_aws_the_page_says_so_in_time(report: Published) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with environment(**{**report.variables, "AWS_ENDPOINT_URL": url}):
            start = time.monotonic()
            page = page_of(report.get(""))
            assert "The API server cannot reach AWS" in page.text
            assert time.monotonic() - start < PATIENCE_SECONDS


def test_without_access_to_s3_the_page_says_what_to_grant(report: Published, aws_url: str) -> None:
    faults = LocalAwsClient(aws_url)
    forget()
    faults.fail("s3", "AccessDenied")
    try:
        check_unavailable(report, "AWS refuses a request", "s3:GetObject", "glue:GetTable")
    finally:
        faults.clear()


def test_without_access_to_glue_the_figures_say_what_to_grant(report: Published, aws_url: str) -> None:
    with WithoutGlue(aws_url).open() as proxy, environment(**{**report.variables, "AWS_ENDPOINT_URL": proxy.url}):
        for address in ("map", "figures", "suspects", f"../../history?dataset={quote(report.first.dataset_uri)}"):
            answer = report.get(address)
            assert answer.status_code == 503, answer.text
            assert "AccessDenied" in answer.json()["detail"]
            assert "glue:GetTable" in answer.json()["remedy"]
        page_of(report.get(""))


@pytest.mark.parametrize("missing", ["ORCHARD_BUCKET", "ORCHARD_RELEASE"])
def test_without_settings_the_page_says_which(report: Published, missing: str) -> None:
    with environment(**{**report.variables, missing: None}):
        check_unavailable(report, f"{missing} is not set", "ORCHARD_ variables")


def test_without_credentials_the_page_says_so(report: Published, tmp_path_factory: pytest.TempPathFactory) -> None:
    nothing = str(tmp_path_factory.mktemp("home") / "nothing")
    removed = {
        "AWS_ACCESS_KEY_ID": None,
        "AWS_SECRET_ACCESS_KEY": None,
        "AWS_SHARED_CREDENTIALS_FILE": nothing,
        "AWS_CONFIG_FILE": nothing,
    }
    with environment(**{**report.variables, **removed}):
        check_unavailable(report, "credentials")


def test_access_that_comes_back_is_used_at_once(report: Published, aws_url: str) -> None:
    faults = LocalAwsClient(aws_url)
    faults.fail("s3", "AccessDenied")
    try:
        assert "AWS refuses" in page_of(report.get("")).text
    finally:
        faults.clear()
    assert "AWS refuses" not in page_of(report.get("")).text
    assert report.get("map").status_code == 200
