"""When a DAG runs next, according to Airflow's scheduler."""

from datetime import datetime

import pendulum
from airflow.sdk import DAG
from airflow.serialization.serialized_objects import DagSerialization
from airflow.timetables.base import TimeRestriction


def next_run(dag: DAG, after: datetime) -> datetime:
    """Return the time of the first scheduled run after a time."""
    timetable = DagSerialization.from_dict(DagSerialization.to_dict(dag)).timetable
    earliest = pendulum.instance(after)
    info = timetable.next_dagrun_info(
        last_automated_data_interval=None, restriction=TimeRestriction(earliest=earliest, latest=None, catchup=True)
    )
    assert info is not None
    return info.run_after
