from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import GetXCom, XComResult

from orchard.airflow.links import ClusterLink, ReportLink, RunFolderLink, SparkUiLink, StepLogsLink
from tests.local_aws.user import REGION

RUN_ID = "manual__2026-11-22T02:00:00+00:00~a"
RUN_PATH = "/orchard/dags/fruit_features/runs/manual__2026-11-22T02%3A00%3A00%2B00%3A00~a/"
AWS = {"region_name": REGION, "aws_domain": "aws.amazon.com"}
LOGS = {**AWS, "bucket": "fruits", "prefix": "my logs/j-1/steps/s-1/"}


class TaskKey(NamedTuple):
    """The part of a task instance that identifies it."""

    task_id: str
    dag_id: str = "fruit_features"
    run_id: str = RUN_ID
    map_index: int = -1


class Stored:
    """The XComs of a run, by task and key, in the place of Airflow's supervisor, which a task asks for them."""

    def __init__(self, xcoms: Mapping[tuple[str, str], Any]) -> None:
        self._xcoms = xcoms

    def send(self, msg: GetXCom) -> XComResult:
        assert (msg.dag_id, msg.run_id) == ("fruit_features", RUN_ID)
        return XComResult(key=msg.key, value=self._xcoms.get((msg.task_id, msg.key)))


def link(found: Any, task_id: str = "ingest.wait_step", **xcoms: Any) -> str:
    """Return the URL of a link of a task. The XComs are named task__key."""
    stored = Stored({tuple(name.split("__")): value for name, value in xcoms.items()})  # type: ignore[misc]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task_runner, "SUPERVISOR_COMMS", stored, raising=False)
        return str(found.get_link(None, ti_key=TaskKey(task_id)))


@pytest.fixture
def base_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example/team-a/")


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable leads to another endpoint."""
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)


@pytest.fixture
def local_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:5000/")


@pytest.mark.usefixtures("aws")
def test_on_aws_links_lead_to_the_console() -> None:
    assert ClusterLink().format_link(**AWS, job_flow_id="j-1") == (
        f"https://console.aws.amazon.com/emr/home?region={REGION}#/clusterDetails/j-1"
    )
    console = "https://console.aws.amazon.com/s3/buckets/fruits"
    assert StepLogsLink().format_link(**LOGS) == f"{console}?region={REGION}&prefix=my%20logs/j-1/steps/s-1/"
    assert link(RunFolderLink(REGION), plan__run_uri="s3://fruits/runs/images/1") == (
        f"{console}?region={REGION}&prefix=runs/images/1/"
    )


@pytest.mark.usefixtures("aws")
def test_the_console_is_that_of_the_regions_partition() -> None:
    found = link(RunFolderLink("cn-north-1"), plan__run_uri="s3://fruits/runs/images/1")
    assert found.startswith("https://console.amazonaws.cn/s3/buckets/fruits?region=cn-north-1&")


@pytest.mark.usefixtures("local_aws")
def test_with_the_local_aws_links_lead_to_its_pages() -> None:
    pages = "http://127.0.0.1:5000/_local_aws"
    assert ClusterLink().format_link(**AWS, job_flow_id="j-1") == f"{pages}/clusters/j-1"
    assert StepLogsLink().format_link(**LOGS) == f"{pages}/s3?bucket=fruits&prefix=my+logs%2Fj-1%2Fsteps%2Fs-1%2F"
    assert link(RunFolderLink(REGION), plan__run_uri="s3://fruits/runs/images/1") == (
        f"{pages}/s3?bucket=fruits&prefix=runs%2Fimages%2F1%2F"
    )


@pytest.mark.parametrize(
    ("endpoint", "host"),
    [
        ("http://minio:9000", None),
        ("http://notamazonaws.com", None),
        ("https://bucket.vpce-1.s3.eu-west-1.vpce.amazonaws.com", "console.aws.amazon.com"),
        ("http://localhost:5000", "localhost:5000"),
        ("", "console.aws.amazon.com"),
    ],
)
def test_an_endpoint_that_is_neither_aws_nor_on_this_machine_has_no_pages_to_link_to(
    monkeypatch: pytest.MonkeyPatch, endpoint: str, host: str | None
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    found = ClusterLink().format_link(**AWS, job_flow_id="j-1")
    assert found == "" if host is None else found.split("/")[2] == host


@pytest.mark.usefixtures("base_url")
def test_the_report_and_the_spark_ui_are_below_the_base_path_of_airflow() -> None:
    assert link(ReportLink(), "plan") == f"/team-a{RUN_PATH}"
    stored: dict[str, Any] = {"ingest.wait_step__emr_cluster": {**AWS, "job_flow_id": "j-1"}}
    assert link(SparkUiLink(), **stored) == f"/team-a{RUN_PATH}spark-ui/j-1"


def test_without_a_base_url_they_are_at_the_root() -> None:
    assert link(ReportLink(), "plan") == RUN_PATH


def test_a_task_without_a_cluster_or_a_run_without_a_plan_has_no_link_to_it() -> None:
    assert link(SparkUiLink()) == ""
    assert link(RunFolderLink(REGION)) == ""
