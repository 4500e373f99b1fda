"""Read the region and the service of a request from its AWS signature."""

import re
from wsgiref.types import WSGIEnvironment

DEFAULT_REGION = "us-east-1"
_SCOPE = re.compile(r"Credential=[^/]+/\d+/(?P<region>[^/]+)/(?P<service>[^/]+)/")


def region_of(environ: WSGIEnvironment) -> str:
    """Return the region of a request; the default region if it is not signed.

    >>> region_of({"HTTP_AUTHORIZATION": "AWS4-HMAC-SHA256 Credential=key/20260101/eu-west-1/s3/aws4_request, ..."})
    'eu-west-1'
    """
    scope = _SCOPE.search(environ.get("HTTP_AUTHORIZATION", ""))
    return scope["region"] if scope else DEFAULT_REGION


def service_of(environ: WSGIEnvironment) -> str | None:
    """Return the service that the signature of a request names; None if it is not signed.

    >>> service_of({"HTTP_AUTHORIZATION": "AWS4-HMAC-SHA256 Credential=key/20260101/eu-west-1/s3/aws4_request, ..."})
    's3'
    """
    scope = _SCOPE.search(environ.get("HTTP_AUTHORIZATION", ""))
    return scope["service"] if scope else None
