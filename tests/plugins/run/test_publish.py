import itertools
import json
import re
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import HTTPClientError
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.io.pyarrow import parquet_file_to_data_file
from pyiceberg.table import Table

from orchard.run import publish
from orchard.run.publish import DatasetChanged, LostFeatures
from orchard.run.summary import InconsistentRun
from orchard.settings import Settings
from orchard.storage import split_uri
from orchard.tables import commit
from orchard.tables.catalog import TABLES, WrongWarehouse, open_catalog
from orchard.tables.commit import CannotCommit, SharedFile
from orchard.tables.features import OtherModel
from orchard.tables.state import MixedRuns, feature_files, published_state
from tests.plugins.deployed import REPLACED, Deployment, first_of, in_order, second_of, settings_of
from tests.plugins.proxy import Proxy, impatient
from tests.plugins.runs import MODEL, Run, parquet, sha256, write_file

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@pytest.fixture
def proxy(aws_url: str) -> Iterator[Proxy]:
    with Proxy(aws_url).open() as server:
        yield server


def other_of(bucket: str, **changes: Any) -> Run:
    """A run of another dataset."""
    run = Run(bucket, "20261124T020000-cccccc", f"s3://{bucket}/apples/", images=3, folder="apples")
    return replace(run, **changes)


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
    bucket = f"test-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    settings, first = settings_of(bucket, keep_scratch_days=0), first_of(bucket)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", aws_url)
        deployed = Deployment(s3, open_catalog(session, settings), settings)
    summary = deployed.publish(first)
    content = s3.get_object(Bucket=bucket, Key=f"{first.prefix}/summary.json")["Body"].read()
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
    }
    assert (second["new"], second["unchanged"], second["images"], second["inferences"]) == (5, 4, 7, 4)
    assert second["rejects"] == [("undecodable", 2)]


def test_the_summary_contains_the_run_its_snapshots_and_its_counts(published: Published) -> None:
    deployed, first, summary = published.deployed, published.first, published.summary
    assert published.summary_file == summary
    assert (summary["run_id"], summary["dataset_uri"], summary["cluster_id"]) == (first.name, first.dataset_uri, "j-1")
    assert (summary["images_listed"], summary["images_ingested"], summary["images_rejected"]) == (6, 5, 1)
    assert (summary["inferences"], summary["duplicates"], summary["deleted"]) == (4, 1, 0)
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


@pytest.mark.parametrize(
    ("prefix", "folder"),
    [("images2/", "images2"), ("images/Kiwi/", "images-Kiwi"), ("images-/", "images"), ("", "bucket")],
)
def test_the_rows_of_another_dataset_stay_even_if_its_name_is_similar(
    deployed: Deployment, first: Run, second: Run, prefix: str, folder: str
) -> None:
    other = other_of(first.bucket, dataset_uri=f"s3://{first.bucket}/{prefix}", folder=folder)
    deployed.publish(first)
    deployed.publish(other)
    assert deployed.shows(first)
    deployed.publish(second)
    assert deployed.shows(second)
    assert deployed.shows(other)


def test_many_small_files_of_a_dataset_are_merged_when_a_run_adds_another(
    deployed: Deployment, first: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "MOST_SMALL_FILES", 2)
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


def test_a_run_whose_dataset_changed_since_its_plan_is_refused_and_the_way_on_works(
    deployed: Deployment, first: Run, second: Run
) -> None:
    deployed.publish(first)
    late = replace(second, name="20261123T030000-dddddd", images=4, kept=2)
    late.write(deployed.s3)
    deployed.publish(second)
    versions = deployed.versions()
    message = rf"{late.name} of {late.dataset_uri} .* run {first.name} .* run {second.name}.* Trigger a new run"
    with pytest.raises(DatasetChanged, match=message):
        deployed.publish(late, write=False)
    assert deployed.versions() == versions
    deployed.publish(replace(late, base=second))
    assert deployed.shows(replace(late, base=second))


