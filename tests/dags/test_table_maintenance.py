import uuid
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import DAG
from airflow.sdk.exceptions import ParamValidationError

from orchard.settings import Settings
from orchard.tables.catalog import open_catalog
from tests.dags.schedule import next_run
from tests.plugins.deployed import Deployment
from tests.plugins.runs import Run

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

DAG_FILE = Path(__file__).parents[2] / "dags/table_maintenance.py"


def load() -> DAG:
    bag = DagBag(str(DAG_FILE))
    assert bag.import_errors == {}
    found: DAG = bag.dags["table_maintenance"]
    return found


@pytest.fixture
def bucket(s3: "S3Client", monkeypatch: pytest.MonkeyPatch) -> str:
    """The bucket of the DAG's settings."""
    name = f"maintenance-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    monkeypatch.setenv("ORCHARD_BUCKET", name)
    monkeypatch.setenv("ORCHARD_CATALOG_DATABASE", name.replace("-", "_"))
    return name


@pytest.fixture
def dag() -> DAG:
    return load()


def test_it_runs_on_sundays_at_noon_and_never_catches_up(dag: DAG) -> None:
    times = [datetime(2026, 10, 18, tzinfo=UTC)]
    for _ in range(3):
        times.append(next_run(dag, times[-1] + timedelta(seconds=1)))
    assert [time.astimezone(UTC).isoformat() for time in times[1:]] == [
        "2026-10-18T10:00:00+00:00",  # the clocks change on 25 October
        "2026-10-25T11:00:00+00:00",
        "2026-11-01T11:00:00+00:00",
    ]
    assert dag.catchup is False
    assert dag.max_active_runs == 1


def test_a_temporary_fault_is_retried_and_a_hanging_run_ends_before_the_next_one(dag: DAG) -> None:
    (task,) = dag.tasks
    assert task.task_id == "maintain"
    assert task.retries == 6
    assert task.execution_timeout is not None
    assert (task.retries + 1) * (task.execution_timeout + timedelta(minutes=5)) < timedelta(days=7)


def test_it_changes_nothing_unless_the_team_has_said_so(dag: DAG, monkeypatch: pytest.MonkeyPatch) -> None:
    assert dag.params.dump() == {"dry_run": True, "kept_runs": 30, "min_age_days": 3}
    monkeypatch.setenv("ORCHARD_MAINTENANCE_DRY_RUN", "false")
    monkeypatch.setenv("ORCHARD_KEPT_RUNS", "7")
    assert load().params.dump() == {"dry_run": False, "kept_runs": 7, "min_age_days": 3}


@pytest.mark.parametrize(
    ("name", "accepted", "refused"),
    [
        ("dry_run", [True, False], ["yes", 1, None]),
        ("kept_runs", [0, 1], [-1, 1.5, "1", None]),
        ("min_age_days", [1, 1.5, 30], [0, 0.9, "3", None]),
    ],
)
def test_the_params_are_checked(dag: DAG, name: str, accepted: list[Any], refused: list[Any]) -> None:
    for value in accepted:
        assert deepcopy(dag.params.get_param(name)).resolve(value) == value
    for value in refused:
        with pytest.raises(ParamValidationError):
            deepcopy(dag.params.get_param(name)).resolve(value)


class TaskInstance:
    """The part of a task instance that the task uses."""

    def __init__(self) -> None:
        self.xcoms: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.xcoms[key] = value


def test_it_reports_on_all_tables_and_deletes_nothing_young(
    s3: "S3Client", bucket: str, dag: DAG, aws_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws_url)
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", "aws://")
    task: Any = dag.get_task("maintain")
    settings: Settings = task.python_callable.__globals__["SETTINGS"]
    assert settings.bucket == bucket
    run = Run(bucket, "20261122T020000-aaaaaa", f"s3://{bucket}/images/")
    deployed = Deployment(s3, open_catalog(boto3.Session(), settings), settings)
    deployed.publish(run)
    s3.put_object(Bucket=bucket, Key="warehouse/images/data/lost.parquet", Body=b"12345")
    versions = deployed.versions()
    for dry_run in (True, False):
        ti = TaskInstance()
        task.python_callable(params={"dry_run": dry_run, "kept_runs": 0, "min_age_days": 1}, ti=ti)
        summary = ti.xcoms["summary"]
        assert (summary["dry_run"], summary["kept_runs"]) == (dry_run, 0)
        images = summary["tables"]["images"]
        assert images["content"]["rows"] == run.images
        assert images["after"]["unreferenced_young"] == {"files": 1, "bytes": 5}
        assert {table["deleted"]["files"] for table in summary["tables"].values()} == {0}
    assert deployed.versions() == versions
    assert s3.head_object(Bucket=bucket, Key="warehouse/images/data/lost.parquet")["ContentLength"] == 5


def test_its_documentation_says_what_stays(dag: DAG) -> None:
    assert dag.doc_md is not None
    for kind in (
        "ORCHARD_KEPT_RUNS",
        "tags or branches",
        "minimum age",
        "can still be cleared",
        "gc.enabled",
        "dry run",
    ):
        assert kind in dag.doc_md
