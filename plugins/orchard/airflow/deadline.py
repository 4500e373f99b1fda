"""The time from which the deadline of a run counts."""

from datetime import datetime
from typing import TYPE_CHECKING, Any

from airflow.sdk.definitions.deadline import BaseDeadlineReference

if TYPE_CHECKING:
    from sqlalchemy.orm import Session


class RunAfterDeadline(BaseDeadlineReference):
    """The due time of a run, its `run_after`, which every run has.

    A run that is triggered through the API may have no logical date. With DAGRUN_QUEUED_AT, runs cannot be cleared
    (https://github.com/apache/airflow/issues/70368). Airflow evaluates this when it creates a run.
    """

    required_kwargs = frozenset({"dag_id", "run_id"})

    def _evaluate_with(self, *, session: "Session", dag_id: str, run_id: str, **kwargs: Any) -> datetime | None:  # noqa: ARG002
        # Imported here, because workers must not import Airflow's database models.
        from airflow.models import DagRun
        from sqlalchemy import select

        run_after: datetime | None = session.scalar(
            select(DagRun.run_after).where(DagRun.dag_id == dag_id, DagRun.run_id == run_id)
        )
        return run_after
