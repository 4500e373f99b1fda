"""A run's turn, as its tasks take it and confirm it, and what a task must know about the run."""

import logging
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.providers.amazon.aws.hooks.base_aws import AwsBaseHook
from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
from airflow.sdk import Context, DagRunState
from airflow.sdk.exceptions import AirflowFailException

from orchard.airflow.planning import check_scratch, confirm_plan
from orchard.cluster.emr_clusters import terminate_clusters_of_run
from orchard.run.run_queue import RunKey
from orchard.run.states import StateOfRun
from orchard.run.turn import Turn
from orchard.settings import Settings

log = logging.getLogger(__name__)

FINISHED_TASK = ("success", "failed", "skipped", "upstream_failed", "removed")
# A teardown task in one of these states can act at any moment. In any other state Airflow does not start it before all
# tasks between its setups and itself have finished.
ACTING = ("scheduled", "queued", "running", "restarting")
TEARDOWN = ("terminate_cluster", "cluster_gone", "verdict")


def state_of_run(ti: Any) -> StateOfRun:
    """Return a function that looks up the state of a run in Airflow, through the task instance of a running task."""

    def state(dag_id: str, run_id: str) -> str | None:
        # A count of 0 comes from Airflow itself. A "not found" could also come from a proxy.
        if ti.get_dr_count(dag_id, run_ids=[run_id]) == 0:
            return None
        return DagRunState(ti.get_dagrun_state(dag_id, run_id)).value

    return state


def turn_of(ti: Any, settings: Settings, plan: Mapping[str, Any]) -> Turn:
    """Return the turn of a task's run on the dataset of its plan."""
    s3, emr = (_client(settings, service) for service in ("s3", "emr"))
    return Turn(s3, emr, settings, plan["dataset_uri"], RunKey(ti.dag_id, ti.run_id), state_of_run(ti))


def _client(settings: Settings, service: str) -> Any:
    return AwsBaseHook(client_type=service, region_name=settings.region).conn


class NotItsTurn(RuntimeError):
    """Another run uses the dataset. A retry may succeed."""

    def __init__(self, reasons: list[str]) -> None:
        super().__init__("; ".join(reasons))


def take_turn(ti: Any, settings: Settings, plan: Mapping[str, Any]) -> bool:
    """Return whether it is a run's turn. If not, log why the run must wait."""
    reasons = turn_of(ti, settings, plan).take(datetime.now(UTC))
    for reason in reasons:
        log.info("turn: %s", reason)
    return not reasons


def take_dataset(ti: Any, settings: Settings, plan: Mapping[str, Any]) -> None:
    """Take the turn on a run's dataset for a task that needs no cluster, or confirm it.

    Raises:
        NotItsTurn: another run uses the dataset.
    """
    reasons = turn_of(ti, settings, plan).take_dataset(datetime.now(UTC))
    if reasons:
        raise NotItsTurn(reasons)


def end_earlier_round(ti: Any, settings: Settings, plan: Mapping[str, Any]) -> None:
    """Release the turn and terminate the clusters that a run had before it was cleared.

    A new plan must not adopt the steps of the old plan. If there is nothing to do, Airflow also skips the teardown.
    """
    turn_of(ti, settings, plan).release()
    terminate_clusters_of_run(_client(settings, "emr"), plan["cluster_name"], [])


def round_start(context: Context) -> datetime:
    """Return when the current round of the run started: its first start, or the last clear after it had finished.

    A cleared task may see the XComs of tasks that were not cleared: the ids of clusters and steps of an earlier round.
    """
    start: datetime | None = context["dag_run"].start_date
    return start or datetime.min.replace(tzinfo=UTC)


def was_cleared(operator: Any, context: Context) -> bool:
    """Return whether a user has cleared a task after an attempt of it. A clear raises `max_tries` above `retries`."""
    ti: Any = context["ti"]
    return bool(ti.max_tries > operator.retries)


def is_first_attempt(operator: Any, context: Context) -> bool:
    """Return whether this is the first attempt of a task, or the first one after a user has cleared the task.

    A clear sets `max_tries` to the number of the last attempt plus `retries`.
    """
    ti: Any = context["ti"]
    return bool(ti.try_number == ti.max_tries - operator.retries + 1)


def teardown_is_running(ti: Any) -> bool:
    """Return whether a task of the run's teardown, which terminates each of its clusters, is about to act.

    That may be so when a user clears failed tasks, but not the teardown, while the teardown of the failed run runs.
    """
    states = ti.get_task_states(dag_id=ti.dag_id, task_ids=list(TEARDOWN), run_ids=[ti.run_id])
    return any(states[ti.run_id].get(task_id) in ACTING for task_id in TEARDOWN)


def state_of_task(ti: Any, task_id: str) -> str | None:
    """Return the state of another task of the run of `ti`. A task that has not started may have none."""
    state: str | None = ti.get_task_states(dag_id=ti.dag_id, task_ids=[task_id], run_ids=[ti.run_id])[ti.run_id].get(
        task_id
    )
    return state


def has_unfinished_tasks(ti: Any) -> bool:
    """Return whether a task of the run other than `ti` has not finished, because a user has cleared it."""
    states = ti.get_task_states(dag_id=ti.dag_id, run_ids=[ti.run_id])[ti.run_id]
    return any(state not in FINISHED_TASK for task_id, state in states.items() if task_id != ti.task_id)


def wait_for_turn(operator: Any, context: Context, settings: Settings, plan: Mapping[str, Any]) -> None:
    """Confirm a run's turn before a task uses EMR. If the run must wait, defer the task, and execute it again later.

    Normally `wait_turn` has taken the turn. But a user may clear this task without it, after the run has finished. Then
    the dataset may have changed in the tables, and the run's files may be deleted.

    Raises:
        AirflowFailException: the run has waited for longer than any cluster runs.
        TaskDeferred: the run must wait.
        PlanOutdated, AirflowSkipException: see `confirm_plan`.
        ScratchDeleted: see `check_scratch`.
    """
    now = datetime.now(UTC)
    if teardown_is_running(context["ti"]):
        reasons = ["the teardown of the run is still running, and would terminate a new cluster"]
    else:
        reasons = turn_of(context["ti"], settings, plan).take(now)
    if not reasons and context["dag_run"].clear_number:
        confirm_plan(context["ti"], settings, plan, context["params"])
        check_scratch(settings, plan)
    if not reasons:
        return
    for reason in reasons:
        operator.log.info("turn: %s", reason)
    if now > round_start(context) + 2 * timedelta(hours=settings.max_cluster_hours):
        raise AirflowFailException(f"the run has waited for its turn for too long: {'; '.join(reasons)}")
    operator.defer(trigger=TimeDeltaTrigger(timedelta(seconds=settings.poll_seconds)), method_name="execute_again")
