import asyncio
import json
import logging
import uuid
from typing import Any

import pytest

from orchard.airflow.alerts import alert_late_run
from sandbox import aws

CONTEXT = {"dag_run": {"dag_id": "fruit_features", "dag_run_id": "scheduled__1"}}
MESSAGE = "run scheduled__1 of fruit_features is still running 8 hours after its due time"


def test_a_late_run_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "orchard")
    asyncio.run(alert_late_run(hours=8, topic_arn="", region="eu-west-1", context=CONTEXT))
    assert caplog.messages == [MESSAGE]


def test_a_late_run_is_published_to_a_topic(aws_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws_url)
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", "aws://")
    sns, sqs = aws.client("sns", aws_url), aws.client("sqs", aws_url)
    name = f"alerts-{uuid.uuid4().hex}"
    topic = sns.create_topic(Name=name)["TopicArn"]
    queue = sqs.create_queue(QueueName=name)["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)
    asyncio.run(alert_late_run(hours=8, topic_arn=topic, region=aws.REGION, context=CONTEXT))
    (message,) = sqs.receive_message(QueueUrl=queue)["Messages"]
    notification: dict[str, Any] = json.loads(message["Body"])
    assert (notification["Subject"], notification["Message"]) == ("Orchard: a run is late", MESSAGE)
