import itertools
import json
import re
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import boto3
import duckdb
import pyarrow as pa
import pytest
from botocore.config import Config
from botocore.exceptions import HTTPClientError
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import NoSuchTableError

from orchard.run.publish import publish_run
from orchard.run.summary import InconsistentRun
from orchard.settings import Settings
from orchard.storage import split_uri
from orchard.tables import commit
from orchard.tables.catalog import (
    TABLES,
    PublishedRun,
    WrongWarehouse,
    current_run,
    live_runs,
    open_catalog,
    published_runs,
)
from orchard.tables.commit import CannotCommit, UnknownFiles
from tests.plugins.proxy import Proxy
from tests.plugins.runs import Run, parquet

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@pytest.fixture
def settings(bucket: str) -> Settings:
    """The settings of a deployment with its own bucket and database."""
    return settings_of(bucket)


def settings_of(bucket: str) -> Settings:
    return Settings(bucket=bucket, release="0123456789ab", catalog_database=f"db_{uuid.uuid4().hex}")


@pytest.fixture(scope="module")
def session() -> boto3.Session:
    """A session that all tests share, because a new one reads and parses the large models of S3 and Glue again."""
    return boto3.Session()


@pytest.fixture
def catalog(aws_url: str, session: boto3.Session, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws_url)
    return open_catalog(session, settings)


@pytest.fixture
def proxy(aws_url: str) -> Iterator[Proxy]:
    with Proxy(aws_url).open() as server:
        yield server


@pytest.fixture
def first(bucket: str) -> Run:
    return first_of(bucket)


@pytest.fixture
def second(bucket: str) -> Run:
    return second_of(bucket)


def first_of(bucket: str) -> Run:
    return Run(bucket, "20261122T020000-aaaaaa", f"s3://{bucket}/images/")


def second_of(bucket: str) -> Run:
    return Run(bucket, "20261123T020000-bbbbbb", f"s3://{bucket}/images/", images=7, rejects=2)


class Deployment:
    """Writes and publishes runs, and reads the tables as a user does."""

    def __init__(self, s3: "S3Client", catalog: Catalog, settings: Settings) -> None:
        self.s3 = s3
        self.catalog = catalog
        self.settings = settings

    def publish(self, run: Run, *, write: bool = True) -> dict[str, Any]:
        if write:
            run.write(self.s3)
        return publish_run(self.s3, self.catalog, self.settings, run.plan, "j-1")

    def table(self, name: str) -> Any:
        return self.catalog.load_table((self.settings.catalog_database, name))

    def rows(self, name: str) -> list[dict[str, Any]]:
        return in_order(self.table(name).scan().to_arrow())

    def read(self, run: PublishedRun, name: str) -> list[dict[str, Any]]:
        """Return a run's rows by the rule for readers."""
        rows = f"path LIKE '{run.dataset_uri}%'" + (f" AND run_id = '{run.run_id}'" if name != "rejects" else "")
        return in_order(self.table(name).scan(row_filter=rows, snapshot_id=run.snapshots[name]).to_arrow())

    def current(self, dataset_uri: str) -> PublishedRun:
        run = current_run(self.catalog, self.settings.catalog_database, dataset_uri)
        assert run is not None, dataset_uri
        return run

    def versions(self) -> list[str]:
        """Return the metadata location of each table, which changes with the table. Empty for a missing table."""
        places = ((self.settings.catalog_database, name) for name in TABLES)
        return [
            self.catalog.load_table(place).metadata_location if self.catalog.table_exists(place) else ""
            for place in places
        ]

    def shows(self, run: Run) -> bool:
        """Return whether the tables, and the rule for readers, show the complete run and no other of its dataset."""
        found = self.current(run.dataset_uri)
        return found.run_uri == run.uri and all(
            self.read(found, name)
            == in_order(run.rows(name))
            == [row for row in self.rows(name) if row["path"].startswith(run.dataset_uri)]
            for name in TABLES
        )


def in_order(table: pa.Table) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = table.sort_by("path").to_pylist()
    return rows


@pytest.fixture
def deployed(s3: "S3Client", catalog: Catalog, settings: Settings) -> Deployment:
    return Deployment(s3, catalog, settings)