@pytest.mark.parametrize("is_planned_for_none", [False, True])
def test_a_run_whose_dataset_came_or_went_since_its_plan_is_refused(
    deployed: Deployment, first: Run, second: Run, is_planned_for_none: bool
) -> None:
    if is_planned_for_none:
        deployed.publish(first)
        second = replace(second, base=None, kept=0)
    with pytest.raises(DatasetChanged, match=r"had no rows of the dataset|now they have no rows"):
        deployed.publish(second)


def test_rows_of_several_runs_in_one_dataset_are_reported(deployed: Deployment, first: Run, second: Run) -> None:
    deployed.publish(first)
    deployed.table("images").append(second.rows("images"))
    with pytest.raises(MixedRuns, match=rf"{first.name}, {second.name}.*Roll the table back"):
        deployed.publish(second)


def roll_back(deployed: Deployment, run: Run) -> None:
    """Show the state after a run again, as the README says."""
    (found,) = [published for published in deployed.runs() if published.run_id == run.name]
    for name in REPLACED:
        deployed.table(name).manage_snapshots().rollback_to_snapshot(found.snapshots[name]).commit()


def test_after_a_rollback_the_next_run_is_published_and_the_one_that_was_rolled_away_can_be_published_again(
    deployed: Deployment, first: Run, second: Run
) -> None:
    deployed.publish(first)
    deployed.publish(second)
    roll_back(deployed, first)
    state = published_state(deployed.catalog, deployed.settings, first.dataset_uri)
    assert state is not None
    assert state.run_id == first.name
    deployed.publish(second, write=False)
    assert deployed.shows(second)
    roll_back(deployed, first)
    third = replace(second, name="20261124T020000-eeeeee", images=6)
    deployed.publish(third)
    assert deployed.shows(third)


@pytest.mark.slow
def test_a_rollback_and_a_publication_again_do_not_touch_other_datasets(
    deployed: Deployment, first: Run, second: Run
) -> None:
    deployed.publish(first)
    other = other_of(first.bucket)
    deployed.publish(other)
    before = {name: deployed.table(name).current_snapshot() for name in REPLACED}
    deployed.publish(second)
    for name, snapshot in before.items():
        assert snapshot is not None
        deployed.table(name).manage_snapshots().rollback_to_snapshot(snapshot.snapshot_id).commit()
    deployed.publish(second, write=False)
    assert deployed.shows(second)
    assert deployed.shows(other)


def compact(deployed: Deployment) -> None:
    """Rewrite all files of all tables, so that no file has the name that a step gave it."""
    for name in TABLES:
        table = deployed.table(name)
        table.overwrite(table.scan().to_arrow())


def expire(deployed: Deployment) -> None:
    """Expire all snapshots but the current one of each table."""
    for name in TABLES:
        table = deployed.table(name)
        current = table.current_snapshot()
        assert current is not None
        old = [found.snapshot_id for found in table.snapshots() if found.snapshot_id != current.snapshot_id]
        table.maintenance.expire_snapshots().by_ids(old).commit()
        assert len(deployed.table(name).snapshots()) == 1


@pytest.mark.parametrize("maintain", [[compact], [expire], [compact, expire]])
def test_after_compaction_and_expiry_by_anybody_the_next_run_is_published_as_before(
    deployed: Deployment, first: Run, second: Run, maintain: list[Callable[[Deployment], None]]
) -> None:
    other = other_of(first.bucket)
    deployed.publish(first)
    deployed.publish(other)
    for change in maintain:
        change(deployed)
    assert deployed.shows(first)
    versions = deployed.versions()
    deployed.publish(first, write=False)
    assert deployed.versions() == versions, "the compacted rows are the run's own"
    deployed.publish(second)
    assert deployed.shows(second)
    assert deployed.shows(other)


