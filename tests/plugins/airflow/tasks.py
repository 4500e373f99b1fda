"""The operators and sensors of a run, as the DAG creates them, and what they wait for."""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow.sdk import PokeReturnValue
from airflow.sdk.bases.operator import BaseOperator
from airflow.sdk.exceptions import TaskDeferred

from orchard.airflow.operators import AddStepOperator, CreateClusterOperator, TerminateClustersOperator
from orchard.airflow.sensors import (
    ClusterReadySensor,
    ClustersGoneSensor,
    HoldClusterSensor,
    StepEndSensor,
    StepFailed,
    VerdictSensor,
)
from orchard.airflow.turns import turn_of
from orchard.cluster.step_failures import LOG_WAIT
from orchard.settings import Settings
from orchard.storage import split_uri
from tests.local_aws import airflow_task
from tests.local_aws.user import BUCKET, REGION, User, bash

IN_REGION: dict[str, Any] = {"region_name": REGION}
SETTINGS = Settings(
    bucket=BUCKET,
    release="0123456789ab",
    region=REGION,
    log_prefix="deep/logs/",
    poll_seconds=1,
    catalog_database="tasks",  # all local AWSes of a process have the same databases
)
DAG_ID = "fruit_features"
# A run that no other test knows, for tasks that need no other task.
NO_PLAN = {
    "dataset_uri": f"s3://{BUCKET}/images/",
    "run_uri": f"s3://{BUCKET}/runs/images/1",
    "scratch_uri": f"s3://{BUCKET}/scratch/images/1",
    "cluster_name": "orchard-none",
}


@dataclass(frozen=True)
class DagRun:
    """The part of a run in a task's context that Orchard uses."""

    start_date: datetime
    clear_number: int = 0
    run_after: datetime = datetime(2026, 11, 22, 2, tzinfo=UTC)


def cleared_run() -> DagRun:
    """Return a run that had finished, of which a user has just cleared some tasks."""
    return DagRun(datetime.now(UTC), clear_number=1)


NOT_CLEARED = DagRun(datetime(2026, 11, 22, 2, tzinfo=UTC))


class TaskInstance(airflow_task.TaskInstance):
    """The part of a task instance that Orchard uses, in an Airflow that knows some other runs."""

    dag_id = DAG_ID
    task_id = "verdict"

    def __init__(
        self,
        run_id: str = "run",
        others: Mapping[str, str] | None = None,
        task_states: Mapping[str, str | None] | None = None,
        *,
        was_cleared: bool = False,
    ) -> None:
        super().__init__()
        self.run_id = run_id
        self._others = others or {}
        self._task_states = task_states or {}
        # As Airflow sets them for a task without retries.
        self.try_number, self.max_tries = (2, 1) if was_cleared else (1, 0)

    def get_dr_count(self, dag_id: str, run_ids: list[str]) -> int:
        assert dag_id == DAG_ID
        return sum(run_id in self._others for run_id in run_ids)

    def get_dagrun_state(self, dag_id: str, run_id: str) -> str:
        assert dag_id == DAG_ID
        return self._others[run_id]

    def get_task_states(
        self, dag_id: str, run_ids: list[str], task_ids: list[str] | None = None
    ) -> dict[str, dict[str, str | None]]:
        assert (dag_id, run_ids) == (self.dag_id, [self.run_id])
        states = {key: state for key, state in self._task_states.items() if task_ids is None or key in task_ids}
        return {self.run_id: states}


def context(ti: TaskInstance | None = None, dag_run: DagRun = NOT_CLEARED) -> Any:
    """Return the context of a task, in a run."""
    return {"ti": ti or TaskInstance(), "dag_run": dag_run, "params": {}}


def execute(operator: BaseOperator, ti: TaskInstance | None = None, dag_run: DagRun = NOT_CLEARED) -> Any:
    """Execute an operator, and return its result."""
    return operator.execute(context(ti, dag_run))


def defer(operator: BaseOperator, ti: TaskInstance | None = None, dag_run: DagRun = NOT_CLEARED) -> TaskDeferred:
    """Execute an operator that must defer, and return the deferral."""
    with pytest.raises(TaskDeferred) as deferred:
        execute(operator, ti, dag_run)
    return deferred.value


def resume(
    operator: BaseOperator,
    deferred: TaskDeferred,
    event: Any,
    ti: TaskInstance | None = None,
    dag_run: DagRun = NOT_CLEARED,
) -> Any:
    """Resume a deferred operator with an event, and return its result."""
    return operator.resume_execution(
        deferred.method_name, {**(deferred.kwargs or {}), "event": event}, context(ti, dag_run)
    )


def fail(task: StepEndSensor) -> StepFailed:
    """Execute a sensor whose step has failed until it has found the step's logs. Return the error."""
    deferred: TaskDeferred | None = None
    while True:
        try:
            if deferred is None:
                execute(task)
            else:
                resume(task, deferred, airflow_task.fire(deferred))
        except TaskDeferred as again:
            deferred = again
        except StepFailed as failed:
            return failed


