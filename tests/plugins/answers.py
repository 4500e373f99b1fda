"""Replace the answer of AWS to one operation of a boto3 client. All other calls of the client are sent."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from botocore.awsrequest import AWSResponse
from botocore.compat import HTTPHeaders


@contextmanager
def answering(client: Any, operation: str, answer: dict[str, Any], status: int = 200) -> Iterator[None]:
    """Return this answer to each call of an operation. botocore's Stubber needs an answer for all operations."""

    def respond(**_: Any) -> tuple[AWSResponse, dict[str, Any]]:
        return AWSResponse("", status, HTTPHeaders(), None), {**answer, "ResponseMetadata": {"HTTPStatusCode": status}}

    event = f"before-call.{client.meta.service_model.service_id.hyphenize()}.{operation}"
    client.meta.events.register_first(event, respond)
    try:
        yield
    finally:
        client.meta.events.unregister(event, respond)


@contextmanager
def failing(client: Any, operation: str, code: str, status: int = 400) -> Iterator[None]:
    """Return an error to each call of an operation."""
    error = {"Code": code, "Message": f"the test returns {code}"}
    with answering(client, operation, {"Error": error}, status):
        yield
