"""An answer of AWS's own making to one operation of a client; all its other calls are real."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from botocore.awsrequest import AWSResponse
from botocore.compat import HTTPHeaders


@contextmanager
def answering(client: Any, operation: str, answer: dict[str, Any], status: int = 200) -> Iterator[None]:
    """Have one operation answered like this. botocore's Stubber wants an answer for every other operation, too."""

    def answer_it(**_: Any) -> tuple[AWSResponse, dict[str, Any]]:
        return AWSResponse("", status, HTTPHeaders(), None), {**answer, "ResponseMetadata": {"HTTPStatusCode": status}}

    event = f"before-call.{client.meta.service_model.service_id.hyphenize()}.{operation}"
    client.meta.events.register_first(event, answer_it)
    try:
        yield
    finally:
        client.meta.events.unregister(event, answer_it)


@contextmanager
def failing(client: Any, operation: str, code: str, status: int = 400) -> Iterator[None]:
    """Have one operation answered with an error."""
    error = {"Code": code, "Message": f"answered with {code}"}
    with answering(client, operation, {"Error": error}, status):
        yield
