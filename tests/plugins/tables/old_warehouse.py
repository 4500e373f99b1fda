"""Tables as the release before the present layout made them: its schemas, its commits, its summaries of snapshots."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.io.pyarrow import parquet_file_to_data_file
from pyiceberg.schema import Schema, assign_fresh_schema_ids
from pyiceberg.table import Table, TableProperties
from pyiceberg.table.refs import MAIN_BRANCH
from pyiceberg.table.snapshots import ancestors_of
from pyiceberg.types import FloatType, IcebergType, ListType, LongType, NestedField, StringType

from orchard.settings import Settings
from tests.plugins.runs import parquet, sha256

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

MODEL, PCA_MODEL = "mobilenet", "pca-2-0a1b2c3d"


def _schema(**columns: IcebergType) -> Schema:
    fields = (NestedField(number, name, kind, required=False) for number, (name, kind) in enumerate(columns.items(), 1))
    return assign_fresh_schema_ids(Schema(*fields))


_TEXT = StringType()
_FLOATS = ListType(1000, FloatType(), element_required=False)
TABLES: Mapping[str, Schema] = {
    "rejects": _schema(path=_TEXT, label=_TEXT, etag=_TEXT, size=LongType(), reason=_TEXT, message=_TEXT),
    "features": _schema(path=_TEXT, label=_TEXT, etag=_TEXT, sha256=_TEXT, features=_FLOATS, model=_TEXT, run_id=_TEXT),
    "embeddings": _schema(path=_TEXT, label=_TEXT, etag=_TEXT, vector=_FLOATS, pca_model=_TEXT, run_id=_TEXT),
}
_OBJECT = [("path", pa.string()), ("label", pa.string()), ("etag", pa.string())]
_FLOAT_LIST = pa.list_(pa.float32())
_DETAILS = [
    ("size", pa.int64()),
    ("modified", pa.timestamp("us", "UTC")),
    ("sha256", pa.string()),
    ("format", pa.string()),
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("content", pa.binary()),
]
FILES = {
    "images": pa.schema([*_OBJECT, *_DETAILS]),
    "rejects": pa.schema([*_OBJECT, ("size", pa.int64()), ("reason", pa.string()), ("message", pa.string())]),
    "features": pa.schema(
        [*_OBJECT, ("sha256", pa.string()), ("features", _FLOAT_LIST), ("model", pa.string()), ("run_id", pa.string())]
    ),
    "embeddings": pa.schema([*_OBJECT, ("vector", _FLOAT_LIST), ("pca_model", pa.string()), ("run_id", pa.string())]),
    "pca_model": pa.schema(
        [
            ("pca_model", pa.string()),
            ("model", pa.string()),
            ("n_samples_", pa.int64()),
            ("n_components_", pa.int32()),
            ("mean_", pa.list_(pa.float64())),
            ("components_", pa.list_(pa.list_(pa.float64()))),
            ("explained_variance_", pa.list_(pa.float64())),
            ("explained_variance_ratio_", pa.list_(pa.float64())),
            ("run_id", pa.string()),
        ]
    ),
}


@dataclass(frozen=True)
class OldRun:
    """A run of the earlier release: an image for each number of a content, and one reject."""

    bucket: str
    name: str
    folder: str
    contents: Sequence[int]

    @property
    def dataset(self) -> str:
        return f"s3://{self.bucket}/{self.folder}/"

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/runs/{self.folder}/{self.name}"

    def rows(self, dataset: str) -> pa.Table:
        """Return the rows of one of the run's folders."""
        rows: list[dict[str, Any]] = [self._image(number) for number in range(len(self.contents))]
        if dataset == "rejects":
            rows = [{**self._object(len(self.contents)), "reason": "undecodable", "message": f"by {self.name}"}]
        if dataset == "pca_model":
            rows = [self._basis()]
        schema = FILES[dataset]
        return pa.Table.from_pylist([{key: row[key] for key in schema.names} for row in rows], schema=schema)

    def _object(self, number: int) -> dict[str, Any]:
        return {
            "path": f"{self.dataset}Kiwi/{number}.jpg",
            "label": "Kiwi",
            "etag": f"{number:032x}",
            "size": 100 + number,
            "modified": datetime(2026, 11, 22, tzinfo=UTC),
            "run_id": self.name,
        }

    def _image(self, number: int) -> dict[str, Any]:
        features = [float(sum(self.name.encode())), float(self.contents[number]), 0.5, 0.25]
        return {
            **self._object(number),
            "sha256": sha256(self.contents[number]),
            "format": "JPEG",
            "width": 64,
            "height": 48,
            "content": b"1",
            "features": features,
            "model": MODEL,
            "vector": features[:2],
            "pca_model": PCA_MODEL,
        }

    def _basis(self) -> dict[str, Any]:
        return {
            "pca_model": PCA_MODEL,
            "model": MODEL,
            "n_samples_": len(self.contents),
            "n_components_": 2,
            "mean_": [0.0] * 4,
            "components_": [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]],
            "explained_variance_": [1.0, 1.0],
            "explained_variance_ratio_": [0.5, 0.46],
            "run_id": self.name,
        }


