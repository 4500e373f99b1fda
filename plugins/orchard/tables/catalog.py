"""The published Iceberg tables: what they contain, and how the tasks open them.

| table | a row per | changes by |
|---|---|---|
| features | content, model and run that computed it | runs append the vectors of contents that no run has seen before |
| images | readable image that a dataset holds now | a run replaces the rows of its dataset |
| rejects | object that is refused now | the same |
| embeddings | readable image that a dataset holds now | the same |
| pca_models | fitted basis of a dataset | runs append |
| runs | published run | runs append, as the last commit of `publish`; `verdict` adds the cost |

All rows of a dataset in `images`, `rejects` and `embeddings` have the run_id of the run that published them. Readers
and publishers rely on the columns `dataset` and `run_id` only. They do not rely on names of files, or on summaries of
snapshots. So anybody may compact the tables, roll them back and expire their snapshots.

The vector of an image is in the row of `features` with the same sha256, whose run_id is the image's features_run_id.
Each commit changes one table. Glue has no commit that spans several tables, so a reader of several tables joins them on
`dataset` and `run_id`, or reads the snapshots that the row of the run in `runs` names.
"""

import itertools
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from botocore.config import Config
from pyiceberg.catalog import Catalog
from pyiceberg.catalog.glue import GlueCatalog
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.partitioning import UNPARTITIONED_PARTITION_SPEC, PartitionField, PartitionSpec
from pyiceberg.schema import Schema, assign_fresh_schema_ids
from pyiceberg.table import Table, TableProperties
from pyiceberg.transforms import IdentityTransform
from pyiceberg.types import (
    DoubleType,
    FloatType,
    IcebergType,
    IntegerType,
    ListType,
    LongType,
    MapType,
    NestedField,
    StringType,
    TimestamptzType,
)

from orchard.errors import PermanentError
from orchard.settings import Settings
from orchard.tables.commit import commit_planned_again
from orchard.tables.rows import ALL_ROWS, one_of, stream_file, stream_rows, where

if TYPE_CHECKING:
    import boto3

log = logging.getLogger(__name__)

# Keys of a snapshot's summary. They inform users. No code reads them.
RUN_ID, DATASET = "orchard.run_id", "orchard.dataset"

# The ids of elements, keys and values, until `_schema` assigns the final ones.
_NESTED_IDS = itertools.count(1000)


def _schema(**columns: IcebergType) -> Schema:
    fields = (NestedField(number, name, kind, required=False) for number, (name, kind) in enumerate(columns.items(), 1))
    return assign_fresh_schema_ids(Schema(*fields))


def _list(element: IcebergType) -> ListType:
    return ListType(next(_NESTED_IDS), element, element_required=False)  # the Parquet files allow null elements


def _map(value: IcebergType) -> MapType:
    return MapType(next(_NESTED_IDS), StringType(), next(_NESTED_IDS), value, value_required=False)


_TEXT, _LONG = StringType(), LongType()

# The data files have these columns, in any order. A test compares the tables that Spark steps write files of with
# orchard_spark.schemas, which Airflow cannot import.
TABLES: Mapping[str, Schema] = {
    "features": _schema(sha256=_TEXT, model=_TEXT, features=_list(FloatType()), run_id=_TEXT),
    "images": _schema(
        dataset=_TEXT,
        path=_TEXT,
        label=_TEXT,
        etag=_TEXT,
        size=_LONG,
        modified=TimestamptzType(),
        sha256=_TEXT,
        format=_TEXT,
        width=IntegerType(),
        height=IntegerType(),
        features_run_id=_TEXT,
        run_id=_TEXT,
    ),
    "rejects": _schema(
        dataset=_TEXT,
        path=_TEXT,
        label=_TEXT,
        etag=_TEXT,
        size=_LONG,
        reason=_TEXT,
        message=_TEXT,
        run_id=_TEXT,
    ),
    "embeddings": _schema(
        dataset=_TEXT,
        path=_TEXT,
        label=_TEXT,
        sha256=_TEXT,
        vector=_list(FloatType()),
        pca_model=_TEXT,
        run_id=_TEXT,
    ),
    "pca_models": _schema(
        pca_model=_TEXT,
        dataset=_TEXT,
        model=_TEXT,
        n_samples_=_LONG,
        n_components_=IntegerType(),
        mean_=_list(DoubleType()),
        components_=_list(_list(DoubleType())),
        explained_variance_=_list(DoubleType()),
        explained_variance_ratio_=_list(DoubleType()),
        run_id=_TEXT,
    ),
    "runs": _schema(
        run_id=_TEXT,
        dataset=_TEXT,
        model=_TEXT,
        decoder=_TEXT,
        pca_model=_TEXT,
        pca_mode=_TEXT,
        n_components=DoubleType(),
        max_bytes=_LONG,
        max_pixels=_LONG,
        planned_at=TimestamptzType(),
        published_at=TimestamptzType(),
        listed=_LONG,
        new=_LONG,
        changed=_LONG,
        deleted=_LONG,
        unchanged=_LONG,
        images=_LONG,
        duplicates=_LONG,
        inferences=_LONG,
        rejects=_map(_LONG),
        ignored=_map(_LONG),
        step_seconds=_map(DoubleType()),
        cluster_id=_TEXT,
        snapshots=_map(_LONG),
        instance_type=_TEXT,
        task_slots=_LONG,
        bytes_read=_LONG,
        estimated_minutes=DoubleType(),
        estimated_usd=DoubleType(),
        estimated_usd_with_spot=DoubleType(),
        ready_seconds=DoubleType(),
        cluster_minutes=DoubleType(),
        cost_usd=DoubleType(),
        cost_usd_per_million=DoubleType(),
        explained_variance=DoubleType(),
        drift=DoubleType(),
        label_accuracy=DoubleType(),
        label_sample=_LONG,
        labels=_map(_LONG),
    ),
}


