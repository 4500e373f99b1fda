from dataclasses import replace
from typing import Any

import pytest
from botocore.exceptions import ClientError

from orchard.preflight.sns import missing_topic
from sandbox import aws
from tests.plugins.answers import failing
from tests.plugins.preflight.cluster_requests import SETTINGS

ARN = "arn:aws:sns:eu-west-1:123456789012:alerts-of-nobody"


@pytest.fixture(scope="module")
def sns(aws_url: str) -> Any:
    return aws.client("sns", aws_url)


def test_without_a_topic_nothing_is_checked(sns: Any) -> None:
    with failing(sns, "GetTopicAttributes", "AuthorizationError", 403):
        assert missing_topic(sns, SETTINGS) == []


@pytest.mark.parametrize("code", ["NotFound", "InvalidParameter"])
def test_a_topic_that_the_region_does_not_have_is_named_with_its_setting(sns: Any, code: str) -> None:
    # SNS calls the ARN of a topic in another region an invalid parameter.
    with failing(sns, "GetTopicAttributes", code):
        (fault,) = missing_topic(sns, replace(SETTINGS, alert_topic_arn=ARN))
    assert fault.startswith(f"SNS topic '{ARN}' is not in eu-west-1: An error occurred ({code})")
    assert fault.endswith("; set ORCHARD_ALERT_TOPIC_ARN to a topic that exists there, or unset it")


def test_an_error_that_does_not_mean_that_the_topic_is_missing_is_raised(sns: Any) -> None:
    with failing(sns, "GetTopicAttributes", "Throttled"), pytest.raises(ClientError, match="Throttled"):
        missing_topic(sns, replace(SETTINGS, alert_topic_arn=ARN))
