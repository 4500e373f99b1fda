import uuid
from collections.abc import Callable, Iterator
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import DAG, DagRunState
from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType, ParamValidationError
from airflow.sdk.execution_time.comms import ErrorResponse

from orchard.airflow.identity import airflow_identity
from orchard.cluster.tags import DAG_TAG, DEPLOYMENT_TAG, RUN_TAG
from orchard.run.names import cluster_name, run_name
from orchard.settings import default_deployment
from sandbox import aws
from tests.dags.schedule import next_run

DEPLOYMENT = default_deployment("fruits-data", airflow_identity())
DAG_FILE = Path(__file__).parents[2] / "dags/emr_janitor.py"


@pytest.fixture(scope="module")
def dag() -> DAG:
    bag = DagBag(str(DAG_FILE))
    assert bag.import_errors == {}
    found: DAG = bag.dags["emr_janitor"]
    return found


def test_it_runs_every_quarter_of_an_hour_and_never_catches_up(dag: DAG) -> None:
    times = [datetime(2026, 11, 22, 2, 1, tzinfo=UTC)]
    for _ in range(4):
        times.append(next_run(dag, times[-1] + timedelta(seconds=1)))
    assert [time.minute for time in times[1:]] == [15, 30, 45, 0]
    assert dag.catchup is False


def test_only_one_run_is_active_and_a_hanging_run_makes_way_for_the_next(dag: DAG) -> None:
    assert dag.max_active_runs == 1
    (task,) = dag.tasks
    assert task.task_id == "reap"
    assert task.execution_timeout is not None
    assert task.retries == 2, "a temporary fault needs nobody's attention"
    assert 3 * (task.execution_timeout + task.retry_delay) < timedelta(hours=1)


def test_it_terminates_by_default(dag: DAG) -> None:
    assert dag.params.dump() == {"dry_run": False}


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_only_true_requests_a_dry_run(dag: DAG, value: Any) -> None:
    assert deepcopy(dag.params.get_param("dry_run")).resolve(True) is True
    with pytest.raises(ParamValidationError):
        deepcopy(dag.params.get_param("dry_run")).resolve(value)


def test_its_documentation_covers_every_kind_of_cluster(dag: DAG) -> None:
    assert dag.doc_md is not None
    for kind in (
        "queued or running",
        "succeeded or failed",
        "does not exist in Airflow",
        "older than",
        "lacks Orchard's tags",
    ):
        assert kind in dag.doc_md


class TaskInstance:
    """The part of a task instance that the janitor uses, in an Airflow that has one run or returns errors."""

    def __init__(self, run_id: str = "", state: DagRunState = DagRunState.RUNNING, status_code: int = 200) -> None:
        self._states = {("fruit_features", run_id): state}
        self._status_code = status_code

    def get_dr_count(self, dag_id: str, run_ids: list[str]) -> int:
        self._answer()
        return sum((dag_id, run_id) in self._states for run_id in run_ids)

    def get_dagrun_state(self, dag_id: str, run_id: str) -> DagRunState:
        self._answer()
        return self._states[dag_id, run_id]

    def _answer(self) -> None:
        if self._status_code != 200:
            fault = ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail={"status_code": self._status_code})
            raise AirflowRuntimeError(fault)


@pytest.fixture
def cluster(aws_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], dict[str, Any]]]:
    """The cluster of a run `nightly`: a function that describes it. Airflow uses the local AWS."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws_url)
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", "aws://")
    emr, iam, role = aws.client("emr", aws_url), aws.client("iam", aws_url), f"janitor-{uuid.uuid4().hex[:12]}"
    iam.create_role(RoleName=role, AssumeRolePolicyDocument="{}")
    iam.create_instance_profile(InstanceProfileName=role)
    cluster_id = emr.run_job_flow(
        Name=cluster_name("fruits-data", DEPLOYMENT, run_name(datetime.now(UTC), "nightly", DEPLOYMENT), "images"),
        ReleaseLabel="emr-7.14.0",
        Instances={"MasterInstanceType": "m5.xlarge", "InstanceCount": 1, "KeepJobFlowAliveWhenNoSteps": True},
        Tags=[
            {"Key": DAG_TAG, "Value": "fruit_features"},
            {"Key": RUN_TAG, "Value": "nightly"},
            {"Key": DEPLOYMENT_TAG, "Value": DEPLOYMENT},
        ],
        ServiceRole=role,
        JobFlowRole=role,
    )["JobFlowId"]
    yield lambda: emr.describe_cluster(ClusterId=cluster_id)["Cluster"]
    emr.terminate_job_flows(JobFlowIds=[cluster_id])


def reap(dag: DAG, ti: TaskInstance, dry_run: bool = False) -> list[dict[str, Any]]:
    task: Any = dag.get_task("reap")
    report: list[dict[str, Any]] = task.python_callable(params={"dry_run": dry_run}, ti=ti)
    return report


def is_terminated(cluster: Callable[[], dict[str, Any]]) -> bool:
    return str(cluster()["Status"]["State"]).startswith("TERMINAT")


def test_it_keeps_the_cluster_of_an_active_run(dag: DAG, cluster: Callable[[], dict[str, Any]]) -> None:
    (row,) = reap(dag, TaskInstance("nightly"))
    assert (row["run_state"], row["outcome"]) == ("running", "kept")
    assert not is_terminated(cluster)


def test_it_terminates_the_cluster_of_a_failed_run(dag: DAG, cluster: Callable[[], dict[str, Any]]) -> None:
    (row,) = reap(dag, TaskInstance("nightly", DagRunState.FAILED))
    assert (row["run_state"], row["outcome"]) == ("failed", "terminated")
    assert is_terminated(cluster)


def test_it_terminates_the_cluster_of_an_unknown_run_except_in_a_dry_run(
    dag: DAG, cluster: Callable[[], dict[str, Any]]
) -> None:
    assert [row["outcome"] for row in reap(dag, TaskInstance("another"), dry_run=True)] == ["would be terminated"]
    assert not is_terminated(cluster)
    assert [row["outcome"] for row in reap(dag, TaskInstance("another"))] == ["terminated"]
    assert is_terminated(cluster)


@pytest.mark.parametrize("status_code", [403, 404, 500, 503])
def test_an_error_of_airflows_api_does_not_count_as_an_unknown_run(
    dag: DAG, cluster: Callable[[], dict[str, Any]], status_code: int
) -> None:
    with pytest.raises(ExceptionGroup, match=f"API_SERVER_ERROR: .*{status_code}"):
        reap(dag, TaskInstance(status_code=status_code))
    assert not is_terminated(cluster)
