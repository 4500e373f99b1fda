"""The files below a table that nothing refers to: find them, and delete them.

A publisher may work at the same time, and a retry of it may write a file of the same name again, because names depend
on the content. So the order matters: list the files first, then load what refers to them. List the files once more
before they are deleted, page by page, and skip those that are young by then.

Memory: about 350 bytes per file of the largest table, that is 350 MB per million files.
"""

import logging
from collections.abc import Collection, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError
from pyiceberg.catalog import Catalog
from pyiceberg.catalog.glue import GlueCatalog
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.table import Table, TableProperties
from pyiceberg.table.snapshots import Snapshot

from orchard.settings import Settings
from orchard.storage import DeletionFailed, delete_objects, split_uri
from orchard.tables.catalog import TABLES

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ObjectTypeDef

log = logging.getLogger(__name__)

_FOLDERS = ("data/", "metadata/")
# Engines without a catalog look for the newest metadata here. No metadata names this file.
VERSION_HINT = "metadata/version-hint.text"
# How many names of files a message contains.
EXAMPLES = 5


class MissingFiles(RuntimeError):
    """A table refers to files that S3 has not listed."""

    def __init__(self, table: str, missing: Sequence[str]) -> None:
        super().__init__(
            f"no file of table {table} was deleted: it refers to {len(missing)} files that S3 does not list, such as "
            f"{', '.join(missing[:EXAMPLES])}. Find out who has deleted them. Then roll the table back, and expire the "
            "snapshots that refer to them"
        )


class UnreadableTable(RuntimeError):
    """The metadata or a manifest of a table cannot be read."""

    def __init__(self, table: str, error: Exception) -> None:
        super().__init__(
            f"no file was deleted, because table {table} cannot be read: {error}. Clear this task. If it fails again, "
            "repair the table, or drop it if nobody needs it"
        )


class UnknownTables(RuntimeError):
    """Glue does not list the tables of a database, which may have files in the warehouse."""

    def __init__(self, database: str, error: Exception) -> None:
        super().__init__(
            f"nothing was changed, because Glue does not list the tables of database {database}: {error}. Grant "
            "Airflow glue:GetDatabases and glue:GetTables on all databases of the account"
        )


class NotDeleted(RuntimeError):
    """S3 has refused to delete files."""

    def __init__(self, table: str, failed: Sequence[str]) -> None:
        super().__init__(f"files of table {table} that S3 has not deleted: {'; '.join(failed)}")


@dataclass(frozen=True)
class Files:
    """The files below the folders of a table, with their size in bytes, by their path in the table's location.

    Only files that are old enough may be deleted.
    """

    location: str
    old: dict[str, int] = field(default_factory=dict)
    young: dict[str, int] = field(default_factory=dict)

    def path_of(self, uri: str) -> str | None:
        """Return the path of a file in the table's location. Return None if it is elsewhere.

        Engines write the same URI with the scheme s3, s3a or s3n.

        >>> Files("s3://b/warehouse/images").path_of("s3a://b/warehouse/images/data/1.parquet")
        'data/1.parquet'
        >>> Files("s3://b/warehouse/images").path_of("s3://b/warehouse/images-2/data/1.parquet")
        """
        folder = f"{self.location.partition('://')[2]}/"
        place = uri.partition("://")[2]
        return place.removeprefix(folder) if place.startswith(folder) else None

    def paths_of(self, uris: Iterable[str]) -> set[str]:
        """Return the paths of those files that are in the table's location."""
        return {path for path in map(self.path_of, uris) if path is not None}

    def size(self, path: str) -> int | None:
        """Return the size of a file in bytes, or None if it is not listed."""
        found = self.old.get(path)
        return self.young.get(path) if found is None else found

    def sizes(self, paths: Iterable[str]) -> "Sizes":
        """Return the number of files, and the sum of their sizes."""
        found = [size for size in map(self.size, paths) if size is not None]
        return Sizes(len(found), sum(found))


@dataclass(frozen=True)
class Sizes:
    """A number of files, and the sum of their sizes in bytes."""

    files: int = 0
    bytes: int = 0


def list_files(s3: "S3Client", location: str, modified_before: datetime) -> Files:
    """List the files in the folders `data` and `metadata` of a table. Those modified before a time are old."""
    files = Files(location)
    for page in _pages(s3, location):
        for path, item in page.items():
            is_old = item["LastModified"] < modified_before
            (files.old if is_old else files.young)[path] = item["Size"]
    return files


def _pages(s3: "S3Client", location: str) -> Iterator[dict[str, "ObjectTypeDef"]]:
    """Yield the objects in the folders of a table, by their path in its location, at most 1,000 at a time."""
    bucket, prefix = split_uri(f"{location}/")
    for folder in _FOLDERS:
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}{folder}")
        for page in pages:
            # A key that ends in a slash stands for a folder in the console.
            items = {item["Key"].removeprefix(prefix): item for item in page.get("Contents", [])}
            yield {path: item for path, item in items.items() if not path.endswith("/") and path != VERSION_HINT}


def delete_files(s3: "S3Client", table: Table, paths: set[str], modified_before: datetime) -> list[str]:
    """Delete files of a table that are still old, and return the paths of those that are deleted.

    Each file is listed again within a second before it is deleted: a publisher that needs it has written it again.

    Raises:
        NotDeleted: S3 refuses to delete some of them. All others are deleted.
    """
    bucket, prefix = split_uri(f"{table.location()}/")
    deleted: list[str] = []
    failed: list[str] = []
    for page in _pages(s3, table.location()) if paths else ():
        chosen = [path for path, item in page.items() if path in paths and item["LastModified"] < modified_before]
        try:
            delete_objects(s3, bucket, [f"{prefix}{path}" for path in chosen])
        except DeletionFailed as error:
            failed.append(str(error))
        else:
            deleted += chosen
    if failed:
        raise NotDeleted(".".join(table.name()), failed)
    return deleted