@dataclass(frozen=True)
class Published:
    """A deployment with two published runs of one dataset, that no test changes."""

    deployed: Deployment
    first: Run
    second: Run
    before: PublishedRun
    """The first run, as readers found it before the second was published."""
    seen_before: dict[str, list[dict[str, Any]]]
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
    settings, first, second = settings_of(bucket), first_of(bucket), second_of(bucket)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", aws_url)
        deployed = Deployment(s3, open_catalog(session, settings), settings)
    summary = deployed.publish(first)
    content = s3.get_object(Bucket=bucket, Key=f"{first.prefix}/summary.json")["Body"].read()
    before = deployed.current(first.dataset_uri)
    seen, shown = {name: deployed.rows(name) for name in TABLES}, deployed.shows(first)
    deployed.publish(second)
    return Published(deployed, first, second, before, seen, shown, summary, json.loads(content))


def test_a_published_run_can_be_read_from_the_tables_with_all_columns(published: Published) -> None:
    for name in TABLES:
        assert published.seen_before[name] == in_order(published.first.rows(name))
    assert published.shown_before


def test_the_tables_refer_to_the_files_of_the_run_and_copy_no_data(published: Published) -> None:
    deployed, first, second = published.deployed, published.first, published.second
    for name in TABLES:
        files = {task.file.file_path for task in deployed.table(name).scan().plan_files()}
        listed = deployed.s3.list_objects_v2(Bucket=first.bucket, Prefix=f"{second.prefix}/{name}/part-")["Contents"]
        assert files <= {f"s3://{first.bucket}/{item['Key']}" for item in listed}
    kept = deployed.s3.list_objects_v2(Bucket=first.bucket, Prefix="warehouse/")["Contents"]
    assert {item["Key"].rsplit(".", 1)[1] for item in kept} == {"avro", "json"}


def test_the_summary_contains_the_run_its_snapshots_and_its_counts(published: Published) -> None:
    deployed, first, summary, found = published.deployed, published.first, published.summary, published.before
    assert published.summary_file == summary
    assert (summary["run_id"], summary["dataset_uri"], summary["cluster_id"]) == (first.name, first.dataset_uri, "j-1")
    assert {name: table["rows"] for name, table in summary["tables"].items()} == {
        "rejects": 1,
        "features": 5,
        "embeddings": 5,
    }
    assert {name: int(table["snapshot_id"]) for name, table in summary["tables"].items()} == found.snapshots
    for name in TABLES:
        snapshot = deployed.table(name).snapshot_by_id(found.snapshots[name])
        assert snapshot.summary["orchard.run_id"] == first.name


def test_a_run_replaces_the_previous_one_which_stays_readable_by_its_snapshots(published: Published) -> None:
    deployed, first, second = published.deployed, published.first, published.second
    assert deployed.shows(second)
    assert [deployed.read(published.before, name) for name in TABLES] == [in_order(first.rows(name)) for name in TABLES]
    names = [run.run_id for run in published_runs(deployed.catalog, deployed.settings.catalog_database)]
    assert names == [first.name, second.name]


def test_no_snapshot_of_a_table_shows_a_dataset_without_a_run(published: Published) -> None:
    for name in TABLES:
        table = published.deployed.table(name)
        counts = [table.scan(snapshot_id=snapshot.snapshot_id).count() for snapshot in table.snapshots()]
        assert counts == [run.rows(name).num_rows for run in (published.first, published.second)]


@pytest.mark.parametrize(
    ("prefix", "folder"),
    [("images2/", "images2"), ("images/Kiwi/", "images-Kiwi"), ("images-/", "images"), ("", "bucket")],
)
def test_the_rows_of_another_dataset_stay_even_if_its_name_is_similar(
    deployed: Deployment, first: Run, prefix: str, folder: str
) -> None:
    other = Run(first.bucket, "20261124T020000-cccccc", f"s3://{first.bucket}/{prefix}", images=3, folder=folder)
    deployed.publish(first)
    deployed.publish(other)
    for run in (first, other):
        found = deployed.current(run.dataset_uri)
        for name in ("features", "embeddings"):
            assert deployed.read(found, name) == in_order(run.rows(name))
    assert len(deployed.rows("embeddings")) == 8


def test_publishing_a_run_again_changes_nothing(deployed: Deployment, first: Run) -> None:
    summary = deployed.publish(first)
    versions = deployed.versions()
    assert deployed.publish(first, write=False) == summary
    assert deployed.versions() == versions


