"""Messages on each channel, to servers on this machine: SNS with SQS, a web server, a mail server."""

import asyncio
import logging
import socket
from collections.abc import Callable
from dataclasses import replace

import pytest

from orchard.airflow import channels as channels_module
from orchard.airflow.channels import Channels, Message
from orchard.settings import Settings
from sandbox import aws
from tests.plugins.airflow.receivers import SECRET, Topic, mail_server, text_of, webhook

LINK = "https://airflow.example.com/dags/fruit_features/runs/1"
TEXT = 'run 1 of fruit_features has failed: label "<img src=x onerror=alert(1)>" {{ var.value.password }}; ' + LINK
MESSAGE = Message("failed", "Orchard: a run has failed", TEXT, "fruit_features", "1", LINK)
Send = Callable[[Channels], bool]


@pytest.fixture(params=["in the DAG processor", "in the triggerer"])
def send(request: pytest.FixtureRequest) -> Send:
    if request.param == "in the triggerer":
        return lambda channels: asyncio.run(channels.send_async(MESSAGE))
    return lambda channels: channels.send(MESSAGE)


@pytest.fixture
def topic(aws_url: str, monkeypatch: pytest.MonkeyPatch) -> Topic:
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws_url)
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", "aws://")
    return Topic.new(aws_url)


def test_all_channels_are_off_by_default() -> None:
    channels = Channels.of(Settings(bucket="fruits-data", release="1"))
    assert not channels
    assert not channels.send(MESSAGE)
    assert Channels(topic_arn="arn")
    assert Channels(email=("a@example.com",))
    assert Channels(webhook_url="https://example.com")


def test_a_message_reaches_every_channel_as_text_and_is_no_template(
    send: Send, topic: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    with webhook() as hook, mail_server() as mail:
        monkeypatch.setenv("AIRFLOW_CONN_SMTP_DEFAULT", mail.connection)
        team = ("team@example.com", "night@example.com")
        assert send(Channels(topic.arn, aws.REGION, team, hook.url))
    assert topic.received() == [("Orchard: a run has failed", TEXT)]
    content = {"text": TEXT, "subject": "Orchard: a run has failed", "event": "failed", "dag_id": "fruit_features"}
    (request,) = hook.received
    assert request == {
        "path": f"/hooks/{SECRET}?key={SECRET}",
        "type": "application/json",
        "content": {**content, "run_id": "1", "link": LINK},
    }
    (letter,) = mail.received
    assert letter["Subject"] == "Orchard: a run has failed"
    assert (letter["From"], letter["To"]) == ("orchard@example.com", "team@example.com, night@example.com")
    assert "&lt;img src=x onerror=alert(1)&gt;&quot; {{ var.value.password }}; " in text_of(letter)
    assert "<img" not in text_of(letter)


@pytest.mark.parametrize("status", [302, 404, 500])
def test_a_webhook_that_does_not_take_a_message_is_one_line_without_its_url(
    send: Send, topic: Topic, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with webhook(status) as hook:
        assert send(Channels(topic.arn, aws.REGION, webhook_url=hook.url))
    assert len(hook.received) == 1, "a redirect must not be followed: urllib would send GET"
    assert len(topic.received()) == 1
    (line,) = (record.getMessage() for record in caplog.records if record.name == "orchard.airflow.channels")
    assert line == (
        f"the message about run 1 could not be sent to the webhook: NotDelivered: HTTP {status}: check "
        "ORCHARD_ALERT_WEBHOOK_URL"
    )
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    "url", [f"http://127.0.0.1:1/{SECRET}", f"http://{SECRET}.invalid/", f"file:///{SECRET}", f"http://{SECRET}:x/"]
)
def test_a_webhook_that_does_not_answer_is_one_line_without_its_url(
    send: Send, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    channels = Channels(webhook_url=url)
    assert not send(channels)
    (line,) = (record.getMessage() for record in caplog.records if record.name == "orchard.airflow.channels")
    assert line.startswith("the message about run 1 could not be sent to the webhook: NotDelivered: ")
    assert SECRET not in caplog.text
    assert SECRET not in repr(channels)


def test_a_webhook_that_never_answers_is_given_up(
    send: Send, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(channels_module, "WEBHOOK_TIMEOUT_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert not send(Channels(webhook_url=f"http://127.0.0.1:{silent.getsockname()[1]}/"))
    assert "could not be sent to the webhook: NotDelivered: TimeoutError: " in caplog.text


def test_a_channel_that_fails_does_not_hide_the_others(
    send: Send, topic: Topic, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_SMTP_DEFAULT", raising=False)
    channels = Channels(f"{topic.arn}-gone", aws.REGION, ("team@example.com",))
    with webhook() as hook:
        assert send(replace(channels, webhook_url=hook.url))
    assert len(hook.received) == 1
    lines = [record.getMessage() for record in caplog.records if record.name == "orchard.airflow.channels"]
    assert [line.partition(": ")[0] for line in lines] == [
        f"the message about run 1 could not be sent to {topic.arn}-gone",
        "the message about run 1 could not be sent by e-mail to team@example.com",
    ]
    assert "allow Airflow's role sns:Publish on it" in lines[0]
    assert "check Airflow's connection smtp_default" in lines[1]
    assert not send(channels), "nobody was told"


def test_the_url_of_the_webhook_is_in_no_text_about_the_settings() -> None:
    settings = Settings(bucket="fruits-data", release="1", alert_webhook_url=f"https://example.com/{SECRET}")
    assert SECRET not in repr(settings)
    assert SECRET not in repr(Channels.of(settings))
    assert Channels.of(settings).webhook_url.endswith(SECRET)
