"""Read many small objects concurrently, some ahead of their reader."""

import asyncio
import re
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import obstore
from obstore import Bytes as Buffer
from obstore.exceptions import GenericError, PermissionDeniedError, PreconditionError, UnauthenticatedError

from orchard_spark.objects import split, store
from orchard_spark.rejects import RejectedObject

READ_AHEAD_OBJECTS = 128
# Ten photographs of 3 MB: each task slot has its own read-ahead.
READ_AHEAD_BYTES = 32 * 1024**2

_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f]")
_ERROR_CODE = re.compile(r"<Code>([\w.]+)</Code>")


class UnreadableKey(RejectedObject):
    """The key is not valid as a Hadoop path or for object store clients, such as `a//b.jpg`."""

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


@dataclass(frozen=True)
class Listed:
    """An object of the INVENTORY. `path` is its full URI, `size` is in bytes.

    `reason` and `message` say why it is rejected without being read, if the listing is enough to know.
    """

    path: str
    label: str
    etag: str
    size: int
    modified: datetime
    reason: str | None = None
    message: str | None = None


def file_etag(path: Path) -> str:
    """Return a substitute for an ETag of a local file: its modification time and size."""
    return f"{path.stat().st_mtime_ns:x}-{path.stat().st_size:x}"


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