def publish(s3: "S3Client", catalog: Catalog, settings: Settings, run: OldRun) -> None:
    """Write the files of a run into its folder, and commit them to the tables, as the earlier release did."""
    prefix = run.uri.removeprefix(f"s3://{run.bucket}/")
    for name in FILES:
        rows = run.rows(name)
        for number, start in enumerate(range(0, rows.num_rows, 3)):
            key = f"{prefix}/{name}/part-{number:05d}.parquet"
            s3.put_object(Bucket=run.bucket, Key=key, Body=parquet(rows.slice(start, 3)))
    ingested = f"2026-11-22T02:00:{int(run.name[-1], 16):02d}+00:00"
    snapshots: dict[str, int] = {}
    for name in TABLES:
        table = _open_table(catalog, settings, name)
        properties = {
            "orchard.run_uri": run.uri,
            "orchard.run_id": run.name,
            "orchard.dataset_uri": run.dataset,
            "orchard.ingested": ingested,
        }
        if name == "embeddings":
            properties["orchard.snapshots"] = json.dumps(snapshots)
        files = [f"{run.uri}/{name}/part-{number:05d}.parquet" for number in range(-(-run.rows(name).num_rows // 3))]
        snapshots[name] = _commit(table, run, ingested, files, properties)
    summary = {
        "run_id": run.name,
        "dataset_uri": run.dataset,
        "cluster_id": "j-1",
        "images_listed": len(run.contents) + 1,
        "images_ingested": len(run.contents),
        "images_rejected": 1,
        "reject_reasons": {"undecodable": 1},
        "ignored": {".heic": 2},
        "model": MODEL,
        "pca_model": PCA_MODEL,
        "n_components": 2,
        "step_seconds": {"ingest": 1.5, "features": 2.5, "pca": 3.5},
    }
    s3.put_object(Bucket=run.bucket, Key=f"{prefix}/summary.json", Body=json.dumps(summary).encode())


def _open_table(catalog: Catalog, settings: Settings, name: str) -> Table:
    identifier = (settings.catalog_database, name)
    try:
        return catalog.load_table(identifier)
    except NoSuchTableError:
        catalog.create_namespace_if_not_exists(identifier[0])
        properties = {
            TableProperties.DEFAULT_NAME_MAPPING: TABLES[name].name_mapping.model_dump_json(),
            TableProperties.COMMIT_NUM_RETRIES: "0",
        }
        return catalog.create_table(identifier, TABLES[name], f"{settings.warehouse_uri}/{name}", properties=properties)


def _commit(table: Table, run: OldRun, ingested: str, files: Sequence[str], properties: Mapping[str, str]) -> int:
    live: dict[str, dict[str, str]] = {}
    for ancestor in ancestors_of(table.current_snapshot(), table.metadata):
        if ancestor.summary and (text := ancestor.summary["orchard.live"]):
            live = json.loads(text)
            break
    superseded = [uri for uri, origin in live.items() if origin["dataset_uri"] == run.dataset]
    remaining = {uri: origin for uri, origin in live.items() if uri not in superseded}
    remaining[run.uri] = {"dataset_uri": run.dataset, "ingested": ingested}
    removed = [
        task.file
        for task in table.scan().plan_files()
        if any(task.file.file_path.startswith(f"{uri}/") for uri in superseded)
    ]
    summary = {**properties, "orchard.live": json.dumps(remaining)}
    transaction = table.transaction()
    with transaction.update_snapshot(snapshot_properties=summary, branch=MAIN_BRANCH).overwrite() as update:
        for file in removed:
            update.delete_data_file(file)
        for uri in files:
            update.append_data_file(parquet_file_to_data_file(table.io, table.metadata, uri))
    transaction.commit_transaction()
    return int(update.snapshot_id)
