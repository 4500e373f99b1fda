"""Publish a run: check that its steps agree, commit its files to the tables, write `summary.json`."""

import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from pyiceberg.catalog import Catalog
from pyiceberg.io.pyarrow import parquet_file_to_data_file
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table

from orchard.run.plan import RunPlan
from orchard.run.summary import InconsistentRun, read_metrics, summarise, write_summary
from orchard.settings import Settings
from orchard.tables.catalog import DATASET_URI, INGESTED, RUN_ID, RUN_URI, SNAPSHOTS, TABLES, RunOrigin, open_table
from orchard.tables.commit import commit

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

WRITE_AGAIN = "Clear the step's add_step with downstream to write the files again"


def publish_run(s3: "S3Client", catalog: Catalog, settings: Settings, plan: RunPlan, cluster_id: str) -> dict[str, Any]:
    """Make a run visible to readers: commit its files to the tables, then write and return its `summary.json`.

    The run replaces the run of the same `dataset_uri` that the tables show. The rows of the replaced run remain in its
    own snapshots. A run that read the dataset earlier than the one shown gets its snapshots outside the main branch, so
    that the tables do not return to older data. Publishing a run again changes nothing, unless steps of the run were
    redone. In that case, its files are replaced.

    Raises:
        InconsistentRun: the steps or their files disagree about the number of images. No table shows the run.
        WrongWarehouse: the tables of the database are in another bucket.
        UnknownFiles: a table was compacted, or another program wrote to it.
        CannotCommit: other publishers changed a table during each attempt.
    """
    run_uri = plan["run_uri"]
    metrics = read_metrics(s3, run_uri)
    summary = summarise(plan, metrics.steps, cluster_id)
    rows = {
        "rejects": summary["images_rejected"],
        "features": summary["features_rows"],
        "embeddings": summary["embeddings_rows"],
    }
    tables = {name: open_table(catalog, settings, name) for name in TABLES}
    # Check all tables before the first commit.
    files = {name: data_files(table, metrics.files(name)) for name, table in tables.items()}
    for name, expected in rows.items():
        found = sum(file.record_count for file in files[name])
        if found != expected:
            raise InconsistentRun(
                f"{run_uri} is not published: the {len(files[name])} files of {name} contain {found} rows, but the "
                f"step's metrics count {expected}. {WRITE_AGAIN}"
            )
    origin = RunOrigin(plan["dataset_uri"], metrics.ingested.isoformat())
    snapshots: dict[str, int] = {}
    for name, table in tables.items():
        properties = {
            RUN_URI: run_uri,
            RUN_ID: summary["run_id"],
            DATASET_URI: origin.dataset_uri,
            INGESTED: origin.ingested,
        }
        if name == "embeddings":
            properties[SNAPSHOTS] = json.dumps(snapshots)
        snapshots[name] = commit(table, run_uri, origin, files[name], properties)
    summary["database"] = settings.catalog_database
    # As text, because browsers and jq round numbers of this size.
    summary["tables"] = {name: {"snapshot_id": str(snapshots[name]), "rows": count} for name, count in rows.items()}
    write_summary(s3, summary)
    log.info("published %s: %s", run_uri, json.dumps(summary))
    return summary


def data_files(table: Table, listed: Sequence[Mapping[str, Any]]) -> list[DataFile]:
    """Return the files that a step lists in its metrics as Iceberg data files. Only footers are read.

    Raises:
        InconsistentRun: a file is missing, has another size or number of rows than listed, or does not fit the table.
    """
    name = ".".join(table.name())

    def data_file(file: Mapping[str, Any]) -> DataFile:
        try:
            found = parquet_file_to_data_file(table.io, table.metadata, file["uri"])
        except FileNotFoundError as error:
            raise InconsistentRun(f"{file['uri']} does not exist, but its step lists it. {WRITE_AGAIN}") from error
        except ValueError as error:
            raise InconsistentRun(f"{file['uri']} does not fit table {name}: {error}") from error
        sizes = (found.record_count, found.file_size_in_bytes)
        if sizes != (file["rows"], file["bytes"]):
            raise InconsistentRun(
                f"{file['uri']} has {sizes[0]} rows and {sizes[1]} bytes, but its step lists {file['rows']} rows and "
                f"{file['bytes']} bytes: another program has changed it. {WRITE_AGAIN}"
            )
        return found

    with ThreadPoolExecutor() as pool:
        return list(pool.map(data_file, listed))
