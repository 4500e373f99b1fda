"""Sensors that wait for EMR: for a cluster to be ready, for a step, for a hold, for all clusters of a run to terminate.

A sensor stores nothing between pokes and retries, so it can be retried at any time.
"""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.providers.amazon.aws.hooks.base_aws import AwsBaseHook
from airflow.providers.amazon.aws.hooks.emr import EmrHook
from airflow.providers.amazon.aws.sensors.base_aws import AwsBaseSensor
from airflow.providers.amazon.aws.sensors.emr import EmrStepSensor
from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
from airflow.sdk import Context, PokeReturnValue
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSensorTimeout
from botocore.exceptions import ClientError

from orchard.airflow.clients import create_run_cluster, emr_client
from orchard.airflow.costs import record_final_cost
from orchard.airflow.links import ClusterLink, SparkUiLink, StepLogsLink, persist_link
from orchard.airflow.operators import submit_step
from orchard.airflow.triggers import HoldEndTrigger, StepEndTrigger
from orchard.airflow.turns import (
    FINISHED_TASK,
    has_unfinished_tasks,
    round_start,
    state_of_task,
    turn_of,
    wait_for_turn,
    was_cleared,
)
from orchard.cluster.emr_clusters import (
    ACTIVE,
    EXISTING,
    MAX_CLUSTERS_PER_RUN,
    READY,
    TERMINATED,
    clusters_named,
    describe_end,
    existing_clusters,
    is_worth_replacing,
    terminate_cluster,
)
from orchard.cluster.emr_steps import CANCELLED, FAILED, UNFINISHED, cancel_step, step_log_uri
from orchard.cluster.step_failures import LOG_WAIT, explain_failure
from orchard.errors import is_final
from orchard.run.hold import HOLD, start_hold, time_text
from orchard.run.verdict import check_verdict
from orchard.settings import Settings
from orchard.storage import split_uri

if TYPE_CHECKING:
    from mypy_boto3_emr import EMRClient

# Airflow's timeout of a trigger exceeds the time for which it waits by this margin, so that the trigger ends first.
TIMEOUT_MARGIN_SECONDS = 60
# The task that publishes a run.
PUBLISH = "publish"


class StepFailed(AirflowFailException):
    """A step did not complete. `cause` is the reason in one line."""

    def __init__(self, text: str, cause: str) -> None:
        super().__init__(text)
        self.cause = cause


