"""Read many small objects of S3 (or files of a local folder) with many requests in flight."""

import asyncio
import io
import os
import re
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import boto3
import obstore
import pyarrow as pa
import pyarrow.parquet as pq
from obstore.auth.boto3 import Boto3CredentialProvider
from obstore.exceptions import PreconditionError
from obstore.store import LocalStore, ObjectStore, S3Store

from orchard_spark.tables import INVENTORY, parquet_options

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f]")
READ_AHEAD_OBJECTS = 128
READ_AHEAD_BYTES = 64 * 1024**2
REQUEST_TIMEOUT = "60s"


class BadUri(ValueError):
    """A URI that is neither S3's nor a local folder's."""

    def __init__(self, uri: str) -> None:
        super().__init__(f"cannot read {uri!r}: give s3://BUCKET/PREFIX/ or a local path")


class UnreadableKey(Exception):
    """A key that no Hadoop path and no object store client can name, such as `a//b.jpg`."""


class ObjectGone(Exception):
    """The object was deleted between listing and reading."""


class ObjectChanged(Exception):
    """The object has another ETag than when it was listed."""


@dataclass(frozen=True)
class Listed:
    """An object as the listing showed it; `path` is its full URI."""

    path: str
    etag: str
    size: int
    modified: datetime

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """The object behind a row of the `inventory` schema."""
        return cls(row["path"], row["etag"], row["size"], row["modified"])

    @property
    def label(self) -> str:
        """The name of the folder that the object lies in."""
        return self.path.rsplit("/", 2)[-2]


def absolute(uri: str) -> str:
    """The URI with a scheme: a bare path becomes an absolute file:// URI.

    Raises:
        BadUri: the scheme is neither s3 nor file.
    """
    scheme = urlsplit(uri).scheme
    if scheme == "":
        return f"file://{Path(uri).resolve()}" + ("/" if uri.endswith("/") else "")
    if scheme not in ("s3", "file"):
        raise BadUri(uri)
    return uri


def split(uri: str) -> tuple[str, str]:
    """Root and key: `s3://bucket/a/b` gives (`s3://bucket`, `a/b`), `file:///a/b` gives (`file://`, `a/b`)."""
    scheme, rest = absolute(uri).split("://", 1)
    bucket, _, key = rest.partition("/")
    return f"{scheme}://{bucket}", key


@lru_cache
def store(root: str) -> ObjectStore:
    """The object store behind a root as `split` gives it; region and credentials come as for boto3.

    The endpoint comes from the variables that boto3 reads, too: to ask a boto3 client takes each worker 0.1 s.
    """
    if root.startswith("file://"):
        return LocalStore("/")
    session = boto3.Session()
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    credentials = Boto3CredentialProvider(session) if session.get_credentials() else None
    return S3Store(
        root.removeprefix("s3://"),
        region=session.region_name,
        endpoint=endpoint,
        skip_signature=credentials is None,
        client_options={"allow_http": (endpoint or "").startswith("http://"), "timeout": REQUEST_TIMEOUT},
        credential_provider=credentials,
    )


def is_image(key: str) -> bool:
    """Whether a key below the dataset's prefix names an image: an image's ending, and no hidden file or folder.

    >>> is_image("Kiwi/1.JPG"), is_image("Kiwi/._1.jpg"), is_image(".trash/1.jpg"), is_image("Kiwi/notes.txt")
    (True, False, False, False)
    """
    hidden = any(part.startswith(".") for part in key.split("/"))
    return not hidden and key.lower().endswith(IMAGE_ENDINGS)


def list_images(uri: str) -> pa.Table:
    """The images below a prefix, ordered by path, as a table of the `inventory` schema."""
    uri = absolute(uri).rstrip("/") + "/"
    root, prefix = split(uri)
    rows = _list_folder(prefix) if root == "file://" else _list_bucket(root, prefix)
    listed = [row for row in rows if is_image(row.path.removeprefix(uri))]
    listed.sort(key=lambda row: row.path)
    columns = {
        "path": [row.path for row in listed],
        "label": [row.label for row in listed],
        "etag": [row.etag for row in listed],
        "size": [row.size for row in listed],
        "modified": [row.modified for row in listed],
    }
    return pa.table(columns, schema=INVENTORY)


def _list_bucket(root: str, prefix: str) -> Iterator[Listed]:
    # boto3, not obstore: obstore's listing ends with an error at the first key such as "a//b.jpg".
    pages = boto3.client("s3").get_paginator("list_objects_v2")
    for page in pages.paginate(Bucket=root.removeprefix("s3://"), Prefix=prefix):
        for item in page.get("Contents", []):
            yield Listed(f"{root}/{item['Key']}", item["ETag"].strip('"'), item["Size"], item["LastModified"])


