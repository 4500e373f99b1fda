import asyncio
import json
import logging
import uuid
from typing import Any

import pytest

from demo import stack
from orchard.alerts import tell_of_late_run

CONTEXT = {"dag_run": {"dag_id": "fruit_features", "dag_run_id": "scheduled__1"}}
SAID = "run scheduled__1 of fruit_features is not over 8 hours after it was due, and goes on"


def test_a_late_run_is_told_of_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "orchard")
    asyncio.run(tell_of_late_run(hours=8, topic_arn="", region="eu-west-1", context=CONTEXT))
    assert caplog.messages == [SAID]


def test_a_late_run_is_told_of_to_a_topic(aws_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws_url)
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", "aws://")
    sns, sqs = stack.client("sns", aws_url), stack.client("sqs", aws_url)
    name = f"alerts-{uuid.uuid4().hex}"
    topic = sns.create_topic(Name=name)["TopicArn"]
    queue = sqs.create_queue(QueueName=name)["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)
    asyncio.run(tell_of_late_run(hours=8, topic_arn=topic, region=stack.REGION, context=CONTEXT))
    (message,) = sqs.receive_message(QueueUrl=queue)["Messages"]
    told: dict[str, Any] = json.loads(message["Body"])
    assert (told["Subject"], told["Message"]) == ("Orchard: a run is late", SAID)
