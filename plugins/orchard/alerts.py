"""Whom to tell of a run that takes too long."""

import logging
from collections.abc import Mapping
from typing import Any

log = logging.getLogger(__name__)


async def tell_of_late_run(hours: int, topic_arn: str, region: str, context: Mapping[str, Any]) -> None:
    """Say in the triggerer's log, and to an SNS topic if there is one, that a run is not over at its deadline.

    The run goes on: Airflow's dagrun_timeout would skip the teardown, and leave the cluster behind. The context has the
    run as the REST API shows it, which calls its id dag_run_id.
    """
    run = context["dag_run"]
    said = f"run {run['dag_run_id']} of {run['dag_id']} is not over {hours} hours after it was due, and goes on"
    log.error("%s", said)
    if topic_arn:
        # Imported here, as this module is imported at each parse of the DAG.
        from airflow.providers.amazon.aws.hooks.sns import SnsHook

        async with await SnsHook(region_name=region).get_async_conn() as sns:  # type: ignore[no-untyped-call]
            await sns.publish(TopicArn=topic_arn, Subject="Orchard: a run is late", Message=said)
