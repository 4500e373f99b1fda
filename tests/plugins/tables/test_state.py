from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import boto3
import pyarrow as pa
import pytest
from pyiceberg.catalog import Catalog

from orchard.tables import state
from orchard.tables.rows import stream_rows
from orchard.tables.state import MixedRuns, PublishedState, dataset_rows, feature_files, pca_basis, published_state
from tests.plugins.deployed import Deployment, first_of, in_order, new_deployment, other_of, second_of, settings_of
from tests.plugins.runs import MODEL, Run

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def test_without_tables_there_is_no_state_and_none_is_created(catalog: Catalog) -> None:
    settings = settings_of("no-tables")
    assert published_state(catalog, settings, "s3://b/images/") is None
    assert list(dataset_rows(catalog, settings, "images", "s3://b/images/", ["path"])) == []
    assert feature_files(catalog, settings) == []
    assert pca_basis(catalog, settings, "s3://b/images/", "pca-2-ab") is None
    assert not catalog.namespace_exists(settings.catalog_database)


@pytest.fixture(scope="module")
def origin(s3: "S3Client", session: boto3.Session, aws_url: str) -> Deployment:
    """A deployment with two runs of one dataset, and one of another. No test changes its tables."""
    deployed = new_deployment(s3, session, aws_url)
    first = first_of(deployed.settings.bucket)
    for run in (first, second_of(first), other_of(first.bucket)):
        deployed.publish(run)
    return deployed


@pytest.fixture
def third(second: Run) -> Run:
    """A run of the first dataset that is not published."""
    return replace(second, name="20261125T020000-dddddd", base=second)


def state_of(deployed: Deployment, run: Run) -> PublishedState:
    state = published_state(deployed.catalog, deployed.settings, run.dataset_uri)
    assert state is not None
    return state


def test_the_state_of_a_dataset_is_the_run_of_its_images_and_how_it_was_made(origin: Deployment, second: Run) -> None:
    assert state_of(origin, second) == PublishedState(
        second.name, True, MODEL, "pillow-13", second.pca_model, "refit", 0.95, 2**26, 50_000_000, images=7
    )
    for other in (second.dataset_uri.removesuffix("/"), f"{second.dataset_uri}Kiwi/", f"s3://{second.bucket}/"):
        assert published_state(origin.catalog, origin.settings, other) is None


def test_the_state_of_a_run_whose_publication_stopped_after_the_images_has_no_attributes(
    deployed: Deployment, third: Run
) -> None:
    deployed.table("images").overwrite(third.rows("images"), f"dataset = '{third.dataset_uri}'")
    assert state_of(deployed, third) == PublishedState(third.name)


@pytest.mark.parametrize("name", ["embeddings", "rejects"])
def test_the_state_is_incomplete_if_another_table_shows_another_run(
    deployed: Deployment, first: Run, name: str
) -> None:
    assert state_of(deployed, first).is_complete
    before = deployed.runs()[0].snapshots[name]
    deployed.table(name).manage_snapshots().rollback_to_snapshot(before).commit()
    assert not state_of(deployed, first).is_complete


def test_the_state_is_incomplete_if_a_table_has_lost_rows(deployed: Deployment, second: Run) -> None:
    fewer = second.rows("embeddings").slice(1)
    deployed.table("embeddings").overwrite(fewer, f"dataset = '{second.dataset_uri}'")
    assert not state_of(deployed, second).is_complete


def test_the_state_is_the_same_whoever_wrote_the_files(deployed: Deployment, first: Run) -> None:
    before = state_of(deployed, first)
    for name in ("images", "runs"):
        table = deployed.table(name)
        table.overwrite(table.scan().to_arrow())
    assert state_of(deployed, first) == before


def test_rows_of_several_runs_are_reported(deployed: Deployment, second: Run, third: Run) -> None:
    deployed.table("images").append(third.rows("images"))
    with pytest.raises(MixedRuns, match=rf"{second.dataset_uri}: {second.name}, {third.name}.*forget_dataset"):
        published_state(deployed.catalog, deployed.settings, second.dataset_uri)


@pytest.mark.parametrize("columns", [["path", "etag"], ["etag", "path", "features_run_id", "modified"]])
def test_the_rows_of_a_dataset_are_read_with_the_wanted_columns_in_their_order(
    origin: Deployment, second: Run, columns: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "stream_rows", partial(stream_rows, batch_rows=2))
    batches = list(dataset_rows(origin.catalog, origin.settings, "images", second.dataset_uri, columns))
    assert max(batch.num_rows for batch in batches) == 2, "the rows are streamed"
    assert pa.Table.from_batches(batches).schema.names == columns
    assert in_order(pa.Table.from_batches(batches)) == in_order(second.rows("images").select(columns))


def test_the_files_of_features_are_listed_as_steps_list_files(origin: Deployment, first: Run, second: Run) -> None:
    def by_uri(files: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return sorted(files, key=lambda file: str(file["uri"]))

    runs = (first, second, other_of(first.bucket))
    listed = [file for run in runs for file in run.files(origin.s3, "features", "features")]
    assert by_uri(feature_files(origin.catalog, origin.settings)) == by_uri(listed)


def test_the_basis_of_a_dataset_is_read_by_its_name(origin: Deployment, first: Run) -> None:
    found = pca_basis(origin.catalog, origin.settings, first.dataset_uri, first.pca_model)
    assert found == first.rows("pca_models")
    assert pca_basis(origin.catalog, origin.settings, f"s3://{first.bucket}/apples/", first.pca_model) is None
    assert pca_basis(origin.catalog, origin.settings, first.dataset_uri, "pca-2-other") is None
