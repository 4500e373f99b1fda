"""Publish runs as Iceberg tables in the Glue catalog: rejects, features, embeddings.

The tables refer to the Parquet files of the runs; nothing is copied. Of each dataset they show the run that read it
last. What a reader may rely on:

- One table always shows whole runs: each is added, and the one before it removed, by one commit.
- `embeddings` is committed last: a run is published when that table has a snapshot of it. The summary of this snapshot
  names the run's snapshots of the other two tables.
- So whoever reads more than one table takes the snapshots of one run (`published_runs`, or the run's `summary.json`),
  or joins them on run_id and path. Three tables have three commits, and no catalog has one for all.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from botocore.config import Config
from pyiceberg.catalog import Catalog
from pyiceberg.catalog.glue import GlueCatalog
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.schema import Schema, assign_fresh_schema_ids
from pyiceberg.table import Table, TableProperties
from pyiceberg.table.snapshots import Snapshot, ancestors_of
from pyiceberg.types import FloatType, IcebergType, ListType, LongType, NestedField, StringType

from orchard.errors import WillNotHeal
from orchard.settings import Settings

if TYPE_CHECKING:
    import boto3

log = logging.getLogger(__name__)

# Keys of a snapshot's summary.
RUN_URI, RUN_ID = "orchard.run_uri", "orchard.run_id"
DATASET_URI, INGESTED = "orchard.dataset_uri", "orchard.ingested"
# Every run whose files the snapshot holds, as JSON: an Origin by run URI.
LIVE = "orchard.live"
# Of `embeddings` only: the run's snapshots of the other tables, as JSON.
SNAPSHOTS = "orchard.snapshots"


def _schema(**columns: IcebergType) -> Schema:
    fields = (NestedField(number, name, kind, required=False) for number, (name, kind) in enumerate(columns.items(), 1))
    return assign_fresh_schema_ids(Schema(*fields))


_TEXT = StringType()
_FLOATS = ListType(1000, FloatType(), element_required=False)  # Spark's files do not promise that it is
# As orchard_spark.tables, which Airflow cannot import; a test compares them. In the order of the commits.
TABLES: Mapping[str, Schema] = {
    "rejects": _schema(path=_TEXT, label=_TEXT, etag=_TEXT, size=LongType(), stage=_TEXT, reason=_TEXT, message=_TEXT),
    "features": _schema(path=_TEXT, label=_TEXT, etag=_TEXT, sha256=_TEXT, features=_FLOATS, model=_TEXT, run_id=_TEXT),
    "embeddings": _schema(path=_TEXT, label=_TEXT, etag=_TEXT, vector=_FLOATS, pca_model=_TEXT, run_id=_TEXT),
}


class WrongWarehouse(WillNotHeal):
    """A table of the deployment's database belongs to another deployment."""


@dataclass(frozen=True)
class Origin:
    """Where the files of a run come from: its dataset, and when it had read it, in ISO 8601 and UTC."""

    dataset_uri: str
    ingested: str


@dataclass(frozen=True)
class PublishedRun:
    """A run that readers may see, and the id of its snapshot of each table."""

    run_uri: str
    dataset_uri: str
    snapshots: Mapping[str, int]

    @property
    def run_id(self) -> str:
        """What the column run_id holds."""
        return self.run_uri.rsplit("/", 1)[1]


def open_catalog(session: "boto3.Session", settings: Settings) -> GlueCatalog:
    """The Glue catalog of the deployment's account and region, with a session's credentials and endpoints."""
    # Each call is sent once. botocore would repeat an UpdateTable whose answer was lost, Glue would refuse the second
    # one as outdated, and pyiceberg would delete the files of the commit that has landed.
    once = Config(retries={"total_max_attempts": 1})
    region = settings.region
    properties = {"client.region": region}
    credentials = session.get_credentials()
    if credentials is not None:
        frozen = credentials.get_frozen_credentials()
        given = {
            "client.access-key-id": frozen.access_key,
            "client.secret-access-key": frozen.secret_key,
            "client.session-token": frozen.token,
        }
        properties |= {key: value for key, value in given.items() if value}
    # PyArrow, which reads and writes the files, overlooks AWS_ENDPOINT_URL.
    s3_url = session.client("s3", region_name=region).meta.endpoint_url
    if not (urlsplit(s3_url).hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn")):
        properties["s3.endpoint"] = s3_url
    return GlueCatalog("glue", client=session.client("glue", region_name=region, config=once), **properties)


def open_table(catalog: Catalog, settings: Settings, name: str) -> Table:
    """A table of the deployment, made if it is not there.

    Raises:
        WrongWarehouse: it is there, but lies elsewhere.
    """
    identifier = (settings.catalog_database, name)
    location = f"{settings.warehouse_uri}/{name}"
    try:
        table = catalog.load_table(identifier)
    except NoSuchTableError:
        schema = TABLES[name]
        properties = {
            # Spark's files have no field ids.
            TableProperties.DEFAULT_NAME_MAPPING: schema.name_mapping.model_dump_json(),
            # What to remove is found anew for each attempt, by `commit`; a retry of pyiceberg's keeps its first plan.
            TableProperties.COMMIT_NUM_RETRIES: "0",
        }
        catalog.create_namespace_if_not_exists(identifier[0])
        table = catalog.create_table_if_not_exists(identifier, schema, location, properties=properties)
        log.info("made table %s.%s in %s", *identifier, location)
    if table.location() != location:
        raise WrongWarehouse(
            f"table {'.'.join(identifier)} lies in {table.location()}, not in {location}: another deployment publishes "
            "there. Set ORCHARD_CATALOG_DATABASE to a name that no other deployment of the account has"
        )
    return table


def live_runs(table: Table, snapshot: Snapshot | None) -> dict[str, Origin]:
    """The runs whose files a snapshot holds, by URI."""
    for ancestor in ancestors_of(snapshot, table.metadata):
        if text := fact(ancestor, LIVE):
            return {uri: Origin(**origin) for uri, origin in json.loads(text).items()}
    return {}


def fact(snapshot: Snapshot, key: str) -> str | None:
    """What a snapshot's summary says under a key."""
    return snapshot.summary[key] if snapshot.summary else None


def published_runs(catalog: Catalog, database: str) -> list[PublishedRun]:
    """The runs that are published, in the order in which they were; one that was done once more is there once, last.

    Raises:
        pyiceberg.exceptions.NoSuchTableError: no run has been published.
    """
    return _published(catalog.load_table((database, "embeddings")))


def current_run(catalog: Catalog, database: str, dataset_uri: str) -> PublishedRun | None:
    """The run of a dataset that the tables show, if there is one.

    Raises:
        pyiceberg.exceptions.NoSuchTableError: no run has been published.
    """
    table = catalog.load_table((database, "embeddings"))
    live = live_runs(table, table.current_snapshot())
    shown = {uri for uri, origin in live.items() if origin.dataset_uri == dataset_uri}
    return next((run for run in _published(table) if run.run_uri in shown), None)


def _published(embeddings: Table) -> list[PublishedRun]:
    runs: dict[str, PublishedRun] = {}
    for snapshot in embeddings.snapshots():
        uri, dataset_uri, others = (fact(snapshot, key) for key in (RUN_URI, DATASET_URI, SNAPSHOTS))
        if uri and dataset_uri and others:
            runs.pop(uri, None)
            runs[uri] = PublishedRun(uri, dataset_uri, json.loads(others) | {"embeddings": snapshot.snapshot_id})
    return list(runs.values())
