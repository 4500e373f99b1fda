"""# EMR janitor

Ends clusters of this deployment that have outlived their run: the teardown of `fruit_features` ends a run's cluster,
but a run may be deleted, its teardown may be cleared or refused by AWS, and a cluster costs money until somebody looks.

| a live cluster | what becomes of it |
|---|---|
| whose run is queued or running | left alone |
| whose run succeeded or failed | terminated |
| whose run Airflow does not know | terminated |
| older than `ORCHARD_MAX_CLUSTER_HOURS` | terminated, even if its run is live |
| without our tags, or named for another bucket | left alone |

A cluster's run is read from its tags `orchard:dag_id` and `orchard:run_id`. Each Airflow needs a bucket of its own, as
it does not know the runs of another.

**What it did** is in the log of `reap`, a line a cluster, and as a list in its XCom.
**By hand:** Trigger with *dry run* to see what it would do.
**When it fails**, the error names the clusters that may live on, and why; all others have been dealt with.
"""

import os
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.providers.amazon.aws.hooks.base_aws import AwsBaseHook
from airflow.sdk import CronTriggerTimetable, DagRunState, Param, dag, task

from orchard.janitor import reap_clusters
from orchard.settings import Settings

SETTINGS = Settings.from_env(os.environ)

PARAMS = {
    "dry_run": Param(
        False,
        type="boolean",
        title="Dry run",
        description="Only say which clusters would be terminated.",
    ),
}


@task(execution_timeout=timedelta(minutes=10))
def reap(*, params: Any = None, ti: Any = None) -> list[dict[str, Any]]:
    """Terminate the clusters that no live run owns; report on all of ours."""

    def state_of_run(dag_id: str, run_id: str) -> str | None:
        # A count of 0 is an answer of Airflow's; "not found" might as well come from something in between.
        if ti.get_dr_count(dag_id, run_ids=[run_id]) == 0:
            return None
        return DagRunState(ti.get_dagrun_state(dag_id, run_id)).value

    emr = AwsBaseHook(client_type="emr", region_name=SETTINGS.region).conn
    return reap_clusters(emr, SETTINGS, state_of_run, now=datetime.now(UTC), dry_run=params["dry_run"])


@dag(
    schedule=CronTriggerTimetable("*/15 * * * *", timezone="Europe/Paris"),
    start_date=datetime(2026, 11, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    doc_md=__doc__,
    tags=["emr", "orchard"],
    params=PARAMS,
    default_args={"owner": SETTINGS.owner, "retries": 2, "retry_delay": timedelta(seconds=30)},
)
def emr_janitor() -> None:
    """One task."""
    reap()


emr_janitor()
