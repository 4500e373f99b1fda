"""Publish a run: check that its parts agree, commit its files to the tables, write the summary that ends it."""

import json
import logging
import random
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.io.pyarrow import parquet_file_to_data_file
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table
from pyiceberg.table.refs import MAIN_BRANCH

from orchard.catalog import (
    DATASET_URI,
    INGESTED,
    LIVE,
    RUN_ID,
    RUN_URI,
    SNAPSHOTS,
    TABLES,
    Origin,
    fact,
    live_runs,
    open_table,
)
from orchard.dataset import split_uri
from orchard.errors import WillNotHeal
from orchard.settings import Settings
from orchard.summary import InconsistentRun, read_metrics, summarise, write_summary

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

# Each attempt loses to another publisher that got its commit in, and no more than four runs are active.
COMMIT_ATTEMPTS = 10
FIRST_WAIT_SECONDS = 0.1


class UnknownFiles(WillNotHeal):
    """A table holds files that no run has written, so it cannot be told which dataset's rows they are."""


class CannotCommit(RuntimeError):
    """Others changed the table each time that a commit was tried."""


def publish_run(
    s3: "S3Client", catalog: Catalog, settings: Settings, run: Mapping[str, Any], cluster_id: str
) -> dict[str, Any]:
    """Make a run visible: commit its files to the tables, write its `summary.json`, and return that.

    The run takes the place of the one that the tables show of the same dataset (the same `dataset_uri`, not one that
    contains it), whose rows remain in that one's snapshots. A run that read the dataset earlier than the one shown
    gets its snapshots beside the table's line, so that the tables do not go back in time. Repeated, it changes
    nothing, unless steps of the run were done once more: then it exchanges the run's files.

    Raises:
        InconsistentRun: the steps, or their files, do not agree on how many images there are; no table shows the run.
        WrongWarehouse: the database's tables lie in another bucket.
        UnknownFiles: a table was compacted, or written to by others.
        CannotCommit: the table is changed by others all the time.
    """
    run_uri = run["run_uri"]
    metrics = read_metrics(s3, run_uri)
    summary = summarise(run, metrics.steps, cluster_id)
    rows = {
        "rejects": summary["images_rejected"],
        "features": summary["features_rows"],
        "embeddings": summary["embeddings_rows"],
    }
    tables = {name: open_table(catalog, settings, name) for name in TABLES}
    files = {name: data_files(s3, table, f"{run_uri}/{name}") for name, table in tables.items()}
    for name, expected in rows.items():  # of all tables before the first commit
        found = sum(file.record_count for file in files[name])
        if found != expected:
            raise InconsistentRun(
                f"{run_uri} is not published: the {len(files[name])} files of {name}/ have {found} rows, but the "
                f"step's metrics say {expected}. Clear the step's add_step with downstream, to have them written anew"
            )
    origin = Origin(run["dataset_uri"], metrics.ingested.isoformat())
    snapshots: dict[str, int] = {}
    for name, table in tables.items():
        facts = {
            RUN_URI: run_uri,
            RUN_ID: summary["run_id"],
            DATASET_URI: origin.dataset_uri,
            INGESTED: origin.ingested,
        }
        if name == "embeddings":
            facts[SNAPSHOTS] = json.dumps(snapshots)
        snapshots[name] = commit(table, run_uri, origin, files[name], facts)
    summary["database"] = settings.catalog_database
    # As text: such an id has more digits than a number of JSON has in a browser or in jq.
    summary["tables"] = {name: {"snapshot_id": str(snapshots[name]), "rows": count} for name, count in rows.items()}
    write_summary(s3, summary)
    log.info("published %s: %s", run_uri, json.dumps(summary))
    return summary


def data_files(s3: "S3Client", table: Table, uri: str) -> list[DataFile]:
    """The Parquet files of a folder that have rows, as a table knows files; only their footers are read.

    Raises:
        InconsistentRun: a file does not have the table's columns.
    """
    bucket, prefix = split_uri(f"{uri}/")
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    names = [item["Key"].removeprefix(prefix) for page in pages for item in page.get("Contents", [])]
    # Spark keeps what is not finished in folders of this one, and readers of Parquet overlook hidden files.
    names = [name for name in names if name.endswith(".parquet") and "/" not in name and name[0] not in "_."]

    def described(name: str) -> DataFile:
        try:
            return parquet_file_to_data_file(table.io, table.metadata, f"{uri}/{name}")
        except ValueError as error:
            raise InconsistentRun(f"{uri}/{name} does not fit the table {'.'.join(table.name())}: {error}") from error

    with ThreadPoolExecutor() as pool:
        return [file for file in pool.map(described, names) if file.record_count]


