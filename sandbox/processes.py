"""Start programs, wait for them, and stop them with all of their child processes."""

import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from sandbox.folders import ROOT

log = logging.getLogger(__name__)

START_TIMEOUT_SECONDS = 60
STOP_TIMEOUT_SECONDS = 20

Result = TypeVar("Result")


class DidNotStart(RuntimeError):
    """A program exits, or does not respond, right after its start."""


def free_port(port: int = 0) -> int:
    """Return the port if it is free on 127.0.0.1. Port 0 means any free port.

    Raises:
        DidNotStart: the port is in use.
    """
    try:
        with socket.create_server(("127.0.0.1", port)) as probe:
            found: int = probe.getsockname()[1]
            return found
    except OSError as error:
        raise DidNotStart(f"port {port} of 127.0.0.1 is unavailable ({error}): choose another port") from error


def start(command: Sequence[str], log_file: Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a program in a process group of its own, with its output in `log_file`."""
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("wb") as output:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


@contextmanager
def running(command: Sequence[str], log_file: Path, env: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program while the context is open, then stop it and its process group."""
    process = start(command, log_file, env)
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a process and its group: with SIGTERM, and after a timeout with SIGKILL."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            log.warning("process %d did not exit within %d s of SIGTERM: killing it", process.pid, STOP_TIMEOUT_SECONDS)
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def wait_for_port(port: int, process: subprocess.Popen[bytes], log_file: Path) -> None:
    """Wait until a server that was started listens on its port.

    Raises:
        DidNotStart: the server exits, or does not listen within a minute.
    """
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    tail = "\n".join(log_file.read_text(errors="replace").splitlines()[-10:])
    exited = "" if process.returncode is None else f": the process has exited with code {process.returncode}"
    raise DidNotStart(f"nothing listens on 127.0.0.1:{port}{exited}. The last lines of {log_file}:\n{tail}")


def wait_until(
    poll: Callable[[], Result | None],
    description: str,
    *,
    timeout_seconds: float,
    interval_seconds: float = 0.2,
    retry_on: tuple[type[Exception], ...] = (),
) -> Result:
    """Return the first true result of `poll`.

    Args:
        poll: returns a false value while the wait must continue.
        description: what is waited for, for the error message.
        timeout_seconds: the longest wait, in seconds.
        interval_seconds: the pause between two calls, in seconds.
        retry_on: errors of `poll` that count as a false result.

    Raises:
        TimeoutError: there is no true result in time.
    """
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            if result := poll():
                return result
        except retry_on:
            pass
        if time.monotonic() > deadline:
            raise TimeoutError(f"{description}: not within {timeout_seconds:g} s")
        time.sleep(interval_seconds)
