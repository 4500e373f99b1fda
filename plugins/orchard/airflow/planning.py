"""What the tasks of a run do about its plan besides writing it: confirm it, and log the line that a person reads."""

import logging
from collections.abc import Mapping
from typing import Any

from airflow.providers.amazon.aws.hooks.base_aws import AwsBaseHook
from airflow.sdk.exceptions import AirflowSkipException

from orchard.errors import PermanentError
from orchard.run.steps import STEPS
from orchard.settings import Settings
from orchard.storage import split_uri

log = logging.getLogger(__name__)

# The key of the XCom with the counts of a plan, or of a published run. A task that plans again has it, too.
SUMMARY = "summary"
FIRST_STEP = f"{STEPS[0]}.wait_step"


class PlanOutdated(PermanentError):
    """Another run of the dataset was published after this run was planned, and a step has worked on the old plan."""

    def __init__(self, why: str) -> None:
        super().__init__(f"{why}, and its first step has finished: clear `plan` with downstream, or trigger a new run")


class ScratchDeleted(PermanentError):
    """The files that the steps of a run read are deleted, as they are after the run is published."""

    def __init__(self, scratch_uri: str) -> None:
        super().__init__(
            f"{scratch_uri} is empty, because the files of a run are deleted after it is published, or when they "
            "expire: clear `plan` with downstream, or trigger a new run"
        )


def open_tables(settings: Settings) -> Any:
    """Return the catalog of the tables, with the credentials of Airflow's connection."""
    # Imported here because each parse of the DAG imports this module, and pyiceberg takes long to import.
    from orchard.tables.catalog import open_catalog

    session = AwsBaseHook(client_type="glue", region_name=settings.region).get_session()
    return open_catalog(session, settings)


def listing_client(settings: Settings) -> Any:
    """Return an S3 client that lists with several requests at a time."""
    from orchard.dataset.listing import CLIENT_CONFIG

    return AwsBaseHook(client_type="s3", region_name=settings.region, config=CLIENT_CONFIG).conn


def confirm_plan(ti: Any, settings: Settings, plan: Mapping[str, Any], params: Mapping[str, Any]) -> None:
    """Plan a run again that has its turn, if another run of the dataset was published after it was planned.

    Raises:
        PlanOutdated: the run's first step has finished, so that its files belong to the old plan.
        AirflowSkipException: nothing is left to do.
        PermanentError: see `orchard.run.changes.plan_changes`.
    """
    from orchard.run.plan import plan_again, why_outdated

    s3, catalog = listing_client(settings), open_tables(settings)
    why = why_outdated(s3, catalog, settings, plan)
    if not why:
        return
    states = ti.get_task_states(dag_id=ti.dag_id, task_ids=[FIRST_STEP], run_ids=[ti.run_id])[ti.run_id]
    if states.get(FIRST_STEP) == "success":
        raise PlanOutdated(why)
    log.info("%s: planning again", why)
    changes = plan_again(s3, catalog, settings, plan, params)
    ti.xcom_push(SUMMARY, changes)
    if changes["nothing_to_do"]:
        raise AirflowSkipException(changes["why"])


def check_scratch(settings: Settings, plan: Mapping[str, Any]) -> None:
    """Check that the files of a run that was cleared still exist, before a cluster is created for its steps.

    Raises:
        ScratchDeleted: they do not.
    """
    bucket, prefix = split_uri(plan["scratch_uri"])
    s3: Any = AwsBaseHook(client_type="s3", region_name=settings.region).conn
    if not s3.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/", MaxKeys=1).get("Contents"):
        raise ScratchDeleted(plan["scratch_uri"])


def log_sentence(context: Mapping[str, Any]) -> None:
    """Log the one line of a task's summary, as the last line of its log. Airflow calls this when the task succeeds."""
    ti = context["ti"]
    summary = ti.xcom_pull(task_ids=ti.task_id, key=SUMMARY, run_id=ti.run_id) or {}
    if "sentence" in summary:  # a run that an earlier release has published has none
        log.info("%s: %s", ti.task_id, summary["sentence"])
