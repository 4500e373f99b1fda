"""Run a command so that no process it starts outlives the command or this server."""

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
# Processes that left the group, for example with `setsid`, still have the mark in their environment. Search until none
# is left, because a process may start others during a search.
_GUARD = """read -r _; kill -KILL -{pid}
while pids=$(grep -lsF {mark} /proc/[0-9]*/environ | cut -d/ -f3); [ -n "$pids" ]; do
  kill -KILL $pids; sleep 0.1
done
"""


class Process:
    """A running command, the leader of a process group that is killed when this server dies.

    A unique mark in its environment identifies processes that leave the group.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], folder: Path, logs: Path) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self.logs = logs
        token = secrets.token_hex(8)
        self._mark = f"{MARK}={token}"
        (logs / "controller").write_text(f"{shlex.join(command)}\n")
        with (logs / "stdout").open("wb") as stdout, (logs / "stderr").open("wb") as stderr:
            self._popen = subprocess.Popen(
                command,
                env={**environment, MARK: token},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        # If this server is killed, this shell reads the end of its input and kills what the server started.
        # PR_SET_PDEATHSIG would kill only the command, not its child processes.
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD.format(pid=self._popen.pid, mark=self._mark)],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def code(self) -> int | None:
        """The exit code; None while the command is running."""
        return self._popen.poll()

    def wait(self, seconds: float) -> int | None:
        """Wait at most this long and return the exit code; None if the command is still running."""
        try:
            code = self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        self._kill_all()  # processes that the command left running
        return code

    def send(self, number: signal.Signals) -> bool:
        """Send a signal to the process group; return False if the command has already ended."""
        if self.code is not None:
            return False
        self._kill(number)
        return True

    def kill(self) -> None:
        """Send SIGTERM to the process group, and SIGKILL after a grace period."""
        self._kill(signal.SIGTERM)
        try:
            self._popen.wait(KILL_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            log.info("pid %d is still running %.0f s after SIGTERM", self._popen.pid, KILL_GRACE_SECONDS)
        self._kill_all()
        self._popen.wait()

    def _kill_all(self) -> None:
        self._kill(signal.SIGKILL)
        for _ in range(SCANS):  # limited, because some process may not be killable
            if not (pids := list(_find_marked(self._mark))):
                break
            for pid in pids:
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


def _find_marked(mark: str) -> Iterator[int]:
    """Yield the pids of the processes with this mark in their environment."""
    for file in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # the process has ended, or belongs to another user
            if mark.encode() in file.read_bytes():
                yield int(file.parent.name)


def descendants(pid: int) -> list[int]:
    """Return the pids of the processes that a process has started, directly or not."""
    children: dict[int, list[int]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # the process has ended
            # The name of the program, in parentheses, can contain spaces and parentheses.
            parent = int(file.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(file.parent.name))
    found, queue = [], [pid]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def last_lines(logs: Path) -> str:
    """Return the last traceback or Java exception of a failed command, or else its last lines, shortened to fit.

    Both logs are searched, because spark-submit writes the standard error of a Python program to its standard output.
    """
    texts = [(logs / name).read_text(errors="replace") for name in ("stdout", "stderr")]
    for mark in ("Traceback (most recent call last)", "Exception in thread"):
        for text in texts:
            if mark in text:
                # The next log line of Spark, which starts with a date, ends the traceback.
                tail = text[text.rindex(mark) :]
                return _shorten(re.split(r"\n\d\d/\d\d/\d\d ", tail)[0].strip().splitlines())
    lines = "\n".join(text.strip() for text in texts).strip().splitlines()
    return "\n".join(_fitting(lines[::-1])[::-1]) or "".join(lines[-1:])[-LOG_CHARACTERS_IN_FAILURE:]


def _shorten(lines: list[str]) -> str:
    """Shorten a traceback or exception to fit: keep its message first, then the lines after it, then the lines before.

    >>> _shorten(["Traceback (most recent call last):", "  File 1", "ValueError: no"]).splitlines()[-1]
    'ValueError: no'
    """
    if len(_fitting(lines)) < len(lines):
        lines = [line for line in lines if not line.startswith("\tat ")]
    # Python prints the message after the frames, which are indented; Java prints it before them.
    message = next((n for n, line in enumerate(lines) if n and line[:1].strip()), 0) if "Traceback" in lines[0] else 0
    after = _fitting(lines[message:]) or [lines[message][:LOG_CHARACTERS_IN_FAILURE]]
    before = _fitting(lines[:message][::-1], len(after), sum(len(line) + 1 for line in after))
    return "\n".join([*before[::-1], *after])


def _fitting(lines: Sequence[str], used_lines: int = 0, used_characters: int = 0) -> list[str]:
    """Return as many of the first lines as fit into the rest of a message."""
    fitting: list[str] = []
    for line in lines:
        used_lines, used_characters = used_lines + 1, used_characters + len(line) + 1
        if used_lines > LOG_LINES_IN_FAILURE or used_characters > LOG_CHARACTERS_IN_FAILURE:
            break
        fitting.append(line)
    return fitting
