"""Remove a dataset from the tables."""

import json
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.catalog import Catalog
from pyiceberg.expressions import BooleanExpression, Not
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table

from orchard.run.names import dataset_name
from orchard.settings import Settings
from orchard.storage import find_json, split_uri
from orchard.tables.catalog import DATASET, TABLES, find_table
from orchard.tables.commit import Change, commit, replacement
from orchard.tables.features import change_back, change_without
from orchard.tables.rows import stream_rows, where

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)


def forget_dataset(s3: "S3Client", catalog: Catalog, settings: Settings, dataset: str) -> dict[str, int]:
    """Remove the rows of a dataset from all tables, and return how many rows were removed from each.

    This includes the features that its runs inferred or that its images have, except those that images of other
    datasets refer to. Earlier snapshots keep all rows until the DAG table_maintenance expires them and deletes their
    files. The objects of the dataset and the folders of its runs stay, except the plans.

    Raises:
        WrongWarehouse: the tables of the database are in another bucket.
        OldLayout: a table has the columns of an earlier release.
        SharedFile: a data file has rows of several datasets.
        CannotCommit: publishers changed a table during each attempt.
    """
    found = {name: find_table(catalog, settings, name) for name in TABLES}
    tables = {name: table for name, table in found.items() if table is not None and table.current_snapshot()}
    run_ids = runs_of_dataset(s3, settings, tables, dataset)
    removed: dict[str, int] = {}

    def change(name: str, find_change: Callable[[Table], Change]) -> None:
        def counted(table: Table) -> Change:
            found = find_change(table)
            rows = [sum(file.record_count for file in files) for files in (found.removed, found.added)]
            removed[name] = rows[0] - rows[1]
            return found

        if name in tables:
            commit(tables[name], f"the removal of {dataset}", counted, {DATASET: dataset})

    def images_of(rows: BooleanExpression) -> Iterator[pa.RecordBatch]:
        return stream_rows(tables["images"].refresh(), rows, ["sha256", "features_run_id"])

    own = where(dataset=dataset)
    gone: list[DataFile] = []

    def without_features(table: Table) -> Change:
        found = change_without(s3, table, run_ids, images_of(own), images_of(Not(own)))
        gone[:] = found.removed
        return found

    for name in ("images", "rejects", "embeddings", "pca_models", "runs"):
        if name in tables:
            replacement(tables[name], dataset, [])  # a file that cannot be removed is reported before any change
    if "images" in tables:
        # First, because a retry finds the features of the dataset by its images.
        change("features", without_features)
    for name in ("images", "rejects", "embeddings", "pca_models"):
        change(name, lambda table: replacement(table, dataset, []))
    if gone:
        # Another dataset may have been published meanwhile, with images that refer to what is gone.
        commit(
            tables["features"],
            f"the features of other datasets than {dataset}",
            lambda table: change_back(s3, table, gone, images_of(Not(own))),
            {DATASET: dataset},
        )
    # Last, because a retry finds the runs of the dataset here.
    change("runs", lambda table: replacement(table, dataset, []))
    delete_plans(s3, settings, dataset)
    log.info("removed %s from the tables: %s", dataset, json.dumps(removed))
    return removed


def delete_plans(s3: "S3Client", settings: Settings, dataset: str) -> None:
    """Delete the plans of a dataset's runs, so that clearing `publish` of one of them does not bring its rows back."""
    for key, _ in plans_of_dataset(s3, settings, dataset):
        s3.delete_object(Bucket=settings.bucket, Key=key)


def runs_of_dataset(s3: "S3Client", settings: Settings, tables: dict[str, Table], dataset: str) -> set[str]:
    """Return the ids of all runs of a dataset, also of those that were never published."""
    found: set[str] = set()
    for name, table in tables.items():
        if name != "features":
            for batch in stream_rows(table, where(dataset=dataset), ["run_id"]):
                found.update(pc.unique(batch["run_id"]).to_pylist())
    return found | {run_id for _, run_id in plans_of_dataset(s3, settings, dataset)}


def plans_of_dataset(s3: "S3Client", settings: Settings, dataset: str) -> list[tuple[str, str]]:
    """Return the keys of the plans of a dataset's runs, each with the run's id."""
    found = []
    bucket, prefix = split_uri(f"{settings.bucket_uri}/runs/{dataset_name(dataset)}/")
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, Delimiter="/"):
        for folder in page.get("CommonPrefixes", []):
            key = f"{folder['Prefix']}plan.metrics.json"
            metrics = find_json(s3, f"s3://{bucket}/{key}")
            # Other datasets may have a folder of the same name.
            if metrics is not None and metrics["dataset"] == dataset:
                found.append((key, metrics["run_id"]))
    return found
