"""Read and write objects on S3 or files in a local folder, both identified by URI."""

import io
import os
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import boto3
import obstore
from botocore.credentials import Credentials, RefreshableCredentials
from obstore.store import LocalStore, ObjectStore, S3Store

if TYPE_CHECKING:
    from obstore.store import S3Credential

REQUEST_TIMEOUT = "60s"
# Obstore's default: https://developmentseed.org/obstore/latest/api/store/config/#obstore.store.RetryConfig
MOST_RETRIES = 10
ONCE_TIMEOUT = "5s"
# Obstore asks again, at most ten times a second, from five minutes before this on.
ASK_AGAIN_WITHIN = timedelta(minutes=1)


class BadUri(ValueError):
    """A URI whose scheme is neither s3 nor file."""

    def __init__(self, uri: str) -> None:
        super().__init__(f"unsupported URI {uri!r}: use s3://BUCKET/PREFIX/ or a local path")


def absolute(uri: str) -> str:
    """Return the URI with a scheme: a bare path becomes an absolute file:// URI.

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
    """Return the root and the key of a URI.

    >>> split("s3://bucket/a/b"), split("file:///a/b")
    (('s3://bucket', 'a/b'), ('file://', 'a/b'))
    """
    scheme, rest = absolute(uri).split("://", 1)
    bucket, _, key = rest.partition("/")
    return f"{scheme}://{bucket}", key


class CurrentCredentials:
    """Gives obstore the credentials that botocore has at the moment, and leaves it to botocore when they are renewed.

    Botocore renews credentials ten minutes before they expire. Obstore's own provider keeps them for half an hour, so
    that it would use credentials of an hour after they have expired.
    """

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def __call__(self) -> "S3Credential":
        current = self._credentials.get_frozen_credentials()
        renewed = isinstance(self._credentials, RefreshableCredentials)
        return {
            "access_key_id": current.access_key or "",
            "secret_access_key": current.secret_key or "",
            "token": current.token,
            "expires_at": datetime.now(UTC) + ASK_AGAIN_WITHIN if renewed else None,
        }


@lru_cache
def store(root: str, timeout: str = REQUEST_TIMEOUT, most_retries: int = MOST_RETRIES) -> ObjectStore:
    """Return the object store of a root as `split` returns it, with the region and credentials that boto3 finds.

    Each request has the timeout, and is retried as often as `most_retries` says.
    The endpoint is read from boto3's environment variables, because creating a boto3 client costs each worker 0.1 s.
    """
    if root.startswith("file://"):
        return LocalStore("/")
    session = boto3.Session()
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    credentials = session.get_credentials()
    return S3Store(
        root.removeprefix("s3://"),
        region=session.region_name,
        endpoint=endpoint,
        skip_signature=credentials is None,
        client_options={"allow_http": (endpoint or "").startswith("http://"), "timeout": timeout},
        retry_config={"max_retries": most_retries},
        credential_provider=CurrentCredentials(credentials) if credentials else None,
    )


class RangedFile(io.RawIOBase):
    """A read-only file that reads ranges of an object or file, so that its whole content need not fit in memory."""

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
        remaining = max(0, self._size - self._position)
        length = remaining if size < 0 else min(size, remaining)
        if length == 0:
            return b""
        content = obstore.get_range(self._store, self._key, start=self._position, length=length)
        self._position += length
        return bytes(content)


def read(uri: str) -> bytes:
    """Return the bytes of one object or file."""
    root, key = split(uri)
    return bytes(obstore.get(store(root), key).bytes())


def exists(uri: str) -> bool:
    """Return whether an object or file exists."""
    root, key = split(uri)
    try:
        obstore.head(store(root), key)
    except FileNotFoundError:
        return False
    return True


def write(uri: str, content: bytes) -> None:
    """Write one object or file, replacing it atomically."""
    root, key = split(uri)
    obstore.put(store(root), key, content)


def write_once(uri: str, content: bytes) -> None:
    """Write one object or file, replacing it atomically, with one request that takes at most five seconds."""
    root, key = split(uri)
    obstore.put(store(root, ONCE_TIMEOUT, 0), key, content)


def upload(uri: str, file: str) -> None:
    """Copy a local file to an object or file, in parts if it is large; it becomes visible only when complete."""
    root, key = split(uri)
    obstore.put(store(root), key, Path(file))


def delete(uri: str) -> None:
    """Delete one object or file, if it exists."""
    root, key = split(uri)
    with suppress(FileNotFoundError):
        obstore.delete(store(root), key)
