"""Replacements for provider operators that leak or duplicate clusters and steps.

An operator stores nothing between retries. It checks the state in EMR first, so it can be retried at any time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow.providers.amazon.aws.operators.emr import (
    EmrAddStepsOperator,
    EmrCreateJobFlowOperator,
    EmrTerminateJobFlowOperator,
)
from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowFailException

from orchard.airflow.clients import (
    SEND_ONCE,
    create_run_cluster,
    emr_client,
    emr_client_without_retries,
    failing_at_once,
)
from orchard.airflow.links import ClusterLink, persist_link
from orchard.airflow.turns import is_first_attempt, round_start, wait_for_turn, was_cleared
from orchard.cluster.emr_clusters import (
    ACTIVE,
    EXISTING,
    TERMINATED,
    clusters_named,
    describe_end,
    terminate_clusters_of_run,
)
from orchard.cluster.emr_steps import add_step
from orchard.errors import is_final
from orchard.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_emr import EMRClient

# The key of the XCom with the clear number of a submitted step.
CLEAR_NUMBER = "clear_number"


@dataclass(frozen=True)
class SubmittedStep:
    """A step of the run's cluster. `clear_number` counts how often the run had been cleared when it was submitted."""

    cluster_id: str
    id: str
    clear_number: int


def submit_step(
    operator: Any,
    context: Context,
    settings: Settings,
    plan: Mapping[str, Any],
    step: Mapping[str, Any],
    cluster_id: str,
) -> SubmittedStep:
    """Add a step to the run's cluster, or adopt the step of an earlier attempt.

    `cluster_id` may be a cluster that has terminated before the task was cleared, if `create_cluster` was not cleared.
    In that case, the step is submitted to the run's current cluster. If the run has no active cluster, this creates
    one: a new cluster accepts steps immediately.

    Raises:
        AirflowFailException: the cluster has terminated and the task was not cleared since, or EMR refuses the step.
        TaskDeferred: another run has its turn.
    """
    wait_for_turn(operator, context, settings, plan)
    emr = emr_client_without_retries(operator)
    try:
        step_id, is_new = add_step(emr, cluster_id, step)
    except Exception as error:
        if not is_final(error):
            raise
        end = _unexpected_end(operator, context, emr, cluster_id, plan["cluster_name"])
        if end is not None:
            raise AirflowFailException(f"{error}; cluster {end}") from error
        created = create_run_cluster(operator, plan["cluster"])
        operator.log.info("cluster %s has terminated: step %s goes to cluster %s", cluster_id, step["Name"], created)
        with failing_at_once("EMR rejected the step: "):
            step_id, is_new = add_step(emr, created, step)
        cluster_id = created
    # A step that exists at the first attempt after a clear was submitted before the clear, which may still cancel it.
    is_old = not is_new and is_first_attempt(operator, context)
    return SubmittedStep(cluster_id, step_id, 0 if is_old else context["dag_run"].clear_number or 0)


def _unexpected_end(operator: Any, context: Context, emr: "EMRClient", cluster_id: str, name: str) -> str | None:
    """Return the state of the run's newest cluster, or None if another cluster may take its place.

    Another cluster may take its place if the newest cluster is not `cluster_id` and accepts steps, or if the cluster
    ended before the current round of the run or before a user cleared the task.
    """
    try:
        newest: Any = emr.describe_cluster(ClusterId=cluster_id)["Cluster"]
    except Exception as error:
        if not is_final(error):
            raise
        return None  # EMR forgets a cluster two months after its end, and no cluster has the id None
    named = clusters_named(emr, name, (*EXISTING, *TERMINATED), newest["Status"]["Timeline"]["CreationDateTime"])
    if named and named[0]["Id"] != cluster_id:
        newest = named[0]
    if newest["Status"]["State"] in ACTIVE:
        is_expected = newest["Id"] != cluster_id
    else:
        created = newest["Status"]["Timeline"]["CreationDateTime"]
        is_cleared = was_cleared(operator, context) and is_first_attempt(operator, context)
        is_expected = is_cleared or created < round_start(context)
    return None if is_expected else f"{newest['Id']} is {describe_end(newest['Status'])}"


