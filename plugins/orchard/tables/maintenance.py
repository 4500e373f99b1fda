"""Maintain one table: expire snapshots, delete the files that nothing refers to, and measure both."""

import logging
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from pyiceberg.catalog import Catalog
from pyiceberg.manifest import ManifestContent
from pyiceberg.table import Table

from orchard.tables.expiry import Retention, allows_deletion, expire_snapshots, expired_snapshots
from orchard.tables.unreferenced import (
    EXAMPLES,
    Sizes,
    delete_files,
    files_of_expired,
    files_of_metadata,
    files_of_others,
    list_files,
    referenced_files,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Content:
    """What a table shows now: its data files, their rows, and their bytes."""

    data_files: int = 0
    rows: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class State:
    """The snapshots of a table, the files that they and the metadata refer to, and those that nothing refers to."""

    snapshots: int
    referenced: Sizes
    unreferenced_old: Sizes
    unreferenced_young: Sizes


@dataclass(frozen=True)
class Report:
    """What maintenance has done with a table. In a dry run: what it would do, and the state that would follow.

    `reserved` are files that only other tables or unfinished runs need. They stay.
    """

    table: str
    content: Content
    before: State
    after: State
    reserved: Sizes
    expired_snapshots: int
    deleted: Sizes
    examples: Sequence[str]


@dataclass(frozen=True)
class Rules:
    """What stays in every table.

    A file stays if it was modified at or after `modified_before`, if one of the tables `others` refers to it, or if
    `needed` returns it: the URIs of files that no snapshot refers to yet.
    """

    retention: Retention
    modified_before: datetime
    others: Sequence[tuple[str, str]]
    needed: Callable[[], Set[str]]


def maintain_table(s3: "S3Client", catalog: Catalog, table: Table, rules: Rules, *, dry_run: bool) -> Report:
    """Expire the snapshots of a table that no rule keeps, and delete the files that nothing refers to then.

    A dry run changes nothing, and returns the same report.

    Raises:
        CannotCommit: publishers changed the table during each attempt to expire snapshots.
        MissingFiles: the table refers to a file that is not listed. No file was deleted.
        UnreadableTable: the table, or another one of the warehouse, cannot be read. No file was deleted.
        NotDeleted: S3 refuses to delete some of the files.
    """
    name = table.name()[1]
    earlier = {snapshot.snapshot_id for snapshot in table.refresh().snapshots()}
    # First the files, then everything that refers to them: a file that is needed since then is seen as needed.
    files = list_files(s3, table.location(), rules.modified_before)
    # Then what runs need, and then the table: a run that is published in between is seen in one of them at least.
    needed = files.paths_of(rules.needed())
    found = table.refresh().metadata
    expired = set((expired_snapshots if dry_run else expire_snapshots)(table, rules.retention))

    kept = [snapshot for snapshot in table.snapshots() if snapshot.snapshot_id not in expired]
    own = referenced_files(table, files, kept, earlier - expired)
    own |= files_of_metadata(table, files, expired if dry_run else ())
    others = needed | files_of_others(catalog, rules.others, files)
    reserved = others - own
    unreferenced = {path for path in files.old if path not in own and path not in reserved}
    freed = files_of_expired(table, files, [each for each in found.snapshots if each.snapshot_id in expired]) - own
    chosen = unreferenced if allows_deletion(table) else set()
    # What was there before is counted before anything is deleted, because the listing is what tells the sizes.
    young = {path for path in files.young if path not in own and path not in reserved}
    before = State(
        len(found.snapshots), files.sizes(own | freed), files.sizes(unreferenced - freed), files.sizes(young - freed)
    )
    deleted = chosen if dry_run else set(delete_files(s3, table, chosen, rules.modified_before))
    report = Report(
        table=name,
        content=content_of(table),
        before=before,
        after=State(len(kept), files.sizes(own), files.sizes(unreferenced - deleted), files.sizes(young)),
        reserved=files.sizes(reserved),
        expired_snapshots=len(expired),
        deleted=files.sizes(deleted),
        examples=[f"{table.location()}/{path}" for path in sorted(deleted)[:EXAMPLES]],
    )
    log.info("%s", line_of(report, dry_run=dry_run))
    return report


def content_of(table: Table) -> Content:
    """Return the size of the current snapshot of a table, without its delete files and its metadata."""
    current = table.current_snapshot()
    manifests = current.manifests(table.io) if current is not None else []
    files = rows = size = 0
    for manifest in manifests:
        if manifest.content == ManifestContent.DATA:
            for entry in manifest.fetch_manifest_entry(table.io):
                files += 1
                rows += entry.data_file.record_count
                size += entry.data_file.file_size_in_bytes
    return Content(files, rows, size)


def line_of(report: Report, *, dry_run: bool) -> str:
    """Return a report as a line of a log."""

    def text(sizes: Sizes) -> str:
        return f"{sizes.files} files with {megabytes(sizes.bytes)}"

    shown, before, after = report.content, report.before, report.after
    would = "would be " if dry_run else ""
    examples = f", such as {', '.join(report.examples)}" if report.examples else ""
    return (
        f"{report.table}: shows {shown.rows} rows in {shown.data_files} files with {megabytes(shown.bytes)}; "
        f"snapshots: {before.snapshots}, then {after.snapshots}; "
        f"referenced: {text(before.referenced)}, then {text(after.referenced)}; "
        f"unreferenced: {text(before.unreferenced_old)}, then {text(after.unreferenced_old)}; "
        f"too young to delete: {text(after.unreferenced_young)}; kept for runs and other tables: "
        f"{text(report.reserved)}; {would}deleted: {text(report.deleted)}{examples}"
    )


def megabytes(size: int) -> str:
    """Return a size as text.

    >>> megabytes(1_234_567)
    '1.2 MB'
    """
    return f"{size / 1e6:.1f} MB"
