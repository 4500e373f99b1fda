"""How tasks that call AWS are retried."""

from datetime import timedelta
from typing import Any

from airflow.sdk import ExceptionRetryPolicy, RetryAction, RetryRule

from orchard.errors import PermanentError
from orchard.settings import Settings


def retry_args(settings: Settings) -> dict[str, Any]:
    """Return the default arguments of tasks: retry transient errors for at least 15 minutes, permanent errors never."""
    return {
        "retries": 6,
        "retry_delay": timedelta(seconds=settings.poll_seconds),
        "retry_exponential_backoff": 2,
        "max_retry_delay": timedelta(minutes=5),
        # A retry of a PermanentError would fail again.
        "retry_policy": ExceptionRetryPolicy([RetryRule(PermanentError, RetryAction.FAIL)]),
    }
