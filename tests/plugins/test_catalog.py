from typing import Any

import boto3
import pytest
from pyiceberg.io.pyarrow import schema_to_pyarrow
from pyiceberg.table import Table

from orchard.catalog import TABLES, open_catalog, open_table
from orchard.settings import Settings
from tests.plugins.runs import SCHEMAS

SETTINGS = Settings(bucket="fruits-data", release="1")


@pytest.mark.parametrize("name", list(TABLES))
def test_the_columns_are_those_that_the_steps_write(name: str) -> None:
    columns = schema_to_pyarrow(TABLES[name], include_field_ids=False)
    # PyArrow calls a list's members item in memory, and element in a Parquet file.
    written = [(field.name, str(field.type).replace("item:", "element:")) for field in SCHEMAS[name]]
    assert [(field.name, str(field.type).replace("large_", "")) for field in columns] == written


def test_embeddings_are_committed_last_as_they_make_a_run_visible() -> None:
    assert list(TABLES)[-1] == "embeddings"


@pytest.mark.parametrize("name", list(TABLES))
def test_a_table_lies_in_the_warehouse_and_finds_the_columns_of_files_by_their_names(
    aws_url: str, bucket: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws_url)
    settings = Settings(bucket=bucket, release="1", catalog_database=bucket.replace("-", "_"))
    made = open_table(open_catalog(boto3.Session(), settings), settings, name)
    table: Table = open_table(open_catalog(boto3.Session(), settings), settings, name)
    assert table.metadata_location == made.metadata_location, "made once"
    assert table.location() == f"s3://{bucket}/warehouse/{name}"
    assert table.schema() == TABLES[name]
    assert table.name_mapping() == TABLES[name].name_mapping


def test_on_aws_pyarrow_finds_s3_by_itself_with_the_sessions_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    session = boto3.Session(aws_access_key_id="id", aws_secret_access_key="secret", aws_session_token="token")
    assert open_catalog(session, SETTINGS).properties == {
        "client.region": "eu-west-1",
        "client.access-key-id": "id",
        "client.secret-access-key": "secret",
        "client.session-token": "token",
    }


def test_a_call_of_glue_is_sent_once_as_a_repeated_update_would_look_like_anothers() -> None:
    config: Any = open_catalog(boto3.Session(), SETTINGS).glue.meta.config
    assert config.retries == {"total_max_attempts": 1, "mode": "legacy"}
