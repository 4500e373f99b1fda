"""Alert the team to a run that has failed, and to a run that misses its deadline.

An alert is a line in a log of Airflow and, if ORCHARD_ALERT_TOPIC_ARN is set, a message to that SNS topic.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from orchard.airflow.identity import airflow_identity
from orchard.run.states import FINISHED

log = logging.getLogger(__name__)

# The key of the XCom with the cause of a task's failure.
CAUSE = "cause"
# These tasks fail because another one has failed, if any.
CONSEQUENCES = ("verdict",)
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


async def alert_late_run(hours: int, topic_arn: str, region: str, context: Mapping[str, Any]) -> None:
    """Report in the triggerer's log, and to an SNS topic if one is set, that a run is still running at its deadline.

    The run continues: Airflow's dagrun_timeout would skip the teardown and leave the cluster running. The context
    contains the run as Airflow's REST API returns it, which calls the run_id dag_run_id. Airflow also calls this for a
    run that failed before its deadline, for which there was an alert already.
    """
    run = context["dag_run"]
    dag_id, run_id = run["dag_id"], run["dag_run_id"]
    if run.get("state") in FINISHED:
        log.info("run %s of %s is %s at its deadline: no alert", run_id, dag_id, run["state"])
        return
    message = f"run {run_id} of {dag_id} is still running {hours} hours after its due time; {run_link(dag_id, run_id)}"
    log.error("%s", message)
    if topic_arn:
        # Imported here, because each parse of the DAG imports this module.
        from airflow.providers.amazon.aws.hooks.sns import SnsHook

        async with await SnsHook(region_name=region).get_async_conn() as sns:  # type: ignore[no-untyped-call]
            await sns.publish(TopicArn=topic_arn, Subject="Orchard: a run is late", Message=message)


@dataclass(frozen=True)
class FailedRunAlert:
    """Report in the DAG processor's log, and to an SNS topic if one is set, that a run has failed, and why.

    Airflow calls it once each time a run ends as failed.
    """

    topic_arn: str
    region: str

    def __call__(self, context: Mapping[str, Any]) -> None:
        """Send the alert. `context` is the context of the run's last task."""
        dag_id, run_id = context["dag"].dag_id, context["run_id"]
        message = f"run {run_id} of {dag_id} has failed: {first_cause(context)}; {run_link(dag_id, run_id)}"
        log.error("%s", message)
        if self.topic_arn:
            from airflow.providers.amazon.aws.hooks.base_aws import AwsBaseHook

            sns: Any = AwsBaseHook(client_type="sns", region_name=self.region).conn
            sns.publish(TopicArn=self.topic_arn, Subject="Orchard: a run has failed", Message=message)


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
