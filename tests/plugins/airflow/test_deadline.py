"""The time from which the deadline of a run counts, with Airflow's model of a run in a database."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow.models import DagRun
from airflow.models.base import Base
from airflow.models.tasklog import LogTemplate
from airflow.utils.types import DagRunTriggeredByType, DagRunType
from sqlalchemy import create_engine, insert
from sqlalchemy.orm import Session

from orchard.airflow.deadline import RunAfterDeadline

RUN_AFTER = datetime(2026, 11, 22, 2, tzinfo=UTC)
IDS = {"dag_id": "fruit_features", "run_id": "manual__1"}


def evaluate(conf: Any) -> datetime | None:
    """Return the reference of a run with these params."""
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine, [DagRun.__table__, LogTemplate.__table__])
    with Session(engine) as session:
        values = {"run_after": RUN_AFTER, "conf": conf, "run_type": DagRunType.MANUAL, "state": "queued"}
        triggered = {"triggered_by": DagRunTriggeredByType.TEST, "clear_number": 0, "span_status": "not_started"}
        session.execute(insert(DagRun).values(**IDS, **values, **triggered))
        return RunAfterDeadline()._evaluate_with(session=session, **IDS)


@pytest.mark.parametrize("conf", [{}, None, {"dataset_uri": "s3://b/images/"}, {"hold_minutes": 0}])
def test_the_deadline_of_a_run_counts_from_its_due_time(conf: Any) -> None:
    assert evaluate(conf) == RUN_AFTER


@pytest.mark.parametrize("minutes", [1, 240, 60.0])
def test_a_hold_is_not_a_delay(minutes: float) -> None:
    assert evaluate({"hold_minutes": minutes}) == RUN_AFTER + timedelta(minutes=minutes)


@pytest.mark.parametrize("odd", ["60", -1, 241, True, None, [60]])
def test_a_hold_that_plan_will_refuse_changes_nothing(odd: Any) -> None:
    assert evaluate({"hold_minutes": odd}) == RUN_AFTER


def test_a_run_that_is_deleted_has_no_deadline() -> None:
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine, [DagRun.__table__, LogTemplate.__table__])
    with Session(engine) as session:
        assert RunAfterDeadline()._evaluate_with(session=session, **IDS) is None
