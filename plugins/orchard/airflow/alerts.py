"""Alert the team to a run that misses its deadline."""

import logging
from collections.abc import Mapping
from typing import Any

log = logging.getLogger(__name__)


async def alert_late_run(hours: int, topic_arn: str, region: str, context: Mapping[str, Any]) -> None:
    """Report in the triggerer's log, and to an SNS topic if one is set, that a run is still running at its deadline.

    The run continues: Airflow's dagrun_timeout would skip the teardown and leave the cluster running. The context
    contains the run as Airflow's REST API returns it, which calls the run_id dag_run_id.
    """
    run = context["dag_run"]
    message = f"run {run['dag_run_id']} of {run['dag_id']} is still running {hours} hours after its due time"
    log.error("%s", message)
    if topic_arn:
        # Imported here, because each parse of the DAG imports this module.
        from airflow.providers.amazon.aws.hooks.sns import SnsHook

        async with await SnsHook(region_name=region).get_async_conn() as sns:  # type: ignore[no-untyped-call]
            await sns.publish(TopicArn=topic_arn, Subject="Orchard: a run is late", Message=message)
