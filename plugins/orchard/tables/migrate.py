"""Move the tables of an earlier release to the present layout.

The earlier tables `rejects`, `features` and `embeddings` are renamed to `rejects_v1`, `features_v1` and
`embeddings_v1`, and stay readable. The new tables get the runs that the earlier ones show: one per dataset. Vectors are
written once per content. The command needs the settings of the deployment in the environment. It can be run again after
a failure. Pause the DAG before, and drop the renamed tables when nobody reads them any more.
"""

import argparse
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import boto3
import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.catalog import Catalog
from pyiceberg.table import FileScanTask, Table
from pyiceberg.table.snapshots import Snapshot, ancestors_of

from orchard.errors import PermanentError
from orchard.settings import Settings
from orchard.storage import find_json, split_uri
from orchard.tables.catalog import (
    DATASET,
    RUN_ID,
    TABLES,
    WrongWarehouse,
    has_old_layout,
    load_table,
    open_catalog,
    open_table,
    table_location,
)
from orchard.tables.commit import Change, commit, replacement
from orchard.tables.files import write_files
from orchard.tables.rows import BATCH_ROWS, arrow_schema, owned_rows, read_parquet, stream_file, stream_rows, where
from orchard.tables.state import run_of_rows

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

OLD_TABLES, SUFFIX = ("rejects", "features", "embeddings"), "_v1"
# Keys of the summaries of the earlier tables' snapshots: the runs that a snapshot shows, and, in `embeddings`, the run
# that it published and the run's snapshots of the other tables.
LIVE_RUNS, RUN_URI, SNAPSHOTS = "orchard.live", "orchard.run_uri", "orchard.snapshots"
VECTOR_ROWS = 2048
EXAMPLE = """\
example:
  PYTHONPATH=plugins ORCHARD_BUCKET=your-bucket ORCHARD_RELEASE=0123456789ab python -m orchard.tables.migrate
"""
# What the earlier tables lack of the table `images`. The run's folder has it, unless it has expired.
DETAILS = ("size", "modified", "format", "width", "height")


