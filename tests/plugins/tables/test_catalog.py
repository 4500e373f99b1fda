from typing import Any

import boto3
import pyarrow as pa
import pytest
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.types import NestedField, StringType

from orchard.settings import Settings
from orchard.tables.catalog import (
    TABLES,
    OldLayout,
    WrongWarehouse,
    add_missing_columns,
    find_table,
    open_catalog,
    open_table,
    partition_spec,
)
from orchard.tables.rows import arrow_schema, stream_rows
from orchard_spark import schemas
from tests.plugins.deployed import Deployment, in_order
from tests.plugins.published import append
from tests.plugins.runs import SCHEMAS, Run

SETTINGS = Settings(bucket="fruits-data", release="1")


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("features", schemas.FEATURES),
        ("embeddings", schemas.EMBEDDINGS),
        ("pca_models", schemas.PCA_MODELS),
        ("images", schemas.IMAGE_INFO),
        ("rejects", schemas.REJECTS),
    ],
)
def test_the_columns_are_the_ones_that_the_steps_write(name: str, written: pa.Schema) -> None:
    """In `images` and `rejects`, the publisher adds the dataset and the run."""
    added = ("dataset", "run_id") if name in ("images", "rejects") else ()
    assert pa.schema([column for column in SCHEMAS[name] if column.name not in added]) == written


@pytest.mark.parametrize("name", list(TABLES))
def test_a_table_is_partitioned_by_dataset_if_its_rows_are_of_one(name: str) -> None:
    fields = [(field.name, str(field.transform)) for field in partition_spec(name).fields]
    assert fields == ([] if name == "features" else [("dataset", "identity")])


@pytest.mark.parametrize("name", list(TABLES))
def test_a_table_is_in_the_warehouse_and_maps_the_columns_of_files_by_name(
    catalog: Catalog, settings: Settings, name: str
) -> None:
    assert find_table(catalog, settings, name) is None
    made = open_table(catalog, settings, name)
    table = open_table(open_catalog(boto3.Session(), settings), settings, name)
    assert table.metadata_location == made.metadata_location, "it is created once"
    assert table.location() == f"s3://{settings.bucket}/warehouse/{name}"
    assert table.schema() == TABLES[name]
    assert table.spec() == partition_spec(name)
    assert table.name_mapping() == TABLES[name].name_mapping


def test_looking_for_a_table_does_not_create_it(catalog: Catalog, settings: Settings) -> None:
    assert find_table(catalog, settings, "images") is None
    with pytest.raises(NoSuchTableError):
        catalog.load_table((settings.catalog_database, "images"))
    assert not catalog.namespace_exists(settings.catalog_database)


@pytest.mark.parametrize("name", ["images", "rejects", "features", "embeddings"])
def test_a_table_of_an_earlier_release_is_refused_with_the_command_that_migrates_it(
    catalog: Catalog, settings: Settings, name: str
) -> None:
    old = Schema(*(NestedField(number, column, StringType()) for number, column in enumerate(("path", "run_id"), 1)))
    catalog.create_namespace(settings.catalog_database)
    catalog.create_table((settings.catalog_database, name), old, f"{settings.warehouse_uri}/{name}")
    for look in (find_table, open_table):
        with pytest.raises(
            OldLayout, match=rf"{settings.catalog_database}\.{name} .*python -m orchard\.tables\.migrate"
        ):
            look(catalog, settings, name)


def test_a_table_of_another_deployment_is_refused(catalog: Catalog, settings: Settings) -> None:
    open_table(catalog, settings, "images")
    other = Settings(bucket="other-bucket", release="1", catalog_database=settings.catalog_database)
    for look in (find_table, open_table):
        with pytest.raises(WrongWarehouse, match=rf"{settings.bucket}/warehouse/images, not in s3://other-bucket/ware"):
            look(catalog, other, "images")


def test_all_columns_of_files_without_field_ids_are_read_also_inside_lists_and_maps(
    deployed: Deployment, first: Run
) -> None:
    deployed.publish(first)
    for name in ("features", "embeddings", "pca_models"):
        table = deployed.table(name)
        assert in_order(table.scan().to_arrow()) == in_order(first.rows(name))
        assert in_order(pa.Table.from_batches(stream_rows(table))) == in_order(first.rows(name))
    (run,) = deployed.rows("runs")
    assert dict(run["rejects"]) == {"undecodable": 1}
    assert dict(run["step_seconds"]) == dict.fromkeys(("plan", "ingest", "features", "pca"), 2.5)


@pytest.mark.parametrize("name", list(TABLES))
def test_a_table_is_read_with_the_types_that_the_steps_write(name: str) -> None:
    """Not with 64-bit offsets, which pyiceberg uses."""
    kinds = {str(field.type) for field in arrow_schema(TABLES[name])}
    assert not any("large_" in kind for kind in kinds)
    assert arrow_schema(TABLES[name]) == SCHEMAS[name]


def test_a_file_of_other_columns_that_a_user_has_renamed_is_still_read(deployed: Deployment, first: Run) -> None:
    deployed.publish(first)
    deployed.table("images").update_schema().rename_column("label", "class").commit()
    table = deployed.table("images")
    rows = pa.Table.from_batches(stream_rows(table, columns=["path", "class"]))
    assert set(rows["class"].to_pylist()) == {"Kiwi"}


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


def without(table: Table, *columns: str) -> None:
    """Remove columns from a table, as if an earlier release had created it."""
    with table.update_schema(allow_incompatible_changes=True) as update:
        for column in columns:
            update.delete_column(column)
    with table.transaction() as transaction:
        transaction.remove_properties(*(f"write.metadata.metrics.column.labels.{part}" for part in ("key", "value")))


def test_a_table_of_an_earlier_release_gets_the_columns_and_properties_that_it_lacks(
    deployed: Deployment, first: Run, caplog: pytest.LogCaptureFixture
) -> None:
    new = open_table(deployed.catalog, deployed.settings, "runs")
    properties = dict(new.properties)
    without(new, "labels", "cost_usd")
    deployed.publish(first)
    table = deployed.table("runs")
    assert set(table.schema().column_names) == set(TABLES["runs"].column_names)
    names = {name: value for name, value in properties.items() if "metrics.column" in name}
    assert {name: table.properties.get(name) for name in names} == names
    assert "statistics missing" not in caplog.text
    assert dict(deployed.rows("runs")[0]["labels"]) == {"Kiwi": 5}


def test_two_publishers_may_add_the_same_columns_at_the_same_time(deployed: Deployment) -> None:
    without(open_table(deployed.catalog, deployed.settings, "runs"), "labels")
    stale = deployed.table("runs")
    added = open_table(deployed.catalog, deployed.settings, "runs")
    table = add_missing_columns(stale, "runs")
    assert table.metadata_location == added.metadata_location


def test_rows_of_other_programs_without_a_time_are_no_published_runs(deployed: Deployment, first: Run) -> None:
    deployed.publish(first)
    append(deployed.catalog, deployed.settings, "runs", [{"run_id": "odd", "dataset": "s3://odd/images/"}])
    assert [run.run_id for run in deployed.runs()] == [first.name]
