"""Replacements for provider operators that leak or duplicate clusters and steps.

An operator stores nothing between retries. It checks the state in EMR first, so it can be retried at any time.
"""

from collections.abc import Sequence
from typing import Any

from airflow.providers.amazon.aws.links.emr import EmrClusterLink
from airflow.providers.amazon.aws.operators.emr import (
    EmrAddStepsOperator,
    EmrCreateJobFlowOperator,
    EmrTerminateJobFlowOperator,
)
from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowFailException

from orchard.airflow.clients import SEND_ONCE, emr_client, failing_at_once
from orchard.airflow.links import persist_link
from orchard.cluster.emr_clusters import create_cluster, describe_end, terminate_clusters_of_run
from orchard.cluster.emr_steps import add_step
from orchard.errors import is_final


class CreateClusterOperator(EmrCreateJobFlowOperator):
    """Create the run's cluster, or adopt the one that an earlier attempt created. Return its id.

    The provider's operator calls DescribeCluster after RunJobFlow, and loses the cluster if that call fails.
    """

    def __init__(self, **kwargs: Any) -> None:
        # emr_conn_id=None, because the extra of an EMR connection would be merged into the request.
        super().__init__(
            emr_conn_id=None, botocore_config=SEND_ONCE, wait_for_completion=False, deferrable=False, **kwargs
        )

    def execute(self, context: Context) -> str:
        request: Any = self.job_flow_overrides
        with failing_at_once("EMR rejected the cluster: "):
            cluster_id = self._job_flow_id = create_cluster(emr_client(self), request)
        persist_link(self, context, EmrClusterLink, job_flow_id=cluster_id)
        return cluster_id


class AddStepOperator(EmrAddStepsOperator):
    """Add one step, or adopt the one that an earlier attempt added. Return its id.

    The provider's operator returns a list, and Airflow cannot reference an item of a list (`output[0]` raises
    ValueError).
    """

    def __init__(self, *, step: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(steps=[step], botocore_config=SEND_ONCE, deferrable=False, **kwargs)

    def execute(self, context: Context) -> str:  # type: ignore[override]  # the id, not a list of one
        cluster_id, steps = str(self.job_flow_id), self.steps
        persist_link(self, context, EmrClusterLink, job_flow_id=cluster_id)
        try:
            return add_step(emr_client(self), cluster_id, steps[0])  # type: ignore[arg-type]
        except Exception as error:
            if not is_final(error):
                raise
            status = emr_client(self).describe_cluster(ClusterId=cluster_id)["Cluster"]["Status"]
            raise AirflowFailException(f"{error}; cluster {cluster_id} is {describe_end(status)}") from error


class TerminateClustersOperator(EmrTerminateJobFlowOperator):
    """Request termination of every cluster of the run, found by id or by name. Return the ids.

    The provider's operator describes the cluster first, and terminates nothing if that call is denied. This one also
    removes termination protection. An id is None if the task that returns it did not finish.
    """

    template_fields: Sequence[str] = (*EmrTerminateJobFlowOperator.template_fields, "cluster_name", "known_ids")

    def __init__(self, *, cluster_name: str, known_ids: Sequence[str | None], **kwargs: Any) -> None:
        super().__init__(job_flow_id="", deferrable=False, **kwargs)
        self.cluster_name = cluster_name
        self.known_ids = known_ids

    def execute(self, context: Context) -> list[str]:  # type: ignore[override]  # the provider's returns nothing
        known_ids = [cluster_id for cluster_id in self.known_ids if cluster_id]
        ids = terminate_clusters_of_run(emr_client(self), self.cluster_name, known_ids)
        for cluster_id in ids[:1]:
            persist_link(self, context, EmrClusterLink, job_flow_id=cluster_id)
        return ids
