"""Change a table by one commit with one snapshot, and try again if another publisher was first."""

import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pyiceberg.exceptions import CommitFailedException
from pyiceberg.expressions import AlwaysTrue
from pyiceberg.manifest import DataFile, ManifestFile
from pyiceberg.table import FileScanTask, Table
from pyiceberg.table.refs import MAIN_BRANCH
from pyiceberg.table.snapshots import Operation
from pyiceberg.table.update.snapshot import _MergeAppendFiles, _OverwriteFiles

from orchard.errors import PermanentError
from orchard.tables.rows import stream_file, where

log = logging.getLogger(__name__)

Result = TypeVar("Result")

# An attempt fails only if another publisher commits first, and at most four runs are active.
COMMIT_ATTEMPTS = 10
FIRST_WAIT_SECONDS = 0.1
# Each run adds a small file to `runs`, and to `pca_models`. If a dataset has more, they are merged into one.
MOST_SMALL_FILES = 200


class SharedFile(PermanentError):
    """A data file has rows of several datasets, so the rows of one of them cannot be replaced."""

    def __init__(self, table: str, file: str, dataset: str) -> None:
        super().__init__(
            f"table {table}: {file} has rows of {dataset} and of other datasets, because another program has changed "
            "the partitioning of the table. Partition the table by identity of `dataset` again, and rewrite the file"
        )


class CannotCommit(RuntimeError):
    """Other publishers changed the table during each attempt to commit."""

    def __init__(self, table: str, what: str) -> None:
        super().__init__(
            f"{what} is not in table {table}: other publishers changed the table during each of {COMMIT_ATTEMPTS} "
            "attempts. Clear this task when they have finished"
        )


@dataclass(frozen=True)
class Change:
    """The files that a commit adds to a table, and those that it removes."""

    added: Sequence[DataFile] = ()
    removed: Sequence[DataFile] = ()


def commit(table: Table, what: str, find_change: Callable[[Table], Change], properties: Mapping[str, str]) -> int:
    """Change a table, and return the id of the snapshot that shows the result.

    `find_change` returns what to change in the table as it is now. It is called again before each attempt. If there is
    nothing to change, nothing is committed. `what` describes the change in messages. `properties` go into the
    snapshot's summary.

    Raises:
        CannotCommit: other publishers changed the table during each attempt.
    """

    def once() -> int:
        change = find_change(table)
        current = table.current_snapshot()
        if current is not None and not change.added and not change.removed:
            log.info("%s needs no change for %s: snapshot %d", ".".join(table.name()), what, current.snapshot_id)
            return current.snapshot_id
        return _commit_once(table, what, change, properties)

    return commit_planned_again(table, what, once)


def commit_planned_again(table: Table, what: str, once: Callable[[], Result]) -> Result:
    """Return the result of `once`, which plans a commit from the table as it is now, and sends it.

    It is called again, with the table refreshed, if another publisher was first. `what` describes the change.

    Raises:
        CannotCommit: other publishers changed the table during each attempt.
    """
    name = ".".join(table.name())
    for attempt in range(1, COMMIT_ATTEMPTS + 1):
        table.refresh()
        try:
            return once()
        except CommitFailedException as error:
            log.warning("%s: attempt %d to commit %s failed: another commit was first: %s", name, attempt, what, error)
        time.sleep(random.uniform(0, FIRST_WAIT_SECONDS * 2 ** min(attempt, 5)))  # noqa: S311  # no secret
    raise CannotCommit(name, what)


class _Overwrite(_OverwriteFiles):
    """Replaces files. Drops the manifests in which no file is left: pyiceberg keeps them, and readers open each one."""

    def _process_manifests(self, manifests: list[ManifestFile]) -> list[ManifestFile]:
        return [
            manifest
            for manifest in manifests
            if manifest.added_snapshot_id == self.snapshot_id
            or manifest.has_added_files()
            or manifest.has_existing_files()
        ]


def _commit_once(table: Table, what: str, change: Change, properties: Mapping[str, str]) -> int:
    # One snapshot that adds and removes. `Transaction.delete` followed by `add_files` creates two, and the first shows
    # the dataset empty. `delete` also rewrites a file if its statistics do not show whether its rows match.
    transaction = table.transaction()
    update: _Overwrite | _MergeAppendFiles
    if change.removed:
        update = _Overwrite(
            Operation.OVERWRITE, transaction, table.io, snapshot_properties=dict(properties), branch=MAIN_BRANCH
        )
    else:
        update = transaction.update_snapshot(snapshot_properties=dict(properties)).merge_append()
    with update:
        for file in change.removed:
            update.delete_data_file(file)
        for file in change.added:
            update.append_data_file(file)
    transaction.commit_transaction()
    log.info(
        "%s: snapshot %d with %s: added %d rows in %d files, removed %d rows in %d files",
        ".".join(table.name()),
        update.snapshot_id,
        what,
        sum(file.record_count for file in change.added),
        len(change.added),
        sum(file.record_count for file in change.removed),
        len(change.removed),
    )
    return int(update.snapshot_id)


def replacement(table: Table, dataset: str, files: Sequence[DataFile]) -> Change:
    """Return the change after which exactly these files have the rows of a dataset.

    Raises:
        SharedFile: a file has rows of the dataset and of others.
    """
    present = {task.file.file_path: task.file for task in tasks_of_dataset(table, dataset)}
    wanted = {file.file_path: file for file in files}
    return Change(
        added=[file for path, file in wanted.items() if path not in present],
        removed=[file for path, file in present.items() if path not in wanted],
    )


def tasks_of_dataset(table: Table, dataset: str) -> list[FileScanTask]:
    """Return the files of a table that have the rows of a dataset, and no others.

    Raises:
        SharedFile: a file has rows of the dataset and of others.
    """
    found = []
    for task in table.scan(row_filter=where(dataset=dataset)).plan_files():
        if not isinstance(task.residual, AlwaysTrue):  # the file has another partitioning
            datasets = {
                name for batch in stream_file(table, task, columns=["dataset"]) for name in batch[0].to_pylist()
            }
            if dataset not in datasets:
                continue
            if len(datasets) > 1:
                raise SharedFile(".".join(table.name()), task.file.file_path, dataset)
        found.append(task)
    return found


def tasks_to_merge(table: Table, dataset: str) -> list[FileScanTask]:
    """Return all files of a dataset in a table to which each run adds a small one, if there are too many of them."""
    tasks = tasks_of_dataset(table, dataset)
    return tasks if len(tasks) > MOST_SMALL_FILES else []
