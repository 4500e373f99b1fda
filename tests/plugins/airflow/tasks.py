"""The operators and sensors of a run, as the DAG creates them, and what they wait for."""

import uuid
from datetime import timedelta
from typing import Any

from airflow.sdk import PokeReturnValue
from airflow.sdk.bases.operator import BaseOperator

from orchard.airflow.operators import AddStepOperator, CreateClusterOperator, TerminateClustersOperator
from orchard.airflow.sensors import ClusterReadySensor, ClustersGoneSensor, StepEndSensor
from tests.local_aws.airflow_task import TaskInstance
from tests.local_aws.user import LOG_URI, REGION, User, bash

IN_REGION: dict[str, Any] = {"region_name": REGION}


def create_cluster(request: dict[str, Any]) -> BaseOperator:
    return CreateClusterOperator(task_id="create_cluster", job_flow_overrides=request, **IN_REGION)


def cluster_ready(
    request: dict[str, Any], cluster_id: str, launch_timeout: timedelta = timedelta(minutes=1)
) -> PokeReturnValue:
    """Return the result of one poke of the sensor."""
    sensor = ClusterReadySensor(
        task_id="cluster_ready", job_flow_id=cluster_id, request=request, launch_timeout=launch_timeout, **IN_REGION
    )
    return sensor.poke({"ti": TaskInstance()})  # type: ignore[typeddict-item]


def wait_until_ready(request: dict[str, Any], cluster_id: str, launch_timeout: timedelta = timedelta(minutes=1)) -> str:
    """Poke the sensor until it succeeds, and return the id of the cluster that is ready."""
    while not (result := cluster_ready(request, cluster_id, launch_timeout)):
        pass
    return str(result.xcom_value)


def step_config(script: str) -> dict[str, Any]:
    """Return a step that runs a shell script, with a unique name."""
    return {**bash(script), "Name": f"step-{uuid.uuid4().hex}"}


def add_step(cluster_id: str, step: dict[str, Any]) -> BaseOperator:
    return AddStepOperator(task_id="ingest.add_step", job_flow_id=cluster_id, step=step, **IN_REGION)


def wait_step(cluster_id: str, step_id: str, step_timeout: timedelta = timedelta(minutes=1)) -> BaseOperator:
    return StepEndSensor(
        task_id="ingest.wait_step",
        job_flow_id=cluster_id,
        step_id=step_id,
        step_timeout=step_timeout,
        log_uri=LOG_URI,
        poke_interval=1,
        **IN_REGION,
    )


def terminate_clusters(request: dict[str, Any], *known_ids: str | None) -> BaseOperator:
    return TerminateClustersOperator(
        task_id="terminate_cluster", cluster_name=request["Name"], known_ids=list(known_ids), **IN_REGION
    )


def clusters_gone(request: dict[str, Any], *known_ids: str | None) -> bool:
    """Return the result of one poke of the sensor."""
    sensor = ClustersGoneSensor(
        task_id="cluster_gone", cluster_name=request["Name"], known_ids=list(known_ids), **IN_REGION
    )
    return sensor.poke({"ti": TaskInstance()})  # type: ignore[typeddict-item]


def clusters_of_run(user: User, request: dict[str, Any]) -> list[str]:
    """Return the ids of all clusters with the name in a request, newest first."""
    return [item["Id"] for item in user.emr.list_clusters()["Clusters"] if item["Name"] == request["Name"]]
