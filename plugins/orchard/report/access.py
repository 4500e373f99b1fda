"""Who may see a report, and of which run: the guards of every route."""

from typing import Annotated

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.common.db.common import SessionDep
from airflow.api_fastapi.core_api.security import requires_access_dag
from fastapi import Depends, HTTPException, status

from orchard.report.airflow_database import find_run
from orchard.report.airflow_run import AirflowRun

# 401 for an anonymous request, 403 without the right to read the runs of the DAG that the path names.
may_read_runs = requires_access_dag("GET", DagAccessEntity.RUN)
# The DAG whose runs have reports.
DAG_ID = "fruit_features"


def has_reports(dag_id: str) -> None:
    """Refuse a DAG whose runs have no reports, with 404."""
    if dag_id != DAG_ID:
        raise HTTPException(status.HTTP_404_NOT_FOUND, f"the runs of DAG {dag_id} have no report: see {DAG_ID}")


def existing_run(dag_id: str, run_id: str, session: SessionDep) -> AirflowRun:
    """Return the run of a request. Refuse one that does not exist, or is another DAG's, with 404."""
    found = find_run(session, dag_id, run_id)
    if found is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND, f"DAG {dag_id} has no run {run_id}")
    return found


ExistingRun = Annotated[AirflowRun, Depends(existing_run)]
