"""# EMR janitor

Terminates clusters of this deployment that have outlived their run. The teardown of `fruit_features` normally
terminates a run's cluster. But a run can be deleted, its teardown can be cleared, or AWS can deny the termination. A
forgotten cluster costs money until somebody notices it.

| active cluster | action |
|---|---|
| its run is queued or running | kept |
| its run succeeded or failed | terminated |
| its run does not exist in Airflow | terminated |
| it is older than `ORCHARD_MAX_CLUSTER_HOURS` | terminated, even if its run is active |
| it lacks Orchard's tags, or is of another deployment (`ORCHARD_DEPLOYMENT`) | kept |

The tags `orchard:dag_id` and `orchard:run_id` identify a cluster's run. The name and the tag `orchard:deployment` keep
apart the Airflows that share a bucket, because none knows the runs of another.

**Results:** the log of `reap` has one line per cluster. Its XCom contains the same as a list.
**To see what it would do,** trigger it with *dry run*.
**If it fails,** the error names the clusters that may still be active, and why. All others have been handled.
"""

import os
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.providers.amazon.aws.hooks.base_aws import AwsBaseHook
from airflow.sdk import CronTriggerTimetable, Param, dag, task

from orchard.airflow.identity import airflow_identity
from orchard.airflow.turns import state_of_run
from orchard.run.janitor import terminate_orphans
from orchard.settings import Settings

SETTINGS = Settings.from_env(os.environ, airflow_identity())

PARAMS = {
    "dry_run": Param(
        False,
        type="boolean",
        title="Dry run",
        description="Only report which clusters would be terminated.",
    ),
}


@task(execution_timeout=timedelta(minutes=10))
def reap(*, params: Any = None, ti: Any = None) -> list[dict[str, Any]]:
    """Terminate the clusters that no active run owns. Report on all clusters of the deployment."""
    emr = AwsBaseHook(client_type="emr", region_name=SETTINGS.region).conn
    return terminate_orphans(emr, SETTINGS, state_of_run(ti), now=datetime.now(UTC), dry_run=params["dry_run"])


@dag(
    schedule=CronTriggerTimetable("*/15 * * * *", timezone="Europe/Paris"),
    start_date=datetime(2026, 11, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    dag_display_name="EMR janitor",
    doc_md=__doc__,
    tags=["emr", "orchard"],
    params=PARAMS,
    default_args={"owner": SETTINGS.owner, "retries": 2, "retry_delay": timedelta(seconds=30)},
)
def emr_janitor() -> None:
    """Define the DAG, which has one task."""
    reap()


emr_janitor()