class ClusterReadySensor(AwsBaseSensor[EmrHook]):
    """Wait until the run's cluster accepts steps. Return its id.

    A cluster that fails to start for a reason that may be temporary is replaced, at most twice in a round of the run.
    A cluster that is not ready within `launch_timeout` of its creation is also replaced: EMR has no provisioning
    timeout for On-Demand instances.
    """

    aws_hook_class = EmrHook
    template_fields: Sequence[str] = (*AwsBaseSensor.template_fields, "job_flow_id", "request", "plan")
    operator_extra_links = (ClusterLink(),)

    def __init__(
        self,
        *,
        job_flow_id: str,
        request: dict[str, Any],
        plan: Mapping[str, Any],
        settings: Settings,
        launch_timeout: timedelta,
        **kwargs: Any,
    ) -> None:
        # Each launch ends by its own timeout before the sensor's.
        timeout = (MAX_CLUSTERS_PER_RUN + 1) * launch_timeout
        super().__init__(mode="reschedule", timeout=timeout, **kwargs)
        self.job_flow_id = job_flow_id
        self.request = request
        self.plan = plan
        self.settings = settings
        self.launch_timeout = launch_timeout

    def poke(self, context: Context) -> PokeReturnValue:
        client = emr_client(self)
        first = client.describe_cluster(ClusterId=self.job_flow_id)["Cluster"]
        clusters: list[Any] = [first]
        if first["Status"]["State"] not in ACTIVE:
            created = first["Status"]["Timeline"]["CreationDateTime"]
            since = max(created, round_start(context))
            # ListClusters may not list the first cluster yet. A cluster of an earlier round does not count.
            known = [first] if since == created else []
            clusters = clusters_named(client, self.request["Name"], (*EXISTING, *TERMINATED), since) or known
        if not clusters:
            self.log.info("cluster %s has terminated in an earlier round of the run", self.job_flow_id)
            self._create(context)
            return PokeReturnValue(False)
        cluster_id, state = clusters[0]["Id"], clusters[0]["Status"]["State"]
        self.log.info("cluster %s: %s", cluster_id, state)
        if state not in ACTIVE:
            self._replace(client, cluster_id, len(clusters), context)
        elif state in READY:
            persist_link(self, context, ClusterLink, job_flow_id=cluster_id)
        elif self._is_late(clusters[0]["Status"]):
            self.log.warning("cluster %s is not ready after %s: terminating it", cluster_id, self.launch_timeout)
            terminate_cluster(client, cluster_id)  # a later poke replaces it
        return PokeReturnValue(state in READY, cluster_id)

    def execute_again(self, context: Context, event: Any) -> Any:  # noqa: ARG002
        return self.execute(context)

    def _is_late(self, status: Any) -> bool:
        """Return whether a cluster was not ready within the timeout of its launch."""
        timeline = status["Timeline"]
        lived: timedelta = timeline.get("EndDateTime", datetime.now(UTC)) - timeline["CreationDateTime"]
        return "ReadyDateTime" not in timeline and lived >= self.launch_timeout

    def _replace(self, client: "EMRClient", cluster_id: str, created: int, context: Context) -> None:
        status = client.describe_cluster(ClusterId=cluster_id)["Cluster"]["Status"]
        end = f"cluster {cluster_id} did not start: {describe_end(status)}"
        # This sensor's own request counts as a user's.
        if self._is_late(status) and status.get("StateChangeReason", {}).get("Code", "USER_REQUEST") == "USER_REQUEST":
            end += f", because it was not ready within {self.launch_timeout.total_seconds() / 60:g} minutes"
        elif not is_worth_replacing(status):
            raise AirflowFailException(end)
        if created >= MAX_CLUSTERS_PER_RUN:
            raise AirflowFailException(f"{end}; this was the last of {MAX_CLUSTERS_PER_RUN} attempts")
        self.log.warning("%s; creating a replacement, attempt %d of %d", end, created + 1, MAX_CLUSTERS_PER_RUN)
        self._create(context)

    def _create(self, context: Context) -> None:
        wait_for_turn(self, context, self.settings, self.plan)
        create_run_cluster(self, self.request)


