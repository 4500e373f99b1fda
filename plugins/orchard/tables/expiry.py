"""Expire snapshots of a table: which of them stay, and the commit that removes the others. No file is deleted here."""

import logging
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise, takewhile
from typing import Any

from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.table import Table, TableProperties
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.refs import SnapshotRef, SnapshotRefType
from pyiceberg.table.snapshots import ancestors_of
from pyiceberg.table.update import AssertTableUUID, RemoveSnapshotsUpdate, ValidatableTableRequirement

from orchard.settings import Settings
from orchard.tables.catalog import PublishedRun, find_table, published_runs
from orchard.tables.commit import commit_planned_again

log = logging.getLogger(__name__)

# With this property set to false, a user forbids every engine to expire snapshots and to delete files.
# https://iceberg.apache.org/docs/latest/configuration/#table-behavior-properties
GC_ENABLED = "gc.enabled"


@dataclass(frozen=True)
class Retention:
    """Which snapshots stay: those that `runs` name, and those that were current at `since` or have been made since.

    Without `runs` no snapshot expires.
    """

    runs: Sequence[PublishedRun] | None
    since: datetime


def last_runs(catalog: Catalog, settings: Settings, count: int) -> list[PublishedRun] | None:
    """Return the last published runs of each dataset, at most `count` of each. Return None without the table `runs`.

    Raises:
        WrongWarehouse: the table is of another deployment.
        OldLayout: the table has the columns of an earlier release.
    """
    if find_table(catalog, settings, "runs") is None:
        return None
    of_dataset: dict[str, list[PublishedRun]] = defaultdict(list)
    for run in published_runs(catalog, settings.catalog_database):
        of_dataset[run.dataset].append(run)
    return [run for runs in of_dataset.values() for run in runs[max(0, len(runs) - count) :]]


def allows_deletion(table: Table) -> bool:
    """Return whether the user of a table allows engines to expire its snapshots and to delete its files."""
    return table.properties.get(GC_ENABLED, "true").lower() != "false"


def expired_snapshots(table: Table, retention: Retention) -> list[int]:
    """Return the ids of the snapshots that expire, oldest first.

    These stay: the current one, those that branches, tags and their rules name, and those that the retention names.
    """
    if retention.runs is None or not allows_deletion(table):
        return []
    since = _milliseconds(retention.since)
    kept = {
        *_of_references(table.metadata),
        *_current_since(table.metadata, since),
        *_of_runs(table, retention.runs),
    }
    old = [snapshot for snapshot in table.snapshots() if snapshot.timestamp_ms < since]
    return [snapshot.snapshot_id for snapshot in old if snapshot.snapshot_id not in kept]


def expire_snapshots(table: Table, retention: Retention) -> list[int]:
    """Remove the snapshots that expire from the metadata of a table, by one commit. Return their ids.

    If anybody changes the table before the commit, for example by a publication, a rollback or a new tag, what expires
    is determined again.

    Raises:
        CannotCommit: other publishers changed the table during each attempt.
    """

    def once() -> list[int]:
        expired = expired_snapshots(table, retention)
        if expired:
            # Not pyiceberg's `maintenance.expire_snapshots`, whose commit has no requirement. A commit that removes a
            # snapshot also removes the tags and branches that name it by then.
            requirements: Any = (AssertTableUUID(uuid=table.metadata.table_uuid), Unchanged(metadata=table.metadata))
            update: Any = RemoveSnapshotsUpdate
            table.catalog.commit_table(table, requirements, (update(snapshot_ids=expired),))
            log.info("%s: expired %d snapshots", ".".join(table.name()), len(expired))
            table.refresh()
        return expired

    return commit_planned_again(table, "the expiry of snapshots", once)


class Unchanged(ValidatableTableRequirement):
    """The requirement that nobody has changed a table since a commit was planned.

    Iceberg's own requirements cannot express it. Glue's catalog checks requirements in this process, and then replaces
    the version of the table that it has checked.
    """

    type: str = "unchanged"
    metadata: TableMetadata

    def validate(self, base_metadata: TableMetadata | None) -> None:  # type: ignore[override]
        """Compare a table with the planned one.

        Raises:
            CommitFailedException: they differ.
        """
        if base_metadata != self.metadata:
            raise CommitFailedException("Requirement failed: the table has changed")


def _of_references(metadata: TableMetadata) -> Iterator[int]:
    """Yield the current snapshot, those that branches and tags name, and those that the rules of branches keep."""
    if metadata.current_snapshot_id is not None:
        yield metadata.current_snapshot_id
    for reference in metadata.refs.values():
        yield reference.snapshot_id
        if reference.snapshot_ref_type == SnapshotRefType.BRANCH:
            yield from _of_branch(metadata, reference)


def _of_branch(metadata: TableMetadata, branch: SnapshotRef) -> Iterator[int]:
    """Yield the ancestors that a branch keeps, if a user has set how many these are, or how old.

    https://iceberg.apache.org/spec/#snapshot-retention-policy
    """
    properties = metadata.properties
    count = branch.min_snapshots_to_keep or int(properties.get(TableProperties.MIN_SNAPSHOTS_TO_KEEP, 1))
    age = branch.max_snapshot_age_ms or int(properties.get(TableProperties.MAX_SNAPSHOT_AGE_MS, 0))
    since = _milliseconds(datetime.now(UTC)) - age
    ancestors = enumerate(ancestors_of(metadata.snapshot_by_id(branch.snapshot_id), metadata))
    for _, snapshot in takewhile(lambda each: each[0] < count or each[1].timestamp_ms >= since, ancestors):
        yield snapshot.snapshot_id


def _current_since(metadata: TableMetadata, since: int) -> Iterator[int]:
    """Yield the snapshots that another one has replaced since a time.

    A run that is being published may have found one of them current, and name it in its row of `runs`, although the
    snapshot itself is older.
    """
    for entry, following in pairwise(metadata.snapshot_log):
        if following.timestamp_ms >= since:
            yield entry.snapshot_id


def _of_runs(table: Table, runs: Iterable[PublishedRun]) -> Iterator[int]:
    """Yield the snapshots of a table that show runs.

    The row of a run names all of them but the one of the table `runs`, which did not exist yet. That is the first one
    since the time in the row: a row is made for one attempt to commit, which fails if another commit is first.
    """
    name = table.name()[1]
    made = sorted((snapshot.timestamp_ms, snapshot.snapshot_id) for snapshot in table.snapshots())
    for run in runs:
        if name in run.snapshots:
            yield run.snapshots[name]
        elif name == "runs":
            first = bisect_left(made, (_milliseconds(run.published_at), 0))
            yield from (snapshot_id for _, snapshot_id in made[first : first + 1])


def _milliseconds(time: datetime) -> int:
    return int(time.timestamp() * 1000)
