"""The folder of a server's state: what is in it when a server starts is there again.

Whatever is answered has been written before. A file is whole or not there at all, also when the server is killed; that
the machine loses its power is not thought of.
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
    """A folder whose state cannot be taken over; the message says why and what to do."""


class StateFolder:
    """Python objects by name, in a folder that only one server has at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Have the folder for oneself.

        Raises:
            UnusableState: another server has it.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "lock").open("wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                way_out = "stop it, or give another --data"
                raise UnusableState(f"another local_aws uses {self._folder.parent}: {way_out}") from error
            yield

    def write(self, kind: str, name: str, value: object) -> None:
        """Keep an object, instead of the one that has its kind and name."""
        file = self._file(kind, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        half = file.with_suffix(f".{threading.get_ident()}")
        half.write_bytes(pickle.dumps(value))
        half.replace(file)

    def remove(self, kind: str, name: str) -> None:
        """Forget an object, if it is there."""
        self._file(kind, name).unlink(missing_ok=True)

    def read(self, kind: str) -> Iterator[Any]:
        """All objects of a kind, in no order.

        Raises:
            UnusableState: a file is not to be read, for example as another version wrote it.
        """
        for file in sorted((self._folder / kind).glob("*/*.pickle")):
            with file.open("rb") as stream:
                yield self._load(file, stream)

    def append(self, kind: str, value: object) -> None:
        """Write an object behind the others of its kind."""
        with (self._folder / kind).open("ab", buffering=0) as stream:
            stream.write(pickle.dumps(value))

    def read_appended(self, kind: str) -> Iterator[Any]:
        """All objects that were appended, in their order; what a killed server had half written is cut off.

        Raises:
            UnusableState: as for `read`.
        """
        file = self._folder / kind
        if not file.exists():
            return
        with file.open("r+b") as stream:
            size = os.fstat(stream.fileno()).st_size
            while (whole := stream.tell()) < size:
                try:
                    value = pickle.load(stream)  # noqa: S301  # it is our own
                except (EOFError, pickle.UnpicklingError):
                    stream.truncate(whole)
                    return
                except (AttributeError, ImportError) as error:
                    raise self._unusable(file, error) from error
                yield value

    def _file(self, kind: str, name: str) -> Path:
        # A name is any text, as long as S3's keys are, and may be two thirds of a million times there.
        digest = hashlib.sha256(name.encode()).hexdigest()
        return self._folder / kind / digest[:2] / f"{digest}.pickle"

    def _load(self, file: Path, stream: BinaryIO) -> Any:
        try:
            return pickle.load(stream)  # noqa: S301  # it is our own
        except Exception as error:
            raise self._unusable(file, error) from error

    def _unusable(self, file: Path, error: Exception) -> UnusableState:
        way_out = f"give another --data, or delete {self._folder}"
        return UnusableState(f"cannot read {file} ({error!r}), which another version may have written: {way_out}")