def test_publishing_a_run_again_after_a_newer_one_changes_nothing(published: Published) -> None:
    versions = published.deployed.versions()
    assert published.deployed.publish(published.first, write=False) == published.summary
    assert published.deployed.versions() == versions


def test_a_run_that_read_the_dataset_earlier_is_committed_but_does_not_replace_the_newer_run(
    deployed: Deployment, first: Run, second: Run
) -> None:
    first.write(deployed.s3)
    time.sleep(1.1)  # S3 rounds times to seconds
    deployed.publish(second)
    summary = deployed.publish(first, write=False)
    assert deployed.shows(second)
    late = {run.run_id: run for run in published_runs(deployed.catalog, deployed.settings.catalog_database)}[first.name]
    assert [deployed.read(late, name) for name in TABLES] == [in_order(first.rows(name)) for name in TABLES]
    assert deployed.publish(first, write=False) == summary


def roll_back(deployed: Deployment, run: PublishedRun) -> None:
    """Show the state after a run again, as the README says."""
    for name in TABLES:
        deployed.table(name).manage_snapshots().rollback_to_snapshot(run.snapshots[name]).commit()


def test_a_run_that_was_rolled_away_is_shown_again_when_it_is_published_again(
    deployed: Deployment, first: Run, second: Run
) -> None:
    deployed.publish(first)
    before = deployed.current(first.dataset_uri)
    deployed.publish(second)
    roll_back(deployed, before)
    assert deployed.shows(first)
    summary = deployed.publish(second, write=False)
    assert deployed.shows(second)
    found = deployed.current(second.dataset_uri)
    assert {name: int(table["snapshot_id"]) for name, table in summary["tables"].items()} == found.snapshots
    versions = deployed.versions()
    assert deployed.publish(second, write=False) == summary
    assert deployed.versions() == versions


def test_publishing_the_run_that_a_rollback_shows_changes_nothing(
    deployed: Deployment, first: Run, second: Run
) -> None:
    summary = deployed.publish(first)
    before = deployed.current(first.dataset_uri)
    deployed.publish(second)
    roll_back(deployed, before)
    versions = deployed.versions()
    assert deployed.publish(first, write=False) == summary
    assert deployed.versions() == versions


def test_a_rollback_and_a_publication_again_do_not_touch_other_datasets(
    deployed: Deployment, first: Run, second: Run
) -> None:
    other = Run(first.bucket, "20261124T020000-cccccc", f"s3://{first.bucket}/apples/", images=3, folder="apples")
    deployed.publish(first)
    deployed.publish(other)
    before = deployed.current(other.dataset_uri)
    deployed.publish(second)
    roll_back(deployed, before)
    deployed.publish(second, write=False)
    assert deployed.shows(second)
    assert deployed.shows(other)


def test_a_run_that_was_rolled_away_stays_hidden_behind_one_that_read_the_dataset_later(
    deployed: Deployment, first: Run, second: Run
) -> None:
    third = Run(first.bucket, "20261124T020000-cccccc", first.dataset_uri, images=4)
    deployed.publish(first)
    before = deployed.current(first.dataset_uri)
    summary = deployed.publish(second)
    roll_back(deployed, before)
    time.sleep(1.1)  # S3 rounds times to seconds
    deployed.publish(third)
    versions = deployed.versions()
    assert deployed.publish(second, write=False) == summary
    assert deployed.versions() == versions
    assert deployed.shows(third)


def test_a_late_run_is_shown_when_it_is_published_again_after_the_newer_run_was_rolled_away(
    deployed: Deployment, first: Run, second: Run
) -> None:
    oldest = Run(first.bucket, "20261121T020000-dddddd", first.dataset_uri, images=3)
    deployed.publish(oldest)
    before = deployed.current(oldest.dataset_uri)
    first.write(deployed.s3)
    time.sleep(1.1)
    deployed.publish(second)
    deployed.publish(first, write=False)
    assert deployed.shows(second)
    roll_back(deployed, before)
    deployed.publish(first, write=False)
    assert deployed.shows(first)


def test_a_superseded_run_with_redone_steps_is_committed_once(deployed: Deployment, first: Run, second: Run) -> None:
    deployed.publish(first)
    time.sleep(1.1)
    deployed.publish(second)
    first.write(deployed.s3, steps=("features", "pca"))
    summary = deployed.publish(first, write=False)
    versions = deployed.versions()
    assert deployed.publish(first, write=False) == summary
    assert deployed.versions() == versions
    assert deployed.shows(second)


