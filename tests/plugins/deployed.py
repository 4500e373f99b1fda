"""A deployment's tables in tests, and its fixtures: it publishes runs, and reads the tables as a user does."""

import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import boto3
import pyarrow as pa
import pytest
from pyiceberg.catalog import Catalog
from pyiceberg.io.pyarrow import parquet_file_to_data_file
from pyiceberg.table import Table

from orchard.run.publish import publish_run
from orchard.run.sentence import UNKNOWN, Spent
from orchard.settings import Settings
from orchard.tables.catalog import TABLES, PublishedRun, current_features, open_catalog, published_runs
from orchard.tables.state import feature_files
from tests.conftest import new_bucket
from tests.plugins.runs import Run, write_file

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# The tables in which a run replaces the rows of its dataset.
REPLACED = ("images", "rejects", "embeddings")


def settings_of(bucket: str, keep_scratch_days: int = 1) -> Settings:
    """Return the settings of a deployment with its own database."""
    database = f"db_{uuid.uuid4().hex}"
    return Settings(bucket=bucket, release="1", catalog_database=database, keep_scratch_days=keep_scratch_days)


class Deployment:
    """Writes and publishes runs, and reads the tables as a user does."""

    def __init__(self, s3: "S3Client", catalog: Catalog, settings: Settings) -> None:
        self.s3 = s3
        self.catalog = catalog
        self.settings = settings

    def publish(self, run: Run, *, write: bool = True, spent: Spent = UNKNOWN, **written: Any) -> dict[str, Any]:
        if write:
            run.write(self.s3, features=feature_files(self.catalog, self.settings), **written)
        return publish_run(self.s3, self.catalog, self.settings, run.plan, "j-1", spent)

    def table(self, name: str) -> Table:
        return self.catalog.load_table((self.settings.catalog_database, name))

    def rows(self, name: str, run: Run | None = None, snapshot_id: int | None = None) -> list[dict[str, Any]]:
        """Return the rows of a table, or of the dataset of a run, in order."""
        rows = in_order(self.table(name).scan(snapshot_id=snapshot_id).to_arrow())
        return rows if run is None else [row for row in rows if row["dataset"] == run.dataset_uri]

    def versions(self) -> list[str]:
        """Return the metadata location of each table, which changes with the table. Empty for a missing table."""
        places = ((self.settings.catalog_database, name) for name in TABLES)
        return [
            self.catalog.load_table(place).metadata_location if self.catalog.table_exists(place) else ""
            for place in places
        ]

    def shows(self, run: Run) -> bool:
        """Return whether the tables show the run completely, and no other rows of its dataset."""
        return (
            all(self.rows(name, run) == in_order(run.rows(name)) for name in REPLACED)
            and in_order(run.rows("pca_models"))[0] in self.rows("pca_models")
            and run.name in [published.run_id for published in self.runs()]
            and self.joins(run)
        )

    def joins(self, run: Run) -> bool:
        """Return whether each image of a run has its features exactly once."""
        batches = current_features(self.catalog, self.settings.catalog_database, run.dataset_uri)
        found = in_order(pa.Table.from_batches(batches))
        images = in_order(run.rows("images"))
        return [(row["path"], row["sha256"]) for row in found] == [(row["path"], row["sha256"]) for row in images] and (
            [row["features"][1] for row in found] == [float(int(row["sha256"], 16)) for row in images]
        )

    def runs(self) -> list[PublishedRun]:
        return published_runs(self.catalog, self.settings.catalog_database)

    def paths(self, name: str) -> set[str]:
        """Return the files of a table."""
        return {task.file.file_path for task in self.table(name).scan().plan_files()}


def compaction(deployed: Deployment) -> dict[str, Any]:
    """Write all rows of `features` into one new file, as the step `pca` does."""
    table = deployed.table("features")
    replaced = feature_files(deployed.catalog, deployed.settings)
    rows = table.scan().to_arrow().cast(first_of("b").rows("features").schema)
    return {"replaced": replaced, "compacted": [write_file(deployed.s3, f"{table.location()}/data", rows)]}


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


def in_order(table: pa.Table) -> list[dict[str, Any]]:
    """Return the rows of a table in an order that does not depend on its files."""
    keys = [name for name in ("dataset", "path", "sha256", "pca_model", "run_id") if name in table.column_names]
    rows: list[dict[str, Any]] = table.sort_by([(key, "ascending") for key in keys]).to_pylist()
    return rows


def new_deployment(s3: "S3Client", session: boto3.Session, aws_url: str, *, keep_scratch_days: int = 1) -> Deployment:
    """Return a deployment with its own bucket, for the tests of a module."""
    settings = settings_of(new_bucket(s3), keep_scratch_days)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", aws_url)
        return Deployment(s3, open_catalog(session, settings), settings)


def copy_of(deployed: Deployment) -> Settings:
    """Return the settings of another deployment in the same bucket, whose tables are now as those of the given one.

    The two have common files, which Iceberg never changes. What one of them commits is not in the other. This takes a
    tenth of the time of a publication.
    """
    copy = replace(deployed.settings, catalog_database=f"db_{uuid.uuid4().hex}")
    deployed.catalog.create_namespace(copy.catalog_database)
    for name in TABLES:
        deployed.catalog.register_table((copy.catalog_database, name), deployed.table(name).metadata_location)
    return copy


@pytest.fixture(scope="module")
def origin() -> Deployment | None:
    """A deployment that no test of a module changes: each works on a copy. A module without one starts anew."""
    return None


@pytest.fixture
def bucket(origin: Deployment | None, s3: "S3Client") -> str:
    """The bucket of the origin, or a new one for each test."""
    return new_bucket(s3) if origin is None else origin.settings.bucket


@pytest.fixture
def settings(origin: Deployment | None, bucket: str) -> Settings:
    """The settings of a copy of the origin, or of a deployment with its own bucket and database."""
    return settings_of(bucket) if origin is None else copy_of(origin)


@pytest.fixture(scope="module")
def session() -> boto3.Session:
    """A session that all tests share, because a new one reads and parses the large models of S3 and Glue again."""
    return boto3.Session()


@pytest.fixture
def catalog(aws_url: str, session: boto3.Session, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws_url)
    return open_catalog(session, settings)


@pytest.fixture
def first(bucket: str) -> Run:
    return first_of(bucket)


@pytest.fixture
def second(first: Run) -> Run:
    return second_of(first)


def first_of(bucket: str) -> Run:
    return Run(bucket, "20261122T020000-aaaaaa", f"s3://{bucket}/images/", copies=1)


def second_of(first: Run) -> Run:
    """A run of the same dataset: three images stay, four come, two objects are refused, one of them again."""
    name = "20261123T020000-bbbbbb"
    return Run(first.bucket, name, first.dataset_uri, images=7, rejects=2, base=first, kept=3, kept_rejects=1)


def other_of(bucket: str, **changes: Any) -> Run:
    """A run of another dataset."""
    run = Run(bucket, "20261124T020000-cccccc", f"s3://{bucket}/apples/", images=3, folder="apples")
    return replace(run, **changes)


@pytest.fixture
def deployed(s3: "S3Client", catalog: Catalog, settings: Settings) -> Deployment:
    return Deployment(s3, catalog, settings)
