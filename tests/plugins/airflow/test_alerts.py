import asyncio
import json
import logging
import uuid
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
from airflow.exceptions import AirflowFailException
from airflow.sdk import DAG
from airflow.sdk.bases.operator import BaseOperator

from orchard.airflow.alerts import CAUSE, FailedRunAlert, alert_late_run, cause_of, record_cause
from orchard.airflow.sensors import StepFailed
from sandbox import aws
from tests.plugins.airflow.tasks import TaskInstance

BASE_URL = "https://airflow.example.com"
LINK = f"{BASE_URL}/dags/fruit_features/runs/manual__2026-11-22T02%3A00%3A00%2B00%3A00"
RUN_ID = "manual__2026-11-22T02:00:00+00:00"
LATE = {"dag_run": {"dag_id": "fruit_features", "dag_run_id": RUN_ID, "state": "running"}}
LATE_MESSAGE = f"run {RUN_ID} of fruit_features is still running 8 hours after its due time; {LINK}"
TASKS = ("plan", "ingest.wait_step", "publish", "verdict")


@pytest.fixture(autouse=True)
def _base_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", f"{BASE_URL}/")


class FailedRun(TaskInstance):
    """The last task instance of a failed run, with the causes that its tasks have stored."""

    def __init__(self, states: Mapping[str, str | None], causes: Mapping[str, str]) -> None:
        super().__init__(RUN_ID, task_states=states)
        self.causes = causes

    def xcom_pull(self, task_ids: str, key: str, run_id: str) -> str | None:
        assert (key, run_id) == (CAUSE, RUN_ID)
        return self.causes.get(task_ids)


def failed(causes: dict[str, str], **states: str) -> dict[str, Any]:
    """Return the context of the callback of a failed run. Each task with a cause has failed."""
    with DAG("fruit_features", schedule=None) as dag:
        for task_id in reversed(TASKS):
            BaseOperator(task_id=task_id)
    for before, after in pairwise(TASKS):
        dag.get_task(before).set_downstream(dag.get_task(after))
    known = {**dict.fromkeys(causes, "failed"), **states}
    return {"dag": dag, "run_id": RUN_ID, "reason": "task_failure", "ti": FailedRun(known, causes)}


def alerts_of(context: dict[str, Any], caplog: pytest.LogCaptureFixture) -> list[str]:
    caplog.set_level(logging.ERROR, "orchard")
    FailedRunAlert("", aws.REGION)(context)
    return caplog.messages


def test_a_late_run_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "orchard")
    asyncio.run(alert_late_run(hours=8, topic_arn="", region="eu-west-1", context=LATE))
    assert caplog.messages == [LATE_MESSAGE]


@pytest.mark.parametrize("state", ["failed", "success"])
def test_a_run_that_has_finished_is_not_late(caplog: pytest.LogCaptureFixture, state: str) -> None:
    """Airflow deletes the deadline of a run only when the run succeeds."""
    caplog.set_level(logging.WARNING, "orchard")
    finished = {"dag_run": {**LATE["dag_run"], "state": state}}
    asyncio.run(alert_late_run(hours=8, topic_arn="arn:unused", region="eu-west-1", context=finished))
    assert caplog.messages == []


def test_both_alerts_are_published_to_a_topic(aws_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws_url)
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", "aws://")
    sns, sqs = aws.client("sns", aws_url), aws.client("sqs", aws_url)
    name = f"alerts-{uuid.uuid4().hex}"
    topic = sns.create_topic(Name=name)["TopicArn"]
    queue = sqs.create_queue(QueueName=name)["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)
    asyncio.run(alert_late_run(hours=8, topic_arn=topic, region=aws.REGION, context=LATE))
    FailedRunAlert(topic, aws.REGION)(failed({"plan": "NoImages: no images below s3://b/x/"}))
    received: list[tuple[str, str]] = []
    while len(received) < 2:
        for message in sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10)["Messages"]:
            notification = json.loads(message["Body"])
            received.append((notification["Subject"], notification["Message"]))
    cause = "plan: NoImages: no images below s3://b/x/"
    assert sorted(received) == [
        ("Orchard: a run has failed", f"run {RUN_ID} of fruit_features has failed: {cause}; {LINK}"),
        ("Orchard: a run is late", LATE_MESSAGE),
    ]