def partition_spec(name: str) -> PartitionSpec:
    """Return the partitioning of a new table: by dataset, if the table has that column."""
    schema = TABLES[name]
    if "dataset" not in schema.column_names:
        return UNPARTITIONED_PARTITION_SPEC
    source = schema.find_field("dataset").field_id
    return PartitionSpec(PartitionField(source, 1000, IdentityTransform(), "dataset"))


class WrongWarehouse(PermanentError):
    """A table of the deployment's database belongs to another deployment."""


class OldLayout(PermanentError):
    """A table has the columns of an earlier release."""

    def __init__(self, table: str) -> None:
        super().__init__(
            f"table {table} has the columns of an earlier release. Run `python -m orchard.tables.migrate` with the "
            "settings of the deployment, then clear the failed task"
        )


@dataclass(frozen=True)
class Limits:
    """How long a request to Glue or S3 may take to connect, and to be answered, in seconds."""

    connect_seconds: float
    read_seconds: float


def open_catalog(session: "boto3.Session", settings: Settings, limits: Limits | None = None) -> GlueCatalog:
    """Open the Glue catalog of the deployment's account and region, with a session's credentials and endpoints.

    Without limits, those of botocore and of PyArrow hold.
    """
    # Each call is sent once. If the response to an UpdateTable is lost, Glue rejects botocore's retry as outdated, and
    # pyiceberg then deletes the files of a commit that has succeeded.
    once = Config(retries={"total_max_attempts": 1})
    region = settings.region
    properties = {"client.region": region}
    if limits is not None:
        once = once.merge(Config(connect_timeout=limits.connect_seconds, read_timeout=limits.read_seconds))
        properties["s3.connect-timeout"] = str(limits.connect_seconds)
        properties["s3.request-timeout"] = str(limits.read_seconds)
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


def find_table(catalog: Catalog, settings: Settings, name: str) -> Table | None:
    """Load a table of the deployment. Return None if it does not exist.

    Raises:
        WrongWarehouse: the table exists at another location.
        OldLayout: the table has the columns of an earlier release.
    """
    table = load_table(catalog, (settings.catalog_database, name))
    return None if table is None else check_table(table, settings, name)


def load_table(catalog: Catalog, identifier: tuple[str, str]) -> Table | None:
    """Load a table. Return None if it does not exist."""
    try:
        return catalog.load_table(identifier)
    except NoSuchTableError:
        return None


def open_table(catalog: Catalog, settings: Settings, name: str) -> Table:
    """Load a table of the deployment. Create it if it does not exist, and add columns that it lacks.

    Raises:
        WrongWarehouse: the table exists at another location.
        OldLayout: the table has the columns of an earlier release.
        CannotCommit: other publishers changed the table during each attempt to add columns.
    """
    found = find_table(catalog, settings, name)
    if found is not None:
        return add_missing_columns(found, name)
    identifier, location = (settings.catalog_database, name), table_location(settings, name)
    schema = TABLES[name]
    properties = {
        # The steps' files have no Iceberg field ids.
        TableProperties.DEFAULT_NAME_MAPPING: schema.name_mapping.model_dump_json(),
        # `commit` plans each attempt again. pyiceberg's own retry would reuse the plan of the first attempt.
        TableProperties.COMMIT_NUM_RETRIES: "0",
        # Each run appends one manifest. Readers open all of them, so an append merges them when there are many.
        TableProperties.MANIFEST_MERGE_ENABLED: "true",
        **_without_statistics(schema),
    }
    # pyiceberg calls CreateDatabase to find out whether a database exists. Airflow has this permission only if it needs
    # it: the stack of a deployment creates the database.
    if not catalog.namespace_exists(identifier[0]):
        catalog.create_namespace_if_not_exists(identifier[0])
    table = catalog.create_table_if_not_exists(
        identifier, schema, location, partition_spec(name), properties=properties
    )
    log.info("created table %s.%s in %s", *identifier, location)
    return check_table(table, settings, name)