class StepEndSensor(EmrStepSensor):
    """Wait in the triggerer until a step finishes. If it did not complete, fail with its cause, without retry.

    The triggerer logs the progress of the step.

    If a user has cleared this task but not `add_step`, the step may be of a cluster that has terminated, or may have
    failed or been cancelled before the clear: it is submitted again. The task returns the id of the cluster.

    The timeout counts from the creation of the step, even if this task is retried. After the timeout, the step is
    cancelled. Retries are for polls that fail.
    """

    template_fields: Sequence[str] = (*EmrStepSensor.template_fields, "plan", "step", "clear_number")
    operator_extra_links: Any = (ClusterLink(), StepLogsLink(), SparkUiLink())

    def __init__(
        self,
        *,
        step: dict[str, Any],
        clear_number: Any,
        plan: Mapping[str, Any],
        settings: Settings,
        step_timeout: timedelta,
        log_wait: timedelta = LOG_WAIT,
        **kwargs: Any,
    ) -> None:
        super().__init__(deferrable=True, **kwargs)
        self.clear_number = clear_number
        self.log_wait = log_wait
        self.step = step
        self.plan = plan
        self.settings = settings
        self.step_timeout = step_timeout

    def execute(self, context: Context) -> str | None:  # type: ignore[override]  # the provider's returns nothing
        step = self._find_step()
        if step is None or self._was_cleared_after(context, step, FAILED):
            step = self._submit(context)
        return self._wait(context, step)

    def execute_again(self, context: Context, event: Any) -> str | None:  # noqa: ARG002
        return self.execute(context)

    def execute_complete(  # type: ignore[override]  # the provider's returns nothing
        self,
        context: Context,
        event: Any = None,
        cluster_id: str = "",
        step_id: str = "",
        clear_number: int = 0,
    ) -> str | None:
        if cluster_id:  # `airflow dags test` passes only the event
            self.job_flow_id, self.step_id, self.clear_number = cluster_id, step_id, clear_number
        step = self._describe_step()
        # A clear cancels the step, but this task may have started to wait for it again before that.
        if self._was_cleared_after(context, step, CANCELLED):
            step = self._submit(context)
        elif step["Status"]["State"] in UNFINISHED and self._seconds_left(step) > 0:
            raise AirflowException(f"polling step {self.step_id} failed while it is still running: {event}")
        return self._wait(context, step)

    def _submit(self, context: Context) -> Any:
        """Submit the step again, to the run's current cluster, and return it."""
        submitted = submit_step(self, context, self.settings, self.plan, self.step, self.job_flow_id)
        self.job_flow_id, self.step_id = submitted.cluster_id, submitted.id
        self.clear_number = submitted.clear_number
        return self._describe_step()

    def _wait(self, context: Context, step: Any) -> str | None:
        """Defer this task until a step finishes, or finish it if the step has finished."""
        persist_link(self, context, ClusterLink, job_flow_id=self.job_flow_id)
        bucket, prefix = split_uri(self._logs())
        persist_link(self, context, StepLogsLink, bucket=bucket, prefix=prefix)
        if step["Status"]["State"] not in UNFINISHED:
            return self._finish(step)
        seconds_left = self._seconds_left(step)
        if seconds_left <= 0:
            self._time_out()
        self.defer(
            trigger=StepEndTrigger(
                self.job_flow_id,
                self.step_id,
                progress_of={
                    "run_uri": self.plan["run_uri"],
                    "step": step["Name"],
                    "created": step["Status"]["Timeline"]["CreationDateTime"].isoformat(),
                },
                waiter_delay=int(self.poke_interval),
                # One more, because the first attempt is immediate.
                waiter_max_attempts=1 + math.ceil(seconds_left / self.poke_interval),
                aws_conn_id=self.aws_conn_id,
                region_name=self.region_name,
                verify=self.verify,
                botocore_config=self.botocore_config,
            ),
            timeout=timedelta(seconds=seconds_left + TIMEOUT_MARGIN_SECONDS),
            method_name="execute_complete",
            kwargs=self._deferred(),
        )
        return None  # not reached: `defer` raises

    def _deferred(self) -> dict[str, Any]:
        """Return what a deferred task must remember of its step."""
        return {"cluster_id": self.job_flow_id, "step_id": self.step_id, "clear_number": self.clear_number}

    def _was_cleared_after(self, context: Context, step: Any, states: Sequence[str]) -> bool:
        """Return whether a step is in one of the states, and this task was cleared after the step was submitted."""
        state = step["Status"]["State"]
        is_older = (self.clear_number or 0) < (context["dag_run"].clear_number or 0)
        if state not in states or not is_older or not was_cleared(self, context):
            return False
        self.log.info("step %s is %s, and this task was cleared after it was submitted", self.step_id, state)
        return True

    def _find_step(self) -> Any:
        """Return the step, or None if it is not a step of the run's current cluster."""
        try:
            return self._describe_step()
        except Exception as error:
            if not is_final(error):
                raise
            self.log.info("step %s is not a step of cluster %s: %s", self.step_id, self.job_flow_id, error)
            return None

    def _describe_step(self) -> Any:
        return emr_client(self).describe_step(ClusterId=self.job_flow_id, StepId=self.step_id)["Step"]

    def _logs(self) -> str:
        return step_log_uri(self.settings.log_uri, self.job_flow_id, self.step_id)

    def _seconds_left(self, step: Any) -> float:
        created = step["Status"]["Timeline"]["CreationDateTime"]
        left: timedelta = self.step_timeout - (datetime.now(UTC) - created)
        return left.total_seconds()

    def _finish(self, step: Any) -> str:
        timeline = step["Status"]["Timeline"]
        if step["Status"]["State"] != "COMPLETED":
            self._fail(step)
        seconds = (timeline["EndDateTime"] - timeline["StartDateTime"]).total_seconds()
        self.log.info("step %s %s: COMPLETED after %.1f s", self.step_id, step["Name"], seconds)
        return self.job_flow_id

    def _fail(self, step: Any) -> NoReturn:
        """Fail with the step's cause. If its logs are not uploaded yet, first wait for them in the triggerer."""
        s3 = AwsBaseHook(self.aws_conn_id, client_type="s3", region_name=self.region_name).conn
        report_uri = f"{self.plan['run_uri']}/{step['Name']}.error.json"
        now = datetime.now(UTC)
        failure = explain_failure(emr_client(self), s3, self.job_flow_id, step, self._logs(), report_uri, now)
        ended = step["Status"]["Timeline"].get("EndDateTime")
        if not failure.is_final and ended is not None and now < ended + self.log_wait:
            self.log.info("step %s is %s: waiting for its logs", self.step_id, step["Status"]["State"])
            wait = TimeDeltaTrigger(timedelta(seconds=self.poke_interval))
            self.defer(trigger=wait, method_name="execute_complete", kwargs=self._deferred())
        raise StepFailed(failure.text, failure.cause)

    def _time_out(self) -> None:
        cancel_step(emr_client(self), self.job_flow_id, self.step_id)
        minutes = self.step_timeout.total_seconds() / 60
        raise AirflowFailException(
            f"step {self.step_id} of cluster {self.job_flow_id} did not finish within {minutes:g} minutes and is "
            f"cancelled; set ORCHARD_{self.task_id.split('.')[0].upper()}_TIMEOUT_MINUTES to a larger value"
        )


