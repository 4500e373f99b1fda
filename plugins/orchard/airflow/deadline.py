"""The time from which the deadline of a run counts."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk.definitions.deadline import BaseDeadlineReference

from orchard.run.params import PARSERS

if TYPE_CHECKING:
    from sqlalchemy.orm import Session


class RunAfterDeadline(BaseDeadlineReference):
    """The due time of a run, its `run_after`, which every run has, plus its `hold_minutes`: a hold is not a delay.

    A run that is triggered through the API may have no logical date. With DAGRUN_QUEUED_AT, runs cannot be cleared
    (https://github.com/apache/airflow/issues/70368). Airflow evaluates this when it creates a run.
    """

    required_kwargs = frozenset({"dag_id", "run_id"})

    def _evaluate_with(self, *, session: "Session", dag_id: str, run_id: str, **kwargs: Any) -> datetime | None:  # noqa: ARG002
        # Imported here, because workers must not import Airflow's database models.
        from airflow.models import DagRun
        from sqlalchemy import select

        found = session.execute(
            select(DagRun.run_after, DagRun.conf).where(DagRun.dag_id == dag_id, DagRun.run_id == run_id)
        ).one_or_none()
        if found is None:
            return None
        run_after: datetime = found.run_after
        return run_after + requested_hold(found.conf)


def requested_hold(conf: object) -> timedelta:
    """Return for how long a run keeps its cluster, from the params that a user has set. The default is not at all.

    A value that `plan` will refuse counts as none.

    >>> requested_hold({"hold_minutes": 60}), requested_hold({}), requested_hold(None)
    (datetime.timedelta(seconds=3600), datetime.timedelta(0), datetime.timedelta(0))
    """
    value = conf.get("hold_minutes") if isinstance(conf, Mapping) else None
    try:
        return timedelta(minutes=PARSERS["hold_minutes"](value))
    except ValueError:
        return timedelta(0)
