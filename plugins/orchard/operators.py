"""The operators of the cluster's life: the Amazon provider's, where it leaks a cluster or doubles one, done otherwise.

Each asks EMR through `orchard.emr`, keeps nothing between tries but what EMR itself knows, and so may be tried again.
"""

import ast
import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.amazon.aws.hooks.base_aws import AwsBaseHook
from airflow.providers.amazon.aws.hooks.emr import EmrHook
from airflow.providers.amazon.aws.links.base_aws import BaseAwsLink
from airflow.providers.amazon.aws.links.emr import EmrClusterLink
from airflow.providers.amazon.aws.operators.emr import (
    EmrAddStepsOperator,
    EmrCreateJobFlowOperator,
    EmrTerminateJobFlowOperator,
)
from airflow.providers.amazon.aws.sensors.base_aws import AwsBaseSensor
from airflow.providers.amazon.aws.sensors.emr import EmrStepSensor
from airflow.sdk import Context, PokeReturnValue
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from botocore.exceptions import ClientError

from orchard import emr
from orchard.dataset import split_uri
from orchard.links import StepLogsLink
from orchard.triggers import StepEndTrigger

if TYPE_CHECKING:
    from mypy_boto3_emr import EMRClient

# A request whose answer is lost must not be sent again by botocore, unseen: it is the task's retry that looks first.
ONCE = {"retries": {"total_max_attempts": 1}}
# How much longer than the step's budget Airflow lets the trigger live, so that the trigger is the one to say so.
MARGIN_SECONDS = 60
# What a repeated request would get again.
_INVALID = ("ValidationException", "InvalidRequestException")


class CreateClusterOperator(EmrCreateJobFlowOperator):
    """Make the run's cluster, or adopt the one that an earlier try has made, and return its id.

    After RunJobFlow has answered nothing more is asked, so nothing can go wrong then.
    """

    def __init__(self, **kwargs: Any) -> None:
        # Without a connection for EMR: its extra would be merged into the request.
        super().__init__(emr_conn_id=None, botocore_config=ONCE, wait_for_completion=False, deferrable=False, **kwargs)

    def execute(self, context: Context) -> str:
        request = _literal(self.job_flow_overrides)
        try:
            cluster_id = self._job_flow_id = emr.create_cluster(_emr(self), request)
        except ClientError as error:
            if error.response["Error"]["Code"] in _INVALID:
                raise AirflowFailException(f"EMR refuses the cluster: {error}") from error
            raise
        _link(self, context, EmrClusterLink, job_flow_id=cluster_id)
        return cluster_id


class ClusterReadySensor(AwsBaseSensor[EmrHook]):
    """Wait until the run's cluster takes steps, and return its id.

    A cluster that does not come up for a reason that may heal is replaced, at most twice.
    """

    aws_hook_class = EmrHook
    template_fields: Sequence[str] = (*AwsBaseSensor.template_fields, "job_flow_id", "request")
    operator_extra_links = (EmrClusterLink(),)

    def __init__(self, *, job_flow_id: str, request: str, **kwargs: Any) -> None:
        super().__init__(mode="reschedule", **kwargs)
        self.job_flow_id = job_flow_id
        self.request = request

    def poke(self, context: Context) -> PokeReturnValue:
        client, request = _emr(self), _literal(self.request)
        first = client.describe_cluster(ClusterId=self.job_flow_id)["Cluster"]
        tried: list[Any] = [first]
        if first["Status"]["State"] not in emr.LIVE:
            since = first["Status"]["Timeline"]["CreationDateTime"]
            # The first may not be listed yet.
            tried = emr.clusters_named(client, request["Name"], (*emr.NOT_GONE, *emr.ENDED), since) or tried
        cluster_id, state = tried[0]["Id"], tried[0]["Status"]["State"]
        self.log.info("cluster %s: %s", cluster_id, state)
        if state not in emr.LIVE:
            self._replace(client, request, cluster_id, len(tried))
        elif state in emr.READY:
            _link(self, context, EmrClusterLink, job_flow_id=cluster_id)
        return PokeReturnValue(state in emr.READY, cluster_id)

    def _replace(self, client: "EMRClient", request: dict[str, Any], cluster_id: str, tried: int) -> None:
        status = client.describe_cluster(ClusterId=cluster_id)["Cluster"]["Status"]
        end = f"cluster {cluster_id} did not come up: {emr.end_of(status)}"
        if not emr.can_heal(status):
            raise AirflowFailException(end)
        if tried >= emr.MAX_CLUSTERS:
            raise AirflowFailException(f"{end}; it was number {tried}, which is the last")
        self.log.warning("%s; another is made, number %d of %d", end, tried + 1, emr.MAX_CLUSTERS)
        emr.create_cluster(_once(self), request)


