import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from airflow.exceptions import AirflowFailException
from airflow.sdk import DAG
from airflow.sdk.bases.operator import BaseOperator

from orchard.airflow.alerts import (
    CAUSE,
    FailedRunAlert,
    SucceededRunAlert,
    alert_late_run,
    cause_of,
    record_cause,
)
from orchard.airflow.costs import COST
from orchard.airflow.planning import SUMMARY
from orchard.airflow.sensors import StepFailed
from orchard.settings import Settings
from sandbox import aws
from tests.plugins.airflow.receivers import SECRET, Topic, Webhook, webhook
from tests.plugins.airflow.tasks import TaskInstance
from tests.plugins.plans import keys

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

BASE_URL = "https://airflow.example.com"
LINK = f"{BASE_URL}/dags/fruit_features/runs/manual__2026-11-22T02%3A00%3A00%2B00%3A00"
RUN_ID = "manual__2026-11-22T02:00:00+00:00"
LATE = {"dag_run": {"dag_id": "fruit_features", "dag_run_id": RUN_ID, "state": "running"}}
LATE_MESSAGE = f"run {RUN_ID} of fruit_features is still running 8 hours after its due time; {LINK}"
TASKS = ("plan", "ingest.wait_step", "hold_cluster", "publish", "verdict")
SILENT = Settings(bucket="fruits-data", release="1")


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
    FailedRunAlert(SILENT)(context)
    return caplog.messages


def test_a_late_run_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "orchard")
    asyncio.run(alert_late_run(hours=8, topic_arn="", region="eu-west-1", context=LATE))
    assert caplog.messages == [LATE_MESSAGE]


def test_the_alert_about_a_late_run_says_that_its_hold_was_allowed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "orchard")
    held = {"dag_run": {**LATE["dag_run"], "conf": {"hold_minutes": 60}}}
    asyncio.run(alert_late_run(hours=8, topic_arn="", region="eu-west-1", context=held))
    assert "is still running 8 hours and its hold of 60 minutes after its due time; " in caplog.messages[0]


def test_a_hold_that_failed_is_not_the_cause_of_a_failed_run(caplog: pytest.LogCaptureFixture) -> None:
    causes = {"hold_cluster": "ClientError: denied", "publish": "LostRows: 3"}
    (message,) = alerts_of(failed(causes), caplog)
    assert "has failed: publish: LostRows: 3; " in message


@pytest.mark.parametrize("state", ["failed", "success"])
def test_a_run_that_has_finished_is_not_late(caplog: pytest.LogCaptureFixture, state: str) -> None:
    """Airflow deletes the deadline of a run only when the run succeeds."""
    caplog.set_level(logging.WARNING, "orchard")
    finished = {"dag_run": {**LATE["dag_run"], "state": state}}
    asyncio.run(alert_late_run(hours=8, topic_arn="arn:unused", region="eu-west-1", context=finished))
    assert caplog.messages == []


@pytest.fixture
def topic(aws_url: str, monkeypatch: pytest.MonkeyPatch) -> Topic:
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws_url)
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", "aws://")
    return Topic.new(aws_url)


def test_both_alerts_are_published_to_a_topic(topic: Topic) -> None:
    asyncio.run(alert_late_run(hours=8, topic_arn=topic.arn, region=aws.REGION, context=LATE))
    FailedRunAlert(replace(SILENT, alert_topic_arn=topic.arn))(failed({"plan": "NoImages: no images below s3://b/x/"}))
    cause = "plan: NoImages: no images below s3://b/x/"
    assert topic.received() == [
        ("Orchard: a run is late", LATE_MESSAGE),
        ("Orchard: a run has failed", f"run {RUN_ID} of fruit_features has failed: {cause}; {LINK}"),
    ]


