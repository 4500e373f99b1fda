"""Links from a task to the AWS console."""

from typing import Any

from airflow.providers.amazon.aws.links.base_aws import BASE_AWS_CONSOLE_LINK, BaseAwsLink
from airflow.sdk import Context


class StepLogsLink(BaseAwsLink):
    """Link to the folder of a step's logs. The provider's EmrLogsLink is wrong when LogUri contains a key prefix."""

    name = "Step Logs"
    key = "emr_step_logs"
    format_str = BASE_AWS_CONSOLE_LINK + "/s3/buckets/{bucket}?region={region_name}&prefix={prefix}"


def persist_link(operator: Any, context: Context, link: type[BaseAwsLink], **values: str) -> None:
    """Store the values of a link, so that the UI can show it on the task."""
    link.persist(
        context=context,
        operator=operator,
        region_name=operator.hook.conn_region_name,
        aws_partition=operator.hook.conn_partition,
        **values,
    )
