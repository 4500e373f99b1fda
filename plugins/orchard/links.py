"""Links from a task to AWS's console."""

from airflow.providers.amazon.aws.links.base_aws import BASE_AWS_CONSOLE_LINK, BaseAwsLink


class StepLogsLink(BaseAwsLink):
    """To the folder of a step's logs. The provider's EmrLogsLink is wrong where LogUri has a prefix."""

    name = "Step Logs"
    key = "emr_step_logs"
    format_str = BASE_AWS_CONSOLE_LINK + "/s3/buckets/{bucket}?region={region_name}&prefix={prefix}"
