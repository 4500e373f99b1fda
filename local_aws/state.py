"""The folder with a server's state, which the next server in the same folder loads.

Changes are written before the server responds. Files are written atomically, so that they survive a killed server, but
they are not synced to disk: a power failure may lose or damage them.
"""

import fcntl
import hashlib
import os
import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


class UnusableState(RuntimeError):
    """State that cannot be loaded. The message explains why, and what to do."""


class StateFolder:
    """Stores Python objects by kind and name, in a folder that only one server uses at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder for this server.

        Raises:
            UnusableState: another server uses the folder.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "lock").open("wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                folder = self._folder.parent
                raise UnusableState(f"another local_aws uses {folder}: stop it, or use another --data") from error
            yield

    def write(self, kind: str, name: str, value: object) -> None:
        """Store an object, replacing the one with the same kind and name."""
        file = self._file(kind, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{threading.get_ident()}")
        partial.write_bytes(pickle.dumps(value))
        partial.replace(file)

    def remove(self, kind: str, name: str) -> None:
        """Delete an object, if it exists."""
        self._file(kind, name).unlink(missing_ok=True)

    def read(self, kind: str) -> Iterator[Any]:
        """Yield all objects of a kind, in no particular order.

        Raises:
            UnusableState: a file cannot be read, for example because another version wrote it.
        """
        for file in sorted((self._folder / kind).glob("*/*.pickle")):
            with file.open("rb") as stream:
                yield self._load(file, stream)

    def append(self, kind: str, value: object) -> None:
        """Append an object to the others of its kind."""
        with (self._folder / kind).open("ab", buffering=0) as stream:
            stream.write(pickle.dumps(value))

    def read_appended(self, kind: str) -> Iterator[Any]:
        """Yield all appended objects in order. If a killed server did not finish writing the last one, it is removed.

        Raises:
            UnusableState: the file cannot be read, for example because another version wrote it.
        """
        file = self._folder / kind
        if not file.exists():
            return
        with file.open("r+b") as stream:
            size = os.fstat(stream.fileno()).st_size
            while (end := stream.tell()) < size:
                try:
                    value = pickle.load(stream)  # noqa: S301  # this server wrote it
                except (EOFError, pickle.UnpicklingError):
                    stream.truncate(end)
                    return
                except (AttributeError, ImportError) as error:
                    raise self._unusable(file, error) from error
                yield value

    def _file(self, kind: str, name: str) -> Path:
        # Names can be as long as S3 keys, and there can be hundreds of thousands of them.
        digest = hashlib.sha256(name.encode()).hexdigest()
        return self._folder / kind / digest[:2] / f"{digest}.pickle"

    def _load(self, file: Path, stream: BinaryIO) -> Any:
        try:
            return pickle.load(stream)  # noqa: S301  # this server wrote it
        except Exception as error:
            raise self._unusable(file, error) from error

    def _unusable(self, file: Path, error: Exception) -> UnusableState:
        solution = f"use another --data, or delete {self._folder}"
        return UnusableState(f"cannot read {file} ({error!r}), which another version may have written: {solution}")