def test_the_cause_of_a_failed_run_is_that_of_the_first_task_that_failed(caplog: pytest.LogCaptureFixture) -> None:
    causes = {"verdict": "RunFailed: it failed", "publish": "LostRows: 3", "ingest.wait_step": "NoImages: none"}
    (message,) = alerts_of(failed(causes), caplog)
    assert message == f"run {RUN_ID} of fruit_features has failed: ingest.wait_step: NoImages: none; {LINK}"


def test_the_verdict_is_the_cause_only_if_no_other_task_has_failed(caplog: pytest.LogCaptureFixture) -> None:
    (message,) = alerts_of(failed({"verdict": "MarkedFailed: the run was marked failed"}), caplog)
    assert "has failed: verdict: MarkedFailed: the run was marked failed; " in message


def test_a_task_whose_process_was_killed_is_named_without_a_cause(caplog: pytest.LogCaptureFixture) -> None:
    (message,) = alerts_of(failed({}, publish="failed"), caplog)
    assert "has failed: publish: its process ended without an exception: see its log; " in message


def test_a_task_without_a_cause_is_not_reported_if_a_later_one_has_a_cause(caplog: pytest.LogCaptureFixture) -> None:
    """Airflow itself fails a deferred task when a user marks its run failed."""
    states = {"ingest.wait_step": "failed", "publish": "skipped"}
    (message,) = alerts_of(failed({"verdict": "MarkedFailed: the run was marked failed"}, **states), caplog)
    assert "has failed: verdict: MarkedFailed: the run was marked failed; " in message


def test_an_alert_is_sent_although_airflow_cannot_be_asked_for_the_cause(caplog: pytest.LogCaptureFixture) -> None:
    context = failed({"plan": "x"})
    context["ti"].causes = None
    assert alerts_of(context, caplog)[-1] == f"run {RUN_ID} of fruit_features has failed: task_failure; {LINK}"


def test_a_failed_run_without_a_last_task_is_reported_with_airflows_reason(caplog: pytest.LogCaptureFixture) -> None:
    context = failed({"plan": "x"})
    del context["ti"]
    (message,) = alerts_of(context, caplog)
    assert message == f"run {RUN_ID} of fruit_features has failed: task_failure; {LINK}"


def test_without_the_url_of_airflow_the_alert_says_how_to_get_a_link(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIRFLOW__API__BASE_URL")
    (message,) = alerts_of(failed({"plan": "x"}), caplog)
    assert message.endswith("no link, because [api] base_url is not set in Airflow's configuration")


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (StepFailed("step ingest is FAILED\nNoImages: none\nall logs: s3://b/", "NoImages: none"), "NoImages: none"),
        (AirflowFailException("EMR rejected the cluster: no"), "AirflowFailException: EMR rejected the cluster: no"),
        (KeyError("a\nb"), r"KeyError: 'a\nb'"),
        (ValueError("two\n  lines"), "ValueError: two lines"),
        ("Task received SIGTERM", "Task received SIGTERM"),
        (ValueError("x" * 5000), f"ValueError: {'x' * 988}"),
    ],
)
def test_a_task_stores_its_cause_as_one_line(error: object, cause: str) -> None:
    ti = TaskInstance()
    record_cause({"ti": ti, "exception": error})
    assert ti.xcoms == {CAUSE: cause}
    assert cause_of(error) == cause


def test_a_task_that_a_user_marks_failed_stores_no_cause() -> None:
    ti = TaskInstance()
    record_cause({"ti": ti})
    assert ti.xcoms == {}