class HoldClusterSensor(AwsBaseSensor[EmrHook]):
    """Keep the run's cluster for `hold_minutes` after `publish` has succeeded. With 0, end at once.

    It first waits until `publish` has finished. When the hold starts, it releases the run's turn, so that the next run
    of the dataset does not wait for the end. If `publish` did not succeed, or the cluster ends, so does the hold. The
    end counts from the publication, even if this task is retried or cleared.
    """

    aws_hook_class = EmrHook
    template_fields: Sequence[str] = (*AwsBaseSensor.template_fields, "job_flow_id", "plan")
    operator_extra_links = (ClusterLink(),)

    def __init__(self, *, job_flow_id: str, plan: Mapping[str, Any], settings: Settings, **kwargs: Any) -> None:
        super().__init__(mode="reschedule", **kwargs)
        self.job_flow_id = job_flow_id
        self.plan = plan
        self.settings = settings

    def poke(self, context: Context) -> bool:
        persist_link(self, context, ClusterLink, job_flow_id=self.job_flow_id)
        minutes = self.plan.get("hold_minutes", 0)  # plans of earlier releases lack it
        if not minutes:
            self.log.info("hold: hold_minutes is 0: the cluster is terminated now")
            return True
        published = state_of_task(context["ti"], PUBLISH)
        if published not in FINISHED_TASK:
            self.log.info("hold: waiting for %s, which is %s", PUBLISH, published or "not started")
            return False
        if published != "success":
            self.log.info("hold: %s is %s: the cluster is not held, and is terminated now", PUBLISH, published)
            return True
        self._hold(context, timedelta(minutes=minutes))
        return True

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except AirflowSensorTimeout:
            self.log.info("hold: its end has passed while no triggerer was running: the cluster is terminated now")

    def execute_complete(self, context: Context, event: Mapping[str, Any]) -> None:  # noqa: ARG002
        cluster_end = event["cluster_end"]
        why = f"cluster {self.job_flow_id} is {cluster_end}" if cluster_end else "hold_minutes have passed"
        self.log.info("hold: ended, because %s", why)

    def _hold(self, context: Context, duration: timedelta) -> None:
        """Start the hold, or continue it after a retry, and wait for its end in the triggerer."""
        # Imported here because it imports pyiceberg, which takes long, and each parse of the DAG imports this module.
        from orchard.run.summary import published_at

        s3 = AwsBaseHook(self.aws_conn_id, client_type="s3", region_name=self.region_name).conn
        until = published_at(s3, self.plan["run_uri"]) + duration
        seconds_left = (until - datetime.now(UTC)).total_seconds()
        if seconds_left <= 0:
            self.log.info("hold: it has ended at %s: the cluster is terminated now", time_text(until))
            return
        emr = emr_client(self)
        status = emr.describe_cluster(ClusterId=self.job_flow_id)["Cluster"]["Status"]
        if status["State"] not in READY:
            self.log.info("hold: cluster %s is %s: there is nothing to hold", self.job_flow_id, describe_end(status))
            return
        hold = start_hold(emr, self.settings, self.job_flow_id, until)
        turn_of(context["ti"], self.settings, self.plan).release()
        context["ti"].xcom_push(HOLD, hold.as_xcom())
        for line in hold.lines():
            self.log.info("hold: %s", line)
        self.defer(
            trigger=HoldEndTrigger(
                self.job_flow_id,
                until.isoformat(),
                poll_seconds=self.poke_interval,
                aws_conn_id=self.aws_conn_id,
                region_name=self.region_name,
            ),
            timeout=timedelta(seconds=seconds_left + TIMEOUT_MARGIN_SECONDS),
            method_name="execute_complete",
        )


