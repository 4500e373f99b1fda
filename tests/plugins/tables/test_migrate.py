import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchard.tables.catalog import OldLayout, current_features, find_table, open_catalog
from orchard.tables.migrate import TwoTables, migrate
from orchard.tables.state import published_state
from tests.plugins.deployed import Deployment, in_order
from tests.plugins.proxy import Proxy, impatient
from tests.plugins.runs import Run, sha256
from tests.plugins.tables.old_warehouse import MODEL, PCA_MODEL, OldRun, publish

ROOT = Path(__file__).parents[3]


@pytest.fixture
def runs(bucket: str) -> list[OldRun]:
    """A run, the one that replaced it, and one of another dataset that has some of the same contents."""
    return [
        OldRun(bucket, "20261121T020000-aaaaa1", "images", [0, 1, 2]),
        OldRun(bucket, "20261122T020000-aaaaa2", "images", [0, 1, 1, 3, 4]),
        OldRun(bucket, "20261122T030000-bbbbb3", "apples", [3, 4, 5, 5]),
    ]


@pytest.fixture
def old(deployed: Deployment, runs: list[OldRun]) -> Deployment:
    """A deployment of the earlier release, with three published runs."""
    for run in runs:
        publish(deployed.s3, deployed.catalog, deployed.settings, run)
    return deployed


def migrated(deployed: Deployment) -> list[str]:
    return migrate(deployed.s3, deployed.catalog, deployed.settings)


def check(deployed: Deployment, runs: list[OldRun]) -> None:
    """Check that the tables show the last run of each dataset, with each vector once."""
    _, images, apples = runs
    # The apples come first in the order of the URIs of the runs, so the contents 3 and 4 are theirs.
    inferred = {0: images, 1: images, 3: apples, 4: apples, 5: apples}
    expected = [
        (sha256(number), MODEL, [float(sum(run.name.encode())), float(number), 0.5, 0.25], run.name)
        for number, run in inferred.items()
    ]
    found = [
        tuple(row[name] for name in ("sha256", "model", "features", "run_id")) for row in deployed.rows("features")
    ]
    assert sorted(found) == sorted(expected)
    for run in (images, apples):
        described = [row for row in deployed.rows("images") if row["dataset"] == run.dataset]
        assert [row.pop("features_run_id") for row in described] == [inferred[n].name for n in run.contents]
        listed = run.rows("images").drop_columns("content")
        assert described == [{**row, "dataset": run.dataset, "run_id": run.name} for row in in_order(listed)]
        for name, added in (("rejects", {}), ("embeddings", {"sha256": None})):
            rows = [row for row in deployed.rows(name) if row["dataset"] == run.dataset]
            old_rows = in_order(run.rows(name))
            assert [{**row, **added, "etag": ""} for row in rows] == [
                {**row, **added, "dataset": run.dataset, "run_id": run.name, "etag": ""} for row in old_rows
            ]
        embedded = [row["sha256"] for row in deployed.rows("embeddings") if row["dataset"] == run.dataset]
        assert embedded == [sha256(number) for number in run.contents]
        batches = list(current_features(deployed.catalog, deployed.settings.catalog_database, run.dataset))
        joined = sorted((row["path"], row["features"][1]) for batch in batches for row in batch.to_pylist())
        assert joined == sorted((row["path"], float(n)) for row, n in zip(described, run.contents, strict=True))
        assert {**run.rows("pca_model").to_pylist()[0], "dataset": run.dataset} in deployed.rows("pca_models")


def test_the_tables_show_the_same_runs_in_the_present_layout(old: Deployment, runs: list[OldRun]) -> None:
    assert migrated(old) == sorted(run.uri for run in runs[1:])
    check(old, runs)
    state = published_state(old.catalog, old.settings, runs[1].dataset)
    assert state is not None
    assert (state.run_id, state.model, state.pca_model, state.pca_mode) == (runs[1].name, MODEL, PCA_MODEL, "refit")
    assert (state.decoder, state.max_bytes, state.max_pixels) == (None, None, None)


@pytest.mark.slow
def test_the_row_of_a_migrated_run_has_what_its_summary_tells(old: Deployment, runs: list[OldRun]) -> None:
    before = {run.name: run for run in runs}
    snapshot = old.table("embeddings").snapshots()[1]
    migrated(old)
    for row in old.rows("runs"):
        run = before[row["run_id"]]
        assert (row["dataset"], row["images"], row["listed"]) == (run.dataset, len(run.contents), len(run.contents) + 1)
        assert (row["model"], row["pca_model"], row["cluster_id"]) == (MODEL, PCA_MODEL, "j-1")
        assert (row["rejects"], row["ignored"]) == ([("undecodable", 1)], [(".heic", 2)])
        assert dict(row["step_seconds"]) == {"ingest": 1.5, "features": 2.5, "pca": 3.5}
        for name, number in row["snapshots"]:
            assert old.table(name).snapshot_by_id(number) is not None
    (row,) = [row for row in old.rows("runs") if row["run_id"] == runs[1].name]
    assert round(row["published_at"].timestamp() * 1000) == snapshot.timestamp_ms


