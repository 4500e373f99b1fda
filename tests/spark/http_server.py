"""An HTTP server in the place of S3, for answers that moto does not give."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeAlias

from tests.servers import serving

Answer: TypeAlias = tuple[int, Mapping[str, str], bytes]


@contextmanager
def s3_that_answers(respond: Callable[[str, Mapping[str, str]], Answer]) -> Iterator[str]:
    """Serve GET requests, and yield the URL.

    `respond` gets the path and the headers of a request, and returns the status, the headers and the body of the
    answer.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = respond(self.path, dict(self.headers))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    with serving(server):
        yield f"http://127.0.0.1:{server.server_port}"
