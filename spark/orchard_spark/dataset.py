"""The images of a dataset: list the objects below a prefix, and read many small objects concurrently."""

import asyncio
import re
import threading
from collections import deque
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
from obstore.exceptions import PreconditionError

from orchard_spark.objects import absolute, split, store
from orchard_spark.rejects import RejectedObject
from orchard_spark.schemas import INVENTORY

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
READ_AHEAD_OBJECTS = 128
READ_AHEAD_BYTES = 64 * 1024**2
# Photographs are smaller. A worker holds an object several times while it packs it.
DEFAULT_MAX_BYTES = 64 * 1024**2

_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f]")


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


def list_images(uri: str, max_bytes: int = DEFAULT_MAX_BYTES) -> pa.Table:
    """Return the images below a prefix, sorted by path, as a table of the INVENTORY schema.

    Objects that the listing already rules out have a reason: they are larger than `max_bytes`.
    """
    uri = absolute(uri).rstrip("/") + "/"
    root, prefix = split(uri)
    found = _list_folder(prefix) if root == "file://" else _list_bucket(root, prefix)
    listed = [_judge(item, max_bytes) for item in found if is_image(item.path.removeprefix(uri))]
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
    for page in pages.paginate(Bucket=root.removeprefix("s3://"), Prefix=prefix):
        for item in page.get("Contents", []):
            yield Listed(f"{root}/{item['Key']}", item["ETag"].strip('"'), item["Size"], item["LastModified"])


def _list_folder(prefix: str) -> Iterator[Listed]:
    for path in Path("/", prefix).rglob("*"):
        if path.is_file():
            yield Listed(f"file://{path}", file_etag(path), path.stat().st_size, file_modified(path))


def file_etag(path: Path) -> str:
    """Return a substitute for an ETag of a local file: its modification time and size."""
    return f"{path.stat().st_mtime_ns:x}-{path.stat().st_size:x}"


def file_modified(path: Path) -> datetime:
    """Return the modification time of a file, in UTC."""
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def read_all(listing: Iterable[Listed]) -> Generator[tuple[Listed, bytes | RejectedObject]]:
    """Yield the bytes of each object in the order of the listing, with at most 128 objects or 64 MiB in memory.

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
    if local and file_etag(Path("/", key)) != listed.etag:
        raise _changed(listed)
    return content


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
