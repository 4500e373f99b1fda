import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import boto3
import pyarrow as pa
import pytest
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import NoSuchTableError

from orchard.run.publish import DatasetChanged
from orchard.run.sentence import Spent
from orchard.run.summary import InconsistentRun
from orchard.settings import Settings
from orchard.tables import commit
from orchard.tables.catalog import TABLES
from orchard.tables.features import OtherModel
from tests.plugins.deployed import (
    REPLACED,
    Deployment,
    first_of,
    in_order,
    new_deployment,
    other_of,
    second_of,
    stale_files,
)
from tests.plugins.runs import MODEL, Run, sha256, write_file

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@dataclass(frozen=True)
class Published:
    """A deployment with two published runs of one dataset, that no test changes."""

    deployed: Deployment
    first: Run
    second: Run
    seen_before: Mapping[str, list[dict[str, Any]]]
    """The rows of each table before the second run was published."""
    shown_before: bool
    summary: dict[str, Any]
    """The summary of the first run."""
    summary_file: Any
    """The content of its file."""


@pytest.fixture(scope="module")
def published(aws_url: str, s3: "S3Client", session: boto3.Session) -> Published:
    deployed = new_deployment(s3, session, aws_url, keep_scratch_days=0)
    first = first_of(deployed.settings.bucket)
    summary = deployed.publish(first, spent=Spent(minutes=8.0, usd=0.1134))
    content = s3.get_object(Bucket=first.bucket, Key=f"{first.prefix}/summary.json")["Body"].read()
    seen, shown = {name: deployed.rows(name) for name in TABLES}, deployed.shows(first)
    second = second_of(first)
    deployed.publish(second)
    return Published(deployed, first, second, seen, shown, summary, json.loads(content))


def test_a_published_run_can_be_read_from_the_tables_with_all_columns(published: Published) -> None:
    for name in TABLES:
        if name != "runs":
            assert published.seen_before[name] == in_order(published.first.rows(name))
    assert published.shown_before


def test_the_row_of_a_run_tells_how_it_was_made_and_what_it_changed(published: Published) -> None:
    first, second = published.deployed.rows("runs")
    assert published.seen_before["runs"] == [first]
    published_at, snapshots = first.pop("published_at"), first.pop("snapshots")
    assert timedelta() < datetime.now(UTC) - published_at < timedelta(minutes=10)
    assert {name for name, _ in snapshots} == set(TABLES) - {"runs"}
    assert first == {
        "run_id": published.first.name,
        "dataset": published.first.dataset_uri,
        "model": MODEL,
        "decoder": "pillow-13",
        "pca_model": published.first.pca_model,
        "pca_mode": "refit",
        "n_components": 0.95,
        "max_bytes": 2**26,
        "max_pixels": 50_000_000,
        "planned_at": datetime(2026, 11, 22, 2, 0, 3, 250_000, UTC),
        "listed": 6,
        "new": 6,
        "changed": 0,
        "deleted": 0,
        "unchanged": 0,
        "images": 5,
        "duplicates": 1,
        "inferences": 4,
        "rejects": [("undecodable", 1)],
        "ignored": [(".heic", 3)],
        "step_seconds": [("features", 2.5), ("ingest", 2.5), ("pca", 2.5), ("plan", 2.5)],
        "cluster_id": "j-1",
        # What plans of an earlier release lack, and what is known when the cluster has terminated.
        **dict.fromkeys(
            (
                *(
                    "instance_type",
                    "task_slots",
                    "bytes_read",
                    "estimated_minutes",
                    "estimated_usd",
                    "estimated_usd_with_spot",
                ),
                *("ready_seconds", "cluster_minutes", "cost_usd", "cost_usd_per_million"),
            )
        ),
        "explained_variance": 0.96,
        "drift": None,
        "label_accuracy": 0.75,
        "label_sample": 5,
        "labels": [("Kiwi", 5)],
    }
    assert (second["drift"], second["labels"]) == (0.125, [("Kiwi", 7)])
    assert (second["new"], second["unchanged"], second["images"], second["inferences"]) == (5, 4, 7, 4)
    assert second["rejects"] == [("undecodable", 2)]


