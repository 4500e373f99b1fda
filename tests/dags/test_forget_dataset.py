import uuid
from collections.abc import Iterator
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import DAG, DagRunState
from airflow.sdk.exceptions import ParamValidationError

from orchard.airflow.turns import NotItsTurn
from orchard.run.run_queue import RunKey
from orchard.run.turn import dataset_queue
from orchard.settings import Settings
from orchard.tables.catalog import open_catalog
from tests.plugins.deployed import Deployment
from tests.plugins.runs import Run

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

DAG_FILE = Path(__file__).parents[2] / "dags/forget_dataset.py"


@pytest.fixture
def bucket(s3: "S3Client") -> Iterator[str]:
    """The bucket of the DAG's settings."""
    name = f"forget-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORCHARD_BUCKET", name)
        patch.setenv("ORCHARD_CATALOG_DATABASE", name.replace("-", "_"))
        yield name


@pytest.fixture
def dag(bucket: str) -> DAG:
    bag = DagBag(str(DAG_FILE))
    assert bag.import_errors == {}
    found: DAG = bag.dags["forget_dataset"]
    return found


@pytest.fixture
def deployed(s3: "S3Client", dag: DAG, bucket: str, aws_url: str, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    """The deployment of the DAG's settings. Airflow uses the local AWS."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws_url)
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", "aws://")
    task: Any = dag.get_task("forget")
    settings: Settings = task.python_callable.__globals__["SETTINGS"]
    assert settings.bucket == bucket
    return Deployment(s3, open_catalog(boto3.Session(), settings), settings)


@pytest.fixture
def run(bucket: str) -> Run:
    return Run(bucket, "20261122T020000-aaaaaa", f"s3://{bucket}/images/")


class TaskInstance:
    """The part of a task instance that the task uses, in an Airflow in which all runs are running."""

    dag_id, run_id = "forget_dataset", "manual"

    def get_dr_count(self, *_: Any, **__: Any) -> int:
        return 1

    def get_dagrun_state(self, *_: Any) -> DagRunState:
        return DagRunState.RUNNING


def forget(dag: DAG, dataset_uri: str) -> dict[str, int]:
    task: Any = dag.get_task("forget")
    removed: dict[str, int] = task.python_callable(params={"dataset_uri": dataset_uri}, ti=TaskInstance())
    return removed


def test_it_never_runs_by_itself_and_needs_a_dataset(dag: DAG) -> None:
    assert dag.schedule is None
    assert dag.max_active_runs == 1
    uri = dag.params.get_param("dataset_uri")
    assert deepcopy(uri).resolve("s3://b-1/images/") == "s3://b-1/images/"
    for value in ("images/", "s3://b-1/images", "s3://b-1/a//b/", 1):
        with pytest.raises(ParamValidationError):
            deepcopy(uri).resolve(value)
    with pytest.raises(ParamValidationError):
        deepcopy(uri).resolve()


def test_it_removes_the_rows_of_the_dataset_and_releases_its_turn(dag: DAG, deployed: Deployment, run: Run) -> None:
    other = Run(run.bucket, "20261122T030000-bbbbbb", f"s3://{run.bucket}/apples/", folder="apples")
    deployed.publish(run)
    deployed.publish(other)
    removed = forget(dag, run.dataset_uri)
    assert removed == {"images": 5, "rejects": 1, "embeddings": 5, "pca_models": 1, "features": 5, "runs": 1}
    assert deployed.rows("images", run) == []
    assert deployed.shows(other)
    assert dataset_queue(deployed.s3, deployed.settings, run.dataset_uri).taken_slots(lambda _: False) == []


def test_it_waits_while_a_run_uses_the_dataset(dag: DAG, deployed: Deployment, run: Run) -> None:
    deployed.publish(run)
    queue = dataset_queue(deployed.s3, deployed.settings, run.dataset_uri)
    nightly = RunKey("fruit_features", "nightly")
    assert queue.take_slot(nightly, [], 1, lambda _: False, datetime.now(UTC)) is None
    with pytest.raises(NotItsTurn, match="used by run 'nightly' of fruit_features"):
        forget(dag, run.dataset_uri)
    assert deployed.shows(run)
    queue.leave(nightly)
    forget(dag, run.dataset_uri)
    assert deployed.rows("images") == []


def test_its_documentation_says_what_stays(dag: DAG) -> None:
    assert dag.doc_md is not None
    for kind in ("images of other datasets", "objects of the dataset", "earlier snapshots"):
        assert kind in dag.doc_md.lower()