class AddStepOperator(EmrAddStepsOperator):
    """Add one step, or adopt the one that an earlier try has added, and return its id.

    The provider's operator returns a list, and an item of an XCom list cannot be named (`output[0]` raises ValueError).
    """

    def __init__(self, *, step: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(steps=[step], botocore_config=ONCE, deferrable=False, **kwargs)

    def execute(self, context: Context) -> str:  # type: ignore[override]  # the id, not a list of one
        cluster_id, steps = str(self.job_flow_id), self.steps
        _link(self, context, EmrClusterLink, job_flow_id=cluster_id)
        try:
            return emr.add_step(_emr(self), cluster_id, steps[0])  # type: ignore[arg-type]
        except ClientError as error:
            if error.response["Error"]["Code"] not in _INVALID:
                raise
            status = _emr(self).describe_cluster(ClusterId=cluster_id)["Cluster"]["Status"]
            raise AirflowFailException(f"{error}; cluster {cluster_id} is {emr.end_of(status)}") from error


class StepEndSensor(EmrStepSensor):
    """Wait in the triggerer for a step's end, and fail for good with the end of its log when it has not completed.

    The time that it may take counts from its creation, however often this task is tried; then it is cancelled. A retry
    is for polls that were lost.
    """

    operator_extra_links = (EmrClusterLink(), StepLogsLink())  # type: ignore[assignment]  # of the provider's two

    def __init__(self, *, budget: timedelta, log_uri: str, **kwargs: Any) -> None:
        super().__init__(deferrable=True, **kwargs)
        self.budget = budget
        self.log_uri = log_uri

    def execute(self, context: Context) -> None:
        _link(self, context, EmrClusterLink, job_flow_id=self.job_flow_id)
        bucket, prefix = split_uri(self._logs())
        _link(self, context, StepLogsLink, bucket=bucket, prefix=prefix)
        step = self._step()
        if step["Status"]["State"] not in emr.STEP_ACTIVE:
            self._end(step)
            return
        left = self._seconds_left(step)
        if left <= 0:
            self._give_up()
        self.defer(
            trigger=StepEndTrigger(
                self.job_flow_id,
                self.step_id,
                waiter_delay=int(self.poke_interval),
                # The first is made at once.
                waiter_max_attempts=1 + math.ceil(left / self.poke_interval),
                aws_conn_id=self.aws_conn_id,
                region_name=self.region_name,
                verify=self.verify,
                botocore_config=self.botocore_config,
            ),
            timeout=timedelta(seconds=left + MARGIN_SECONDS),
            method_name="execute_complete",
        )

    def execute_complete(self, context: Context, event: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        step = self._step()
        if step["Status"]["State"] not in emr.STEP_ACTIVE:
            self._end(step)
        elif self._seconds_left(step) <= 0:
            self._give_up()
        else:
            raise AirflowException(f"step {self.step_id} was lost sight of: {event}")

    def _step(self) -> Any:
        return _emr(self).describe_step(ClusterId=self.job_flow_id, StepId=self.step_id)["Step"]

    def _logs(self) -> str:
        return emr.step_logs(self.log_uri, self.job_flow_id, self.step_id)

    def _seconds_left(self, step: Any) -> float:
        created = step["Status"]["Timeline"]["CreationDateTime"]
        left: timedelta = self.budget - (datetime.now(UTC) - created)
        return left.total_seconds()

    def _end(self, step: Any) -> None:
        if step["Status"]["State"] != "COMPLETED":
            s3 = AwsBaseHook(self.aws_conn_id, client_type="s3", region_name=self.region_name).conn
            raise AirflowFailException(emr.explain_failure(_emr(self), s3, self.job_flow_id, step, self._logs()))
        timeline = step["Status"]["Timeline"]
        seconds = (timeline["EndDateTime"] - timeline["StartDateTime"]).total_seconds()
        self.log.info("step %s %s: COMPLETED after %.1f s", self.step_id, step["Name"], seconds)

    def _give_up(self) -> None:
        emr.cancel_step(_emr(self), self.job_flow_id, self.step_id)
        minutes = self.budget.total_seconds() / 60
        raise AirflowFailException(
            f"step {self.step_id} of cluster {self.job_flow_id} has not ended within {minutes:g} minutes and is "
            f"cancelled; give it longer with ORCHARD_{self.task_id.split('.')[0].upper()}_TIMEOUT_MINUTES"
        )


class TerminateClustersOperator(EmrTerminateJobFlowOperator):
    """Ask for the end of every cluster of the run, known by id or by name, and return the ids.

    It looks at no cluster first, as that may be denied, and takes termination protection away.
    """

    template_fields: Sequence[str] = (*EmrTerminateJobFlowOperator.template_fields, "cluster_name", "known_ids")

    def __init__(self, *, cluster_name: str, known_ids: list[str], **kwargs: Any) -> None:
        super().__init__(job_flow_id="", deferrable=False, **kwargs)
        self.cluster_name = cluster_name
        self.known_ids = known_ids

    def execute(self, context: Context) -> list[str]:  # type: ignore[override]  # the provider's returns nothing
        known = [cluster_id for cluster_id in self.known_ids if cluster_id not in ("", "None")]
        ids = emr.terminate_run(_emr(self), self.cluster_name, known)
        for cluster_id in ids[:1]:
            _link(self, context, EmrClusterLink, job_flow_id=cluster_id)
        return ids


class ClustersGoneSensor(AwsBaseSensor[EmrHook]):
    """Wait until no cluster of the run is left, and ask once more for the end of those that nobody ends.

    It lists clusters, and describes none, as that may be denied.
    """

    aws_hook_class = EmrHook
    template_fields: Sequence[str] = (*AwsBaseSensor.template_fields, "cluster_name", "known_ids")

    def __init__(self, *, cluster_name: str, known_ids: list[str], **kwargs: Any) -> None:
        super().__init__(mode="reschedule", **kwargs)
        self.cluster_name = cluster_name
        self.known_ids = known_ids

    def poke(self, context: Context) -> bool:  # noqa: ARG002
        left = emr.still_there(_emr(self), self.cluster_name, self.known_ids)
        self.log.info("clusters that are still there: %s", left or "none")
        for cluster_id in (cluster_id for cluster_id, state in left.items() if state in emr.LIVE):
            try:
                emr.terminate_cluster(_emr(self), cluster_id)
            except ClientError as error:
                self.log.warning("cannot end cluster %s: %s", cluster_id, error)
        return not left


def _literal(rendered: Any) -> Any:
    """What a Jinja template has made a text of."""
    return ast.literal_eval(rendered) if isinstance(rendered, str) else rendered


def _emr(operator: Any) -> "EMRClient":
    client: EMRClient = operator.hook.conn
    return client


def _once(sensor: AwsBaseSensor[EmrHook]) -> "EMRClient":
    client: EMRClient = EmrHook(sensor.aws_conn_id, region_name=sensor.region_name, config=ONCE).conn
    return client


def _link(operator: Any, context: Context, link: type[BaseAwsLink], **facts: str) -> None:
    link.persist(
        context=context,
        operator=operator,
        region_name=operator.hook.conn_region_name,
        aws_partition=operator.hook.conn_partition,
        **facts,
    )