def test_the_summary_contains_the_run_its_snapshots_and_its_counts(published: Published) -> None:
    deployed, first, summary = published.deployed, published.first, published.summary
    assert published.summary_file == summary
    assert (summary["run_id"], summary["dataset_uri"], summary["cluster_id"]) == (first.name, first.dataset_uri, "j-1")
    assert (summary["images_listed"], summary["images_ingested"], summary["images_rejected"]) == (6, 5, 1)
    assert (summary["inferences"], summary["duplicates"], summary["deleted"]) == (4, 1, 0)
    assert (summary["label_accuracy"], summary["label_sample"], summary["drift"]["shift"]) == (0.75, 5, None)
    assert (summary["labels"], summary["label_count"], summary["labels_changed"]) == ({"Kiwi": 5}, 1, None)
    assert summary["sentence"] == "6 images, all new, 1 rejected, 8 min, $0.11"
    rows = {"features": 4, "images": 5, "rejects": 1, "embeddings": 5, "pca_models": 1, "runs": 1}
    assert {name: table["rows"] for name, table in summary["tables"].items()} == rows
    for name, table in summary["tables"].items():
        snapshot = deployed.table(name).snapshot_by_id(int(table["snapshot_id"]))
        assert snapshot is not None
        assert snapshot.summary is not None
        assert snapshot.summary["orchard.run_id"] == first.name


def test_the_tables_refer_only_to_files_of_the_warehouse(published: Published) -> None:
    deployed = published.deployed
    for name in TABLES:
        for snapshot in deployed.table(name).snapshots():
            for task in deployed.table(name).scan(snapshot_id=snapshot.snapshot_id).plan_files():
                assert task.file.file_path.startswith(f"{deployed.settings.warehouse_uri}/{name}/data/")
    listed = {file["uri"] for file in published.second.files(deployed.s3, "pca", "embeddings")}
    assert deployed.paths("embeddings") == listed


def test_the_scratch_folder_of_a_published_run_is_deleted(published: Published) -> None:
    bucket = published.first.bucket
    assert "Contents" not in published.deployed.s3.list_objects_v2(Bucket=bucket, Prefix="scratch/")


def test_a_run_replaces_the_rows_of_its_dataset_and_adds_only_new_features(published: Published) -> None:
    deployed, first, second = published.deployed, published.first, published.second
    assert deployed.shows(second)
    added = pa.concat_tables([first.rows("features"), second.rows("features")])
    assert deployed.rows("features") == in_order(added)
    assert {row["sha256"] for row in second.rows("features").to_pylist()} == {sha256(n) for n in (3, 4, 5, 6)}
    assert [run.run_id for run in deployed.runs()] == [first.name, second.name]


def test_an_earlier_run_stays_readable_by_the_snapshots_in_its_row(published: Published) -> None:
    deployed, first = published.deployed, published.first
    earlier = deployed.runs()[0]
    for name in REPLACED:
        assert deployed.rows(name, first, earlier.snapshots[name]) == in_order(first.rows(name))
    assert {name: int(published.summary["tables"][name]["snapshot_id"]) for name in earlier.snapshots} == (
        earlier.snapshots
    )


def test_no_snapshot_of_a_table_shows_a_dataset_without_a_run(published: Published) -> None:
    for name in REPLACED:
        table = published.deployed.table(name)
        counts = [table.scan(snapshot_id=snapshot.snapshot_id).count() for snapshot in table.snapshots()]
        assert counts == [run.rows(name).num_rows for run in (published.first, published.second)]


def test_many_small_files_of_a_dataset_are_merged_when_a_run_adds_another(
    deployed: Deployment, first: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "MOST_SMALL_FILES", 2)
    deployed.publish(other_of(first.bucket))
    runs = [first]
    for day in (23, 24, 25):
        runs.append(replace(first, name=f"202611{day}T020000-aaaaaa", images=day, base=runs[-1]))
    for run, files in zip(runs, (1, 2, 3, 1), strict=True):
        deployed.publish(run)
        for name in ("runs", "pca_models"):
            of_dataset = deployed.table(name).scan(f"dataset = '{first.dataset_uri}'").plan_files()
            assert len(list(of_dataset)) == files, (run.name, name)
    assert [row["run_id"] for row in deployed.rows("runs", first)] == [run.name for run in runs]
    assert [row["run_id"] for row in deployed.rows("pca_models", first)] == [run.name for run in runs]
    assert len(deployed.rows("runs")) == len(deployed.rows("pca_models")) == 5


def test_publishing_a_run_again_changes_nothing(deployed: Deployment, first: Run) -> None:
    summary = deployed.publish(first)
    versions = deployed.versions()
    assert deployed.publish(first, write=False) == summary
    deployed.s3.delete_object(Bucket=first.bucket, Key=f"{first.prefix}/summary.json")  # as if publish had stopped
    assert deployed.publish(first, write=False) == summary
    assert deployed.versions() == versions


def test_a_published_run_can_be_published_again_without_its_scratch_folder(
    s3: "S3Client", catalog: Catalog, settings: Settings, first: Run
) -> None:
    deployed = Deployment(s3, catalog, replace(settings, keep_scratch_days=0))
    summary = deployed.publish(first)
    assert "Contents" not in s3.list_objects_v2(Bucket=first.bucket, Prefix="scratch/")
    versions = deployed.versions()
    assert deployed.publish(first, write=False) == summary
    assert deployed.versions() == versions