def commit(table: Table, run_uri: str, origin: Origin, files: Sequence[DataFile], facts: Mapping[str, str]) -> int:
    """Add a run's files to a table and remove those that they supersede, in one snapshot; return its id.

    Returns the id of an earlier snapshot with the same files and facts when there is one.

    Raises:
        UnknownFiles: the table was compacted, or written to by others.
        CannotCommit: others changed the table at each attempt.
    """
    name = ".".join(table.name())
    for attempt in range(1, COMMIT_ATTEMPTS + 1):
        table.refresh()
        earlier = _snapshot_of(table, run_uri, files, facts)
        if earlier is not None:
            log.info("%s has %s already: snapshot %d", name, run_uri, earlier)
            return earlier
        try:
            return _try_commit(table, run_uri, origin, files, facts)
        except CommitFailedException as error:
            log.warning("%s: attempt %d to commit %s lost to another commit: %s", name, attempt, run_uri, error)
        time.sleep(random.uniform(0, FIRST_WAIT_SECONDS * 2 ** min(attempt, 5)))  # noqa: S311  # no secret
    raise CannotCommit(
        f"{run_uri} is not published: table {name} was changed by others during each of {COMMIT_ATTEMPTS} attempts. "
        "Clear `publish` of this run when they are through"
    )


def _try_commit(table: Table, run_uri: str, origin: Origin, files: Sequence[DataFile], facts: Mapping[str, str]) -> int:
    live = live_runs(table, table.current_snapshot())
    shown = _files_by_run(table, live)
    of_dataset = {uri for uri, other in live.items() if other.dataset_uri == origin.dataset_uri}
    # The same order in every table, so that all three end with the same run, whoever commits in which order.
    newer = [uri for uri in of_dataset if (live[uri].ingested, uri) > (origin.ingested, run_uri)]
    superseded = {file for uri in of_dataset for file in shown.get(uri, ())}
    removed = superseded - set(files)
    added = set(files) - superseded
    after = {uri: other for uri, other in live.items() if uri not in of_dataset} | {run_uri: origin}
    properties = {**facts, LIVE: json.dumps({uri: asdict(other) for uri, other in after.items()})}

    # One snapshot that adds and removes. `Transaction.delete` with `add_files` would make two, of which the first shows
    # the dataset empty; and `delete` rewrites the files that it cannot judge by their statistics.
    transaction = table.transaction()
    branch = None if newer else MAIN_BRANCH
    with transaction.update_snapshot(snapshot_properties=properties, branch=branch).overwrite() as update:
        for file in removed:
            update.delete_data_file(file)
        for file in added:
            update.append_data_file(file)
    try:
        transaction.commit_transaction()
    except ValueError as error:  # beside the line nothing is asserted; only the sequence number shows a conflict
        raise CommitFailedException(str(error)) from error
    log.info(
        "%s: snapshot %d with %s: %d rows in %d files added, %d rows in %d files removed%s",
        ".".join(table.name()),
        update.snapshot_id,
        run_uri,
        sum(file.record_count for file in added),
        len(added),
        sum(file.record_count for file in removed),
        len(removed),
        f"; not shown, as {newer[0]} read the dataset later" if newer else "",
    )
    return int(update.snapshot_id)


def _files_by_run(table: Table, live: Mapping[str, Origin]) -> dict[str, list[DataFile]]:
    """The files that a table shows, by the run that wrote them."""
    found: dict[str, list[DataFile]] = {}
    for task in table.scan().plan_files():
        uri = task.file.file_path.rsplit("/", 2)[0]
        if uri not in live:
            raise UnknownFiles(
                f"table {'.'.join(table.name())} holds {task.file.file_path}, which none of its runs has written; was "
                "it compacted? Publishing could not remove what a run supersedes. Roll the table back to its last "
                f"snapshot with {LIVE} in the summary, or drop the three tables and clear `publish` of the last runs"
            )
        found.setdefault(uri, []).append(task.file)
    return found


def _snapshot_of(table: Table, run_uri: str, files: Sequence[DataFile], facts: Mapping[str, str]) -> int | None:
    """The last snapshot that a run made, if it has the files and the facts."""
    snapshots = [snapshot for snapshot in table.snapshots() if fact(snapshot, RUN_URI) == run_uri]
    if not snapshots or any(fact(snapshots[-1], key) != value for key, value in facts.items()):
        return None
    held = {task.file.file_path for task in table.scan(snapshot_id=snapshots[-1].snapshot_id).plan_files()}
    same = {path for path in held if path.startswith(f"{run_uri}/")} == {file.file_path for file in files}
    return snapshots[-1].snapshot_id if same else None
