"""Apply fault rules to HTTP requests."""

import contextlib
import json
import socket
from collections.abc import Iterable
from typing import Final
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from werkzeug.wrappers import Request, Response

from local_aws.emr.api import TARGET_PREFIX
from local_aws.faults.rules import Answer, Fault, Faults, Hang, Latency, LoseAnswer
from local_aws.signature import service_of

# Status and message by error code.
_EMR: Final = {
    "ThrottlingException": (400, "Rate exceeded"),
    "AccessDeniedException": (400, "User is not authorized to perform: elasticmapreduce:{operation}"),
    "InternalServerException": (500, "An internal failure occurred"),
    "ValidationException": (400, "The request is not valid (injected fault)"),
}
_S3: Final = {
    "SlowDown": (503, "Please reduce your request rate."),
    "AccessDenied": (403, "Access Denied"),
    "InternalError": (500, "We encountered an internal error. Please try again."),
}


def call_of(environ: WSGIEnvironment) -> str | None:
    """Return the call of a request as rules name it, or None if no rule can apply to it.

    >>> call_of({"HTTP_X_AMZ_TARGET": "ElasticMapReduce.AddTags"})
    'emr:AddTags'
    >>> call_of({"HTTP_AUTHORIZATION": "AWS4-HMAC-SHA256 Credential=key/20260101/eu-west-1/s3/aws4_request, ..."})
    's3'
    """
    target: str | None = environ.get("HTTP_X_AMZ_TARGET")
    if target is not None:
        return f"emr:{target.removeprefix(TARGET_PREFIX)}" if target.startswith(TARGET_PREFIX) else None
    return "s3" if service_of(environ) == "s3" else None


def apply_faults(
    faults: Faults, app: WSGIApplication, environ: WSGIEnvironment, start_response: StartResponse
) -> Iterable[bytes]:
    """Respond to a request with `app`, after applying the faults that match it.

    Raises:
        ConnectionAbortedError: the connection is closed without a response; the HTTP server expects this error.
    """
    call = call_of(environ)
    latencies: list[tuple[Fault, float]] = []
    for fault in faults.match(call) if call else ():
        match fault.rule.effect:
            case Answer(code):
                # Read the body first: a client that is still sending would see a broken connection.
                Request(environ).get_data()
                return error_response(call or "", code)(environ, start_response)
            case LoseAnswer():
                Response.from_app(app, environ, buffered=True).close()
                _close_connection(environ)
            case Hang(seconds):
                Request(environ).get_data()
                fault.removed.wait(seconds)
                _close_connection(environ)
            case Latency(seconds):
                latencies.append((fault, seconds))
    if not latencies:
        return app(environ, start_response)
    # The call takes effect before the wait. If the client is killed during the wait, it does not know of the change.
    response = Response.from_app(app, environ, buffered=True)
    for fault, seconds in latencies:
        fault.removed.wait(seconds)
    return response(environ, start_response)


def error_response(call: str, code: str) -> Response:
    """Return an error response in the format of EMR or S3."""
    service, _, operation = call.partition(":")
    if service == "emr":
        status, message = _EMR[code]
        body = json.dumps({"__type": code, "message": message.format(operation=operation)})
        return Response(body, status=status, content_type="application/x-amz-json-1.1")
    status, message = _S3[code]
    names = f"<Code>{code}</Code><Message>{message}</Message><RequestId>local</RequestId><HostId>local_aws</HostId>"
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>{names}</Error>'
    return Response(body, status=status, content_type="application/xml")


def _close_connection(environ: WSGIEnvironment) -> None:
    # The error alone is not enough: the server would wait for the next request on this connection.
    connection: socket.socket = environ["werkzeug.socket"]
    with contextlib.suppress(OSError):  # the client may have disconnected
        connection.shutdown(socket.SHUT_RDWR)
    raise ConnectionAbortedError("a fault rule suppresses the response")
