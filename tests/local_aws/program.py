"""Run `python -m local_aws` in a process."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.local_aws.user import User, wait_until

ROOT = Path(__file__).parent.parent.parent
SERVING = re.compile(r"serving on (http://127\.0\.0\.1:\d+), data in (\S+)")


class Served(NamedTuple):
    """The running program, its log, and a user of it."""

    process: "subprocess.Popen[bytes]"
    log: Path
    user: User


def start(data: Path, port: int, log: Path, *options: str) -> "subprocess.Popen[bytes]":
    """Start the program."""
    command = [sys.executable, "-m", "local_aws", "--port", str(port), "--data", str(data), *options]
    with log.open("wb") as stderr:
        return subprocess.Popen(command, cwd=ROOT, stderr=stderr)


@contextmanager
def serving(data: Path, *options: str) -> Iterator[Served]:
    """Run the program on a free port, and kill it afterwards; its log is beside its data."""
    log = data.with_suffix(".log")
    process = start(data, 0, log, *options)
    try:
        match = wait_until(lambda: SERVING.search(log.read_text()), "a server")
        assert match.group(2) == str(data)
        yield Served(process, log, User(match.group(1)))
    finally:
        process.kill()
        process.wait()
