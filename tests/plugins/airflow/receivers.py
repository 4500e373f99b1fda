"""Servers on this machine that receive messages as a team does: a webhook, a mail server, a queue behind a topic."""

import base64
import email
import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any

from sandbox import aws
from tests.servers import serving

SECRET = "t0ken-that-nobody-may-see"  # of a server that exists only in tests


@dataclass
class Webhook:
    """A web server that answers each POST with a status, and what it has received."""

    port: int = 0
    status: int = 200
    received: list[dict[str, Any]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hooks/{SECRET}?key={SECRET}"


@contextmanager
def webhook(status: int = 200) -> Iterator[Webhook]:
    found = Webhook(status=status)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found.received.append({"path": self.path, "type": self.headers["Content-Type"], "content": content})
            self.send_response(found.status)
            self.send_header("Location", found.url)
            self.end_headers()

        def do_GET(self) -> None:
            found.received.append({"path": self.path, "type": "GET", "content": None})
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Do not print requests."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.port = server.server_port
    with serving(server):
        yield found


@dataclass
class MailServer:
    """A mail server without TLS, and the messages that it has taken."""

    port: int = 0
    received: list[Message] = field(default_factory=list)

    @property
    def connection(self) -> str:
        """The connection smtp_default of Airflow."""
        extra = {"from_email": "orchard@example.com", "disable_ssl": True, "disable_tls": True, "retry_limit": 0}
        return json.dumps({"conn_type": "smtp", "host": "127.0.0.1", "port": self.port, "extra": extra})


@contextmanager
def mail_server() -> Iterator[MailServer]:
    found = MailServer()

    class Handler(StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 ready\r\n")
            while line := self.rfile.readline():
                command = line.split(maxsplit=1)[0].upper()
                if command == b"DATA":
                    self.wfile.write(b"354 go on\r\n")
                    lines = list(iter(self.rfile.readline, b".\r\n"))
                    found.received.append(email.message_from_bytes(b"".join(lines)))
                self.wfile.write(b"221 bye\r\n" if command == b"QUIT" else b"250 ok\r\n")

    class Server(ThreadingTCPServer):
        daemon_threads = True

    server = Server(("127.0.0.1", 0), Handler)
    found.port = server.server_address[1]
    with serving(server):
        yield found


def text_of(message: Message) -> str:
    """Return the text of a mail with one part."""
    parts: Any = message.get_payload()
    (part,) = parts
    return base64.b64decode(part.get_payload()).decode()


@dataclass(frozen=True)
class Topic:
    """An SNS topic, and the queue that receives its messages."""

    arn: str
    queue: str
    url: str

    @classmethod
    def new(cls, url: str) -> "Topic":
        sns, sqs = aws.client("sns", url), aws.client("sqs", url)
        name = f"alerts-{uuid.uuid4().hex}"
        topic = sns.create_topic(Name=name)["TopicArn"]
        queue = sqs.create_queue(QueueName=name)["QueueUrl"]
        arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)
        return cls(topic, queue, url)

    def received(self) -> list[tuple[str, str]]:
        """Return subject and text of the messages that have come since the last call. moto delivers them at once."""
        sqs = aws.client("sqs", self.url)
        found = []
        while messages := sqs.receive_message(QueueUrl=self.queue, MaxNumberOfMessages=10).get("Messages"):
            for message in messages:
                body = json.loads(message["Body"])
                found.append((body["Subject"], body["Message"]))
                sqs.delete_message(QueueUrl=self.queue, ReceiptHandle=message["ReceiptHandle"])
        return found
