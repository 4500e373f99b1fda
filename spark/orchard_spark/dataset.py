"""The images of a dataset: list the objects below a prefix, and read many small objects concurrently."""

import asyncio
import os
import re
import threading
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import boto3
import obstore
import pyarrow as pa
from obstore import Bytes as Buffer
from obstore.exceptions import GenericError, PermissionDeniedError, PreconditionError, UnauthenticatedError

from orchard_spark.objects import absolute, split, store
from orchard_spark.rejects import RejectedObject
from orchard_spark.schemas import INVENTORY

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
READ_AHEAD_OBJECTS = 128
# Ten photographs of 3 MB: each task slot has its own read-ahead.
READ_AHEAD_BYTES = 32 * 1024**2
# Photographs are smaller. A worker holds an object several times while it packs it.
DEFAULT_MAX_BYTES = 64 * 1024**2
# A record batch can hold less than 2 GiB of content.
LARGEST_MAX_BYTES = 1024**3

# How many endings of ignored objects are counted one by one.
ENDINGS_COUNTED = 20
HIDDEN, NO_ENDING, OTHER_ENDING = "hidden", "no ending", "other endings"

# S3 Glacier Instant Retrieval is not among them: its objects are read as any others.
ARCHIVES = ("GLACIER", "DEEP_ARCHIVE")

_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f]")
_ENDING = re.compile(r"[^.](\.[a-z0-9_+~-]{1,12})$")
_ERROR_CODE = re.compile(r"<Code>([\w.]+)</Code>")


class UnreadableKey(RejectedObject):
    """The key is not valid as a Hadoop path or for object store clients, such as `a//b.jpg`, or is not UTF-8."""

    def __init__(self, message: str) -> None:
        super().__init__("unreadable_key", message)


class ObjectGone(RejectedObject):
    """The object was deleted between listing and reading."""

    def __init__(self, message: str) -> None:
        super().__init__("deleted", message)


class ObjectChanged(RejectedObject):
    """The object's ETag differs from the one in the listing."""

    def __init__(self, message: str) -> None:
        super().__init__("changed", message)


class BadDatasetUri(ValueError):
    """A URI that clients of S3 understand differently, or not at all."""

    def __init__(self, uri: str, fault: str) -> None:
        super().__init__(f"the dataset URI {uri!r} has {fault}: use s3://BUCKET/PREFIX/")


class Archived(RejectedObject):
    """The object is in an archive, from which it must be restored before it can be read."""

    def __init__(self, path: str, archive: str) -> None:
        super().__init__(
            "archived",
            f"{path} is in {archive}: restore it with `aws s3api restore-object`, or copy it to the class STANDARD",
        )


class Forbidden(RejectedObject):
    """S3 refuses to give this object, or to use its KMS key."""

    def __init__(self, path: str, fault: str) -> None:
        super().__init__("forbidden", f"{path}: {fault}")


class TooManyBytes(RejectedObject):
    """The object is larger than `max_bytes`."""

    def __init__(self, size: int, max_bytes: int) -> None:
        super().__init__("too_many_bytes", f"{size} bytes, over {max_bytes}")


@dataclass(frozen=True)
class Listed:
    """An object as listed; `path` is its full URI, `size` is in bytes.

    `reason` and `message` say why it is rejected without being read, if its place in the listing is enough to know.
    """

    path: str
    etag: str
    size: int
    modified: datetime
    reason: str | None = None
    message: str | None = None

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """Return the object of a row of the INVENTORY schema."""
        return cls(row["path"], row["etag"], row["size"], row["modified"], row["reason"], row["message"])

    def rejected(self, error: RejectedObject) -> "Listed":
        """Return the same object with the reason of an error."""
        return replace(self, reason=error.reason, message=str(error))

    @property
    def label(self) -> str:
        """The name of the object's parent folder."""
        return self.path.rsplit("/", 2)[-2]


def is_image(key: str) -> bool:
    """Return whether a key, relative to the dataset's prefix, names an image.

    The key has the file extension of an image, and no part of it starts with a dot.

    >>> is_image("Kiwi/1.JPG"), is_image("Kiwi/._1.jpg"), is_image(".trash/1.jpg"), is_image("Kiwi/notes.txt")
    (True, False, False, False)
    """
    hidden = any(part.startswith(".") for part in key.split("/"))
    return not hidden and key.lower().endswith(IMAGE_ENDINGS)


