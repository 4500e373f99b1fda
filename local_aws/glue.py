"""What moto's Glue forgets: an update of a table for a version that is no longer the present one is refused.

https://docs.aws.amazon.com/glue/latest/webapi/API_UpdateTable.html; Iceberg's optimistic commits stand on it.
"""

import json
from wsgiref.types import WSGIEnvironment

from moto.core import DEFAULT_ACCOUNT_ID
from moto.glue.models import glue_backends
from werkzeug.wrappers import Response

from local_aws.signature import region_of

UPDATE_TABLE = "AWSGlue.UpdateTable"


def refusal(environ: WSGIEnvironment, body: bytes) -> Response | None:
    """The answer to an UpdateTable that comes too late; None to any other request."""
    if environ.get("HTTP_X_AMZ_TARGET") != UPDATE_TABLE:
        return None
    asked = json.loads(body)
    backend = glue_backends[DEFAULT_ACCOUNT_ID][region_of(environ)]
    database = backend.databases.get(asked.get("DatabaseName"))
    table = database.tables.get(asked.get("TableInput", {}).get("Name")) if database else None
    if "VersionId" not in asked or table is None:
        return None
    present = str(table.as_dict()["VersionId"])
    if asked["VersionId"] == present:
        return None
    message = f"Update table failed due to concurrent modifications: version {asked['VersionId']} is now {present}."
    fault = {"__type": "ConcurrentModificationException", "Message": message}
    return Response(json.dumps(fault), status=400, content_type="application/x-amz-json-1.1")
