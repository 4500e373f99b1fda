"""Reject a Glue UpdateTable whose VersionId is outdated, which moto accepts.

The optimistic commits of Iceberg depend on it: https://docs.aws.amazon.com/glue/latest/webapi/API_UpdateTable.html
"""

import json
from wsgiref.types import WSGIEnvironment

from moto.core import DEFAULT_ACCOUNT_ID
from moto.glue.models import glue_backends
from werkzeug.wrappers import Response

from local_aws.signature import region_of

UPDATE_TABLE = "AWSGlue.UpdateTable"


def reject_outdated_update(environ: WSGIEnvironment, body: bytes) -> Response | None:
    """Return the error response to an UpdateTable with an outdated VersionId; None for any other request."""
    if environ.get("HTTP_X_AMZ_TARGET") != UPDATE_TABLE:
        return None
    request = json.loads(body)
    backend = glue_backends[DEFAULT_ACCOUNT_ID][region_of(environ)]
    database = backend.databases.get(request.get("DatabaseName"))
    table = database.tables.get(request.get("TableInput", {}).get("Name")) if database else None
    if "VersionId" not in request or table is None:
        return None
    current = str(table.as_dict()["VersionId"])
    if request["VersionId"] == current:
        return None
    message = f"Update table failed due to concurrent modifications: version {request['VersionId']} is now {current}."
    error = {"__type": "ConcurrentModificationException", "Message": message}
    return Response(json.dumps(error), status=400, content_type="application/x-amz-json-1.1")
