"""# Table maintenance

Expires old snapshots of the tables, and deletes the files below `warehouse/` that nothing refers to. Without it, each
run adds files that are never deleted.

| what | after this DAG |
|---|---|
| the rows that the tables show now | unchanged |
| the last *kept runs* of each dataset (`ORCHARD_KEPT_RUNS`) | readable by their snapshots, in all tables |
| snapshots that tags or branches name, and snapshots that were current within the *minimum age* | readable |
| all other snapshots | expired: they cannot be read any more |
| files that a snapshot refers to, files that are younger than the *minimum age* | kept |
| files of runs that have failed and can still be cleared | kept |
| files of other tables in the same folders | kept |
| all other files in the folders `data` and `metadata` of the tables | deleted |
| tables with the property `gc.enabled` set to false | unchanged |

**By default it changes nothing:** a *dry run* reports what would be expired and deleted. To let the weekly run delete,
set `ORCHARD_MAINTENANCE_DRY_RUN` to `false`. Deleted files are lost, unless the bucket is versioned.
**Results:** the log of `maintain` has one line per table. Its XCom `summary` contains the same: snapshots, files, rows
and bytes of each table, before and after.
**If it fails,** the error names the tables. No file was deleted that a table needs. Clear the task: it continues.
"""

import os
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.providers.amazon.aws.hooks.base_aws import AwsBaseHook
from airflow.sdk import CronTriggerTimetable, Param, dag, task

from orchard.airflow.identity import airflow_identity
from orchard.airflow.planning import SUMMARY, open_tables
from orchard.airflow.retries import retry_args
from orchard.settings import Settings

SETTINGS = Settings.from_env(os.environ, airflow_identity())

PARAMS = {
    "dry_run": Param(
        SETTINGS.maintenance_dry_run,
        type="boolean",
        title="Dry run",
        description="Only report which snapshots would expire, and which files would be deleted.",
    ),
    "kept_runs": Param(
        SETTINGS.kept_runs,
        type="integer",
        minimum=0,
        title="Kept runs",
        description="How many of the last published runs of each dataset stay readable by their snapshots: a whole "
        "number from 0. 0: only what the tables show now.",
    ),
    "min_age_days": Param(
        3,
        type="number",
        minimum=1,
        title="Minimum age, in days",
        description="At least 1. Younger files stay, and so do snapshots that were current within this time: a run "
        "that is being published needs them.",
    ),
}


@task(execution_timeout=timedelta(hours=6))
def maintain(*, params: Any = None, ti: Any = None) -> None:
    """Expire snapshots of the tables, and delete the files that nothing refers to."""
    # Imported here because pyiceberg takes longer to import than the rest of Orchard.
    from orchard.run.maintenance import maintain_tables, shortest_age

    report = maintain_tables(
        AwsBaseHook(client_type="s3", region_name=SETTINGS.region).conn,
        open_tables(SETTINGS),
        SETTINGS,
        kept_runs=params["kept_runs"],
        min_age=shortest_age(SETTINGS, params["min_age_days"]),
        now=datetime.now(UTC),
        dry_run=params["dry_run"],
    )
    ti.xcom_push(SUMMARY, report)


@dag(
    # On Sundays at noon, when the nightly run has ended, even if it was late.
    schedule=CronTriggerTimetable("0 12 * * 0", timezone="Europe/Paris"),
    start_date=datetime(2026, 11, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    dag_display_name="Table maintenance",
    doc_md=__doc__,
    tags=["orchard"],
    params=PARAMS,
    default_args={"owner": SETTINGS.owner, **retry_args(SETTINGS)},
)
def table_maintenance() -> None:
    """Define the DAG, which has one task."""
    maintain()


table_maintenance()