def test_a_file_with_rows_of_several_datasets_is_reported_and_not_changed(
    deployed: Deployment, first: Run, second: Run
) -> None:
    other = other_of(first.bucket)
    deployed.publish(first)
    deployed.publish(other)
    table = deployed.table("images")
    table.update_spec().remove_field("dataset").commit()
    table = deployed.table("images")
    table.overwrite(table.scan().to_arrow())
    with pytest.raises(SharedFile, match=rf"rows of {first.dataset_uri} and of other datasets.*identity of `dataset`"):
        deployed.publish(second)
    assert deployed.shows(first)
    assert deployed.shows(other)


@pytest.mark.slow
def test_a_table_without_partitions_is_published_to_as_long_as_no_file_has_rows_of_several_datasets(
    deployed: Deployment, first: Run, second: Run
) -> None:
    other = other_of(first.bucket)
    deployed.publish(first)
    deployed.table("images").update_spec().remove_field("dataset").commit()
    compact(deployed)
    deployed.publish(other)
    deployed.publish(second)
    assert deployed.shows(second)
    assert deployed.shows(other)


def stale_files(deployed: Deployment) -> list[str]:
    """Return the files whose size, rows or statistics in the tables are not those of the file on S3."""

    def is_stale(table: Table, uri: str) -> bool:
        (kept,) = [task.file for task in table.scan().plan_files() if task.file.file_path == uri]
        now = parquet_file_to_data_file(table.io, table.metadata, uri)
        names = ("file_size_in_bytes", "record_count", "lower_bounds", "upper_bounds", "value_counts", "partition")
        return any(getattr(kept, name) != getattr(now, name) for name in names)

    tables = [deployed.table(name) for name in TABLES]
    return [
        task.file.file_path
        for table in tables
        for task in table.scan().plan_files()
        if is_stale(table, task.file.file_path)
    ]


@pytest.mark.parametrize("steps", [("pca",), ("features", "pca"), ("ingest", "features", "pca")])
def test_a_run_with_redone_steps_is_published_once_with_the_sizes_and_statistics_of_its_new_files(
    deployed: Deployment, first: Run, second: Run, steps: tuple[str, ...]
) -> None:
    deployed.publish(first)
    deployed.publish(second)
    before = deployed.rows("features")
    second.write(deployed.s3, steps)
    deployed.publish(second, write=False)
    assert deployed.shows(second)
    assert stale_files(deployed) == []
    assert deployed.rows("features") == before, "an image is inferred once in its life"
    listed = {file["uri"] for file in second.files(deployed.s3, "pca", "embeddings")}
    assert deployed.paths("embeddings") == listed
    assert [run.run_id for run in deployed.runs()] == [first.name, second.name]


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


def test_a_run_without_rejects_removes_those_of_the_previous_run(deployed: Deployment, first: Run) -> None:
    deployed.publish(first)
    clean = Run(first.bucket, "20261123T020000-dddddd", first.dataset_uri, rejects=0, base=first, kept=5, copies=1)
    summary = deployed.publish(clean)
    assert deployed.rows("rejects") == []
    assert deployed.shows(clean)
    versions = deployed.versions()
    assert deployed.publish(clean, write=False) == summary
    assert deployed.versions() == versions


def test_a_first_run_without_rejects_has_a_snapshot_of_each_table(deployed: Deployment, first: Run) -> None:
    summary = deployed.publish(replace(first, rejects=0))
    for name, table in summary["tables"].items():
        assert deployed.table(name).snapshot_by_id(int(table["snapshot_id"])) is not None
    assert deployed.rows("rejects") == []


def test_images_whose_content_other_runs_have_inferred_cost_no_inference(deployed: Deployment, first: Run) -> None:
    deployed.publish(first)
    other = other_of(first.bucket, known={0: first.name, 2: first.name})
    summary = deployed.publish(other)
    assert (summary["inferences"], summary["known"]) == (1, 2)
    assert deployed.shows(other)
    assert deployed.table("features").scan().count() == 5
    only_known = other_of(first.bucket, name="20261125T020000-ffffff", base=other, kept=3)
    versions = deployed.versions()
    deployed.publish(only_known)
    assert deployed.shows(only_known)
    assert deployed.versions()[0] == versions[0], "no vector was written"


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


