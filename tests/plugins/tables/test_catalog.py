from typing import Any

import boto3
import pytest
from pyiceberg.io.pyarrow import schema_to_pyarrow
from pyiceberg.table import Table

from orchard.settings import Settings
from orchard.tables.catalog import TABLES, open_catalog, open_table
from tests.plugins.runs import SCHEMAS

SETTINGS = Settings(bucket="fruits-data", release="1")


@pytest.mark.parametrize("name", list(TABLES))
def test_the_columns_are_the_ones_that_the_steps_write(name: str) -> None:
    columns = schema_to_pyarrow(TABLES[name], include_field_ids=False)
    # PyArrow calls the elements of a list "item" in memory and "element" in a Parquet file.
    written = [(field.name, str(field.type).replace("item:", "element:")) for field in SCHEMAS[name]]
    assert [(field.name, str(field.type).replace("large_", "")) for field in columns] == written


def test_embeddings_are_committed_last_because_they_publish_a_run() -> None:
    assert list(TABLES)[-1] == "embeddings"


@pytest.mark.parametrize("name", list(TABLES))
def test_a_table_is_in_the_warehouse_and_maps_the_columns_of_files_by_name(
    aws_url: str, bucket: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws_url)
    settings = Settings(bucket=bucket, release="1", catalog_database=bucket.replace("-", "_"))
    made = open_table(open_catalog(boto3.Session(), settings), settings, name)
    table: Table = open_table(open_catalog(boto3.Session(), settings), settings, name)
    assert table.metadata_location == made.metadata_location, "it is created once"
    assert table.location() == f"s3://{bucket}/warehouse/{name}"
    assert table.schema() == TABLES[name]
    assert table.name_mapping() == TABLES[name].name_mapping


def test_on_aws_pyarrow_uses_its_own_s3_endpoint_and_the_sessions_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    session = boto3.Session(aws_access_key_id="id", aws_secret_access_key="secret", aws_session_token="token")
    assert open_catalog(session, SETTINGS).properties == {
        "client.region": "eu-west-1",
        "client.access-key-id": "id",
        "client.secret-access-key": "secret",
        "client.session-token": "token",
    }


def test_a_call_to_glue_is_sent_once_because_a_retried_update_looks_like_a_conflict() -> None:
    config: Any = open_catalog(boto3.Session(), SETTINGS).glue.meta.config
    assert config.retries == {"total_max_attempts": 1, "mode": "legacy"}