class ClustersGoneSensor(AwsBaseSensor[EmrHook]):
    """Wait until all clusters of the run have terminated. Request termination again of those that are still active.

    It does not call DescribeCluster, because that permission may be missing.
    """

    aws_hook_class = EmrHook
    template_fields: Sequence[str] = (*AwsBaseSensor.template_fields, "cluster_name", "known_ids")

    def __init__(self, *, cluster_name: str, known_ids: Sequence[str | None], **kwargs: Any) -> None:
        super().__init__(mode="reschedule", **kwargs)
        self.cluster_name = cluster_name
        self.known_ids = known_ids

    def poke(self, context: Context) -> bool:  # noqa: ARG002
        known_ids = [cluster_id for cluster_id in self.known_ids if cluster_id]
        existing = existing_clusters(emr_client(self), self.cluster_name, known_ids)
        self.log.info("clusters that have not terminated: %s", existing or "none")
        for cluster_id in (cluster_id for cluster_id, state in existing.items() if state in ACTIVE):
            try:
                terminate_cluster(emr_client(self), cluster_id)
            except ClientError as error:
                self.log.warning("cannot terminate cluster %s: %s", cluster_id, error)
        return not existing


class VerdictSensor(ClustersGoneSensor):
    """The last task of every run: check that no cluster is active, release the run's turn, and fail a failed run.

    Because it fails whenever the run fails, a user who clears only the failed tasks clears it, too. It then terminates
    the cluster that those tasks have created, although the tasks before it, which have succeeded, do not run again. It
    waits for tasks that are cleared while it runs. It also records what the run's clusters have cost.
    """

    template_fields: Sequence[str] = (*ClustersGoneSensor.template_fields, "plan")

    def __init__(self, *, plan: Mapping[str, Any], settings: Settings, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.plan = plan
        self.settings = settings

    def poke(self, context: Context) -> bool:
        ti: Any = context["ti"]
        if has_unfinished_tasks(ti):
            self.log.info("waiting for tasks that were cleared")
            return False
        if not super().poke(context):
            return False
        turn_of(ti, self.settings, self.plan).release()
        record_final_cost(ti, self.settings, self.plan, context["dag_run"].run_after)
        check_verdict(ti.get_task_states(dag_id=ti.dag_id, run_ids=[ti.run_id])[ti.run_id])
        return True