def stale_files(deployed: Deployment) -> list[str]:
    """Return the files whose size in the tables is not their size on S3."""
    files = [task.file for name in TABLES for task in deployed.table(name).scan().plan_files()]

    def size(uri: str) -> int:
        bucket, key = split_uri(uri)
        return deployed.s3.head_object(Bucket=bucket, Key=key)["ContentLength"]

    return [file.file_path for file in files if size(file.file_path) != file.file_size_in_bytes]


def test_a_run_with_redone_steps_is_published_once_with_the_sizes_of_its_new_files(
    deployed: Deployment, first: Run
) -> None:
    deployed.publish(first)
    first.write(deployed.s3, steps=("features", "pca"))
    deployed.publish(first, write=False)
    assert deployed.shows(first)
    assert stale_files(deployed) == []
    runs = published_runs(deployed.catalog, deployed.settings.catalog_database)
    assert [run.run_id for run in runs] == [first.name]


def test_a_run_that_is_redone_after_its_dataset_changed_has_the_counts_and_sizes_of_its_new_files(
    deployed: Deployment, first: Run
) -> None:
    deployed.publish(first)
    changed = replace(first, images=first.images + 3)
    deployed.publish(changed)
    assert deployed.table("features").scan().count() == changed.images
    assert stale_files(deployed) == []
    assert deployed.shows(changed)


def test_a_run_without_rejects_removes_those_of_the_previous_run(deployed: Deployment, first: Run) -> None:
    deployed.publish(first)
    clean = Run(first.bucket, "20261123T020000-dddddd", first.dataset_uri, rejects=0)
    deployed.publish(clean)
    assert deployed.rows("rejects") == []
    assert deployed.shows(clean)


def test_a_file_that_no_step_lists_is_not_published(deployed: Deployment, first: Run) -> None:
    first.write(deployed.s3)
    first.put(deployed.s3, "embeddings/part-of-another-attempt.parquet", parquet(first.rows("embeddings")))
    deployed.publish(first, write=False)
    assert deployed.shows(first)


def test_files_with_fewer_rows_than_the_step_counts_are_reported_before_any_table_changes(
    deployed: Deployment, first: Run
) -> None:
    odd = replace(first, changed_metrics={"ingest": {"rejects": 2, "rows_in": 7}})
    with pytest.raises(InconsistentRun, match="the 1 files of rejects contain 1 rows, but the step's metrics count 2"):
        deployed.publish(odd)
    assert [deployed.table(name).snapshots() for name in TABLES] == [[], [], []]
    assert "Contents" not in deployed.s3.list_objects_v2(Bucket=first.bucket, Prefix=f"{first.prefix}/summary.json")


@pytest.fixture
def features_key(deployed: Deployment, first: Run) -> str:
    """The key of a file of a run's features. The run is not published."""
    first.write(deployed.s3)
    return split_uri(first.files(deployed.s3, "features")[0]["uri"])[1]


def test_a_listed_file_with_other_columns_is_named(deployed: Deployment, first: Run, features_key: str) -> None:
    wrong = first.rows("features").slice(0, 2).rename_columns([*first.rows("features").column_names[:-1], "run"])
    deployed.s3.put_object(Bucket=first.bucket, Key=features_key, Body=parquet(wrong))
    with pytest.raises(InconsistentRun, match=rf"{features_key} does not fit table"):
        deployed.publish(first, write=False)


def test_a_listed_file_that_has_changed_is_named(deployed: Deployment, first: Run, features_key: str) -> None:
    deployed.s3.put_object(Bucket=first.bucket, Key=features_key, Body=parquet(first.rows("features")))
    with pytest.raises(InconsistentRun, match=rf"{features_key} has 5 rows and \d+ bytes, but its step lists 3 rows"):
        deployed.publish(first, write=False)


def test_a_listed_file_that_is_missing_is_named(deployed: Deployment, first: Run, features_key: str) -> None:
    deployed.s3.delete_object(Bucket=first.bucket, Key=features_key)
    with pytest.raises(InconsistentRun, match=rf"{features_key} does not exist, but its step lists it"):
        deployed.publish(first, write=False)


def test_a_run_whose_steps_disagree_is_not_published(deployed: Deployment, first: Run) -> None:
    odd = Run(first.bucket, first.name, first.dataset_uri, changed_metrics={"pca": {"rows_in": 4}})
    with pytest.raises(InconsistentRun, match=f"{first.uri} is not published"):
        deployed.publish(odd)
    with pytest.raises(NoSuchTableError):
        deployed.table("embeddings")