class TwoTables(PermanentError):
    """Both a table of the earlier layout and its renamed copy exist, and they differ."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"the tables {name} and {name}{SUFFIX} both have the columns of an earlier release, and they differ. Drop "
            "the one that you do not need, then run the command again"
        )


@dataclass(frozen=True)
class OldRun:
    """A run that the earlier tables show, with its files of each table."""

    run_uri: str
    dataset: str
    published_at: datetime
    files: Mapping[str, list[FileScanTask]]

    @property
    def run_id(self) -> str:
        """The value of the column `run_id`."""
        return self.run_uri.rsplit("/", 1)[1]


def migrate(s3: "S3Client", catalog: Catalog, settings: Settings) -> list[str]:
    """Rename the tables of an earlier release, and fill the present ones. Return the URIs of the migrated runs.

    Raises:
        WrongWarehouse: the tables of the database are in another bucket.
        TwoTables: a table and its renamed copy both exist, and they differ.
    """
    old = {name: rename(catalog, settings, name) for name in OLD_TABLES}
    if old["embeddings"] is None:
        log.info("there are no tables of an earlier release: nothing to do")
        return []
    tables = {name: open_table(catalog, settings, name) for name in TABLES}
    present = {name: table for name, table in old.items() if table is not None}
    return [run.run_uri for run in shown_runs(present) if migrate_run(s3, tables, present, run)]


def rename(catalog: Catalog, settings: Settings, name: str) -> Table | None:
    """Rename a table, if it has the earlier layout, and return it. Return None if there never was one.

    Raises:
        WrongWarehouse: the table is in another bucket.
        TwoTables: the table and its renamed copy both exist, and they differ.
    """
    old, new = (settings.catalog_database, name), (settings.catalog_database, f"{name}{SUFFIX}")
    table, renamed = load_table(catalog, old), load_table(catalog, new)
    if table is not None and table.location() != table_location(settings, name):
        raise WrongWarehouse(f"table {'.'.join(old)} is in {table.location()}, not in {table_location(settings, name)}")
    if table is None or not has_old_layout(table, name):
        return renamed
    if renamed is None:
        log.info("renaming table %s to %s", ".".join(old), ".".join(new))
        return catalog.rename_table(old, new)
    # Glue has no call to rename: a renaming that stopped halfway leaves both names of the same table.
    if renamed.metadata_location != table.metadata_location:
        raise TwoTables(".".join(old))
    catalog.drop_table(old)
    return renamed


def shown_runs(old: Mapping[str, Table]) -> list[OldRun]:
    """Return the runs that the earlier tables show: one per dataset."""
    embeddings = old["embeddings"]
    origins = live_runs(embeddings, embeddings.current_snapshot())
    return [_shown_run(old, run_uri, origin["dataset_uri"]) for run_uri, origin in sorted(origins.items())]


def live_runs(table: Table, snapshot: Snapshot | None) -> dict[str, dict[str, str]]:
    """Return the runs whose files a snapshot of an earlier table contains, by URI."""
    for ancestor in ancestors_of(snapshot, table.metadata):
        if text := _value(ancestor, LIVE_RUNS):
            found: dict[str, dict[str, str]] = json.loads(text)
            return found
    return {}


def _shown_run(old: Mapping[str, Table], run_uri: str, dataset: str) -> OldRun:
    embeddings = old["embeddings"]
    published = [found for found in embeddings.snapshots() if _value(found, RUN_URI) == run_uri]
    snapshots: dict[str, int] = json.loads(_value(published[-1], SNAPSHOTS) or "{}") if published else {}
    last = published[-1] if published else embeddings.current_snapshot()
    assert last is not None  # noqa: S101  # it shows the run
    files = {}
    for name, table in old.items():
        number = snapshots.get(name)
        known = number is not None and table.snapshot_by_id(number) is not None
        tasks = table.scan(snapshot_id=number if known else None).plan_files()
        files[name] = [task for task in tasks if task.file.file_path.startswith(f"{run_uri}/")]
    return OldRun(run_uri, dataset, datetime.fromtimestamp(last.timestamp_ms / 1000, UTC), files)


def _value(snapshot: Snapshot, key: str) -> str | None:
    return snapshot.summary[key] if snapshot.summary else None


def migrate_run(s3: "S3Client", tables: Mapping[str, Table], old: Mapping[str, Table], run: OldRun) -> bool:
    """Write the rows of a run into the present tables. Return False if they have these, or those of a later run."""
    if any(stream_rows(tables["runs"], where(dataset=run.dataset, run_id=run.run_id), ["run_id"])):
        log.info("%s of %s is migrated already", run.run_uri, run.dataset)
        return False
    shown = run_of_rows(tables["images"], run.dataset)
    if shown not in (None, run.run_id):
        log.info("%s is not migrated: the tables already have run %s of %s", run.run_uri, shown, run.dataset)
        return False
    known = known_contents(tables["features"])
    images = contents(old["features"], run, known)
    files = {
        "features": write_files(s3, tables["features"], new_features(old["features"], run, known)),
        "images": write_files(s3, tables["images"], images_rows(s3, tables["images"], run, images)),
        "rejects": write_files(s3, tables["rejects"], rejects_rows(old, run)),
        "embeddings": write_files(s3, tables["embeddings"], embeddings_rows(old["embeddings"], run, images)),
        "pca_models": write_files(s3, tables["pca_models"], basis_rows(s3, tables["pca_models"], run)),
    }
    snapshots: dict[str, int] = {}

    def change(name: str, find_change: Callable[[Table], Change]) -> None:
        snapshots[name] = commit(tables[name], run.run_uri, find_change, {RUN_ID: run.run_id, DATASET: run.dataset})

    change("features", lambda _: Change(files["features"]))
    change("pca_models", lambda table: replacement(table, run.dataset, files["pca_models"]))
    for name in ("images", "rejects", "embeddings"):
        change(name, lambda table: replacement(table, run.dataset, files[table.name()[1]]))
    row = write_files(s3, tables["runs"], run_row(s3, tables["runs"], run, images.num_rows, dict(snapshots)))
    change("runs", lambda table: replacement(table, run.dataset, row))
    log.info("migrated %s of %s: %d images", run.run_uri, run.dataset, images.num_rows)
    return True


Contents = dict[tuple[str, str], str]


def known_contents(features: Table) -> Contents:
    """Return the run that inferred each content, by (sha256, model)."""
    known: Contents = {}
    for batch in stream_rows(features, columns=["sha256", "model", "run_id"]):
        sha256, model, run_id = (batch[name].to_pylist() for name in ("sha256", "model", "run_id"))
        known.update(zip(zip(sha256, model, strict=True), run_id, strict=True))
    return known


def contents(features: Table, run: OldRun, known: Contents) -> pa.Table:
    """Return the images of a run: path, label, etag, sha256, features_run_id."""
    columns = ["path", "label", "etag", "sha256", "model"]
    found = []
    for batch in _rows(features, run, columns):
        keys = zip(batch["sha256"].to_pylist(), batch["model"].to_pylist(), strict=True)
        runs = pa.array([known.get(key, run.run_id) for key in keys], pa.string())
        found.append(pa.RecordBatch.from_arrays([*batch.columns[:4], runs], names=[*columns[:4], "features_run_id"]))
    schema = pa.schema([(name, pa.string()) for name in (*columns[:4], "features_run_id")])
    return pa.Table.from_batches(found, schema).combine_chunks()


def new_features(features: Table, run: OldRun, known: Contents) -> Iterator[pa.RecordBatch]:
    """Yield the features of each content of a run that is not known, once."""
    seen = set(known)
    for batch in _rows(features, run, ["sha256", "model", "features", "run_id"], VECTOR_ROWS):
        first = []
        for number, key in enumerate(zip(batch["sha256"].to_pylist(), batch["model"].to_pylist(), strict=True)):
            if key not in seen:
                seen.add(key)
                first.append(number)
        yield batch.take(pa.array(first, pa.int64()))


def images_rows(s3: "S3Client", table: Table, run: OldRun, images: pa.Table) -> Iterator[pa.RecordBatch]:
    """Yield the rows of the table `images` of a run. What its folder no longer has is null."""
    schema = arrow_schema(TABLES["images"])
    facts = pa.Table.from_batches(
        [
            batch
            for uri in _parquet_files(s3, f"{run.run_uri}/images")
            for batch in read_parquet(table.io, uri, ["path", *DETAILS])
        ],
        pa.schema([schema.field(name) for name in ("path", *DETAILS)]),
    )
    found = facts.take(pc.index_in(images["path"], value_set=facts["path"].combine_chunks()))
    columns = {name: images[name] for name in images.column_names} | {name: found[name] for name in DETAILS}
    yield from _of_run(run, schema, columns, images.num_rows)


def rejects_rows(old: Mapping[str, Table], run: OldRun) -> Iterator[pa.RecordBatch]:
    """Yield the rows of the table `rejects` of a run."""
    if "rejects" in old:
        columns = ["path", "label", "etag", "size", "reason", "message"]
        for batch in _rows(old["rejects"], run, columns):
            arrays = {name: batch[name] for name in columns}
            yield from _of_run(run, arrow_schema(TABLES["rejects"]), arrays, batch.num_rows)


def embeddings_rows(embeddings: Table, run: OldRun, images: pa.Table) -> Iterator[pa.RecordBatch]:
    """Yield the rows of the table `embeddings` of a run."""
    columns = ["path", "label", "vector", "pca_model"]
    for batch in _rows(embeddings, run, columns, VECTOR_ROWS):
        places = pc.index_in(batch["path"], value_set=images["path"].combine_chunks())
        arrays = {name: batch[name] for name in columns} | {"sha256": images["sha256"].take(places)}
        yield from _of_run(run, arrow_schema(TABLES["embeddings"]), arrays, batch.num_rows)


def basis_rows(s3: "S3Client", table: Table, run: OldRun) -> Iterator[pa.RecordBatch]:
    """Yield the row of the table `pca_models` of a run, if its folder still has it."""
    schema = arrow_schema(TABLES["pca_models"])
    columns = [name for name in schema.names if name != "dataset"]
    for uri in _parquet_files(s3, f"{run.run_uri}/pca_model"):
        for batch in read_parquet(table.io, uri, columns):
            yield from _of_run(run, schema, {name: batch[name] for name in columns}, batch.num_rows)


def run_row(
    s3: "S3Client", table: Table, run: OldRun, images: int, snapshots: Mapping[str, int]
) -> list[pa.RecordBatch]:
    """Return the row of the table `runs` of a run. What an earlier release did not record is null."""
    summary = find_json(s3, f"{run.run_uri}/summary.json") or {}
    row: dict[str, Any] = {
        "run_id": run.run_id,
        "dataset": run.dataset,
        "model": summary.get("model"),
        "pca_model": summary.get("pca_model"),
        "pca_mode": "refit",
        "published_at": run.published_at,
        "listed": summary.get("images_listed"),
        "images": images,
        "rejects": sorted(summary.get("reject_reasons", {}).items()),
        "ignored": sorted(summary.get("ignored", {}).items()),
        "step_seconds": sorted(summary.get("step_seconds", {}).items()),
        "cluster_id": summary.get("cluster_id"),
        "snapshots": sorted(snapshots.items()),
    }
    schema = arrow_schema(table.schema())
    batches: list[pa.RecordBatch] = pa.Table.from_pylist(
        [{name: row.get(name) for name in schema.names}], schema
    ).to_batches()
    return batches


def _rows(table: Table, run: OldRun, columns: list[str], batch_rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a run in an earlier table."""
    for task in run.files[table.name()[1].removesuffix(SUFFIX)]:
        yield from stream_file(table, task, columns=columns, batch_rows=batch_rows)


def _of_run(run: OldRun, schema: pa.Schema, columns: Mapping[str, Any], rows: int) -> list[pa.RecordBatch]:
    """Return the rows of a table with the dataset and the run_id of a run."""
    return owned_rows(schema, columns, rows, dataset=run.dataset, run_id=run.run_id)


def _parquet_files(s3: "S3Client", uri: str) -> list[str]:
    """Return the Parquet files in a folder of a run. Unfinished output is in subfolders."""
    bucket, prefix = split_uri(f"{uri}/")
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    names = [item["Key"].removeprefix(prefix) for page in pages for item in page.get("Contents", [])]
    return [f"{uri}/{name}" for name in names if name.endswith(".parquet") and "/" not in name and name[0] not in "_."]


def main(argv: list[str] | None = None) -> None:
    """Migrate the tables of the deployment whose settings are in the environment."""
    parser = argparse.ArgumentParser(
        prog="python -m orchard.tables.migrate",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    settings = Settings.from_env(os.environ)
    session = boto3.Session()
    migrate(session.client("s3", region_name=settings.region), open_catalog(session, settings), settings)


if __name__ == "__main__":
    main()
