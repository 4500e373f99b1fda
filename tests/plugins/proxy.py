"""A proxy before the local AWS, for tests: it counts requests, and drops or delays them on demand."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config

from tests.servers import serving

UPDATE_TABLE = "AWSGlue.UpdateTable"
CHANGES_OF_GLUE = (UPDATE_TABLE, "AWSGlue.CreateTable", "AWSGlue.CreateDatabase")
Answer = tuple[int, list[tuple[str, str]], bytes]


def changes_something(method: str, path: str, target: str) -> bool:
    """Return whether a request changes what others see. The parts of a multipart upload are invisible."""
    if target:
        return target in CHANGES_OF_GLUE
    return method in ("PUT", "DELETE", "POST") and "partNumber=" not in path and not path.endswith("?uploads")


class Proxy:
    """Forwards every request, and counts the updates of tables that Glue refuses as outdated."""

    def __init__(self, upstream: str) -> None:
        self._upstream = urlsplit(upstream).netloc
        self._lock = threading.Lock()
        self.changes = 0
        self.refused_updates = 0
        self._shut_at: int | None = None
        self._lost_update: str | None = None
        self._meeting: threading.Barrier | None = None
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            wbufsize = -1  # head and body in one packet: otherwise each answer waits 40 ms for an acknowledgement

            def log_message(self, *_: Any) -> None:
                pass

            def _handle(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                body = self._chunks() if headers.pop("transfer-encoding", "") else self._whole(headers)
                headers.pop("expect", None)
                answer = proxy.answer(self.command, self.path, headers, body)
                if answer is None:
                    self.close_connection = True
                    return
                status, answered, content = answer
                self.send_response_only(status)
                for name, value in answered:
                    if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                        self.send_header(name, value)
                length = dict(answered).get("Content-Length") if self.command == "HEAD" else None
                self.send_header("Content-Length", length or str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def handle_expect_100(self) -> bool:
                super().handle_expect_100()
                self.wfile.flush()
                return True

            def _whole(self, headers: dict[str, str]) -> bytes:
                return self.rfile.read(int(headers.get("content-length", 0)))

            def _chunks(self) -> bytes:
                body = b""
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return body

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle  # noqa: N815  # the library's names

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @contextmanager
    def open(self) -> Iterator["Proxy"]:
        with serving(self._server):
            yield self

    def shut_at(self, change: int) -> None:
        """Refuse the n-th request that changes something, and every request after it."""
        with self._lock:
            self.changes = 0
            self._shut_at = change

    def reopen(self) -> None:
        """Refuse no more requests."""
        with self._lock:
            self._shut_at = None

    def lose_answer_to_update_of(self, table: str) -> None:
        """Forward the next update of a table, but close the connection instead of answering."""
        self._lost_update = table

    def let_updates_meet(self, parties: int) -> None:
        """Hold the first updates of tables until `parties` have arrived, each planned without the others."""
        self._meeting = threading.Barrier(parties)

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer | None:
        """Return the answer to a request, or None to close the connection."""
        target = headers.get("x-amz-target", "")
        with self._lock:
            self.changes += changes_something(method, path, target)
            shut = self._shut_at is not None and self.changes >= self._shut_at
        if shut:  # a refusal, which no client retries: to the server it looks as if the client had died
            return 403, [], b""
        if target != UPDATE_TABLE:
            return self._forward(method, path, headers, body)
        answer = self._update_table(path, headers, body)
        if json.loads(body)["TableInput"]["Name"] == self._lost_update:
            self._lost_update = None
            return None
        return answer

    def _update_table(self, path: str, headers: dict[str, str], body: bytes) -> Answer:
        if self._meeting is not None:
            meeting = self._meeting
            meeting.wait(timeout=30)
            self._meeting = None
        answer = self._forward("POST", path, headers, body)
        if b"ConcurrentModificationException" in answer[2]:
            with self._lock:
                self.refused_updates += 1
        return answer

    def _forward(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        connection = HTTPConnection(self._upstream)
        try:
            connection.request(method, path, body, {**headers, "content-length": str(len(body))})
            response = connection.getresponse()
            return response.status, response.getheaders(), response.read()
        finally:
            connection.close()


def impatient(service: str, url: str) -> Any:
    """Return a client that does not retry: a process that died would not retry either."""
    config = Config(retries={"total_max_attempts": 1})
    return boto3.client(service, endpoint_url=url, config=config)  # type: ignore[call-overload]
