"""Sensors that wait for EMR: for a cluster to be ready, for a step to finish, for all clusters of a run to terminate.

A sensor stores nothing between pokes and retries, so it can be retried at any time.
"""

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.amazon.aws.hooks.base_aws import AwsBaseHook
from airflow.providers.amazon.aws.hooks.emr import EmrHook
from airflow.providers.amazon.aws.links.emr import EmrClusterLink
from airflow.providers.amazon.aws.sensors.base_aws import AwsBaseSensor
from airflow.providers.amazon.aws.sensors.emr import EmrStepSensor
from airflow.sdk import Context, PokeReturnValue
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from botocore.exceptions import ClientError

from orchard.airflow.clients import emr_client, emr_client_without_retries, failing_at_once
from orchard.airflow.links import StepLogsLink, persist_link
from orchard.airflow.triggers import StepEndTrigger
from orchard.cluster.emr_clusters import (
    ACTIVE,
    EXISTING,
    MAX_CLUSTERS_PER_RUN,
    READY,
    TERMINATED,
    clusters_named,
    create_cluster,
    describe_end,
    existing_clusters,
    is_worth_replacing,
    terminate_cluster,
)
from orchard.cluster.emr_steps import UNFINISHED, cancel_step, explain_failure, step_log_uri
from orchard.storage import split_uri

if TYPE_CHECKING:
    from mypy_boto3_emr import EMRClient

# Airflow's timeout of the trigger exceeds the step's timeout by this margin, so that the trigger ends first.
TIMEOUT_MARGIN_SECONDS = 60


class ClusterReadySensor(AwsBaseSensor[EmrHook]):
    """Wait until the run's cluster accepts steps. Return its id.

    A cluster that fails to start for a reason that may be temporary is replaced, at most twice. So is one that is not
    ready within `launch_timeout` of its own creation: EMR has no provisioning timeout for On-Demand instances.
    """

    aws_hook_class = EmrHook
    template_fields: Sequence[str] = (*AwsBaseSensor.template_fields, "job_flow_id", "request")
    operator_extra_links = (EmrClusterLink(),)

    def __init__(self, *, job_flow_id: str, request: dict[str, Any], launch_timeout: timedelta, **kwargs: Any) -> None:
        # Each launch ends by its own timeout before the sensor's.
        timeout = (MAX_CLUSTERS_PER_RUN + 1) * launch_timeout
        super().__init__(mode="reschedule", timeout=timeout, **kwargs)
        self.job_flow_id = job_flow_id
        self.request = request
        self.launch_timeout = launch_timeout

    def poke(self, context: Context) -> PokeReturnValue:
        client = emr_client(self)
        first = client.describe_cluster(ClusterId=self.job_flow_id)["Cluster"]
        clusters: list[Any] = [first]
        if first["Status"]["State"] not in ACTIVE:
            since = first["Status"]["Timeline"]["CreationDateTime"]
            # ListClusters may not list the first cluster yet.
            clusters = clusters_named(client, self.request["Name"], (*EXISTING, *TERMINATED), since) or clusters
        cluster_id, state = clusters[0]["Id"], clusters[0]["Status"]["State"]
        self.log.info("cluster %s: %s", cluster_id, state)
        if state not in ACTIVE:
            self._replace(client, cluster_id, len(clusters))
        elif state in READY:
            persist_link(self, context, EmrClusterLink, job_flow_id=cluster_id)
        elif self._is_late(clusters[0]["Status"]):
            self.log.warning("cluster %s is not ready after %s: terminating it", cluster_id, self.launch_timeout)
            terminate_cluster(client, cluster_id)  # a later poke replaces it
        return PokeReturnValue(state in READY, cluster_id)

    def _is_late(self, status: Any) -> bool:
        """Return whether a cluster was not ready within the timeout of its launch."""
        timeline = status["Timeline"]
        lived: timedelta = timeline.get("EndDateTime", datetime.now(UTC)) - timeline["CreationDateTime"]
        return "ReadyDateTime" not in timeline and lived >= self.launch_timeout

    def _replace(self, client: "EMRClient", cluster_id: str, created: int) -> None:
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
        with failing_at_once("EMR rejected the cluster: "):
            create_cluster(emr_client_without_retries(self), self.request)


class StepEndSensor(EmrStepSensor):
    """Wait in the triggerer until a step finishes. If it did not complete, fail with the end of its log, without retry.

    The timeout counts from the creation of the step, even if this task is retried. After the timeout, the step is
    cancelled. Retries are for polls that fail.
    """

    operator_extra_links = (EmrClusterLink(), StepLogsLink())  # type: ignore[assignment]  # the provider's has two

    def __init__(self, *, step_timeout: timedelta, log_uri: str, **kwargs: Any) -> None:
        super().__init__(deferrable=True, **kwargs)
        self.step_timeout = step_timeout
        self.log_uri = log_uri

    def execute(self, context: Context) -> None:
        persist_link(self, context, EmrClusterLink, job_flow_id=self.job_flow_id)
        bucket, prefix = split_uri(self._logs())
        persist_link(self, context, StepLogsLink, bucket=bucket, prefix=prefix)
        step = self._describe_step()
        if step["Status"]["State"] not in UNFINISHED:
            self._finish(step)
            return
        seconds_left = self._seconds_left(step)
        if seconds_left <= 0:
            self._time_out()
        self.defer(
            trigger=StepEndTrigger(
                self.job_flow_id,
                self.step_id,
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
        )

    def execute_complete(self, context: Context, event: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        step = self._describe_step()
        if step["Status"]["State"] not in UNFINISHED:
            self._finish(step)
        elif self._seconds_left(step) <= 0:
            self._time_out()
        else:
            raise AirflowException(f"polling step {self.step_id} failed while it is still running: {event}")

    def _describe_step(self) -> Any:
        return emr_client(self).describe_step(ClusterId=self.job_flow_id, StepId=self.step_id)["Step"]

    def _logs(self) -> str:
        return step_log_uri(self.log_uri, self.job_flow_id, self.step_id)

    def _seconds_left(self, step: Any) -> float:
        created = step["Status"]["Timeline"]["CreationDateTime"]
        left: timedelta = self.step_timeout - (datetime.now(UTC) - created)
        return left.total_seconds()

    def _finish(self, step: Any) -> None:
        if step["Status"]["State"] != "COMPLETED":
            s3 = AwsBaseHook(self.aws_conn_id, client_type="s3", region_name=self.region_name).conn
            raise AirflowFailException(explain_failure(emr_client(self), s3, self.job_flow_id, step, self._logs()))
        timeline = step["Status"]["Timeline"]
        seconds = (timeline["EndDateTime"] - timeline["StartDateTime"]).total_seconds()
        self.log.info("step %s %s: COMPLETED after %.1f s", self.step_id, step["Name"], seconds)

    def _time_out(self) -> None:
        cancel_step(emr_client(self), self.job_flow_id, self.step_id)
        minutes = self.step_timeout.total_seconds() / 60
        raise AirflowFailException(
            f"step {self.step_id} of cluster {self.job_flow_id} did not finish within {minutes:g} minutes and is "
            f"cancelled; set ORCHARD_{self.task_id.split('.')[0].upper()}_TIMEOUT_MINUTES to a larger value"
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
