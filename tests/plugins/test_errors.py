from typing import Any

import botocore.session
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, ParamValidationError
from botocore.retries.standard import ThrottledRetryableChecker, TransientRetryableChecker

from orchard.errors import TEMPORARY_REFUSALS, is_final


def refusal(code: str, status: int = 400) -> ClientError:
    response: Any = {"Error": {"Code": code, "Message": ""}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(response, "RunJobFlow")


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("ValidationException", 400),
        ("InvalidRequestException", 400),
        ("InvalidParameterValue", 400),
        ("SerializationException", 400),
        ("NoSuchBucket", 404),
        ("404", 404),
        ("MethodNotAllowed", 405),
        ("PreconditionFailed", 412),
    ],
)
def test_a_refusal_of_the_request_itself_is_final(code: str, status: int) -> None:
    assert is_final(refusal(code, status))


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("ThrottlingException", 400),
        ("SlowDown", 503),
        ("TooManyRequestsException", 429),
        ("RequestTimeout", 400),
        ("InternalServerException", 500),
        ("InternalServerError", 400),
        ("ExpiredTokenException", 400),
        ("RequestExpired", 400),
        ("AccessDeniedException", 400),
        ("AccessDenied", 403),
        ("403", 403),
        ("UnauthorizedOperation", 403),
        ("PermanentRedirect", 301),
    ],
)
def test_a_refusal_that_may_end_by_itself_is_not_final(code: str, status: int) -> None:
    assert not is_final(refusal(code, status))


def test_what_botocore_itself_retries_is_not_final() -> None:
    throttled: Any = ThrottledRetryableChecker
    transient: Any = TransientRetryableChecker
    assert {*throttled._THROTTLED_ERROR_CODES, *transient._TRANSIENT_ERROR_CODES} <= TEMPORARY_REFUSALS


def test_a_request_that_boto3_does_not_send_is_final() -> None:
    emr: Any = botocore.session.get_session().create_client("emr", region_name="eu-west-1")
    with pytest.raises(ParamValidationError) as error:
        emr.run_job_flow(Name="orchard", Instances={"InstanceCount": 2.0})
    assert is_final(error.value)


@pytest.mark.parametrize(
    "error", [EndpointConnectionError(endpoint_url="https://emr"), OSError("no route"), KeyError()]
)
def test_an_error_without_an_answer_is_not_final(error: Exception) -> None:
    assert not is_final(error)