def referenced_files(
    table: Table, files: Files, snapshots: Iterable[Snapshot], must_exist: Set[int] = frozenset()
) -> set[str]:
    """Return the paths of the files that snapshots of a table refer to: manifest lists, manifests, data, deletes.

    All files of the snapshots in `must_exist` were written before the files were listed.

    Raises:
        MissingFiles: a file of such a snapshot is not listed. Then S3 and the table may name the same file differently.
        UnreadableTable: a manifest list or a manifest cannot be read.
    """
    found: set[str] = set()
    missing: list[str] = []
    manifests: set[str] = set()
    # Snapshots that must exist come first, because each manifest is read once.
    for snapshot in sorted(snapshots, key=lambda each: each.snapshot_id not in must_exist):
        for uri in _files_of(table, snapshot, manifests):
            path = files.path_of(uri)
            if path is not None:
                found.add(path)
                is_listed = files.size(path) is not None or not path.startswith(_FOLDERS)
                if not is_listed and snapshot.snapshot_id in must_exist:
                    missing.append(uri)
    if missing:
        raise MissingFiles(".".join(table.name()), missing)
    return found


def files_of_expired(table: Table, files: Files, snapshots: Iterable[Snapshot]) -> set[str]:
    """Return the paths of the files that snapshots have referred to which may have been deleted since."""
    found: set[str] = set()
    manifests: set[str] = set()
    for snapshot in snapshots:
        try:
            found |= files.paths_of(_files_of(table, snapshot, manifests))
        except UnreadableTable as error:
            log.warning("snapshot %d, which expires, is not counted: %s", snapshot.snapshot_id, error)
    return found


def _files_of(table: Table, snapshot: Snapshot, manifests: set[str]) -> Iterator[str]:
    """Yield the files of a snapshot, without those of manifests that have been read before."""
    try:
        yield snapshot.manifest_list
        for manifest in snapshot.manifests(table.io):
            if manifest.manifest_path not in manifests:
                manifests.add(manifest.manifest_path)
                yield manifest.manifest_path
                for entry in manifest.fetch_manifest_entry(table.io):
                    yield entry.data_file.file_path
    except (OSError, ValueError) as error:
        raise UnreadableTable(".".join(table.name()), error) from error


def files_of_metadata(table: Table, files: Files, expired: Collection[int] = ()) -> set[str]:
    """Return the paths of the files that the metadata of a table itself names: its earlier versions, and statistics.

    `expired` are the ids of snapshots that have not expired yet. The result is then that of the metadata without them.
    """
    metadata = table.metadata
    versions = [*(entry.metadata_file for entry in metadata.metadata_log), table.metadata_location]
    if expired:  # the commit would write another version
        most = table.properties.get(TableProperties.METADATA_PREVIOUS_VERSIONS_MAX)
        versions = versions[-max(1, int(most or TableProperties.METADATA_PREVIOUS_VERSIONS_MAX_DEFAULT)) :]
    statistics = [file.statistics_path for file in metadata.statistics if file.snapshot_id not in expired]
    # pyiceberg does not remove these with their snapshots.
    statistics += [file.statistics_path for file in metadata.partition_statistics]
    return files.paths_of([*versions, *statistics])


def other_tables(catalog: GlueCatalog, settings: Settings) -> list[tuple[str, str]]:
    """Return the database and the name of all other Iceberg tables of the catalog that are in the warehouse.

    For example those that a migration has renamed, and those of another deployment in the same bucket.

    Raises:
        UnknownTables: Glue does not list the tables of a database, for example because it is denied.
    """
    own = {(settings.catalog_database, name) for name in TABLES}
    warehouse = f"{settings.warehouse_uri.partition('://')[2]}/"
    found = []
    for database in map(".".join, catalog.list_namespaces()):  # pyiceberg splits names at dots
        try:
            pages = list(catalog.glue.get_paginator("get_tables").paginate(DatabaseName=database))
        except catalog.glue.exceptions.EntityNotFoundException:
            continue  # it has just been deleted
        except ClientError as error:
            raise UnknownTables(database, error) from error
        for table in (table for page in pages for table in page["TableList"]):
            parameters = table.get("Parameters", {})
            places = (table.get("StorageDescriptor", {}).get("Location", ""), parameters.get("metadata_location", ""))
            is_inside = any(f"{place.partition('://')[2]}/".startswith(warehouse) for place in places)
            is_iceberg = parameters.get("table_type", "").lower() == "iceberg"
            if is_inside and is_iceberg and (database, table["Name"]) not in own:
                found.append((database, table["Name"]))
    return found


def files_of_others(catalog: Catalog, others: Iterable[tuple[str, str]], files: Files) -> set[str]:
    """Return the paths of the files that other tables refer to.

    Raises:
        UnreadableTable: the metadata of such a table, or one of its manifests, cannot be read.
    """
    found: set[str] = set()
    for database, name in others:
        try:
            table = catalog.load_table((database, name))
            found |= files_of_metadata(table, files)
            found |= referenced_files(table, files, table.snapshots())
        except NoSuchTableError:
            continue  # it has just been dropped
        except (OSError, ValueError) as error:
            raise UnreadableTable(f"{database}.{name}", error) from error
    return found