def test_a_run_whose_base_has_left_the_tables_is_refused(deployed: Deployment, second: Run) -> None:
    with pytest.raises(DatasetChanged, match="now they have no rows"):
        deployed.publish(second)


def test_a_run_that_is_redone_after_its_dataset_changed_has_the_counts_of_its_new_files(
    deployed: Deployment, first: Run
) -> None:
    deployed.publish(first)
    changed = replace(first, images=first.images + 3)
    deployed.publish(changed)
    assert deployed.table("images").scan().count() == changed.images
    assert deployed.rows("features") == in_order(changed.rows("features")), "only the missing contents were added"
    assert stale_files(deployed) == []
    assert deployed.shows(changed)
    assert [run.run_id for run in deployed.runs()] == [first.name]
    assert deployed.rows("runs")[0]["images"] == changed.images


def test_a_run_that_is_redone_with_another_model_is_refused(deployed: Deployment, first: Run) -> None:
    deployed.publish(first)
    with pytest.raises(
        OtherModel, match=rf"{first.name} were published with model mobilenet.* used resnet.*trigger a new run"
    ):
        deployed.publish(replace(first, model="resnet"))
    assert deployed.shows(first)


def test_a_first_run_without_rejects_has_a_snapshot_of_each_table(deployed: Deployment, first: Run) -> None:
    summary = deployed.publish(replace(first, rejects=0))
    for name, table in summary["tables"].items():
        assert deployed.table(name).snapshot_by_id(int(table["snapshot_id"])) is not None
    assert deployed.rows("rejects") == []


def test_two_runs_that_infer_the_same_content_at_the_same_time_do_not_double_rows_of_the_join(
    deployed: Deployment, first: Run
) -> None:
    other = other_of(first.bucket)
    first.write(deployed.s3)
    other.write(deployed.s3)
    deployed.publish(first, write=False)
    deployed.publish(other, write=False)
    contents = [row["sha256"] for row in deployed.rows("features")]
    assert sorted(contents) == sorted([sha256(n) for n in (0, 1, 2, 3)] + [sha256(n) for n in (0, 1, 2)])
    assert deployed.joins(first)
    assert deployed.joins(other)


@pytest.mark.slow
def test_manifests_do_not_accumulate(
    deployed: Deployment, first: Run, second: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [first, second]
    for number in range(3):
        name = f"2026112{number + 4}T020000-dddddd"
        runs.append(replace(second, name=name, base=runs[-1], kept=7 + number, images=8 + number, kept_rejects=2))
    for run in runs:
        deployed.publish(run)
    for name in REPLACED:
        snapshot = deployed.table(name).current_snapshot()
        assert snapshot is not None
        assert len(snapshot.manifests(deployed.table(name).io)) == 2, "the added files, and the removed ones"
    assert deployed.table("features").properties["commit.manifest-merge.enabled"] == "true"
    assert deployed.shows(runs[-1])


def test_a_file_that_no_step_lists_is_not_published(deployed: Deployment, first: Run) -> None:
    first.write(deployed.s3)
    for name in ("embeddings", "features"):
        write_file(deployed.s3, f"{deployed.settings.warehouse_uri}/{name}/data", first.rows(name))
    write_file(deployed.s3, f"{first.scratch_uri}/new_images", first.info("images"))
    deployed.publish(first, write=False)
    assert deployed.shows(first)
    assert deployed.table("features").scan().count() == 4


@pytest.mark.parametrize(
    "changed",
    [
        {"ingest": {"rows_in": 7}},
        {"ingest": {"rejects": 2}},
        {"features": {"rows_in": 4}},
        {"features": {"rows_out": 5}},
        {"pca": {"rows_in": 4}},
        {"pca": {"rows_out": 6}},
        {"plan": {"images_kept": 1}},
        {"plan": {"run_id": "20261122T020000-ffffff"}},
        {"plan": {"dataset": "s3://other/images/"}},
        {"features": {"run_id": "20261122T020000-ffffff"}},
    ],
)
def test_a_run_whose_plan_and_steps_disagree_is_not_published(
    deployed: Deployment, first: Run, changed: dict[str, dict[str, Any]]
) -> None:
    with pytest.raises(InconsistentRun, match=f"{first.uri} is not published: .*Clear the task `plan` with downstream"):
        deployed.publish(replace(first, changed_metrics=changed))
    with pytest.raises(NoSuchTableError):
        deployed.table("images")
    assert "Contents" not in deployed.s3.list_objects_v2(Bucket=first.bucket, Prefix=f"{first.prefix}/summary.json")
