from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.catalog import Catalog

from orchard.settings import Settings
from orchard.tables import state
from orchard.tables.rows import stream_rows
from orchard.tables.state import MixedRuns, PublishedState, dataset_rows, feature_files, pca_basis, published_state
from tests.plugins.deployed import Deployment, in_order
from tests.plugins.runs import MODEL, Run


def test_without_tables_there_is_no_state_and_none_is_created(catalog: Catalog, settings: Settings) -> None:
    assert published_state(catalog, settings, "s3://b/images/") is None
    assert list(dataset_rows(catalog, settings, "images", "s3://b/images/", ["path"])) == []
    assert feature_files(catalog, settings) == []
    assert pca_basis(catalog, settings, "s3://b/images/", "pca-2-ab") is None
    assert not catalog.namespace_exists(settings.catalog_database)


def test_the_state_of_a_dataset_is_the_run_of_its_images_and_how_it_was_made(
    deployed: Deployment, first: Run, second: Run
) -> None:
    deployed.publish(first)
    expected = PublishedState(
        first.name, True, MODEL, "pillow-13", first.pca_model, "refit", 0.95, max_bytes=2**26, max_pixels=50_000_000
    )
    assert published_state(deployed.catalog, deployed.settings, first.dataset_uri) == expected
    deployed.publish(second)
    found = published_state(deployed.catalog, deployed.settings, first.dataset_uri)
    assert found == replace(expected, run_id=second.name, pca_model=second.pca_model)
    for other in (first.dataset_uri.removesuffix("/"), f"{first.dataset_uri}Kiwi/", f"s3://{first.bucket}/"):
        assert published_state(deployed.catalog, deployed.settings, other) is None


def test_the_state_of_a_run_whose_publication_stopped_after_the_images_has_no_attributes(
    deployed: Deployment, first: Run, second: Run
) -> None:
    deployed.publish(first)
    deployed.table("images").overwrite(second.rows("images"))
    assert published_state(deployed.catalog, deployed.settings, first.dataset_uri) == PublishedState(second.name)


@pytest.mark.parametrize("name", ["embeddings", "rejects"])
def test_the_state_is_incomplete_if_another_table_shows_another_run(
    deployed: Deployment, first: Run, second: Run, name: str
) -> None:
    deployed.publish(first)
    before = deployed.table(name).current_snapshot()
    deployed.publish(second)
    assert before is not None
    assert state_of(deployed, first).is_complete
    deployed.table(name).manage_snapshots().rollback_to_snapshot(before.snapshot_id).commit()
    assert not state_of(deployed, first).is_complete


def test_the_state_is_incomplete_if_a_table_has_lost_rows(deployed: Deployment, first: Run) -> None:
    deployed.publish(first)
    deployed.table("embeddings").overwrite(first.rows("embeddings").slice(1))
    assert not state_of(deployed, first).is_complete


def state_of(deployed: Deployment, run: Run) -> PublishedState:
    state = published_state(deployed.catalog, deployed.settings, run.dataset_uri)
    assert state is not None
    return state


def test_the_state_is_the_same_whoever_wrote_the_files(deployed: Deployment, first: Run) -> None:
    deployed.publish(first)
    before = published_state(deployed.catalog, deployed.settings, first.dataset_uri)
    for name in ("images", "runs"):
        table = deployed.table(name)
        table.overwrite(table.scan().to_arrow())
    assert published_state(deployed.catalog, deployed.settings, first.dataset_uri) == before


def test_rows_of_several_runs_are_reported(deployed: Deployment, first: Run, second: Run) -> None:
    deployed.publish(first)
    deployed.table("images").append(second.rows("images"))
    with pytest.raises(MixedRuns, match=rf"{first.dataset_uri}: {first.name}, {second.name}.*forget_dataset"):
        published_state(deployed.catalog, deployed.settings, first.dataset_uri)


@pytest.mark.parametrize("columns", [["path", "etag"], ["etag", "path", "features_run_id", "modified"]])
def test_the_rows_of_a_dataset_are_read_with_the_wanted_columns_in_their_order(
    deployed: Deployment, first: Run, second: Run, columns: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "stream_rows", partial(stream_rows, batch_rows=2))
    deployed.publish(first)
    deployed.publish(second)
    deployed.publish(replace(first, dataset_uri=f"s3://{first.bucket}/apples/", folder="apples"))
    batches = list(dataset_rows(deployed.catalog, deployed.settings, "images", first.dataset_uri, columns))
    assert max(batch.num_rows for batch in batches) == 2, "the rows are streamed"
    assert pa.Table.from_batches(batches).schema.names == columns
    assert in_order(pa.Table.from_batches(batches)) == in_order(second.rows("images").select(columns))


def test_the_files_of_features_are_listed_as_steps_list_files(deployed: Deployment, first: Run, second: Run) -> None:
    deployed.publish(first)
    deployed.publish(second)

    def by_uri(files: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return sorted(files, key=lambda file: str(file["uri"]))

    listed = [file for run in (first, second) for file in run.files(deployed.s3, "features", "features")]
    assert by_uri(feature_files(deployed.catalog, deployed.settings)) == by_uri(listed)


def test_the_basis_of_a_dataset_is_read_by_its_name(deployed: Deployment, first: Run, second: Run) -> None:
    deployed.publish(first)
    deployed.publish(second)
    found = pca_basis(deployed.catalog, deployed.settings, first.dataset_uri, first.pca_model)
    assert found == first.rows("pca_models")
    assert pca_basis(deployed.catalog, deployed.settings, f"s3://{first.bucket}/apples/", first.pca_model) is None
    assert pca_basis(deployed.catalog, deployed.settings, first.dataset_uri, "pca-2-other") is None
