"""A deployment's tables in tests, and its fixtures: it publishes runs, and reads the tables as a user does."""

import uuid
from typing import TYPE_CHECKING, Any

import boto3
import pyarrow as pa
import pytest
from pyiceberg.catalog import Catalog
from pyiceberg.table import Table

from orchard.run.publish import publish_run
from orchard.settings import Settings
from orchard.tables.catalog import TABLES, PublishedRun, current_features, open_catalog, published_runs
from orchard.tables.state import feature_files
from tests.plugins.runs import Run

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

    def publish(self, run: Run, *, write: bool = True, **written: Any) -> dict[str, Any]:
        if write:
            run.write(self.s3, features=feature_files(self.catalog, self.settings), **written)
        return publish_run(self.s3, self.catalog, self.settings, run.plan, "j-1")

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


def in_order(table: pa.Table) -> list[dict[str, Any]]:
    """Return the rows of a table in an order that does not depend on its files."""
    keys = [name for name in ("dataset", "path", "sha256", "pca_model", "run_id") if name in table.column_names]
    rows: list[dict[str, Any]] = table.sort_by([(key, "ascending") for key in keys]).to_pylist()
    return rows


@pytest.fixture
def settings(bucket: str) -> Settings:
    """The settings of a deployment with its own bucket and database."""
    return settings_of(bucket)


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


@pytest.fixture
def deployed(s3: "S3Client", catalog: Catalog, settings: Settings) -> Deployment:
    return Deployment(s3, catalog, settings)