def test_the_tables_of_another_deployment_are_not_touched(
    deployed: Deployment, first: Run, s3: "S3Client", catalog: Catalog
) -> None:
    deployed.publish(first)
    theirs = Settings(bucket="other-bucket", release="1", catalog_database=deployed.settings.catalog_database)
    with pytest.raises(WrongWarehouse, match=r"not in s3://other-bucket/warehouse/rejects.*ORCHARD_CATALOG_DATABASE"):
        publish_run(s3, catalog, theirs, first.plan, "j-1")


def test_a_compacted_table_is_reported_and_not_changed(deployed: Deployment, first: Run, second: Run) -> None:
    deployed.publish(first)
    table = deployed.table("features")
    table.overwrite(table.scan().to_arrow())
    with pytest.raises(UnknownFiles, match=r"warehouse/features/data/.*which none of its runs wrote"):
        deployed.publish(second)
    assert deployed.rows("features") == in_order(first.rows("features"))
    table.manage_snapshots().rollback_to_snapshot(deployed.current(first.dataset_uri).snapshots["features"]).commit()
    deployed.publish(second, write=False)
    assert deployed.shows(second)


def test_duckdb_and_pandas_read_the_tables(published: Published) -> None:
    deployed, second = published.deployed, published.second
    embeddings = deployed.table("embeddings").scan().to_arrow()
    counted = duckdb.sql("SELECT label, run_id, count(*), max(len(vector)) FROM embeddings GROUP BY ALL")
    assert counted is not None
    assert counted.fetchall() == [("Kiwi", second.name, 7, 2)]
    assert embeddings.num_rows == len(deployed.table("embeddings").scan().to_pandas()) == 7


def impatient(service: str, url: str) -> Any:
    """Return a client that does not retry: a process that died would not retry either."""
    config = Config(retries={"total_max_attempts": 1})
    return boto3.client(service, endpoint_url=url, config=config)  # type: ignore[call-overload]


