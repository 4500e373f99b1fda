"""The channels on which the team is told about a run: an SNS topic, e-mail, a webhook. Each is an Airflow notifier.

A notifier's `__call__` would render the text with Jinja. The text contains names of files and messages of exceptions,
so that it must not be a template: only `notify` and `async_notify` are called.
"""

import asyncio
import html
import json
import logging
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

from airflow.sdk import BaseNotifier
from botocore.config import Config

from orchard.settings import Settings

log = logging.getLogger(__name__)

# The DAG processor kills a callback after 50 seconds ([dag_processor] dag_file_processor_timeout), with all messages
# that are not sent yet. So each channel must give up before. E-mail comes last: its time limit is in Airflow's
# connection.
IMPATIENT = Config(connect_timeout=3, read_timeout=5, retries={"total_max_attempts": 2})
WEBHOOK_TIMEOUT_SECONDS = 5


@dataclass(frozen=True)
class Message:
    """What the team is told about a run: `event` for programs, the rest for people. The text is one line."""

    event: str
    subject: str
    text: str
    dag_id: str
    run_id: str
    link: str

    def as_json(self) -> dict[str, str]:
        """Return the content for a webhook. Slack, Mattermost and Google Chat show `text`."""
        names = ("text", "subject", "event", "dag_id", "run_id", "link")
        return {name: getattr(self, name) for name in names}


class NotDelivered(RuntimeError):
    """A webhook has not taken a message. The error does not contain its URL, which is a secret."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: urllib would follow it with GET, and lose the message."""

    def redirect_request(self, *_: Any) -> None:
        return None


class WebhookNotifier(BaseNotifier):
    """Send JSON to a URL with POST.

    The provider's HttpNotifier needs a connection, and its errors contain the URL. This one uses urllib, because httpx
    and requests log the URL of each request.
    """

    def __init__(self, url: str, content: dict[str, str]) -> None:
        super().__init__()
        self._url = url
        self._content = content

    def notify(self, context: Any) -> None:  # noqa: ARG002
        """Send the content.

        Raises:
            NotDelivered: the server does not answer within five seconds, or not with a status from 200 to 299.
        """
        try:
            request = urllib.request.Request(  # noqa: S310  # the settings allow only http and https
                self._url, json.dumps(self._content).encode(), {"Content-Type": "application/json"}, method="POST"
            )
            with urllib.request.build_opener(_NoRedirect).open(request, timeout=WEBHOOK_TIMEOUT_SECONDS):
                return
        except urllib.error.HTTPError as error:
            why = f"HTTP {error.code}"
            error.close()
        except urllib.error.URLError as error:
            why = type(error.reason).__name__ if isinstance(error.reason, Exception) else "no connection"
        except Exception as error:
            why = type(error).__name__
        raise NotDelivered(why)

    async def async_notify(self, context: Any) -> None:
        """Send the content from a thread."""
        await asyncio.to_thread(self.notify, context)


@dataclass(frozen=True)
class Channels:
    """The channels of a deployment. Empty ones are off."""

    topic_arn: str = ""
    region: str = ""
    email: tuple[str, ...] = ()
    webhook_url: str = field(default="", repr=False)

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the channels of the settings."""
        return cls(settings.alert_topic_arn, settings.region, settings.alert_email, settings.alert_webhook_url)

    def __bool__(self) -> bool:
        """Return whether a channel is on."""
        return bool(self.topic_arn or self.email or self.webhook_url)

    def send(self, message: Message) -> bool:
        """Send a message on all channels, and return whether one of them has taken it. Log a line per other one."""
        sent = 0
        for name, remedy, notifier in self._notifiers(message):
            try:
                notifier().notify({})
                sent += 1
            except Exception as error:
                _log_failure(message, name, remedy, error)
        return sent > 0

    async def send_async(self, message: Message) -> bool:
        """Do the same as `send` in an event loop."""
        sent = 0
        for name, remedy, notifier in self._notifiers(message):
            try:
                await notifier().async_notify({})
                sent += 1
            except Exception as error:
                _log_failure(message, name, remedy, error)
        return sent > 0

    def _notifiers(self, message: Message) -> Iterator[tuple[str, str, Callable[[], Any]]]:
        """Yield the name of each channel, what to do if it fails, and a function that makes its notifier."""
        if self.topic_arn:
            allow = "allow Airflow's role sns:Publish on it"
            yield f"to {self.topic_arn}", allow, lambda: _topic_notifier(self.topic_arn, self.region, message)
        if self.webhook_url:
            check = "check ORCHARD_ALERT_WEBHOOK_URL"
            yield "to the webhook", check, lambda: WebhookNotifier(self.webhook_url, message.as_json())
        if self.email:
            check = (
                "check Airflow's connection smtp_default, which needs the sender in its extra field from_email, and "
                "that apache-airflow-providers-smtp is installed"
            )
            yield f"by e-mail to {', '.join(self.email)}", check, lambda: _email_notifier(self.email, message)


def _log_failure(message: Message, channel: str, remedy: str, error: Exception) -> None:
    why = " ".join(f"{type(error).__name__}: {error}".split())
    log.error("the message about run %s could not be sent %s: %s: %s", message.run_id, channel, why, remedy)


# The providers are imported here, because each parse of the DAG imports this module.
def _topic_notifier(topic_arn: str, region: str, message: Message) -> Any:
    from airflow.providers.amazon.aws.hooks.sns import SnsHook
    from airflow.providers.amazon.aws.notifications.sns import SnsNotifier

    notifier: Any = SnsNotifier(target_arn=topic_arn, message=message.text, subject=message.subject, region_name=region)
    # The notifier's own hook would wait for minutes.
    notifier.hook = SnsHook(region_name=region, config=IMPATIENT)  # type: ignore[no-untyped-call]
    return notifier


def _email_notifier(to: tuple[str, ...], message: Message) -> Any:
    from airflow.providers.smtp.notifications.smtp import SmtpNotifier

    content = f"<p>{html.escape(message.text)}</p>"
    return SmtpNotifier(to=list(to), subject=message.subject, html_content=content)