def compaction(deployed: Deployment) -> dict[str, Any]:
    """Write all rows of `features` into one new file, as the step `pca` does."""
    table = deployed.table("features")
    replaced = feature_files(deployed.catalog, deployed.settings)
    rows = table.scan().to_arrow().cast(first_of("b").rows("features").schema)
    return {"replaced": replaced, "compacted": [write_file(deployed.s3, f"{table.location()}/data", rows)]}


def test_small_files_of_features_are_replaced_in_the_commit_that_adds_the_new_ones(
    deployed: Deployment, first: Run, second: Run, caplog: pytest.LogCaptureFixture
) -> None:
    deployed.publish(first)
    swap = compaction(deployed)
    assert len(swap["replaced"]) == 2
    deployed.publish(second, **swap)
    new = {file["uri"] for file in second.files(deployed.s3, "features", "features")}
    assert deployed.paths("features") == new | {swap["compacted"][0]["uri"]}
    assert len(deployed.table("features").snapshots()) == 2
    assert deployed.shows(second)
    versions = deployed.versions()
    deployed.s3.delete_object(Bucket=second.bucket, Key=f"{second.prefix}/summary.json")  # as if publish had stopped
    with caplog.at_level("INFO"):
        deployed.publish(second, write=False)
    assert deployed.versions() == versions
    assert "are not used" not in caplog.text


def test_compacted_files_are_not_used_if_a_replaced_file_has_left_the_table(
    deployed: Deployment, first: Run, second: Run, caplog: pytest.LogCaptureFixture
) -> None:
    deployed.publish(first)
    swap = compaction(deployed)
    second.write(deployed.s3, **swap)
    compact(deployed)
    with caplog.at_level("INFO"):
        deployed.publish(second, write=False)
    assert "the 2 files that the run has compacted are not used, because 2 of them have changed" in caplog.text
    assert swap["compacted"][0]["uri"] not in deployed.paths("features")
    assert deployed.rows("features") == in_order(pa.concat_tables([first.rows("features"), second.rows("features")]))
    assert deployed.shows(second)


@pytest.mark.slow
def test_a_compaction_that_is_redone_after_the_publication_changes_nothing(
    deployed: Deployment, first: Run, second: Run
) -> None:
    deployed.publish(first)
    swap = compaction(deployed)
    again = compaction(deployed)
    deployed.publish(second, **swap)
    before = deployed.paths("features")
    second.write(deployed.s3, ("pca",), **again)
    deployed.publish(second, write=False)
    assert deployed.paths("features") == before
    assert deployed.shows(second)


def test_a_run_is_refused_if_features_that_it_has_compacted_were_removed_since_its_plan(
    deployed: Deployment, first: Run, second: Run
) -> None:
    deployed.publish(first)
    swap = compaction(deployed)
    second.write(deployed.s3, features=feature_files(deployed.catalog, deployed.settings), **swap)
    table = deployed.table("features")
    table.overwrite(table.scan().to_arrow().slice(1))  # as forget_dataset of another dataset would do
    with pytest.raises(LostFeatures, match="of 1 others"):
        deployed.publish(second, write=False)


