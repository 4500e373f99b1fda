"""Check the SNS topic of alerts. Each check returns one sentence per fault."""

import logging
from typing import Any

from botocore.exceptions import ClientError

from orchard.settings import Settings

log = logging.getLogger(__name__)


def missing_topic(sns: Any, settings: Settings) -> list[str]:
    """Check that the topic of alerts exists in the region from which alerts are sent, if one is set."""
    arn = settings.alert_topic_arn
    if not arn:
        return []
    try:
        sns.get_topic_attributes(TopicArn=arn)
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("NotFound", "NotFoundException", "InvalidParameter"):
            raise
        return [
            f"SNS topic {arn!r} is not in {sns.meta.region_name}: {error}; set ORCHARD_ALERT_TOPIC_ARN to a topic that "
            "exists there, or unset it"
        ]
    log.info("preflight: SNS topic %s exists", arn)
    return []
