"""Where and what a request is signed for: its Authorization header tells."""

import re
from wsgiref.types import WSGIEnvironment

DEFAULT_REGION = "us-east-1"
_SCOPE = re.compile(r"Credential=[^/]+/\d+/(?P<region>[^/]+)/(?P<service>[^/]+)/")


def region_of(environ: WSGIEnvironment) -> str:
    """The region of a request.

    >>> region_of({"HTTP_AUTHORIZATION": "AWS4-HMAC-SHA256 Credential=key/20260101/eu-west-1/s3/aws4_request, ..."})
    'eu-west-1'
    """
    scope = _SCOPE.search(environ.get("HTTP_AUTHORIZATION", ""))
    return scope["region"] if scope else DEFAULT_REGION


def service_of(environ: WSGIEnvironment) -> str | None:
    """The service of a request, in the words of its signature; None if it has none.

    >>> service_of({"HTTP_AUTHORIZATION": "AWS4-HMAC-SHA256 Credential=key/20260101/eu-west-1/s3/aws4_request, ..."})
    's3'
    """
    scope = _SCOPE.search(environ.get("HTTP_AUTHORIZATION", ""))
    return scope["service"] if scope else None
