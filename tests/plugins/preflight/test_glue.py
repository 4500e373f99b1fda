import uuid
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from botocore.exceptions import ClientError

from orchard.preflight.glue import missing_database
from sandbox import aws
from tests.plugins.answers import failing
from tests.plugins.preflight.cluster_requests import SETTINGS

if TYPE_CHECKING:
    from mypy_boto3_glue import GlueClient


@pytest.fixture(scope="module")
def glue(aws_url: str) -> "GlueClient":
    client: GlueClient = aws.client("glue", aws_url)
    return client


def test_a_database_that_another_run_creates_at_the_same_time_exists(glue: "GlueClient") -> None:
    settings = replace(SETTINGS, catalog_database=f"orchard_{uuid.uuid4().hex[:8]}")
    with failing(glue, "CreateDatabase", "AlreadyExistsException"):
        assert missing_database(glue, settings) == []


@pytest.mark.parametrize(
    ("operation", "code"),
    [
        ("GetDatabase", "AccessDeniedException"),
        ("GetDatabase", "InternalServiceException"),
        ("CreateDatabase", "ThrottlingException"),
    ],
)
def test_an_error_that_does_not_mean_that_the_database_is_missing_is_raised(
    glue: "GlueClient", operation: str, code: str
) -> None:
    settings = replace(SETTINGS, catalog_database=f"orchard_{uuid.uuid4().hex[:8]}")
    with failing(glue, operation, code), pytest.raises(ClientError, match=code):
        missing_database(glue, settings)
