"""Publish the next run of a dataset: each test continues from a copy of the tables after the first run."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import HTTPClientError
from pyiceberg.table import Table

from orchard.run import publish
from orchard.run.publish import DatasetChanged, LostFeatures
from orchard.run.summary import InconsistentRun
from orchard.storage import split_uri
from orchard.tables import commit
from orchard.tables.catalog import TABLES, WrongWarehouse
from orchard.tables.commit import CannotCommit, SharedFile
from orchard.tables.state import MixedRuns, feature_files, published_state
from tests.plugins.deployed import (
    REPLACED,
    Deployment,
    compaction,
    first_of,
    in_order,
    new_deployment,
    other_of,
    stale_files,
)
from tests.plugins.proxy import Proxy
from tests.plugins.runs import Run, parquet, sha256, write_file

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@pytest.fixture(scope="module")
def origin(s3: "S3Client", session: boto3.Session, aws_url: str) -> Deployment:
    """A deployment with the first run, which no test changes."""
    deployed = new_deployment(s3, session, aws_url)
    deployed.publish(first_of(deployed.settings.bucket))
    return deployed


@pytest.mark.slow
def test_the_rows_of_other_datasets_stay_even_if_their_names_are_similar(
    deployed: Deployment, first: Run, second: Run
) -> None:
    names = [("images2/", "images2"), ("images/Kiwi/", "images-Kiwi"), ("images-/", "images"), ("", "bucket")]
    others = [
        other_of(first.bucket, dataset_uri=f"s3://{first.bucket}/{prefix}", folder=folder) for prefix, folder in names
    ]
    for other in others:
        deployed.publish(other)
    assert deployed.shows(first)
    deployed.publish(second)
    for run in (second, *others):
        assert deployed.shows(run), run.dataset_uri


def test_a_run_whose_dataset_changed_since_its_plan_is_refused_and_the_way_on_works(
    deployed: Deployment, first: Run, second: Run
) -> None:
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


def test_a_run_that_was_planned_for_a_dataset_without_rows_is_refused_if_it_has_some(
    deployed: Deployment, second: Run
) -> None:
    with pytest.raises(DatasetChanged, match="had no rows of the dataset"):
        deployed.publish(replace(second, base=None, kept=0))


def test_rows_of_several_runs_in_one_dataset_are_reported(deployed: Deployment, first: Run, second: Run) -> None:
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


@pytest.mark.parametrize(
    "maintain",
    [
        pytest.param([compact], marks=pytest.mark.slow),
        pytest.param([expire], marks=pytest.mark.slow),
        [compact, expire],
    ],
)
def test_after_compaction_and_expiry_by_anybody_the_next_run_is_published_as_before(
    deployed: Deployment, first: Run, second: Run, maintain: list[Callable[[Deployment], None]]
) -> None:
    other = other_of(first.bucket)
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
    deployed.table("images").update_spec().remove_field("dataset").commit()
    compact(deployed)
    deployed.publish(other)
    deployed.publish(second)
    assert deployed.shows(second)
    assert deployed.shows(other)


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param(("pca",), marks=pytest.mark.slow),
        pytest.param(("features", "pca"), marks=pytest.mark.slow),
        ("ingest", "features", "pca"),
    ],
)
def test_a_run_with_redone_steps_is_published_once_with_the_sizes_and_statistics_of_its_new_files(
    deployed: Deployment, first: Run, second: Run, steps: tuple[str, ...]
) -> None:
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


def test_a_run_without_rejects_removes_those_of_the_previous_run(deployed: Deployment, first: Run) -> None:
    clean = Run(first.bucket, "20261123T020000-dddddd", first.dataset_uri, rejects=0, base=first, kept=5, copies=1)
    summary = deployed.publish(clean)
    assert deployed.rows("rejects") == []
    assert deployed.shows(clean)
    versions = deployed.versions()
    assert deployed.publish(clean, write=False) == summary
    assert deployed.versions() == versions


def test_images_whose_content_other_runs_have_inferred_cost_no_inference(deployed: Deployment, first: Run) -> None:
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


def test_small_files_of_features_are_replaced_in_the_commit_that_adds_the_new_ones(
    deployed: Deployment, first: Run, second: Run, caplog: pytest.LogCaptureFixture
) -> None:
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
    """An unpublished run that follows a published one."""
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
    theirs = Deployment(deployed.s3, deployed.catalog, replace(deployed.settings, bucket="other-bucket"))
    other = other_of(first.bucket)
    other.write(deployed.s3)
    with pytest.raises(WrongWarehouse, match=r"not in s3://other-bucket/warehouse/features.*ORCHARD_CATALOG_DATABASE"):
        theirs.publish(other, write=False)


@pytest.mark.parametrize(
    "name",
    [
        "features",
        *(pytest.param(name, marks=pytest.mark.slow) for name in TABLES if name not in ("features", "images")),
        "images",
    ],
)
def test_a_commit_whose_answer_is_lost_is_made_once(
    deployed: Deployment, through_the_proxy: Deployment, proxy: Proxy, first: Run, second: Run, name: str
) -> None:
    second.write(deployed.s3, features=feature_files(deployed.catalog, deployed.settings), **compaction(deployed))
    proxy.lose_answer_to_update_of(name)
    with pytest.raises(HTTPClientError, match="Connection was closed"):
        through_the_proxy.publish(second, write=False)
    through_the_proxy.publish(second, write=False)
    assert deployed.shows(second)
    assert deployed.table("features").scan().count() == 8
    assert [len(deployed.table(table).snapshots()) for table in TABLES] == [2] * len(TABLES)


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
    done = commits_of_others(deployed, first, 1, monkeypatch)
    deployed.publish(second)
    assert done == ["images"]
    assert deployed.shows(second)


def test_if_every_attempt_fails_the_error_names_the_run_the_table_and_what_to_do(
    deployed: Deployment, first: Run, second: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "FIRST_WAIT_SECONDS", 0.001)
    done = commits_of_others(deployed, first, commit.COMMIT_ATTEMPTS, monkeypatch)
    table = rf"{deployed.settings.catalog_database}\.images"
    message = rf"{re.escape(second.uri)} is not in table {table}: other publishers changed the table .*Clear this task"
    with pytest.raises(CannotCommit, match=message):
        deployed.publish(second)
    assert done == ["images"] * commit.COMMIT_ATTEMPTS
    deployed.publish(second, write=False)
    assert deployed.shows(second)