def ending(key: str) -> str | None:
    """Return under what an object that is not an image is counted: its last ending in lower case, or why it has none.

    The objects that programs create to show empty folders count as nothing.

    >>> [ending(key) for key in ("a/1.HEIC", "a/1.jpg.gz", "a/1", "a/._1.jpg", ".git/x.jpg", "a/1.2 (copy)", "a/")]
    ['.heic', '.gz', 'no ending', 'hidden', 'hidden', 'other endings', None]
    """
    if key.endswith("/") or not key:
        return None
    if any(part.startswith(".") for part in key.split("/")):
        return HIDDEN
    name = key.rsplit("/", 1)[-1].lower()
    if "." not in name:
        return NO_ENDING
    found = _ENDING.search(name)
    return found[1] if found else OTHER_ENDING


def most_common_endings(endings: Mapping[str, int]) -> dict[str, int]:
    """Return the counts of the most common endings, the most common first, and the sum of all others.

    >>> most_common_endings({".gif": 1, ".heic": 3})
    {'.heic': 3, '.gif': 1}
    """
    ordered = sorted(endings.items(), key=lambda item: (-item[1], item[0]))
    counted = dict(ordered[:ENDINGS_COUNTED])
    if others := sum(count for _, count in ordered[ENDINGS_COUNTED:]):
        counted[OTHER_ENDING] = counted.get(OTHER_ENDING, 0) + others
    return counted


def checked_uri(uri: str) -> str:
    """Return the URI of a dataset's folder with a scheme and a "/" at its end, if every client reads it alike.

    Plan, S3 and the steps would disagree about which objects lie below a prefix with an empty part.

    Raises:
        BadUri: the scheme is neither s3 nor file.
        BadDatasetUri: there is no bucket, or the prefix has an empty, "." or ".." part or a control character.

    >>> checked_uri("s3://bucket/images"), checked_uri("s3://bucket")
    ('s3://bucket/images/', 's3://bucket/')
    """
    folder = absolute(uri)
    if _CONTROL_CHARACTER.search(folder):
        raise BadDatasetUri(uri, "a control character")
    if not folder.startswith(("s3://", "file:///")):
        raise BadDatasetUri(uri, "no absolute path after file://" if folder.startswith("file:") else "another scheme")
    root, prefix = split(folder)
    if root == "s3://":
        raise BadDatasetUri(uri, "no bucket")
    parts = prefix.removesuffix("/").split("/") if prefix else []
    if any(part in ("", ".", "..") for part in parts):
        raise BadDatasetUri(uri, "an empty, '.' or '..' part")
    return folder if folder.endswith("/") else f"{folder}/"


def list_images(uri: str, max_bytes: int = DEFAULT_MAX_BYTES, ignored: Counter[str] | None = None) -> pa.Table:
    """Return the images below a prefix, sorted by path, as a table of the INVENTORY schema.

    Objects that the listing already rules out have a reason: they are larger than `max_bytes`, archived, or have a name
    that is not UTF-8. `ignored`, if given, counts the objects that are not images by their ending.

    Raises:
        BadUri, BadDatasetUri: see `checked_uri`.
    """
    uri = checked_uri(uri)
    root, prefix = split(uri)
    found = _list_folder(prefix) if root == "file://" else _list_bucket(root, prefix)
    listed = []
    for item in found:
        key = item.path.removeprefix(readable(uri))
        if is_image(key):
            listed.append(_judge(item, max_bytes))
        elif ignored is not None and (counted := ending(key)):
            ignored[counted] += 1
    listed.sort(key=lambda item: item.path)
    columns = {
        "path": [item.path for item in listed],
        "label": [item.label for item in listed],
        "etag": [item.etag for item in listed],
        "size": [item.size for item in listed],
        "modified": [item.modified for item in listed],
        "reason": [item.reason for item in listed],
        "message": [item.message for item in listed],
    }
    return pa.table(columns, schema=INVENTORY)


def _judge(listed: Listed, max_bytes: int) -> Listed:
    """Return an object with the reason why it will not be read, if there is one."""
    if not listed.reason and listed.size > max_bytes:
        return listed.rejected(TooManyBytes(listed.size, max_bytes))
    return listed


def _list_bucket(root: str, prefix: str) -> Iterator[Listed]:
    # boto3 instead of obstore, whose listing fails at the first key such as "a//b.jpg".
    pages = boto3.client("s3").get_paginator("list_objects_v2")
    # An archived object keeps its storage class when it is restored.
    request: Any = {"OptionalObjectAttributes": ["RestoreStatus"]}
    for page in pages.paginate(Bucket=root.removeprefix("s3://"), Prefix=prefix, **request):
        for item in page.get("Contents", []):
            path = f"{root}/{item['Key']}"
            listed = Listed(path, item["ETag"].strip('"'), item["Size"], item["LastModified"])
            archive = item.get("StorageClass", "STANDARD")
            is_restored = item.get("RestoreStatus", {}).get("RestoreExpiryDate") is not None
            yield listed.rejected(Archived(path, archive)) if archive in ARCHIVES and not is_restored else listed