@pytest.mark.slow
def test_the_earlier_tables_stay_readable_under_another_name(old: Deployment, runs: list[OldRun]) -> None:
    before = {name: in_order(old.table(name).scan().to_arrow()) for name in ("rejects", "features", "embeddings")}
    migrated(old)
    for name, rows in before.items():
        assert in_order(old.table(f"{name}_v1").scan().to_arrow()) == rows
    first = old.table("embeddings_v1").snapshots()[0]
    assert old.table("embeddings_v1").scan(snapshot_id=first.snapshot_id).count() == len(runs[0].contents)


@pytest.mark.slow
def test_the_present_tables_refer_to_no_file_of_a_run(old: Deployment) -> None:
    migrated(old)
    for name in ("features", "images", "rejects", "embeddings", "pca_models", "runs"):
        assert all(path.startswith(f"{old.settings.warehouse_uri}/{name}/data/") for path in old.paths(name))


@pytest.mark.slow
def test_a_second_migration_changes_nothing(old: Deployment, runs: list[OldRun]) -> None:
    migrated(old)
    versions = old.versions()
    assert migrated(old) == []
    assert old.versions() == versions
    check(old, runs)


@pytest.mark.slow
def test_a_run_that_was_published_before_the_migration_is_not_replaced(
    old: Deployment, runs: list[OldRun], bucket: str
) -> None:
    for name in ("rejects", "features", "embeddings"):
        database = old.settings.catalog_database
        old.catalog.rename_table((database, name), (database, f"{name}_v1"))
    later = Run(bucket, "20261123T020000-cccccc", runs[1].dataset, images=4)
    old.publish(later)
    assert migrated(old) == [runs[2].uri]
    assert old.shows(later)


def test_without_tables_of_an_earlier_release_nothing_happens(deployed: Deployment, first: Run) -> None:
    assert migrated(deployed) == []
    assert not deployed.catalog.namespace_exists(deployed.settings.catalog_database)
    deployed.publish(first)
    versions = deployed.versions()
    assert migrated(deployed) == []
    assert deployed.versions() == versions


@pytest.mark.slow
def test_a_migrated_dataset_is_published_to_as_before(old: Deployment, runs: list[OldRun], bucket: str) -> None:
    base = Run(bucket, runs[1].name, runs[1].dataset)
    run = Run(bucket, "20261123T020000-cccccc", runs[1].dataset, images=4, base=base)
    with pytest.raises(OldLayout):
        old.publish(run)
    migrated(old)
    old.publish(run)
    assert old.shows(run)
    versions = old.versions()
    assert migrated(old) == []
    assert old.versions() == versions
    assert old.shows(run)


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["images", "pca_model", "summary.json"])
def test_a_run_whose_folder_has_expired_is_migrated_without_what_only_the_folder_had(
    old: Deployment, runs: list[OldRun], folder: str
) -> None:
    for run in runs:
        prefix = f"{run.uri.removeprefix(f's3://{run.bucket}/')}/{folder}"
        for item in old.s3.list_objects_v2(Bucket=run.bucket, Prefix=prefix)["Contents"]:
            old.s3.delete_object(Bucket=run.bucket, Key=item["Key"])
    migrated(old)
    (row, *_) = old.rows("images")
    assert (row["size"] is None) == (row["width"] is None) == (folder == "images")
    assert row["etag"] is not None
    assert (old.rows("pca_models") == []) == (folder == "pca_model")
    assert (old.rows("runs")[0]["model"] is None) == (folder == "summary.json")
    assert old.table("embeddings").scan().count() == 9


def test_a_migration_that_stops_before_any_of_its_changes_can_be_run_again(
    old: Deployment, runs: list[OldRun], session: Any, aws_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Proxy(aws_url).open() as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        s3, catalog = impatient("s3", proxy.url), open_catalog(session, old.settings)
        for change in range(1, 200, 4):
            proxy.shut_at(change)
            try:
                migrate(s3, catalog, old.settings)
            except Exception:
                proxy.reopen()
            else:
                break
    assert change > 8
    migrated(old)
    check(old, runs)


@pytest.mark.slow
def test_a_renaming_that_stopped_halfway_is_completed(old: Deployment, runs: list[OldRun]) -> None:
    database = old.settings.catalog_database
    metadata = old.table("features").metadata_location
    old.catalog.register_table((database, "features_v1"), metadata)
    migrated(old)
    check(old, runs)


@pytest.mark.slow
def test_two_different_tables_of_the_earlier_layout_are_reported(old: Deployment) -> None:
    database = old.settings.catalog_database
    old.catalog.register_table((database, "features_v1"), old.table("rejects").metadata_location)
    with pytest.raises(TwoTables, match=rf"{database}\.features and {database}\.features_v1 both.*Drop the one"):
        migrated(old)
    with pytest.raises(OldLayout):
        find_table(old.catalog, old.settings, "features")


@pytest.mark.slow
def test_the_command_migrates_the_deployment_of_the_environment(old: Deployment, runs: list[OldRun]) -> None:
    settings = old.settings
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "plugins"),
        "ORCHARD_BUCKET": settings.bucket,
        "ORCHARD_CATALOG_DATABASE": settings.catalog_database,
    }
    command = [sys.executable, "-m", "orchard.tables.migrate"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"migrated {runs[1].uri} of {runs[1].dataset}: 5 images" in done.stderr
    check(old, runs)