def add_missing_columns(table: Table, name: str) -> Table:
    """Add the columns to a table that this release has and an earlier one had not. Old rows have null in them.

    Raises:
        CannotCommit: other publishers changed the table during each attempt.
    """

    def missing() -> list[str]:
        return [column for column in _columns(TABLES[name]) if column not in _columns(table.schema())]

    def once() -> None:
        columns = missing()
        if not columns:
            return  # another publisher has added them
        with table.transaction() as transaction:
            with transaction.update_schema() as update:
                update.union_by_name(TABLES[name].select(*columns))
            transaction.set_properties(_without_statistics(TABLES[name]))
        log.info("table %s: added columns %s", ".".join(table.name()), ", ".join(columns))

    if missing():
        commit_planned_again(table, "new columns", once)
    return table


def _without_statistics(schema: Schema) -> dict[str, str]:
    """Return the properties of a table whose files have no statistics of the values inside lists and maps."""
    nested = [column for column in schema.column_names if "." in column]
    return {f"{TableProperties.METRICS_MODE_COLUMN_CONF_PREFIX}.{column}": "none" for column in nested}


def _columns(schema: Schema) -> list[str]:
    return [field.name for field in schema.fields]


def table_location(settings: Settings, name: str) -> str:
    """Return the folder of a table."""
    return f"{settings.warehouse_uri}/{name}"


def check_table(table: Table, settings: Settings, name: str) -> Table:
    """Return a table, if it is of this deployment and has the present columns.

    Raises:
        WrongWarehouse: the table is at another location.
        OldLayout: the table has the columns of an earlier release.
    """
    full_name, location = ".".join(table.name()), table_location(settings, name)
    if table.location() != location:
        raise WrongWarehouse(
            f"table {full_name} is in {table.location()}, not in {location}: another deployment uses this database. "
            "Set ORCHARD_CATALOG_DATABASE to a name that no other deployment of the account uses"
        )
    if has_old_layout(table, name):
        raise OldLayout(full_name)
    return table


def has_old_layout(table: Table, name: str) -> bool:
    """Return whether a table lacks the columns that tell which dataset and which content a row is of."""
    columns = table.schema().column_names
    return "path" in columns if name == "features" else "dataset" not in columns


@dataclass(frozen=True)
class PublishedRun:
    """A published run, with the id of a snapshot of each table that shows it."""

    run_id: str
    dataset: str
    published_at: datetime
    snapshots: Mapping[str, int]


def published_runs(catalog: Catalog, database: str, dataset: str | None = None) -> list[PublishedRun]:
    """Return the published runs, or those of one dataset, in the order of their last publication.

    Raises:
        pyiceberg.exceptions.NoSuchTableError: no run has been published.
    """
    table = catalog.load_table((database, "runs"))
    chosen = ALL_ROWS if dataset is None else where(dataset=dataset)
    rows: list[dict[str, Any]] = []
    for batch in stream_rows(table, chosen, ["run_id", "dataset", "published_at", "snapshots"]):
        rows += batch.to_pylist()
    # Another program may have added rows without these.
    rows = [row for row in rows if None not in (row["run_id"], row["dataset"], row["published_at"])]
    rows.sort(key=lambda row: row["published_at"])
    return [PublishedRun(**{**row, "snapshots": dict(row["snapshots"] or ())}) for row in rows]


def current_features(catalog: Catalog, database: str, dataset: str) -> Iterator[pa.RecordBatch]:
    """Yield the features of the images that a dataset holds now: path, label, sha256, model, features.

    Each image has one row. This is the join of `images` and `features` on (sha256, features_run_id = run_id). Only the
    paths, labels and hashes of the images are in memory at the same time.

    Raises:
        pyiceberg.exceptions.NoSuchTableError: no run has been published.
    """
    columns = ["path", "label", "sha256", "features_run_id"]
    batches = list(stream_rows(catalog.load_table((database, "images")), where(dataset=dataset), columns))
    if not batches:
        return
    images = pa.Table.from_batches(batches)
    runs = pc.unique(images["features_run_id"]).to_pylist()
    keys = _keys(images["sha256"], images["features_run_id"])
    order = np.argsort(keys, kind="stable")
    images, keys = images.select(columns[:3]).take(order), keys[order]
    features = catalog.load_table((database, "features"))
    for task in features.scan(row_filter=one_of("run_id", runs)).plan_files():
        for batch in stream_file(features, task, ALL_ROWS, ["sha256", "run_id", "model", "features"], batch_rows=2048):
            wanted = _keys(batch["sha256"], batch["run_id"])
            first, last = np.searchsorted(keys, wanted, "left"), np.searchsorted(keys, wanted, "right")
            counts = last - first
            if counts.any():
                rows = np.repeat(np.arange(len(counts)), counts)
                of_run = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
                found = images.take(np.repeat(first, counts) + of_run).combine_chunks().to_batches()[0]
                arrays = [*found.columns, batch["model"].take(rows), batch["features"].take(rows)]
                yield pa.RecordBatch.from_arrays(arrays, names=[*columns[:3], "model", "features"])


def _keys(sha256: Any, run_id: Any) -> Any:
    joined = pc.binary_join_element_wise(sha256, run_id, "/")
    return np.asarray(joined.to_numpy(zero_copy_only=False) if isinstance(joined, pa.Array) else joined, dtype="S")
