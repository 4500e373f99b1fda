"""Links on a task: to its cluster, its step's logs and Spark UI, and to the folder and the report of its run.

Airflow stores the links of a task whenever its process ends, also when a sensor waits. It shows those that are not
empty.
"""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode, urlsplit

from airflow.providers.amazon.aws.links.base_aws import BASE_AWS_CONSOLE_LINK, BaseAwsLink
from airflow.providers.amazon.aws.links.emr import EmrClusterLink
from airflow.sdk import BaseOperatorLink, Context
from airflow.sdk.execution_time.xcom import XCom
from botocore.session import Session

from orchard.airflow.identity import airflow_identity
from orchard.storage import split_uri

if TYPE_CHECKING:
    from airflow.sdk import DAG

S3_CONSOLE_LINK: Final = BASE_AWS_CONSOLE_LINK + "/s3/buckets/{bucket}?region={region_name}&prefix={prefix}"
LOOPBACK: Final = ("127.0.0.1", "localhost")
# The pages of the local AWS begin with this path. Its README lists them.
LOCAL_PAGES: Final = "/_local_aws"


def aws_page(console_link: str, local_page: str) -> str:
    """Return the link to a page of AWS: in the console, or of the local AWS if boto3 uses that.

    Return an empty string if boto3 uses another endpoint, because neither of the two pages then exists.

    >>> aws_page("https://console.aws.amazon.com/emr/home", "clusters/j-1")
    'https://console.aws.amazon.com/emr/home'
    """
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
    host = urlsplit(endpoint).hostname or ""
    if not endpoint or f".{host}".endswith((".amazonaws.com", ".amazonaws.com.cn")):
        return console_link
    return f"{endpoint.rstrip('/')}{LOCAL_PAGES}/{local_page}" if host in LOOPBACK else ""


def report_path(dag_id: str, run_id: str) -> str:
    """Return the path of the report of a run, on the server of Airflow's UI. It ends in a slash.

    >>> report_path("fruit_features", "manual__2026-11-22T02:00:00+00:00")
    '/orchard/dags/fruit_features/runs/manual__2026-11-22T02%3A00%3A00%2B00%3A00/'
    """
    base_path = urlsplit(airflow_identity()).path
    return f"{base_path}/orchard/dags/{quote(dag_id, safe='')}/runs/{quote(run_id, safe='')}/"


def _s3_page(bucket: str, prefix: str, **values: Any) -> str:
    console_link = S3_CONSOLE_LINK.format(bucket=bucket, prefix=quote(prefix), **values)
    return aws_page(console_link, f"s3?{urlencode({'bucket': bucket, 'prefix': prefix})}")


class ClusterLink(EmrClusterLink):
    """Link to a cluster."""

    def format_link(self, **kwargs: Any) -> str:
        console_link = super().format_link(**kwargs)
        return aws_page(console_link, f"clusters/{quote(str(kwargs['job_flow_id']), safe='')}")


class StepLogsLink(BaseAwsLink):
    """Link to the folder of a step's logs. The provider's EmrLogsLink is wrong when LogUri contains a key prefix."""

    name = "Step Logs"
    key = "emr_step_logs"
    format_str = S3_CONSOLE_LINK

    def format_link(self, **kwargs: Any) -> str:
        return _s3_page(**kwargs)


class SparkUiLink(BaseOperatorLink):
    """Link to the Spark UI of the cluster of a task. The server asks EMR for its URL when somebody opens it."""

    name = "Spark UI"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:  # noqa: ARG002
        stored = XCom.get_value(key=ClusterLink.key, ti_key=ti_key)
        cluster_id = stored["job_flow_id"] if stored else ""
        return f"{report_path(ti_key.dag_id, ti_key.run_id)}spark-ui/{quote(cluster_id)}" if cluster_id else ""


class ReportLink(BaseOperatorLink):
    """Link to the report of a run."""

    name = "Report"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:  # noqa: ARG002
        return report_path(ti_key.dag_id, ti_key.run_id)


@dataclass(frozen=True)
class RunFolderLink(BaseOperatorLink):
    """Link to the folder of a run on S3, which `plan` names. A run without a plan has none."""

    region: str
    name = "Run Folder"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:  # noqa: ARG002
        run_uri = XCom.get_one(key="run_uri", dag_id=ti_key.dag_id, task_id="plan", run_id=ti_key.run_id)
        if not run_uri:
            return ""
        bucket, prefix = split_uri(run_uri)
        domain = BaseAwsLink.get_aws_domain(Session().get_partition_for_region(self.region))
        return _s3_page(bucket, f"{prefix}/", region_name=self.region, aws_domain=domain)


def link_tasks_to_run(dag: "DAG", region: str) -> None:
    """Link each task of a DAG to the folder and to the report of its run.

    The links are set on the tasks and not on their classes, because other DAGs have tasks of the same classes. A global
    link of a plugin would be on the tasks of all DAGs.
    """
    for task in dag.tasks:
        task.operator_extra_links = (*task.operator_extra_links, ReportLink(), RunFolderLink(region))


def persist_link(operator: Any, context: Context, link: type[BaseAwsLink], **values: str) -> None:
    """Store the values of a link, so that the UI can show it on the task."""
    link.persist(
        context=context,
        operator=operator,
        region_name=operator.hook.conn_region_name,
        aws_partition=operator.hook.conn_partition,
        **values,
    )
