"""A command and all that it starts: a process group that never outlives this server."""

import logging
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

log = logging.getLogger(__name__)

KILL_GRACE_SECONDS = 5.0
LOG_LINES_IN_FAILURE = 20


class Process:
    """A started command, leader of a process group of its own that dies with this server."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], folder: Path, logs: Path) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self.logs = logs
        (logs / "controller").write_text(f"{shlex.join(command)}\n")
        with (logs / "stdout").open("wb") as stdout, (logs / "stderr").open("wb") as stderr:
            self._popen = subprocess.Popen(
                command,
                env=dict(environment),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        # Should this server be killed, nothing that it started may live on: this shell then reads the end of its input.
        # PR_SET_PDEATHSIG would end the command alone, not what the command has started.
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", f"read -r _; kill -KILL -{self._popen.pid}"],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def wait(self, seconds: float) -> int | None:
        """The exit code, or None when the command still runs after so many seconds."""
        try:
            code = self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        self._end_group()  # with what the command left in it
        return code

    def send(self, number: signal.Signals) -> bool:
        """Send a signal to the whole process group; whether the command still ran."""
        if self._popen.poll() is not None:
            return False
        self._kill(number)
        return True

    def kill(self) -> None:
        """End the whole process group: politely, then by force."""
        self._kill(signal.SIGTERM)
        try:
            self._popen.wait(KILL_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            log.info("pid %d ignores SIGTERM", self._popen.pid)
        self._end_group()
        self._popen.wait()

    def _end_group(self) -> None:
        self._kill(signal.SIGKILL)
        self._guard.kill()
        self._guard.communicate()

    def _kill(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._popen.pid, number)
        except ProcessLookupError:
            return


def last_lines(logs: Path) -> str:
    """What a failed command said last: its last traceback or Java exception, else its last lines.

    spark-submit sends the standard error of a Python job to its own standard output.
    """
    texts = [(logs / name).read_text(errors="replace") for name in ("stdout", "stderr")]
    for mark in ("Traceback (most recent call last)", "Exception in thread"):
        for text in texts:
            if mark in text:
                # A new log line of Spark's (a date) ends the traceback.
                tail = text[text.rindex(mark) :]
                lines = re.split(r"\n\d\d/\d\d/\d\d ", tail)[0].strip().splitlines()
                return "\n".join(lines[-LOG_LINES_IN_FAILURE:])
    lines = "\n".join(text.strip() for text in texts).strip().splitlines()
    return "\n".join(lines[-LOG_LINES_IN_FAILURE:])
