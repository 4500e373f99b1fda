"""One HTTP server for all services: requests for EMR go to our EMR, all others to moto."""

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import lru_cache, partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from wsgiref.types import StartResponse, WSGIEnvironment

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server
from werkzeug.wrappers import Request, Response

from local_aws import page
from local_aws.admin import Admin, is_for_admin
from local_aws.emr.api import TARGET_PREFIX, EmrApi
from local_aws.emr.harm import doom
from local_aws.emr.life import Timings
from local_aws.emr.master import DEFAULT_MASTER, Master
from local_aws.emr.runner import Runner
from local_aws.emr.service import Emr
from local_aws.faults import Faults
from local_aws.faulty import answer_with_faults
from local_aws.moto_state import MotoState
from local_aws.state import StateFolder

log = logging.getLogger(__name__)

HOST = "127.0.0.1"


class QuietRequestHandler(MotoRequestHandler):  # type: ignore[misc]  # moto is untyped
    """moto's handler without a line in the log for each request."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Log nothing."""


def comes_from_a_web_page(environ: WSGIEnvironment) -> bool:
    """Whether a browser sent the request for a page from elsewhere, which could then run steps on this machine.

    A page of another origin says so in `Origin`; one whose name was made to point here has that name in `Host`.

    >>> comes_from_a_web_page({"HTTP_HOST": "127.0.0.1:5000"}), comes_from_a_web_page({"HTTP_HOST": "evil.example"})
    (False, True)
    """
    name = environ.get("HTTP_HOST", HOST).partition(":")[0]
    return "HTTP_ORIGIN" in environ or not (name in (HOST, "localhost") or name.endswith(".localhost"))


def operation(environ: WSGIEnvironment) -> str:
    """What a request asks for: the operation where its header names one, else method and path.

    >>> operation({"HTTP_X_AMZ_TARGET": "ElasticMapReduce.RunJobFlow"})
    'ElasticMapReduce.RunJobFlow'
    >>> operation({"REQUEST_METHOD": "PUT", "PATH_INFO": "/bucket/key"})
    'PUT /bucket/key'
    """
    target: str = environ.get("HTTP_X_AMZ_TARGET", "")
    return target or f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"


class Dispatcher(DomainDispatcherApplication):  # type: ignore[misc]  # moto is untyped
    """moto's dispatcher, with our EMR before it and its slow search for a service cached."""

    def __init__(self, emr: Emr, data: Path, faults: Faults, state: StateFolder) -> None:
        super().__init__(create_backend_app)
        self._emr = emr
        self._api = EmrApi(emr)
        self._data = data
        self._faults = faults
        self._admin = Admin(faults, emr)
        self.moto = MotoState(state, super().__call__)
        # 400 regular expressions a request otherwise: 1.3 to 1.7 times slower.
        self.get_backend_for_host = lru_cache(super().get_backend_for_host)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        began = time.perf_counter()
        status = "no answer"

        def note_status(line: str, *arguments: Any) -> Callable[[bytes], object]:
            nonlocal status
            status = line.partition(" ")[0]
            return start_response(line, *arguments)

        try:
            return self._answer(environ, note_status)
        finally:
            log.info("%s %s %.1f ms", operation(environ), status, 1000 * (time.perf_counter() - began))

    def _answer(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if comes_from_a_web_page(environ):
            refusal = Response("local_aws answers programs on this machine, no web pages\n", status=403)
            return refusal(environ, start_response)
        if page.is_for_a_person(environ):
            return page.respond(Request(environ), self._emr, self._data)(environ, start_response)
        if is_for_admin(environ["PATH_INFO"]):
            return self._admin.respond(Request(environ))(environ, start_response)
        if self._faults:
            return answer_with_faults(self._faults, self._answer_truly, environ, start_response)
        return self._answer_truly(environ, start_response)

    def _answer_truly(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ.get("HTTP_X_AMZ_TARGET", "").startswith(TARGET_PREFIX):
            return self._api.respond(Request(environ))(environ, start_response)
        return self.moto.answer(environ, start_response)


class LocalAws:
    """The running server; a context manager that ends every process of its clusters when it is left."""

    def __init__(
        self,
        data: Path,
        port: int = 0,
        timings: Timings = Timings(),  # noqa: B008  # it is frozen
        master: str = DEFAULT_MASTER,
    ) -> None:
        """Listen on 127.0.0.1.

        Raises:
            OSError: the port is taken.
            ValueError: there is no such master.
        """
        self._master = Master(master, data.absolute() / "standalone")
        # Werkzeug would end the whole program if the port is taken, so it gets a copy of a socket that listens.
        with socket.create_server((HOST, port)) as listening:
            self.endpoint_url = f"http://{HOST}:{listening.getsockname()[1]}"
            # The application comes when the port is known, as nodes must know their endpoint.
            self._server = make_server(
                HOST, port, lambda *_: [], threaded=True, request_handler=QuietRequestHandler, fd=listening.fileno()
            )
        self._state = StateFolder(data.absolute() / "state")
        self.emr = Emr(Runner(data.absolute(), self.endpoint_url, self._master), timings, self._state)
        self._faults = Faults()
        self.emr.before_start = partial(doom, self._faults)
        self._dispatcher = Dispatcher(self.emr, data.absolute(), self._faults, self._state)
        self._server.app = self._dispatcher
        self._thread = threading.Thread(target=self._server.serve_forever, name="local-aws", daemon=True)

    def __enter__(self) -> Self:
        """Take over what an earlier server has left in the data folder, and serve.

        Raises:
            StandaloneDidNotStart: the Spark cluster that was asked for did not come up.
            UnusableState: another server uses the data folder, or what it holds cannot be read.
        """
        with ExitStack() as stack:
            stack.callback(self._server.server_close)
            stack.enter_context(self._state.taken())
            self._master.start()
            stack.callback(self._master.stop)
            self._dispatcher.moto.restore()
            self.emr.restore()
            self._thread.start()
            self._exit = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._faults.remove()  # and let go of what they hold
        self.emr.shutdown()
        self._server.shutdown()
        self._thread.join()
        self._exit.close()
