"""Take turns among the task slots of a machine, so that only one at a time decodes a large image."""

import ctypes
import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# All task slots of a node may decode images of this size at once. orchard.cluster.memory counts on it.
LARGE_BYTES = 128 * 1024**2


def scratch_folder() -> str:
    """Return Spark's scratch folder on the local disk, which the task slots of an executor share."""
    return os.environ.get("SPARK_LOCAL_DIRS", "").split(",")[0] or tempfile.gettempdir()


@contextmanager
def turn(decoding_bytes: int) -> Iterator[None]:
    """Wait until no other task slot decodes a large image, if this one is large, and return its memory at the end.

    The lock ends with the process, even if it is killed.
    """
    if decoding_bytes <= LARGE_BYTES:
        yield
        return
    # One file per user: another user's could not be opened.
    with Path(scratch_folder(), f"orchard-decode-{os.getuid()}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            release_memory()


def release_memory() -> None:
    """Return freed memory to the operating system: glibc keeps large blocks for the next image of this process."""
    with suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