def test_a_publisher_that_was_paused_does_not_change_what_a_later_run_has_published(
    deployed: Deployment, first: Run, second: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    third = replace(second, name="20261124T020000-dddddd", base=second, kept=7, kept_rejects=2)
    deployed.publish(first)
    change = commit.replacement

    def pause(table: Table, dataset: str, files: Any) -> commit.Change:
        if table.name()[1] == "embeddings" and not third_is_published:
            third_is_published.append(True)
            deployed.table("images").overwrite(third.rows("images"))
        return change(table, dataset, files)

    third_is_published: list[bool] = []
    monkeypatch.setattr(publish, "replacement", pause)
    monkeypatch.setattr(commit, "FIRST_WAIT_SECONDS", 0)
    with pytest.raises(DatasetChanged, match=f"now they have the rows of run {third.name}"):
        deployed.publish(second)
    assert [row["run_id"] for row in deployed.rows("runs")] == [first.name]


def test_a_run_whose_features_were_removed_since_its_plan_is_refused(
    deployed: Deployment, first: Run, second: Run
) -> None:
    deployed.publish(first)
    other = other_of(first.bucket, known={0: first.name})
    listed = feature_files(deployed.catalog, deployed.settings)
    other.write(deployed.s3, features=listed)
    deployed.table("features").delete(f"sha256 = '{sha256(0)}'")
    with pytest.raises(LostFeatures, match=r"of 1 of its new images and of 0 others.*new run of the dataset$"):
        deployed.publish(other, write=False)
    second.write(deployed.s3, features=listed)
    with pytest.raises(LostFeatures, match=r"of 0 of its new images and of 1 others.*with full_refresh$"):
        deployed.publish(second, write=False)
    other = other_of(first.bucket, known={1: first.name})
    other.write(deployed.s3, features=listed)
    deployed.publish(other, write=False)
    assert deployed.shows(other)


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


FILES = [
    ("plan", "kept_images"),
    ("plan", "kept_rejects"),
    ("ingest", "rejects"),
    ("features", "new_images"),
    ("features", "features"),
    ("pca", "embeddings"),
    ("pca", "pca_model"),
]


@pytest.fixture
def planned(deployed: Deployment, first: Run, second: Run) -> Run:
    """A run that has not been published, after one that has."""
    deployed.publish(first)
    second.write(deployed.s3)
    return second


@pytest.mark.parametrize(("step", "dataset"), FILES)
@pytest.mark.parametrize(
    "fault",
    ["missing", pytest.param("changed", marks=pytest.mark.slow), pytest.param("other columns", marks=pytest.mark.slow)],
)
def test_a_listed_file_with_a_fault_is_named_before_any_table_changes(
    deployed: Deployment, planned: Run, step: str, dataset: str, fault: str
) -> None:
    metrics = f"{planned.prefix}/{step}.metrics.json"
    content = json.loads(deployed.s3.get_object(Bucket=planned.bucket, Key=metrics)["Body"].read())
    listed = content["files"][dataset][0]
    key = split_uri(listed["uri"])[1]
    body = deployed.s3.get_object(Bucket=planned.bucket, Key=key)["Body"].read()
    rows = pq.read_table(pa.BufferReader(body))
    versions = deployed.versions()
    if fault == "missing":
        deployed.s3.delete_object(Bucket=planned.bucket, Key=key)
        message = rf"{key} does not exist"
    elif fault == "changed":
        changed = parquet(pa.concat_tables([rows, rows]))
        deployed.s3.put_object(Bucket=planned.bucket, Key=key, Body=changed)
        message = rf"{key} has \d+ rows and \d+ bytes, but its step lists {listed['rows']} rows"
    else:
        changed = parquet(rows.rename_columns([*rows.column_names[:-1], "other"]))
        deployed.s3.put_object(Bucket=planned.bucket, Key=key, Body=changed)
        listed["bytes"] = len(changed)
        deployed.s3.put_object(Bucket=planned.bucket, Key=metrics, Body=json.dumps(content).encode())
        message = rf"{key} (does not fit table|has other columns)"
    with pytest.raises(InconsistentRun, match=message):
        deployed.publish(planned, write=False)
    assert deployed.versions() == versions


def test_embeddings_of_another_dataset_are_refused(deployed: Deployment, planned: Run) -> None:
    other = replace(planned, dataset_uri="s3://other/images/")
    file = write_file(deployed.s3, f"{deployed.settings.warehouse_uri}/embeddings/data", other.rows("embeddings"))
    content = {**planned.metrics("pca"), "files": {"embeddings": [file]}}
    for name in ("pca_model", "compacted", "replaced"):
        content["files"][name] = planned.files(deployed.s3, "pca", name)
    planned.put(deployed.s3, "pca.metrics.json", json.dumps(content).encode())
    with pytest.raises(InconsistentRun, match=rf"has rows of s3://other/images/, not of {planned.dataset_uri}"):
        deployed.publish(planned, write=False)


def test_the_tables_of_another_deployment_are_not_touched(deployed: Deployment, first: Run) -> None:
    deployed.publish(first)
    theirs = Deployment(deployed.s3, deployed.catalog, replace(deployed.settings, bucket="other-bucket"))
    other = other_of(first.bucket)
    other.write(deployed.s3)
    with pytest.raises(WrongWarehouse, match=r"not in s3://other-bucket/warehouse/features.*ORCHARD_CATALOG_DATABASE"):
        theirs.publish(other, write=False)


@pytest.fixture
def through_the_proxy(
    proxy: Proxy, session: boto3.Session, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> Deployment:
    """The same deployment, whose requests all go through the proxy."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    return Deployment(impatient("s3", proxy.url), open_catalog(session, settings), settings)


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_if_publish_stops_before_any_of_its_changes_readers_see_the_old_or_the_new_run_and_a_retry_completes_it(
    deployed: Deployment, through_the_proxy: Deployment, proxy: Proxy, bucket: str, record_property: Any, every: int
) -> None:
    def run(number: int, base: Run | None) -> Run:
        kept = min(base.images, 2) if base else 0
        name = f"20261122T02{number // 60:02d}{number % 60:02d}-000000"
        made = Run(bucket, name, f"s3://{bucket}/images/", 2 + number % 5, base=base, kept=kept)
        listed = feature_files(deployed.catalog, deployed.settings)
        swap = compaction(deployed) if base else {}
        made.write(deployed.s3, features=listed, **swap)
        return made

    old, new, verified = None, run(0, None), [""] * len(TABLES)
    seen: set[tuple[bool, ...]] = set()
    for change in itertools.count(1, every):
        proxy.shut_at(change)
        try:
            through_the_proxy.publish(new, write=False)
        except Exception:
            proxy.reopen()
        else:
            break
        versions = deployed.versions()
        changed = tuple(before != now for before, now in zip(verified, versions, strict=True))
        if not any(changed) or "" in versions:
            continue  # no table has changed: the next round is the retry
        if old is not None and changed not in seen:
            for name in REPLACED:
                whole = (in_order(old.rows(name)), in_order(new.rows(name)))
                assert deployed.rows(name) in whole, f"{name}, stopped at change {change}"
            assert deployed.joins(old) or deployed.joins(new), f"stopped at change {change}"
        deployed.publish(new, write=False)
        if changed not in seen:
            assert deployed.shows(new), f"stopped at change {change}"
            features = [(row["sha256"], row["run_id"]) for row in deployed.rows("features")]
            assert len(features) == len(set(features)), f"stopped at change {change}"
        seen.add(changed)
        old, new, verified = new, run(change, new), deployed.versions()
    assert deployed.shows(new)
    assert change > 25
    if every == 1:
        assert len(seen) >= len(TABLES), "it was stopped after each number of commits"
        record_property("publish was stopped before each of its changes", change - 1)


@pytest.mark.parametrize("name", list(TABLES))
def test_a_commit_whose_answer_is_lost_is_made_once(
    deployed: Deployment, through_the_proxy: Deployment, proxy: Proxy, first: Run, second: Run, name: str
) -> None:
    deployed.publish(first)
    second.write(deployed.s3, features=feature_files(deployed.catalog, deployed.settings), **compaction(deployed))
    proxy.lose_answer_to_update_of(name)
    with pytest.raises(HTTPClientError, match="Connection was closed"):
        through_the_proxy.publish(second, write=False)
    through_the_proxy.publish(second, write=False)
    assert deployed.shows(second)
    assert deployed.table("features").scan().count() == 8
    assert [len(deployed.table(table).snapshots()) for table in TABLES] == [2] * len(TABLES)


def publish_at_once(session: boto3.Session, deployed: Deployment, url: str, runs: list[Run]) -> list[Any]:
    """Publish each run from its own thread with its own clients. Return the summaries, or the errors."""
    start = threading.Barrier(len(runs))

    def publish_one(own: Deployment, run: Run) -> Any:
        start.wait(timeout=30)
        try:
            return own.publish(run, write=False)
        except DatasetChanged as error:
            return error

    for run in runs:
        run.write(deployed.s3)
    settings = deployed.settings
    # A session may be used by one thread only, but its clients by any.
    publishers = [Deployment(impatient("s3", url), open_catalog(session, settings), settings) for _ in runs]
    with ThreadPoolExecutor(len(runs)) as pool:
        return list(pool.map(publish_one, publishers, runs))


@pytest.mark.parametrize("tables_are_there", [False, True], ids=["first-ever", "later"])
@pytest.mark.parametrize("same_dataset", [False, True], ids=["two-datasets", "one-dataset"])
def test_of_two_runs_that_are_published_at_the_same_time_both_land_or_one_of_the_same_dataset_is_refused(
    deployed: Deployment,
    through_the_proxy: Deployment,
    proxy: Proxy,
    session: boto3.Session,
    bucket: str,
    same_dataset: bool,
    tables_are_there: bool,
) -> None:
    uris = [f"s3://{bucket}/images/", f"s3://{bucket}/{'images' if same_dataset else 'apples'}/"]
    bases: dict[str, Run | None] = dict.fromkeys(uris)
    if tables_are_there:
        bases = {uri: Run(bucket, "20261121T020000-bbbbbb", uri, folder=uri.split("/")[3]) for uri in uris}
        for base in bases.values():
            assert base is not None
            deployed.publish(base)
    runs = [Run(bucket, f"20261122T02000{n}-aaaaaa", uri, images=3 + n, base=bases[uri]) for n, uri in enumerate(uris)]
    proxy.let_updates_meet(2)
    outcomes = publish_at_once(session, through_the_proxy, proxy.url, runs)
    assert proxy.refused_updates >= 1
    refused = [isinstance(outcome, DatasetChanged) for outcome in outcomes]
    assert sum(refused) == same_dataset
    for run, is_refused in zip(runs, refused, strict=True):
        assert deployed.shows(run) != is_refused


def commits_of_others(deployed: Deployment, run: Run, times: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make another commit between a publisher's read of `images` and its own commit, this many times in total."""
    done: list[str] = []

    def look(table: Table, dataset: str, files: Any) -> commit.Change:
        found = commit.replacement(table, dataset, files)
        if table.name()[1] == "images" and len(done) < times:
            done.append("images")
            deployed.table("images").append(run.rows("images").slice(0, 0))
        return found

    monkeypatch.setattr(publish, "replacement", look)
    monkeypatch.setattr(commit, "FIRST_WAIT_SECONDS", 0)
    return done


def test_a_commit_that_loses_to_another_is_planned_again(
    deployed: Deployment, first: Run, second: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployed.publish(first)
    done = commits_of_others(deployed, first, 1, monkeypatch)
    deployed.publish(second)
    assert done == ["images"]
    assert deployed.shows(second)


def test_if_every_attempt_fails_the_error_names_the_run_the_table_and_what_to_do(
    deployed: Deployment, first: Run, second: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployed.publish(first)
    done = commits_of_others(deployed, first, commit.COMMIT_ATTEMPTS, monkeypatch)
    table = rf"{deployed.settings.catalog_database}\.images"
    message = rf"{re.escape(second.uri)} is not in table {table}: other publishers changed the table .*Clear this task"
    with pytest.raises(CannotCommit, match=message):
        deployed.publish(second)
    assert done == ["images"] * commit.COMMIT_ATTEMPTS
    deployed.publish(second, write=False)
    assert deployed.shows(second)