@pytest.fixture
def through_the_proxy(
    proxy: Proxy, session: boto3.Session, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> Deployment:
    """The same deployment, whose requests all go through the proxy."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    return Deployment(impatient("s3", proxy.url), open_catalog(session, settings), settings)


def test_if_publish_stops_before_any_of_its_changes_readers_see_the_old_or_the_new_run_and_a_retry_completes_it(
    deployed: Deployment, through_the_proxy: Deployment, proxy: Proxy, bucket: str, record_property: Any
) -> None:
    def run(number: int) -> Run:
        images = 1 + number % 5
        made = Run(bucket, f"20261122T02{number // 60:02d}{number % 60:02d}-000000", f"s3://{bucket}/images/", images)
        made.write(deployed.s3)
        return made

    old, new, verified = None, run(0), None
    for change in itertools.count(1):
        proxy.shut_at(change)
        try:
            through_the_proxy.publish(new, write=False)
        except Exception:
            proxy.reopen()
        else:
            break
        versions = deployed.versions()
        if versions == verified or "" in versions:
            continue  # no table has changed: the next round is the retry
        if old is not None:
            seen = deployed.current(old.dataset_uri)
            (shown,) = [run for run in (old, new) if run.uri == seen.run_uri]
            for name in TABLES:
                assert deployed.read(seen, name) == in_order(shown.rows(name)), f"{name}, stopped at change {change}"
                whole = (in_order(old.rows(name)), in_order(new.rows(name)))
                assert deployed.rows(name) in whole, f"{name}, stopped at change {change}"
        deployed.publish(new, write=False)
        assert deployed.shows(new), f"stopped at change {change}"
        old, new, verified = new, run(change), deployed.versions()
    assert deployed.shows(new)
    assert change > 15
    record_property("publish was stopped before each of its changes", change - 1)


@pytest.mark.parametrize("name", list(TABLES))
def test_a_commit_whose_answer_is_lost_is_made_once(
    deployed: Deployment, through_the_proxy: Deployment, proxy: Proxy, first: Run, second: Run, name: str
) -> None:
    deployed.publish(first)
    proxy.lose_answer_to_update_of(name)
    second.write(deployed.s3)
    with pytest.raises(HTTPClientError, match="Connection was closed"):
        through_the_proxy.publish(second, write=False)
    through_the_proxy.publish(second, write=False)
    assert deployed.shows(second)
    assert [len(deployed.table(table).snapshots()) for table in TABLES] == [2, 2, 2]


def publish_at_once(session: boto3.Session, deployed: Deployment, url: str, runs: list[Run]) -> list[Any]:
    """Publish each run from its own thread with its own clients. Return the summaries."""
    start = threading.Barrier(len(runs))

    def publish_one(own: Deployment, run: Run) -> Any:
        start.wait(timeout=30)
        return own.publish(run, write=False)

    for run in runs:
        run.write(deployed.s3)
    settings = deployed.settings
    # A session may be used by one thread only, but its clients by any.
    publishers = [Deployment(impatient("s3", url), open_catalog(session, settings), settings) for _ in runs]
    with ThreadPoolExecutor(len(runs)) as pool:
        return list(pool.map(publish_one, publishers, runs))


@pytest.mark.parametrize("tables_are_there", [False, True], ids=["first-ever", "later"])
@pytest.mark.parametrize("same_dataset", [False, True], ids=["two-datasets", "one-dataset"])
def test_two_runs_that_are_published_at_the_same_time_are_both_committed(
    deployed: Deployment,
    through_the_proxy: Deployment,
    proxy: Proxy,
    session: boto3.Session,
    bucket: str,
    same_dataset: bool,
    tables_are_there: bool,
) -> None:
    uris = [f"s3://{bucket}/images/", f"s3://{bucket}/{'images' if same_dataset else 'apples'}/"]
    runs = [Run(bucket, f"20261122T02000{n}-aaaaaa", uri, images=3 + n) for n, uri in enumerate(uris)]
    if tables_are_there:
        for uri in set(uris):
            deployed.publish(Run(bucket, "20261121T020000-bbbbbb", uri, folder=uri.split("/")[3]))
    proxy.let_updates_meet(2)
    publish_at_once(session, through_the_proxy, proxy.url, runs)
    assert proxy.refused_updates >= 1
    committed = {run.run_uri: run for run in published_runs(deployed.catalog, deployed.settings.catalog_database)}
    for run in runs:
        for name in TABLES:
            assert deployed.read(committed[run.uri], name) == in_order(run.rows(name))
    assert deployed.shows(runs[1])
    assert same_dataset or deployed.shows(runs[0])


def commits_of_others(deployed: Deployment, run: Run, times: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make another commit between a publisher's read of a table and its own commit, this many times in total."""
    done: list[str] = []

    def look(table: Any, snapshot: Any) -> Any:
        found = live_runs(table, snapshot)
        if len(done) < times:
            done.append(table.name()[1])
            deployed.table(done[-1]).append(run.rows(done[-1]).slice(0, 0))
        return found

    monkeypatch.setattr(commit, "live_runs", look)
    monkeypatch.setattr(commit, "FIRST_WAIT_SECONDS", 0)
    return done


@pytest.mark.parametrize("is_late", [False, True], ids=["shown", "not-shown"])
def test_a_commit_that_loses_to_another_is_planned_again(
    deployed: Deployment, first: Run, second: Run, is_late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    first.write(deployed.s3)
    time.sleep(1.1)
    second.write(deployed.s3)
    before, run = (second, first) if is_late else (first, second)
    deployed.publish(before, write=False)
    done = commits_of_others(deployed, before, 1, monkeypatch)
    deployed.publish(run, write=False)
    assert done == ["rejects"]
    assert deployed.shows(second)
    committed = published_runs(deployed.catalog, deployed.settings.catalog_database)[-1]
    assert [deployed.read(committed, name) for name in TABLES] == [in_order(run.rows(name)) for name in TABLES]


def test_if_every_attempt_fails_the_error_names_the_run_the_table_and_what_to_do(
    deployed: Deployment, first: Run, second: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployed.publish(first)
    done = commits_of_others(deployed, first, commit.COMMIT_ATTEMPTS, monkeypatch)
    table = rf"{deployed.settings.catalog_database}\.rejects"
    message = rf"{re.escape(second.uri)} is not published: other publishers changed table {table} "
    with pytest.raises(CannotCommit, match=message):
        deployed.publish(second)
    assert done == ["rejects"] * commit.COMMIT_ATTEMPTS
    deployed.publish(second, write=False)
    assert deployed.shows(second)
