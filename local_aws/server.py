"""The HTTP server for all services.

Requests for EMR go to `local_aws.emr`, for CloudFormation to `local_aws.cloudformation`, and all others to moto.
"""

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
from local_aws.admin import Admin, is_admin_path
from local_aws.bucket_policies import requests_are_encrypted
from local_aws.calls import CallLog
from local_aws.cloudformation import api as cloudformation
from local_aws.ec2 import keep_default_network_ids
from local_aws.emr.api import TARGET_PREFIX, EmrApi
from local_aws.emr.life import Timings
from local_aws.emr.master import DEFAULT_MASTER, Master
from local_aws.emr.runner import Runner
from local_aws.emr.service import Emr
from local_aws.faults.clusters import arm_cluster_faults
from local_aws.faults.http import apply_faults
from local_aws.faults.rules import Faults
from local_aws.iam import name_linked_roles
from local_aws.moto_state import MotoState
from local_aws.plain_folder import linked, plain_path
from local_aws.signature import service_of
from local_aws.state import StateFolder

log = logging.getLogger(__name__)

HOST = "127.0.0.1"


class QuietRequestHandler(MotoRequestHandler):  # type: ignore[misc]  # moto is untyped
    """moto's handler without its log line per request."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Log nothing."""


def is_from_web_page(environ: WSGIEnvironment) -> bool:
    """Return whether a web page of another origin sent the request; such pages must not run steps on this machine.

    The request then has an `Origin` header or, after DNS rebinding, the name of the page's host in `Host`.

    >>> is_from_web_page({"HTTP_HOST": "127.0.0.1:5000"}), is_from_web_page({"HTTP_HOST": "evil.example"})
    (False, True)
    """
    name = environ.get("HTTP_HOST", HOST).partition(":")[0]
    return "HTTP_ORIGIN" in environ or not (name in (HOST, "localhost") or name.endswith(".localhost"))


def operation(environ: WSGIEnvironment) -> str:
    """Return the operation of a request for the log: from its header, or else the method and path.

    >>> operation({"HTTP_X_AMZ_TARGET": "ElasticMapReduce.RunJobFlow"})
    'ElasticMapReduce.RunJobFlow'
    >>> operation({"REQUEST_METHOD": "PUT", "PATH_INFO": "/bucket/key"})
    'PUT /bucket/key'
    """
    target: str = environ.get("HTTP_X_AMZ_TARGET", "")
    return target or f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"


class Dispatcher(DomainDispatcherApplication):  # type: ignore[misc]  # moto is untyped
    """moto's dispatcher with EMR, faults, the admin API and the page in front, and a cache for its service lookup."""

    def __init__(
        self, emr: Emr, data: Path, faults: Faults, state: StateFolder, endpoint_url: str, *, throttles: bool
    ) -> None:
        super().__init__(create_backend_app)
        self._emr = emr
        self._api = EmrApi(emr, throttles=throttles)
        self._data = data
        self._faults = faults
        self._admin = Admin(faults, emr)
        self.calls: CallLog | None = None
        self.moto = MotoState(state, super().__call__)
        self.cloudformation = cloudformation.CloudFormationApi(endpoint_url, state)
        # Without the cache, moto tries 400 regular expressions per request, which is 1.3 to 1.7 times slower.
        self.get_backend_for_host = lru_cache(super().get_backend_for_host)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        started = time.perf_counter()
        status = "no response"

        def note_status(line: str, *arguments: Any) -> Callable[[bytes], object]:
            nonlocal status
            status = line.partition(" ")[0]
            return start_response(line, *arguments)

        try:
            return self._answer(environ, note_status)
        finally:
            log.info("%s %s %.1f ms", operation(environ), status, 1000 * (time.perf_counter() - started))

    def _answer(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if is_from_web_page(environ):
            rejection = Response("local_aws serves programs on this machine, not web pages\n", status=403)
            return rejection(environ, start_response)
        if page.is_browser_request(environ):
            return page.respond(Request(environ), self._emr, self._data)(environ, start_response)
        if is_admin_path(environ["PATH_INFO"]):
            return self._admin.respond(Request(environ))(environ, start_response)
        if self.calls:
            self.calls.record(environ)
        if self._faults:
            return apply_faults(self._faults, self._answer_service, environ, start_response)
        return self._answer_service(environ, start_response)

    def _answer_service(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ.get("HTTP_X_AMZ_TARGET", "").startswith(TARGET_PREFIX):
            return self._api.respond(Request(environ))(environ, start_response)
        if service_of(environ) == cloudformation.SERVICE:
            return self.cloudformation.respond(Request(environ))(environ, start_response)
        return self.moto.answer(environ, start_response)


class LocalAws:
    """A local AWS server. As a context manager it serves, and on exit kills all processes of its clusters."""

    def __init__(
        self,
        data: Path,
        port: int = 0,
        timings: Timings = Timings(),  # noqa: B008  # it is frozen
        master: str = DEFAULT_MASTER,
        calls: Path | None = None,
    ) -> None:
        """Listen on 127.0.0.1. Port 0 selects a free port; `data` is the folder for cluster nodes and state.

        If `calls` is a file, all calls are recorded in it.

        Raises:
            OSError: the port is in use.
            UnusableFolder: Java cannot use the folder.
            ValueError: the master is not supported.
        """
        name_linked_roles()
        requests_are_encrypted()
        keep_default_network_ids()
        path = plain_path(data)
        self._master = Master(master, path / "standalone")
        # Werkzeug exits the program if the port is in use, so it gets a socket that already listens.
        with socket.create_server((HOST, port)) as listening:
            self.endpoint_url = f"http://{HOST}:{listening.getsockname()[1]}"
            # The application is set below, because its nodes need the endpoint, which includes the port.
            self._server = make_server(
                HOST, port, lambda *_: [], threaded=True, request_handler=QuietRequestHandler, fd=listening.fileno()
            )
        self._state = StateFolder(data.absolute() / "state")
        self._data = data
        self.emr = Emr(Runner(path, self.endpoint_url, self._master), timings, self._state)
        self._faults = Faults()
        self.emr.before_start = partial(arm_cluster_faults, self._faults)
        self._dispatcher = Dispatcher(
            self.emr, data.absolute(), self._faults, self._state, self.endpoint_url, throttles=timings.throttles
        )
        if calls is not None:
            self._dispatcher.calls = CallLog(calls, self.emr)
        self._server.app = self._dispatcher
        self._thread = threading.Thread(target=self._server.serve_forever, name="local-aws", daemon=True)

    def __enter__(self) -> Self:
        """Restore the state in the data folder, resume its clusters, and serve.

        Raises:
            OSError: the data folder is unusable.
            StandaloneDidNotStart: the Spark standalone cluster did not start.
            UnusableState: another server uses the data folder, or its state cannot be read.
        """
        with ExitStack() as stack:
            stack.callback(self._server.server_close)
            stack.enter_context(self._state.locked())
            stack.enter_context(linked(self._data))
            self._master.start()
            stack.callback(self._master.stop)
            self._dispatcher.moto.restore()
            self._dispatcher.cloudformation.stacks.restore()
            self.emr.restore()
            self._thread.start()
            self._exit = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._faults.remove()  # so that no call waits for a fault
        self.emr.shutdown()
        self._server.shutdown()
        self._thread.join()
        self._exit.close()
