"""Tell the team about a run that has failed, has warnings, has succeeded after a failure, or misses its deadline.

A run that has failed, or is late, is a line in a log of Airflow. All four are messages on the channels that the
settings ORCHARD_ALERT_… switch on. A message that cannot be sent is a line in the same log, and changes nothing else.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.providers.amazon.aws.hooks.base_aws import AwsBaseHook

from orchard.airflow.channels import IMPATIENT, Channels, Message
from orchard.airflow.costs import COST
from orchard.airflow.deadline import requested_hold
from orchard.airflow.identity import airflow_identity
from orchard.airflow.planning import SUMMARY
from orchard.run.hold import HOLD_TASK
from orchard.run.notices import (
    cost_warnings,
    failure_before,
    forget_failure,
    kind_of,
    remember_failure,
    remember_warnings,
    untold,
    warnings_told,
)
from orchard.run.sentence import plural
from orchard.run.states import FINISHED
from orchard.settings import PREFIX, Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

# The key of the XCom with the cause of a task's failure.
CAUSE = "cause"
# These tasks fail because another one has failed, or do not make the run fail.
CONSEQUENCES = (HOLD_TASK, "verdict")
MAX_CAUSE_CHARACTERS = 1000


def run_link(dag_id: str, run_id: str) -> str:
    """Return the URL of a run in Airflow's UI, or a text that says why it is unknown."""
    base = airflow_identity()
    if not base:
        return "no link, because [api] base_url is not set in Airflow's configuration"
    return f"{base}/dags/{quote(dag_id, safe='')}/runs/{quote(run_id, safe='')}"


def cause_of(error: object) -> str:
    r"""Return why a task failed, as one line.

    >>> cause_of(ValueError("no such bucket:\n fruits"))
    'ValueError: no such bucket: fruits'
    """
    cause = getattr(error, "cause", None)
    if not isinstance(cause, str):
        cause = f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else str(error)
    return " ".join(cause.split())[:MAX_CAUSE_CHARACTERS]


def record_cause(context: Mapping[str, Any]) -> None:
    """Store why a task failed, for the alert about its run. Airflow calls this when a task fails without a retry."""
    error = context.get("exception")
    if error is not None:
        context["ti"].xcom_push(CAUSE, cause_of(error))


async def alert_late_run(
    hours: int, topic_arn: str, region: str, context: Mapping[str, Any], email: Sequence[str] = ()
) -> None:
    """Report in the triggerer's log, and on the channels, that a run is still running at its deadline.

    Airflow stores the arguments in its database. The URL of a webhook is a secret, so that it is not one of them: it
    comes from the triggerer's environment.

    The run continues: Airflow's dagrun_timeout would skip the teardown and leave the cluster running. The context
    contains the run as Airflow's REST API returns it, which calls the run_id dag_run_id. Airflow also calls this for a
    run that failed before its deadline, for which there was an alert already.
    """
    run = context["dag_run"]
    dag_id, run_id = run["dag_id"], run["dag_run_id"]
    if run.get("state") in FINISHED:
        log.info("run %s of %s is %s at its deadline: no alert", run_id, dag_id, run["state"])
        return
    hold = requested_hold(run.get("conf"))
    allowed = f"{hours} hours" + (f" and its hold of {hold / timedelta(minutes=1):g} minutes" if hold else "")
    message = _message("late", "a run is late", dag_id, run_id, f"is still running {allowed} after its due time")
    log.error("%s", message.text)
    webhook_url = os.environ.get(f"{PREFIX}ALERT_WEBHOOK_URL", "")
    await Channels(topic_arn, region, tuple(email), webhook_url).send_async(message)


@dataclass(frozen=True)
class FailedRunAlert:
    """Report in the DAG processor's log, and on the channels, that a run has failed, and why.

    Airflow calls it once each time a run ends as failed.
    """

    settings: Settings

    def __call__(self, context: Mapping[str, Any]) -> None:
        """Send the alert. `context` is the context of the last task that has failed."""
        dag_id, run_id = context["dag"].dag_id, context["run_id"]
        message = _message("failed", "a run has failed", dag_id, run_id, f"has failed: {first_cause(context)}")
        log.error("%s", message.text)
        channels = Channels.of(self.settings)
        if not channels:
            return
        channels.send(message)
        try:
            remember_failure(_s3(self.settings), self.settings, _dataset_of(context), run_id)
        except Exception as error:
            log.warning("the failure of run %s is not stored, so that its recovery is not told: %s", run_id, error)


