"""Runs in Airflow's database, which the API server may read."""

from datetime import datetime
from typing import Any

from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from sqlalchemy import select
from sqlalchemy.orm import Session

from orchard.report.airflow_run import KEYS, AirflowRun, Task


def find_run(session: Session, dag_id: str, run_id: str) -> AirflowRun | None:
    """Return a run of a DAG. Return None if the DAG has no such run."""
    run = session.scalar(select(DagRun).where(DagRun.dag_id == dag_id, DagRun.run_id == run_id))
    if run is None:
        return None
    of_run: Any = (TaskInstance.dag_id == dag_id, TaskInstance.run_id == run_id)
    columns = (TaskInstance.task_id, TaskInstance.state, TaskInstance.start_date, TaskInstance.end_date)
    tasks = [Task(*row) for row in session.execute(select(*columns).where(*of_run))]
    xcom: Any = XComModel
    found = session.execute(
        select(xcom.task_id, xcom.key, xcom.value).where(xcom.dag_run_id == run.id, xcom.key.in_(KEYS))
    )
    return AirflowRun(
        dag_id=dag_id,
        run_id=run_id,
        state=str(run.state),
        run_after=run.run_after,
        start=run.start_date,
        end=run.end_date,
        tasks=tasks,
        xcoms={(task_id, key): value for task_id, key, value in found},
        conf=run.conf if isinstance(run.conf, dict) else {},
    )


def runs_of_dag(session: Session, dag_id: str, limit: int) -> list[tuple[str, datetime]]:
    """Return the run_id and the due time of the last runs of a DAG, the last one first."""
    run: Any = DagRun
    found = session.execute(
        select(run.run_id, run.run_after).where(run.dag_id == dag_id).order_by(run.run_after.desc()).limit(limit)
    )
    return [(run_id, run_after) for run_id, run_after in found]