def _list_folder(prefix: str) -> Iterator[Listed]:
    for path in Path("/", prefix).rglob("*"):
        if path.is_file():
            listed = Listed(f"file://{readable(str(path))}", file_etag(path), path.stat().st_size, file_modified(path))
            is_utf8 = readable(str(path)) == str(path)
            yield listed if is_utf8 else listed.rejected(UnreadableKey(f"{listed.path} is not UTF-8: rename the file"))


def readable(path: str) -> str:
    r"""Return a path with its bytes that are not UTF-8 as escape sequences.

    >>> readable(os.fsdecode(b"caf\xe9.jpg")) == r"caf\xe9.jpg"
    True
    """
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def file_etag(path: Path) -> str:
    """Return a substitute for an ETag of a local file: its modification time and size."""
    return f"{path.stat().st_mtime_ns:x}-{path.stat().st_size:x}"


def file_modified(path: Path) -> datetime:
    """Return the modification time of a file, in UTC."""
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def read_all(listing: Iterable[Listed]) -> Generator[tuple[Listed, bytes | RejectedObject]]:
    """Yield the bytes of each object in the order of the listing, with at most 128 objects or 32 MiB in memory.

    The limit includes the objects that are being read and the one that the caller has; a single larger object is read
    alone. A RejectedObject takes the place of the bytes when the fault lies in that one object. Any other error (access
    to the bucket denied, S3 unreachable after the client's retries) is raised.
    """
    window: deque[tuple[Listed, Future[Buffer] | RejectedObject]] = deque()
    ahead_bytes = 0
    with _event_loop() as loop:
        for listed in listing:
            size = 0 if listed.reason else listed.size
            while window and (len(window) >= READ_AHEAD_OBJECTS - 1 or ahead_bytes + size > READ_AHEAD_BYTES):
                first, pending = window.popleft()
                yield first, _result(pending)
                ahead_bytes -= 0 if first.reason else first.size
            if listed.reason:
                window.append((listed, RejectedObject(listed.reason, listed.message or "")))
            else:
                window.append((listed, asyncio.run_coroutine_threadsafe(_read_object(listed), loop)))
            ahead_bytes += size
        while window:
            first, pending = window.popleft()
            yield first, _result(pending)


def _result(pending: Future[Buffer] | RejectedObject) -> bytes | RejectedObject:
    if isinstance(pending, RejectedObject):
        return pending
    try:
        return bytes(pending.result())
    except RejectedObject as rejected:
        return rejected


async def _read_object(listed: Listed) -> Buffer:
    root, key = split(listed.path)
    if any(part in ("", ".", "..") for part in key.split("/")) or _CONTROL_CHARACTER.search(key):
        raise UnreadableKey(f"{listed.path!r} has an empty, '.' or '..' part or a control character: rename the object")
    local = root == "file://"
    options: obstore.GetOptions = {} if local else {"if_match": f'"{listed.etag}"'}
    try:
        if local and file_etag(Path("/", key)) != listed.etag:  # not after it has grown and been read whole
            raise _changed(listed)
        result = await obstore.get_async(store(root), key, options=options)
        content = await result.bytes_async()
    except FileNotFoundError as error:
        raise ObjectGone(f"{listed.path} was deleted after it was listed") from error
    except PreconditionError as error:
        raise _changed(listed) from error
    except (GenericError, PermissionDeniedError, UnauthenticatedError) as error:
        refusal = _refusal(listed, str(error))
        if refusal is None:
            raise
        raise refusal from error
    if local and file_etag(Path("/", key)) != listed.etag:
        raise _changed(listed)
    return content


def _refusal(listed: Listed, answer: str) -> RejectedObject | None:
    """Return why S3 or the file system refuses to give one object, or None if the fault is not the object's.

    Wrong or expired credentials answer 403, too.
    """
    found = _ERROR_CODE.search(answer)
    code = found[1] if found else ""
    if code == "InvalidObjectState":
        return Archived(listed.path, "an archive tier of S3 Intelligent-Tiering")
    if code == "AccessDenied" or code.startswith("KMS."):
        message = re.search(r"<Message>(.*?)</Message>", answer, re.DOTALL)
        return Forbidden(listed.path, f"{code}: {message[1]}" if message else code)
    if listed.path.startswith("file://") and "Permission denied" in answer:
        return Forbidden(listed.path, "permission denied")
    return None


def _changed(listed: Listed) -> ObjectChanged:
    return ObjectChanged(f"{listed.path} changed after it was listed (ETag was {listed.etag})")


@contextmanager
def _event_loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="read-ahead", daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        asyncio.run_coroutine_threadsafe(_cancel_all(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _cancel_all() -> None:
    """Cancel the reads that are still pending when the reader closes early."""
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