@dataclass(frozen=True)
class SucceededRunAlert:
    """Tell on the channels that a run has warnings, or is the first one of its dataset that succeeds after a failure.

    A run that is both has one message. A run that is neither has none. If a run is cleared and succeeds again, only
    warnings about other figures are told. Airflow calls it each time a run ends as success.
    """

    settings: Settings

    def __call__(self, context: Mapping[str, Any]) -> None:
        """Send the message, if there is something to tell. `context` is that of the last task that has succeeded."""
        channels, ti = Channels.of(self.settings), context.get("ti")
        if not channels or ti is None:
            return
        dag_id, run_id = context["dag"].dag_id, context["run_id"]
        pulled = {
            task_id: ti.xcom_pull(task_ids=task_id, key=key, run_id=run_id) or {}
            for task_id, key in (("plan", SUMMARY), ("wait_turn", SUMMARY), ("publish", SUMMARY), ("verdict", COST))
        }
        planned, published, cost = pulled["plan"], pulled["publish"], pulled["verdict"]
        if not planned.get("nothing_to_do"):
            planned = pulled["wait_turn"] or planned  # a run that has waited may be planned again
        if planned.get("nothing_to_do"):
            published, cost = {}, {}  # of an earlier round of the run, before a user cleared it
        warnings = [*published.get("warnings", []), *cost_warnings(cost.get("usd"), self.settings)]
        run_uri = planned.get("run_uri")
        told, failed = self._told(context, run_uri)
        warnings = untold(warnings, told)
        if not warnings and failed is None:
            return
        message = _success(dag_id, run_id, failed, warnings, (published or planned).get("sentence"))
        if channels.send(message):
            self._remember(context, run_uri, told | {kind_of(warning) for warning in warnings}, failed)

    def _told(self, context: Mapping[str, Any], run_uri: str | None) -> tuple[set[str], str | None]:
        """Return the figures of which the team was warned, and the run that has failed before, if they are known."""
        try:
            s3 = _s3(self.settings)
            told = warnings_told(s3, run_uri) if run_uri else set()
            return told, failure_before(s3, self.settings, _dataset_of(context))
        except Exception as error:
            log.warning("what the team was told before run %s is unknown: %s", context["run_id"], error)
            return set(), None

    def _remember(self, context: Mapping[str, Any], run_uri: str | None, told: set[str], failed: str | None) -> None:
        try:
            s3 = _s3(self.settings)
            if failed is not None:
                forget_failure(s3, self.settings, _dataset_of(context))
            if run_uri and told:
                remember_warnings(s3, run_uri, told)
        except Exception as error:
            log.warning("what the team was told about run %s is not stored: %s", context["run_id"], error)


def _success(dag_id: str, run_id: str, failed: str | None, warnings: Sequence[str], sentence: str | None) -> Message:
    """Return the message about a run that has succeeded. `failed` is the run that has failed before, if any."""
    event, subject = ("warnings", "a run has warnings") if failed is None else ("recovered", "a run has recovered")
    what = "has succeeded"
    if warnings:
        what += f" with {plural(len(warnings), 'warning')}"
    if failed is not None:
        what += " after it had failed" if failed == run_id else f" after run {failed} had failed"
    if warnings and failed is not None:
        subject += ", with warnings"
    details = [part for part in (sentence, *warnings) if part]
    return _message(event, subject, dag_id, run_id, f"{what}: {'; '.join(details)}" if details else what)


def _message(event: str, subject: str, dag_id: str, run_id: str, what: str) -> Message:
    link = run_link(dag_id, run_id)
    text = f"run {run_id} of {dag_id} {' '.join(what.split())}; {link}"
    return Message(event, f"Orchard: {subject}", text, dag_id, run_id, link)


def _dataset_of(context: Mapping[str, Any]) -> str:
    return str(context["params"]["dataset_uri"])


def _s3(settings: Settings) -> "S3Client":
    hook: Any = AwsBaseHook(client_type="s3", region_name=settings.region, config=IMPATIENT)
    s3: S3Client = hook.conn
    return s3


def first_cause(context: Mapping[str, Any]) -> str:
    """Return the first task that failed in a run and its cause, as one line.

    A task that Airflow itself has failed, for example because its process was killed, has stored no cause. The cause of
    a later task is then better.
    """
    reason = str(context.get("reason", "Airflow gives no reason"))
    ti = context.get("ti")
    if ti is None:  # Airflow cannot load the run's last task
        return reason
    dag, run_id = context["dag"], context["run_id"]
    try:
        states = ti.get_task_states(dag_id=dag.dag_id, run_ids=[run_id])[run_id]
        failed = [task.task_id for task in dag.topological_sort() if states.get(task.task_id) == "failed"]
        causes = [(task_id, ti.xcom_pull(task_ids=task_id, key=CAUSE, run_id=run_id)) for task_id in failed]
    except Exception:  # an alert without a cause is better than none
        log.exception("cannot read the causes of run %s of %s", run_id, dag.dag_id)
        return reason
    known = [found for found in causes if found[1]]
    ordered = sorted(known or causes, key=lambda found: found[0] in CONSEQUENCES)
    if not ordered:
        return reason
    task_id, cause = ordered[0]
    return f"{task_id}: {cause or 'its process ended without an exception: see its log'}"
