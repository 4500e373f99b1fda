"""Commit a run's files to a table, and remove the rows that they supersede, in one snapshot."""

import json
import logging
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from pyiceberg.exceptions import CommitFailedException
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table
from pyiceberg.table.refs import MAIN_BRANCH
from pyiceberg.table.snapshots import Snapshot, ancestors_of

from orchard.errors import PermanentError
from orchard.tables.catalog import LIVE_RUNS, RUN_URI, RunOrigin, live_runs, summary_value

log = logging.getLogger(__name__)

# An attempt fails only if another publisher commits first, and at most four runs are active.
COMMIT_ATTEMPTS = 10
FIRST_WAIT_SECONDS = 0.1


class UnknownFiles(PermanentError):
    """A table contains files that no run has written, so the dataset of their rows is unknown."""


class CannotCommit(RuntimeError):
    """Other publishers changed the table during each attempt to commit."""


def commit(
    table: Table, run_uri: str, origin: RunOrigin, files: Sequence[DataFile], properties: Mapping[str, str]
) -> int:
    """Add a run's files to a table, remove the files that they supersede, and return the id of the snapshot.

    `properties` go into the snapshot's summary. If an earlier snapshot has the same files and properties, nothing is
    committed and its id is returned. A snapshot that a rollback has removed from the main branch does not count.

    Raises:
        UnknownFiles: the table was compacted, or another program wrote to it.
        CannotCommit: other publishers changed the table during each attempt.
    """
    name = ".".join(table.name())
    for attempt in range(1, COMMIT_ATTEMPTS + 1):
        table.refresh()
        earlier = _find_snapshot(table, run_uri, origin, files, properties)
        if earlier is not None:
            log.info("%s already contains %s: snapshot %d", name, run_uri, earlier)
            return earlier
        try:
            return _commit_once(table, run_uri, origin, files, properties)
        except CommitFailedException as error:
            log.warning(
                "%s: attempt %d to commit %s failed: another commit was first: %s", name, attempt, run_uri, error
            )
        time.sleep(random.uniform(0, FIRST_WAIT_SECONDS * 2 ** min(attempt, 5)))  # noqa: S311  # no secret
    raise CannotCommit(
        f"{run_uri} is not published: other publishers changed table {name} during each of {COMMIT_ATTEMPTS} attempts. "
        "Clear the task `publish` of this run when they have finished"
    )


def _commit_once(
    table: Table, run_uri: str, origin: RunOrigin, files: Sequence[DataFile], properties: Mapping[str, str]
) -> int:
    live = live_runs(table, table.current_snapshot())
    shown = _files_by_run(table, live)
    of_dataset = {uri for uri, other in live.items() if other.dataset_uri == origin.dataset_uri}
    newer = _newer_runs(live, run_uri, origin)
    superseded = {file for uri in of_dataset for file in shown.get(uri, ())}
    removed = superseded - set(files)
    added = set(files) - superseded
    remaining = {uri: other for uri, other in live.items() if uri not in of_dataset} | {run_uri: origin}
    summary = {**properties, LIVE_RUNS: json.dumps({uri: asdict(other) for uri, other in remaining.items()})}

    # One snapshot that adds and removes. `Transaction.delete` followed by `add_files` creates two, and the first shows
    # the dataset empty. `delete` also rewrites a file if its statistics do not show whether its rows match.
    transaction = table.transaction()
    # A run that read the dataset earlier than the one shown gets a snapshot outside the main branch.
    branch = None if newer else MAIN_BRANCH
    with transaction.update_snapshot(snapshot_properties=summary, branch=branch).overwrite() as update:
        for file in removed:
            update.delete_data_file(file)
        for file in added:
            update.append_data_file(file)
    try:
        transaction.commit_transaction()
    except ValueError as error:  # without a branch, only the sequence number reveals a conflict
        raise CommitFailedException(str(error)) from error
    log.info(
        "%s: snapshot %d with %s: added %d rows in %d files, removed %d rows in %d files%s",
        ".".join(table.name()),
        update.snapshot_id,
        run_uri,
        sum(file.record_count for file in added),
        len(added),
        sum(file.record_count for file in removed),
        len(removed),
        f"; not shown, because {newer[0]} read the dataset later" if newer else "",
    )
    return int(update.snapshot_id)


def _files_by_run(table: Table, live: Mapping[str, RunOrigin]) -> dict[str, list[DataFile]]:
    """Return the files that a table shows, by the URI of the run that wrote them."""
    found: dict[str, list[DataFile]] = {}
    for task in table.scan().plan_files():
        uri = task.file.file_path.rsplit("/", 2)[0]
        if uri not in live:
            raise UnknownFiles(
                f"table {'.'.join(table.name())} contains {task.file.file_path}, which none of its runs wrote; the "
                "table was probably compacted. Orchard cannot remove the rows that a new run supersedes. Roll the "
                f"table back to its last snapshot with {LIVE_RUNS} in the summary, or drop the three tables and clear "
                "the task `publish` of the last runs"
            )
        found.setdefault(uri, []).append(task.file)
    return found


def _newer_runs(live: Mapping[str, RunOrigin], run_uri: str, origin: RunOrigin) -> list[str]:
    """Return the live runs that read the dataset later than a run.

    The order is the same in every table, so that all three show the same run, whichever publisher commits first.
    """
    return [
        uri
        for uri, other in live.items()
        if other.dataset_uri == origin.dataset_uri and (other.ingested, uri) > (origin.ingested, run_uri)
    ]


def _find_snapshot(
    table: Table, run_uri: str, origin: RunOrigin, files: Sequence[DataFile], properties: Mapping[str, str]
) -> int | None:
    """Return the id of a run's snapshot with these files and properties, if another commit would change nothing.

    The run's last snapshot in the main branch is one. Its last snapshot outside of the main branch is one only while
    the table shows a newer run. Without a newer run, a user has rolled the table back.
    """
    snapshots = [snapshot for snapshot in table.snapshots() if summary_value(snapshot, RUN_URI) == run_uri]
    current = table.current_snapshot()
    main = {ancestor.snapshot_id for ancestor in ancestors_of(current, table.metadata)}
    candidates = [snapshot for snapshot in snapshots if snapshot.snapshot_id in main][-1:]
    if snapshots and _newer_runs(live_runs(table, current), run_uri, origin):
        candidates += snapshots[-1:]
    return next(
        (found.snapshot_id for found in candidates if _contains(table, found, run_uri, files, properties)), None
    )


def _contains(
    table: Table, snapshot: Snapshot, run_uri: str, files: Sequence[DataFile], properties: Mapping[str, str]
) -> bool:
    """Return whether a snapshot of a run has these files of it, and these properties."""
    if any(summary_value(snapshot, key) != value for key, value in properties.items()):
        return False
    paths = {task.file.file_path for task in table.scan(snapshot_id=snapshot.snapshot_id).plan_files()}
    return {path for path in paths if path.startswith(f"{run_uri}/")} == {file.file_path for file in files}
