"""The published Iceberg tables: rejects, features and embeddings.

The tables refer to the Parquet files of the runs; no data is copied. For each dataset they show the run that read it
last. Readers can rely on this:

- A single table always shows complete runs: one commit adds a run and removes the run that it replaces.
- `embeddings` is committed last. A run is published when that table has a snapshot of it. The snapshot's summary
  contains the ids of the run's snapshots of the other two tables.
- To read several tables together, use the snapshots of one run (`published_runs`, or the run's `summary.json`), or join
  on run_id and path. Three tables need three commits, because Glue has no commit that spans several tables.
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

from orchard.errors import PermanentError
from orchard.settings import Settings

if TYPE_CHECKING:
    import boto3

log = logging.getLogger(__name__)

# Keys of a snapshot's summary.
RUN_URI, RUN_ID = "orchard.run_uri", "orchard.run_id"
DATASET_URI, INGESTED = "orchard.dataset_uri", "orchard.ingested"
# Every run whose files are in the snapshot, as JSON: a RunOrigin by run URI.
LIVE_RUNS = "orchard.live"
# Only in `embeddings`: the ids of the run's snapshots of the other tables, as JSON.
SNAPSHOTS = "orchard.snapshots"


def _schema(**columns: IcebergType) -> Schema:
    fields = (NestedField(number, name, kind, required=False) for number, (name, kind) in enumerate(columns.items(), 1))
    return assign_fresh_schema_ids(Schema(*fields))


_TEXT = StringType()
_FLOATS = ListType(1000, FloatType(), element_required=False)  # the Parquet files allow null elements
# The same as orchard_spark.schemas, which Airflow cannot import. A test compares the two. In commit order.
TABLES: Mapping[str, Schema] = {
    "rejects": _schema(path=_TEXT, label=_TEXT, etag=_TEXT, size=LongType(), reason=_TEXT, message=_TEXT),
    "features": _schema(path=_TEXT, label=_TEXT, etag=_TEXT, sha256=_TEXT, features=_FLOATS, model=_TEXT, run_id=_TEXT),
    "embeddings": _schema(path=_TEXT, label=_TEXT, etag=_TEXT, vector=_FLOATS, pca_model=_TEXT, run_id=_TEXT),
}


class WrongWarehouse(PermanentError):
    """A table of the deployment's database belongs to another deployment."""


@dataclass(frozen=True)
class RunOrigin:
    """The dataset of a run, and the time when the run had read it, in ISO 8601 and UTC."""

    dataset_uri: str
    ingested: str


@dataclass(frozen=True)
class PublishedRun:
    """A run that readers can see, with the id of its snapshot of each table."""

    run_uri: str
    dataset_uri: str
    snapshots: Mapping[str, int]

    @property
    def run_id(self) -> str:
        """The value of the column run_id."""
        return self.run_uri.rsplit("/", 1)[1]


def open_catalog(session: "boto3.Session", settings: Settings) -> GlueCatalog:
    """Open the Glue catalog of the deployment's account and region, with a session's credentials and endpoints."""
    # Each call is sent once. If the response to an UpdateTable is lost, Glue rejects botocore's retry as outdated, and
    # pyiceberg then deletes the files of a commit that has succeeded.
    once = Config(retries={"total_max_attempts": 1})
    region = settings.region
    properties = {"client.region": region}
    credentials = session.get_credentials()
    if credentials is not None:
        frozen = credentials.get_frozen_credentials()
        values = {
            "client.access-key-id": frozen.access_key,
            "client.secret-access-key": frozen.secret_key,
            "client.session-token": frozen.token,
        }
        properties |= {key: value for key, value in values.items() if value}
    # PyArrow reads and writes the files, and ignores AWS_ENDPOINT_URL.
    s3_url = session.client("s3", region_name=region).meta.endpoint_url
    if not (urlsplit(s3_url).hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn")):
        properties["s3.endpoint"] = s3_url
    return GlueCatalog("glue", client=session.client("glue", region_name=region, config=once), **properties)


def open_table(catalog: Catalog, settings: Settings, name: str) -> Table:
    """Load a table of the deployment. Create it if it does not exist.

    Raises:
        WrongWarehouse: the table exists at another location.
    """
    identifier = (settings.catalog_database, name)
    location = f"{settings.warehouse_uri}/{name}"
    try:
        table = catalog.load_table(identifier)
    except NoSuchTableError:
        schema = TABLES[name]
        properties = {
            # The steps' files have no Iceberg field ids.
            TableProperties.DEFAULT_NAME_MAPPING: schema.name_mapping.model_dump_json(),
            # `commit` plans each attempt again. pyiceberg's own retry would reuse the plan of the first attempt.
            TableProperties.COMMIT_NUM_RETRIES: "0",
        }
        catalog.create_namespace_if_not_exists(identifier[0])
        table = catalog.create_table_if_not_exists(identifier, schema, location, properties=properties)
        log.info("created table %s.%s in %s", *identifier, location)
    if table.location() != location:
        raise WrongWarehouse(
            f"table {'.'.join(identifier)} is in {table.location()}, not in {location}: another deployment uses "
            "this database. Set ORCHARD_CATALOG_DATABASE to a name that no other deployment of the account uses"
        )
    return table


def live_runs(table: Table, snapshot: Snapshot | None) -> dict[str, RunOrigin]:
    """Return the runs whose files a snapshot contains, by URI."""
    for ancestor in ancestors_of(snapshot, table.metadata):
        if text := summary_value(ancestor, LIVE_RUNS):
            return {uri: RunOrigin(**origin) for uri, origin in json.loads(text).items()}
    return {}


def summary_value(snapshot: Snapshot, key: str) -> str | None:
    """Return the value of a key of a snapshot's summary."""
    return snapshot.summary[key] if snapshot.summary else None


def published_runs(catalog: Catalog, database: str) -> list[PublishedRun]:
    """Return the published runs, each once, in the order of their last publication.

    Raises:
        pyiceberg.exceptions.NoSuchTableError: no run has been published.
    """
    return _published(catalog.load_table((database, "embeddings")))


def current_run(catalog: Catalog, database: str, dataset_uri: str) -> PublishedRun | None:
    """Return the run of a dataset that the tables show, or None.

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
        uri, dataset_uri, others = (summary_value(snapshot, key) for key in (RUN_URI, DATASET_URI, SNAPSHOTS))
        if uri and dataset_uri and others:
            runs.pop(uri, None)
            runs[uri] = PublishedRun(uri, dataset_uri, json.loads(others) | {"embeddings": snapshot.snapshot_id})
    return list(runs.values())