def _list_folder(prefix: str) -> Iterator[Listed]:
    for path in Path("/", prefix).rglob("*"):
        if path.is_file():
            yield Listed(f"file://{path}", file_etag(path), path.stat().st_size, file_modified(path))


def file_etag(path: Path) -> str:
    """What stands for an ETag on a local disk: the time of the last change and the size."""
    return f"{path.stat().st_mtime_ns:x}-{path.stat().st_size:x}"


def file_modified(path: Path) -> datetime:
    """The time of a file's last change, in UTC."""
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


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
    """Cancel what a reader that was given up early still waits for."""
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def _read(listed: Listed) -> bytes:
    root, key = split(listed.path)
    if any(part in ("", ".", "..") for part in key.split("/")) or _CONTROL_CHARACTER.search(key):
        raise UnreadableKey(f"{listed.path!r} has an empty or dotted part or a control character: rename the object")
    local = root == "file://"
    options: obstore.GetOptions = {} if local else {"if_match": f'"{listed.etag}"'}
    try:
        result = await obstore.get_async(store(root), key, options=options)
        content = bytes(await result.bytes_async())
    except FileNotFoundError as error:
        raise ObjectGone(f"{listed.path} was deleted after it was listed") from error
    except PreconditionError as error:
        raise ObjectChanged(f"{listed.path} changed after it was listed (ETag was {listed.etag})") from error
    if local and file_etag(Path("/", key)) != listed.etag:
        raise ObjectChanged(f"{listed.path} changed after it was listed (ETag was {listed.etag})")
    return content


def read_all(listing: Iterable[Listed]) -> Generator[tuple[Listed, bytes | Exception]]:
    """The bytes of each object, in the order given, with at most 64 objects or 64 MiB read ahead.

    Instead of bytes comes an UnreadableKey, ObjectGone or ObjectChanged: faults of that one object. Any other error (no
    permission, S3 not reachable after the client's retries) is raised, as it says nothing about the object.
    """
    window: deque[tuple[Listed, Future[bytes]]] = deque()
    ahead_bytes = 0
    with _event_loop() as loop:
        for listed in listing:
            window.append((listed, asyncio.run_coroutine_threadsafe(_read(listed), loop)))
            ahead_bytes += listed.size
            while len(window) >= READ_AHEAD_OBJECTS or (ahead_bytes > READ_AHEAD_BYTES and len(window) > 1):
                first, future = window.popleft()
                ahead_bytes -= first.size
                yield first, _outcome(future)
        while window:
            first, future = window.popleft()
            yield first, _outcome(future)


def _outcome(future: Future[bytes]) -> bytes | Exception:
    try:
        return future.result()
    except (UnreadableKey, ObjectGone, ObjectChanged) as fault:
        return fault


def list_files(uri: str) -> list[str]:
    """The URIs of the files below a folder of ours, ordered; none that Spark hides (`_SUCCESS`, `_temporary/…`)."""
    root, prefix = split(uri.rstrip("/") + "/")
    paths = (str(item["path"]) for page in obstore.list(store(root), prefix) for item in page)
    shown = (path for path in paths if not any(name.startswith(("_", ".")) for name in path[len(prefix) :].split("/")))
    return sorted(f"{root}/{path}" for path in shown)


class RangedFile(io.RawIOBase):
    """An object or file that is read a range at a time, so that it need not be held whole."""

    def __init__(self, uri: str) -> None:
        root, self._key = split(uri)
        self._store = store(root)
        self._size = int(obstore.head(self._store, self._key)["size"])
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._position)
        length = left if size < 0 else min(size, left)
        if length == 0:
            return b""
        content = obstore.get_range(self._store, self._key, start=self._position, length=length)
        self._position += length
        return bytes(content)


def read(uri: str) -> bytes:
    """The bytes of one object or file."""
    root, key = split(uri)
    return bytes(obstore.get(store(root), key).bytes())


def write(uri: str, content: bytes) -> None:
    """Write one object or file, replacing it whole."""
    root, key = split(uri)
    obstore.put(store(root), key, content)


def upload(uri: str, file: str) -> None:
    """Copy a local file to an object or file, in pieces when it is large; it is seen once it is whole."""
    root, key = split(uri)
    obstore.put(store(root), key, Path(file))


def clear(uri: str) -> None:
    """Delete the files below a folder of ours."""
    root, _ = split(uri)
    if files := list_files(uri):
        obstore.delete(store(root), [split(file)[1] for file in files])


def delete(uri: str) -> None:
    """Delete one object or file, if it is there."""
    root, key = split(uri)
    with suppress(FileNotFoundError):
        obstore.delete(store(root), key)


def write_table(uri: str, table: pa.Table) -> None:
    """Write a table as one Parquet object or file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **parquet_options(table.schema))
    write(uri, sink.getvalue().to_pybytes())
