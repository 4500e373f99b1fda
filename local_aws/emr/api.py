"""The JSON 1.1 protocol of EMR: check a request, call its operation, and return the response or error."""

import json
import logging
from collections import defaultdict
from datetime import UTC, datetime
from typing import Any

import botocore.session
from werkzeug.wrappers import Request, Response

from local_aws.emr.checks import check_parameters
from local_aws.emr.errors import EmrError, UnknownOperation, ValidationFailed
from local_aws.emr.model import Wire
from local_aws.emr.operations import (  # noqa: F401  # importing them registers their operations
    app_uis,
    clusters,
    handlers,
    instances,
    policies,
    releases,
    security,
    steps,
)
from local_aws.emr.service import Emr
from local_aws.emr.throttling import Throttle
from local_aws.signature import region_of

log = logging.getLogger(__name__)

TARGET_PREFIX = "ElasticMapReduce."


class EmrApi:
    """Responds to HTTP requests for EMR."""

    def __init__(self, emr: Emr, *, throttles: bool = False) -> None:
        """Respond for an EMR. If it `throttles`, requests above EMR's default rates are rejected."""
        self._emr = emr
        self._throttles: defaultdict[str, Throttle] | None = defaultdict(Throttle) if throttles else None
        self._model = botocore.session.get_session().get_service_model("emr")

    def respond(self, request: Request) -> Response:
        """Return the response to an HTTP request."""
        name = request.headers["X-Amz-Target"].removeprefix(TARGET_PREFIX)
        region = region_of(request.environ)
        try:
            if self._throttles is not None:
                self._throttles[region].check(name)
            body = self._call(name, request.get_data(), region)
            status = 200
        except EmrError as error:
            body, status = {"__type": error.code, "message": str(error)}, error.status
        except Exception:
            log.exception("%s failed", name)
            body, status = {"__type": "InternalServerException", "message": f"{name} failed; see the log"}, 500
        log.debug("%s %s %d", region, name, status)
        content = json.dumps(body, default=_timestamp)
        return Response(content, status=status, content_type="application/x-amz-json-1.1")

    def _call(self, name: str, body: bytes, region: str) -> Wire:
        if name not in handlers:
            raise UnknownOperation(name)
        try:
            parameters = json.loads(body or b"{}")
        except ValueError as error:
            raise ValidationFailed(f"The request body is not JSON: {error}") from error
        check_parameters(self._model.operation_model(name), parameters)
        return handlers[name](self._emr, parameters, region)


def _timestamp(value: Any) -> float:
    if isinstance(value, datetime):
        return value.astimezone(UTC).timestamp()
    raise TypeError(f"cannot encode {value!r} as JSON")
