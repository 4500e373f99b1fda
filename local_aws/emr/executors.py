"""Find and kill the executors of a cluster's steps. They are processes, unless the Spark master is `local`."""

import contextlib
import os
import signal
from pathlib import Path
from typing import Final

from local_aws.emr.process import descendants

_CLASS: Final = b"org.apache.spark.executor.CoarseGrainedExecutorBackend"
_ID: Final = b"--executor-id"


def executors(home: Path) -> list[int]:
    """Return the pids of the executors whose steps have this home folder, the oldest of each step first.

    All nodes of a cluster have the same home folder, which no other cluster has.
    """
    found: list[tuple[int, int]] = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):  # the process has ended, or belongs to another user
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if _CLASS in words and f"HOME={home}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append((int(words[words.index(_ID) + 1]), int(folder.name)))
    return [pid for _, pid in sorted(found)]


def kill(pid: int) -> None:
    """Kill a process and all processes that it has started, such as the Python workers of an executor."""
    for number in [pid, *descendants(pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
