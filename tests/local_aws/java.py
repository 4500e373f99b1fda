"""A shell script in the place of Java, for tests that need no history server that responds."""

from pathlib import Path

from tests.local_aws.user import wait_until

STARTS = "echo $$ >> {pids}"
PORT = 18080
# Behaves as a history server that serves on PORT.
SERVES = f"echo 'HistoryServer: Bound HistoryServer to 127.0.0.1, and started at http://host:{PORT}' >&2; exec sleep 60"


class Java:
    """A shell script in the place of Java. It writes its pid, and behaves as told, without listening on a port."""

    def __init__(self, home: Path) -> None:
        self._pids, self._program = home / "pids", home / "bin/java"
        self._program.parent.mkdir()

    def behave(self, line: str) -> None:
        # spark-class runs Java twice. The first one prints the command of the second one.
        launcher = """case "$*" in *launcher.Main*) printf '\\0\\n%s\\0' "$0"; exit 0;; esac"""
        self._program.write_text(f"#!/bin/sh\n{launcher}\n{STARTS.format(pids=self._pids)}\n{line}\n")
        self._program.chmod(0o755)

    def pids(self, count: int) -> list[int]:
        """Wait until it has started so many times, and return the pids in that order."""
        lines = wait_until(lambda: found if len(found := self._read()) >= count else None, f"{count} starts")
        return [int(line) for line in lines]

    def _read(self) -> list[str]:
        return self._pids.read_text().splitlines() if self._pids.exists() else []