def test_a_late_run_is_told_to_the_webhook_of_the_triggerers_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Airflow stores the arguments of this alert in its database."""
    with webhook() as hook:
        monkeypatch.setenv("ORCHARD_ALERT_WEBHOOK_URL", hook.url)
        asyncio.run(alert_late_run(hours=8, topic_arn="", region=aws.REGION, context=LATE))
    (request,) = hook.received
    assert (request["content"]["event"], request["content"]["text"]) == ("late", LATE_MESSAGE)


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


DRIFT = "drift is 0.31, above ORCHARD_WARN_DRIFT 0.25: compare the new images with the earlier ones"
REJECTS = "reject_ratio is 0.02, above ORCHARD_WARN_REJECT_RATIO 0.01: 2 of 100 images: 2 empty"
SENTENCE = "100 images, 31 new, 2 rejected, 8 min, $0.11"


class SucceededRun(TaskInstance):
    """The last task instance of a run that has succeeded, with the XComs of its tasks."""

    def __init__(self, run_id: str, xcoms: Mapping[tuple[str, str], Any]) -> None:
        super().__init__(run_id)
        self.of_tasks = xcoms

    def xcom_pull(self, task_ids: str, key: str, run_id: str) -> Any:
        assert run_id == self.run_id
        return self.of_tasks.get((task_ids, key))


@dataclass(frozen=True)
class Team:
    """A deployment whose team has a webhook, and the runs of a dataset in it."""

    settings: Settings
    hook: Webhook

    def fails(self, run_id: str, dataset_uri: str = "") -> None:
        context = failed({"plan": "NoImages: none"})
        context |= {"run_id": run_id, "params": {"dataset_uri": dataset_uri or self.settings.dataset_uri}}
        context["ti"].xcom_pull = lambda **_: "NoImages: none"
        FailedRunAlert(self.settings)(context)

    def succeeds(
        self,
        run_id: str,
        *warnings: str,
        usd: float | None = None,
        nothing_to_do: bool = False,
        dataset_uri: str = "",
        planned_by: str = "plan",
    ) -> None:
        uri = dataset_uri or self.settings.dataset_uri
        planned = {"run_uri": f"{self.settings.bucket_uri}/runs/images/{run_id}"}
        last = {"nothing_to_do": nothing_to_do, "sentence": "nothing to do: 100 images below s3://b/, no changes"}
        xcoms: dict[tuple[str, str], Any] = {
            ("plan", SUMMARY): planned | {"nothing_to_do": False, "sentence": "100 images, 31 new"},
            (planned_by, SUMMARY): planned | last,
            ("publish", SUMMARY): {"warnings": list(warnings), "sentence": SENTENCE},
            ("verdict", COST): None if usd is None else {"usd": usd},
        }
        with DAG("fruit_features", schedule=None) as dag:
            BaseOperator(task_id="verdict")
        params = {"dataset_uri": uri}
        context = {"dag": dag, "run_id": run_id, "ti": SucceededRun(run_id, xcoms), "params": params}
        SucceededRunAlert(self.settings)(context)

    def told(self) -> list[tuple[str, str]]:
        """Return event and text of the messages since the last call, without the link."""
        found = [(item["content"]["event"], item["content"]["text"].rpartition("; ")[0]) for item in self.hook.received]
        self.hook.received.clear()
        return found


@pytest.fixture
def team(bucket: str, aws_url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws_url)
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", "aws://")
    with webhook() as hook:
        yield Team(replace(SILENT, bucket=bucket, alert_webhook_url=hook.url), hook)


def test_a_run_without_warnings_is_not_told(team: Team) -> None:
    team.succeeds("first")
    team.succeeds("second", usd=5.0)
    assert team.told() == []


def test_the_warnings_of_a_run_and_its_cost_are_one_message(team: Team) -> None:
    expensive = Team(replace(team.settings, warn_cost_usd=1.0), team.hook)
    expensive.succeeds("first", REJECTS, DRIFT, usd=1.5)
    ((event, text),) = team.told()
    assert event == "warnings"
    assert text.startswith(
        f"run first of fruit_features has succeeded with 3 warnings: {SENTENCE}; {REJECTS}; {DRIFT}; "
        "cost_usd is 1.5, above ORCHARD_WARN_COST_USD 1: "
    )
    assert "\n" not in text


def test_a_run_that_is_cleared_and_succeeds_again_is_told_of_other_figures_only(team: Team) -> None:
    team.succeeds("first", DRIFT)
    team.succeeds("first", DRIFT.replace("0.31", "0.32"))
    team.succeeds("first", DRIFT, REJECTS)
    team.succeeds("first", DRIFT, REJECTS)
    told = [text.partition(": ")[2].partition("; ")[2] for _, text in team.told()]
    assert told == [DRIFT, REJECTS]


def test_the_first_success_after_a_failure_is_told_once(team: Team) -> None:
    team.succeeds("first")
    team.fails("second")
    team.fails("third")
    team.succeeds("fourth")
    team.succeeds("fifth")
    (_, _, (event, text)) = team.told()
    assert (event, text) == (
        "recovered",
        f"run fourth of fruit_features has succeeded after run third had failed: {SENTENCE}",
    )


def test_a_failed_run_that_is_cleared_and_succeeds_is_a_recovery(team: Team) -> None:
    team.fails("first")
    team.succeeds("first")
    assert team.told()[1:] == [
        ("recovered", f"run first of fruit_features has succeeded after it had failed: {SENTENCE}")
    ]


def test_a_recovery_with_warnings_is_one_message(team: Team) -> None:
    team.fails("first")
    team.succeeds("second", DRIFT)
    assert team.told()[1:] == [
        (
            "recovered",
            "run second of fruit_features has succeeded with 1 warning after run first had failed: "
            f"{SENTENCE}; {DRIFT}",
        )
    ]


def test_a_failure_of_another_dataset_is_no_failure_before(team: Team) -> None:
    team.fails("first", f"{team.settings.bucket_uri}/apples/")
    team.succeeds("second")
    assert len(team.told()) == 1
    team.succeeds("third", dataset_uri=f"{team.settings.bucket_uri}/apples/")
    assert [event for event, _ in team.told()] == ["recovered"]


@pytest.mark.parametrize("task_id", ["plan", "wait_turn"])
def test_a_run_with_nothing_to_do_recovers_and_has_none_of_the_warnings_of_an_earlier_round(
    team: Team, task_id: str
) -> None:
    team.fails("first")
    team.succeeds("second", DRIFT, nothing_to_do=True, planned_by=task_id)
    assert team.told()[1:] == [
        (
            "recovered",
            "run second of fruit_features has succeeded after run first had failed: nothing to do: 100 images below "
            "s3://b/, no changes",
        )
    ]


def test_what_no_channel_has_taken_is_told_by_the_next_run(team: Team) -> None:
    team.fails("first")
    team.hook.status = 500
    team.succeeds("second", DRIFT)
    team.told()
    team.hook.status = 200
    team.succeeds("second", DRIFT)
    assert [event for event, _ in team.told()] == ["recovered"]


def test_warnings_are_told_although_s3_does_not_say_what_was_told_before(
    team: Team, caplog: pytest.LogCaptureFixture
) -> None:
    lost = Team(replace(team.settings, bucket="no-such-bucket-of-orchard"), team.hook)
    lost.fails("first")
    lost.succeeds("second", DRIFT)
    assert [event for event, _ in team.told()] == ["failed", "warnings"]
    assert "the failure of run first is not stored, so that its recovery is not told: " in caplog.text
    assert "what the team was told before run second is unknown: " in caplog.text
    assert "what the team was told about run second is not stored: " in caplog.text


def test_without_channels_nothing_is_sent_and_nothing_is_stored(team: Team, s3: "S3Client") -> None:
    silent = Team(replace(team.settings, alert_webhook_url=""), team.hook)
    silent.fails("first")
    silent.succeeds("second", DRIFT)
    assert team.told() == []
    assert keys(s3, f"{team.settings.bucket_uri}/") == []


def test_a_failed_run_whose_params_airflow_does_not_know_is_told_nevertheless(
    team: Team, caplog: pytest.LogCaptureFixture
) -> None:
    FailedRunAlert(team.settings)(failed({"plan": "NoImages: none"}))
    assert [event for event, _ in team.told()] == ["failed"]
    assert "the failure of run manual__2026-11-22T02:00:00+00:00 is not stored" in caplog.text


def test_no_alert_contains_the_url_of_the_webhook(team: Team, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    team.hook.status = 500
    team.fails("first")
    team.succeeds("second", DRIFT)
    assert "could not be sent to the webhook" in caplog.text
    assert SECRET not in caplog.text
    assert SECRET not in repr((FailedRunAlert(team.settings), SucceededRunAlert(team.settings)))