class CreateClusterOperator(EmrCreateJobFlowOperator):
    """Create the run's cluster, or adopt the one that an earlier attempt created. Return its id.

    The provider's operator calls DescribeCluster after RunJobFlow, and loses the cluster if that call fails.
    """

    template_fields: Sequence[str] = (*EmrCreateJobFlowOperator.template_fields, "plan")
    operator_extra_links: Any = (ClusterLink(),)

    def __init__(self, *, plan: Mapping[str, Any], settings: Settings, **kwargs: Any) -> None:
        # emr_conn_id=None, because the extra of an EMR connection would be merged into the request.
        super().__init__(
            emr_conn_id=None, botocore_config=SEND_ONCE, wait_for_completion=False, deferrable=False, **kwargs
        )
        self.plan = plan
        self.settings = settings

    def execute(self, context: Context) -> str:
        wait_for_turn(self, context, self.settings, self.plan)
        request: Any = self.job_flow_overrides
        cluster_id = self._job_flow_id = create_run_cluster(self, request)
        persist_link(self, context, ClusterLink, job_flow_id=cluster_id)
        return cluster_id

    def execute_again(self, context: Context, event: Any) -> str:  # noqa: ARG002
        return self.execute(context)


class AddStepOperator(EmrAddStepsOperator):
    """Add one step, or adopt the one that an earlier attempt added. Return its id.

    The provider's operator returns a list, and Airflow cannot reference an item of a list (`output[0]` raises
    ValueError).
    """

    template_fields: Sequence[str] = (*EmrAddStepsOperator.template_fields, "plan")
    operator_extra_links: Any = (ClusterLink(),)

    def __init__(self, *, step: dict[str, Any], plan: Mapping[str, Any], settings: Settings, **kwargs: Any) -> None:
        super().__init__(steps=[step], botocore_config=SEND_ONCE, deferrable=False, **kwargs)
        self.plan = plan
        self.settings = settings

    def execute(self, context: Context) -> str:  # type: ignore[override]  # the id, not a list of one
        steps: Any = self.steps
        submitted = submit_step(self, context, self.settings, self.plan, steps[0], str(self.job_flow_id))
        persist_link(self, context, ClusterLink, job_flow_id=submitted.cluster_id)
        context["ti"].xcom_push(CLEAR_NUMBER, submitted.clear_number)
        return submitted.id

    def execute_again(self, context: Context, event: Any) -> str:  # noqa: ARG002
        return self.execute(context)


class TerminateClustersOperator(EmrTerminateJobFlowOperator):
    """Request termination of every cluster of the run, found by id or by name. Return the ids.

    The provider's operator describes the cluster first, and terminates nothing if that call is denied. This one also
    removes termination protection. An id is None if the task that returns it did not finish.
    """

    template_fields: Sequence[str] = (*EmrTerminateJobFlowOperator.template_fields, "cluster_name", "known_ids")
    operator_extra_links: Any = (ClusterLink(),)

    def __init__(self, *, cluster_name: str, known_ids: Sequence[str | None], **kwargs: Any) -> None:
        super().__init__(job_flow_id="", deferrable=False, **kwargs)
        self.cluster_name = cluster_name
        self.known_ids = known_ids

    def execute(self, context: Context) -> list[str]:  # type: ignore[override]  # the provider's returns nothing
        known_ids = [cluster_id for cluster_id in self.known_ids if cluster_id]
        ids = terminate_clusters_of_run(emr_client(self), self.cluster_name, known_ids)
        for cluster_id in ids[:1]:
            persist_link(self, context, ClusterLink, job_flow_id=cluster_id)
        return ids
