"""A command and all that it starts: none of it outlives the command or this server."""

import contextlib
import logging
import os
import re
import secrets
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

log = logging.getLogger(__name__)

KILL_GRACE_SECONDS = 5.0
LOG_LINES_IN_FAILURE = 20
LOG_CHARACTERS_IN_FAILURE = 1500
MARK = "LOCAL_AWS_PROCESS"
SCANS = 100
SCAN_SECONDS = 0.01
# What has left the process group, as `setsid` does, still has the mark in its environment. Again until there is none,
# as a process may start others while it is looked for.
_GUARD = """read -r _; kill -KILL -{pid}
while pids=$(grep -lsF {mark} /proc/[0-9]*/environ | cut -d/ -f3); [ -n "$pids" ]; do
  kill -KILL $pids; sleep 0.1
done
"""


class Process:
    """A started command, leader of a process group of its own that dies with this server.

    Its environment has a mark of its own, by which those are found who leave the group.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], folder: Path, logs: Path) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self.logs = logs
        own = secrets.token_hex(8)
        self._mark = f"{MARK}={own}"
        (logs / "controller").write_text(f"{shlex.join(command)}\n")
        with (logs / "stdout").open("wb") as stdout, (logs / "stderr").open("wb") as stderr:
            self._popen = subprocess.Popen(
                command,
                env={**environment, MARK: own},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        # Should this server be killed, nothing that it started may live on: this shell then reads the end of its input.
        # PR_SET_PDEATHSIG would end the command alone, not what the command has started.
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD.format(pid=self._popen.pid, mark=self._mark)],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def code(self) -> int | None:
        """The exit code, if the command has ended."""
        return self._popen.poll()

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
        if self.code is not None:
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
        for _ in range(SCANS):  # and not for ever, should one not be to be killed
            if not (left := list(_marked(self._mark))):
                break
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(SCAN_SECONDS)
        self._guard.kill()
        self._guard.communicate()

    def _kill(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._popen.pid, number)
        except ProcessLookupError:
            return


def _marked(mark: str) -> Iterator[int]:
    """The pids of the processes with this mark in their environment."""
    for file in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it is gone, or somebody else's
            if mark.encode() in file.read_bytes():
                yield int(file.parent.name)


def last_lines(logs: Path) -> str:
    """What a failed command said last: its last traceback or Java exception, else its last lines; as much as fits.

    spark-submit sends the standard error of a Python job to its own standard output.
    """
    texts = [(logs / name).read_text(errors="replace") for name in ("stdout", "stderr")]
    for mark in ("Traceback (most recent call last)", "Exception in thread"):
        for text in texts:
            if mark in text:
                # A new log line of Spark's (a date) ends the traceback.
                tail = text[text.rindex(mark) :]
                return _shorten(re.split(r"\n\d\d/\d\d/\d\d ", tail)[0].strip().splitlines())
    lines = "\n".join(text.strip() for text in texts).strip().splitlines()
    return "\n".join(_fitting(lines[::-1])[::-1]) or "".join(lines[-1:])[-LOG_CHARACTERS_IN_FAILURE:]


def _shorten(lines: list[str]) -> str:
    """A traceback or exception that fits: first of all its own line, then what follows that, then what is before.

    >>> _shorten(["Traceback (most recent call last):", "  File 1", "ValueError: no"]).splitlines()[-1]
    'ValueError: no'
    """
    if len(_fitting(lines)) < len(lines):
        lines = [line for line in lines if not line.startswith("\tat ")]
    # Python's own line comes behind the frames, which are indented, Java's before them.
    own = next((n for n, line in enumerate(lines) if n and line[:1].strip()), 0) if "Traceback" in lines[0] else 0
    after = _fitting(lines[own:]) or [lines[own][:LOG_CHARACTERS_IN_FAILURE]]
    before = _fitting(lines[:own][::-1], len(after), sum(len(line) + 1 for line in after))
    return "\n".join([*before[::-1], *after])


def _fitting(lines: Sequence[str], taken_lines: int = 0, taken_characters: int = 0) -> list[str]:
    """As many of the first lines as there is room for in a message."""
    kept: list[str] = []
    for line in lines:
        taken_lines, taken_characters = taken_lines + 1, taken_characters + len(line) + 1
        if taken_lines > LOG_LINES_IN_FAILURE or taken_characters > LOG_CHARACTERS_IN_FAILURE:
            break
        kept.append(line)
    return kept