def plan_of(request: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a run's plan that its tasks use. Its dataset is its own."""
    name = request["Name"]
    return {
        "dataset_uri": f"s3://{BUCKET}/{name}/",
        "run_uri": f"s3://{BUCKET}/runs/{name}/1",
        "scratch_uri": f"s3://{BUCKET}/scratch/{name}/1",
        "cluster_name": name,
        "cluster": request,
    }


def write_plan(user: User, plan: dict[str, Any], base_run_id: str | None = None) -> None:
    """Write what the task `plan` leaves on S3, for the tasks of a run that was cleared."""
    metrics = {"run_id": "1", "base_run_id": base_run_id, "base_is_complete": True}
    metrics |= {"model": "mobilenet", "decoder": "1"}
    user.put(f"{split_uri(plan['run_uri'])[1]}/plan.metrics.json", json.dumps(metrics))
    user.put(f"{split_uri(plan['scratch_uri'])[1]}/inventory/part-1.parquet", "")


def of_run(plan: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of all tasks that need to know the run."""
    return {"plan": plan, "settings": SETTINGS, **IN_REGION}


def take_turn(request: dict[str, Any], ti: TaskInstance | None = None) -> list[str]:
    """Take a run's turn, as `wait_turn` does, and return why it must wait."""
    return turn_of(ti or TaskInstance(), SETTINGS, plan_of(request)).take(datetime.now(UTC))


def create_cluster(request: dict[str, Any]) -> BaseOperator:
    return CreateClusterOperator(task_id="create_cluster", job_flow_overrides=request, **of_run(plan_of(request)))


def cluster_ready(
    request: dict[str, Any],
    cluster_id: str,
    launch_timeout: timedelta = timedelta(minutes=1),
    dag_run: DagRun = NOT_CLEARED,
) -> PokeReturnValue:
    """Return the result of one poke of the sensor."""
    sensor = ClusterReadySensor(
        task_id="cluster_ready",
        job_flow_id=cluster_id,
        request=request,
        launch_timeout=launch_timeout,
        **of_run(plan_of(request)),
    )
    return sensor.poke(context(dag_run=dag_run))


def wait_until_ready(
    request: dict[str, Any],
    cluster_id: str,
    launch_timeout: timedelta = timedelta(minutes=1),
    dag_run: DagRun = NOT_CLEARED,
) -> str:
    """Poke the sensor until it succeeds, and return the id of the cluster that is ready."""
    while not (result := cluster_ready(request, cluster_id, launch_timeout, dag_run)):
        pass
    return str(result.xcom_value)


def step_config(script: str) -> dict[str, Any]:
    """Return a step that runs a shell script, with a unique name."""
    return {**bash(script), "Name": f"step-{uuid.uuid4().hex}"}


def add_step(cluster_id: str, step: dict[str, Any], plan: dict[str, Any] = NO_PLAN) -> BaseOperator:
    return AddStepOperator(task_id="ingest.add_step", job_flow_id=cluster_id, step=step, **of_run(plan))


def wait_step(
    cluster_id: str,
    step_id: str,
    step: dict[str, Any] | None = None,
    plan: dict[str, Any] = NO_PLAN,
    step_timeout: timedelta = timedelta(minutes=1),
    log_wait: timedelta = LOG_WAIT,
    clear_number: int | None = 0,
) -> StepEndSensor:
    return StepEndSensor(
        task_id="ingest.wait_step",
        job_flow_id=cluster_id,
        step_id=step_id,
        step=step or {},
        clear_number=clear_number,
        log_wait=log_wait,
        step_timeout=step_timeout,
        poke_interval=1,
        **of_run(plan),
    )


def hold_cluster(cluster_id: str, plan: dict[str, Any]) -> HoldClusterSensor:
    return HoldClusterSensor(task_id="hold_cluster", job_flow_id=cluster_id, poke_interval=0.2, **of_run(plan))


def terminate_clusters(request: dict[str, Any], *known_ids: str | None) -> BaseOperator:
    return TerminateClustersOperator(
        task_id="terminate_cluster", cluster_name=request["Name"], known_ids=list(known_ids), **IN_REGION
    )


def clusters_gone(request: dict[str, Any], *known_ids: str | None) -> bool:
    """Return the result of one poke of the sensor."""
    sensor = ClustersGoneSensor(
        task_id="cluster_gone", cluster_name=request["Name"], known_ids=list(known_ids), **IN_REGION
    )
    return sensor.poke(context())


def verdict(request: dict[str, Any], ti: TaskInstance) -> bool:
    """Return the result of one poke of the sensor."""
    sensor = VerdictSensor(task_id="verdict", cluster_name=request["Name"], known_ids=[], **of_run(plan_of(request)))
    return sensor.poke(context(ti))


def clusters_of_run(user: User, request: dict[str, Any]) -> list[str]:
    """Return the ids of all clusters with the name in a request, newest first."""
    return [item["Id"] for item in user.emr.list_clusters()["Clusters"] if item["Name"] == request["Name"]]
