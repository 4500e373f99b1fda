"""The API server's connections to AWS: with short timeouts, so that a page never hangs."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from airflow.providers.amazon.aws.hooks.base_aws import AwsBaseHook
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from pyarrow.lib import ArrowException

from orchard.airflow.identity import airflow_identity
from orchard.errors import PermanentError
from orchard.report.unavailable import Unavailable
from orchard.settings import BadSettings, Settings

CONNECT_SECONDS = 2
READ_SECONDS = 5
SHORT = Config(connect_timeout=CONNECT_SECONDS, read_timeout=READ_SECONDS, retries={"total_max_attempts": 1})
DENIED = ("AccessDenied", "AccessDeniedException", "403", "UnauthorizedOperation")


@cache
def settings() -> Settings:
    """Return the settings of the deployment.

    Raises:
        BadSettings: a variable is missing, or its value is invalid.
    """
    return Settings.from_env(os.environ, airflow_identity())


@cache
def client(service: str) -> Any:
    """Return a boto3 client for a service. Threads may share it."""
    return AwsBaseHook(client_type=service, region_name=settings().region, config=SHORT).conn


@cache
def tables() -> Any:
    """Return the catalog of the tables."""
    from orchard.tables.catalog import Limits, open_catalog

    session = AwsBaseHook(client_type="glue", region_name=settings().region).get_session()
    return open_catalog(session, settings(), Limits(CONNECT_SECONDS, READ_SECONDS))


@contextmanager
def reading() -> Iterator[None]:
    """Turn what goes wrong with AWS into Unavailable."""
    try:
        yield
    except BadSettings as error:
        raise Unavailable(
            f"Orchard's settings are incomplete in the API server: {error}",
            "Set the same ORCHARD_ variables for the API server as for the other processes of Airflow.",
        ) from error
    except PermanentError as error:  # of the tables: the message says what to do
        raise Unavailable(str(error), "") from error
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        raise Unavailable(f"AWS refuses a request of the API server: {error}", _grant(code)) from error
    except (BotoCoreError, ArrowException, OSError) as error:
        raise Unavailable(
            f"The API server cannot reach AWS: {type(error).__name__}: {error}"[:500],
            "Give the API server a network route to S3 and Glue, and credentials: see docs/runbook.md.",
        ) from error


def _grant(code: str) -> str:
    if code not in DENIED:
        return "Check the credentials of the API server, and that the bucket and the database exist."
    found = settings()
    return (
        f"Grant the role of the API server s3:GetObject on arn:aws:s3:::{found.bucket}/* and on the objects of the "
        f"datasets, s3:ListBucket on the buckets, and glue:GetDatabase and glue:GetTable on the database "
        f"{found.catalog_database} and its tables."
    )
