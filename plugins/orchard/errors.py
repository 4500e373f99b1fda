"""The error that stops Airflow's retries, and which refusals of AWS a retry cannot fix."""

from botocore.exceptions import ClientError, ParamValidationError

# These codes are temporary: AWS is busy, or credentials or permissions have just changed.
TEMPORARY_REFUSALS = frozenset(
    {
        *("Throttling", "ThrottlingException", "ThrottledException", "RequestThrottled", "RequestThrottledException"),
        *("TooManyRequestsException", "RequestLimitExceeded", "BandwidthLimitExceeded", "LimitExceededException"),
        *("ProvisionedThroughputExceededException", "TransactionInProgressException", "PriorRequestNotComplete"),
        *("EC2ThrottledException", "SlowDown", "RequestTimeout", "RequestTimeoutException", "ServiceUnavailable"),
        *("InternalError", "InternalFailure", "InternalServerError", "InternalServerException"),
        *("AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "AuthFailure", "NotAuthorized"),
        *("ExpiredToken", "ExpiredTokenException", "RequestExpired", "RequestTimeTooSkewed", "TokenRefreshRequired"),
        *("InvalidClientTokenId", "UnrecognizedClientException", "InvalidSignatureException"),
    }
)
# Forbidden, timed out, too early, too many requests. S3 answers a HEAD request with the number only.
TEMPORARY_STATUSES = (403, 408, 425, 429)


class PermanentError(Exception):
    """Base class of errors that a retry cannot fix. The message describes what to change."""


def is_final(error: Exception) -> bool:
    """Return whether a retry of a request would fail again, because AWS or boto3 refuses the request itself.

    A denied request is not final: a new permission takes minutes to reach every service.

    >>> is_final(ClientError({"Error": {"Code": "ThrottlingException"}}, "RunJobFlow"))
    False
    """
    if isinstance(error, ParamValidationError):
        return True
    if not isinstance(error, ClientError) or error.response["Error"]["Code"] in TEMPORARY_REFUSALS:
        return False
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return 400 <= status < 500 and status not in TEMPORARY_STATUSES
