"""A Docker engine for the tests: the one that runs, or one that is started for them."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from sandbox.processes import running, wait_until

START_SECONDS = 60


class EngineUnavailable(RuntimeError):
    """No Docker engine runs, and none can be started."""


def say(text: str) -> None:
    """Print a line about the progress of `make test-docker`."""
    sys.stderr.write(f"[{time.strftime('%H:%M:%S')}] {text}\n")
    sys.stderr.flush()


def docker(*arguments: str, timeout_seconds: float = 600, check: bool = True) -> str:
    """Run a command of Docker's client and return its output.

    Raises:
        subprocess.CalledProcessError: the command failed, and `check` is set.
    """
    return run(["docker", *arguments], timeout_seconds=timeout_seconds, check=check).stdout


def run(
    command: Sequence[str],
    *,
    timeout_seconds: float = 600,
    check: bool = True,
    cwd: Path | None = None,
    variables: Mapping[str, str] | None = None,
) -> "subprocess.CompletedProcess[str]":
    """Run a command, with more environment variables. If it fails and `check` is set, print the end of its output.

    Raises:
        subprocess.CalledProcessError: the command failed, and `check` is set.
    """
    env = {**os.environ, **(variables or {})}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=timeout_seconds, cwd=cwd, env=env
    )
    if check and done.returncode != 0:
        say(f"failed: {' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        done.check_returncode()
    return done


def answers() -> bool:
    """Return whether a Docker engine answers to the client."""
    return run(["docker", "version"], timeout_seconds=30, check=False).returncode == 0


@contextmanager
def engine() -> Iterator[str]:
    """Provide a Docker engine while the context is open, and yield its description.

    Raises:
        EngineUnavailable: no engine runs, and none can be started.
    """
    if shutil.which("docker") is None:
        raise EngineUnavailable("there is no `docker` command: install Docker (Debian: docker.io)")
    if answers():
        yield "the engine that is running"
        return
    if os.geteuid() != 0 or shutil.which("dockerd") is None:
        raise EngineUnavailable("no Docker engine is running: start it, or run this as root with dockerd installed")
    folder = Path(tempfile.mkdtemp(prefix="orchard-dockerd-"))
    socket = f"unix://{folder}/sock"
    command = ["dockerd", "--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec"]
    command += ["--pidfile", f"{folder}/pid", "--host", socket]
    try:
        with pytest.MonkeyPatch.context() as patch, running(command, folder / "log", os.environ):
            patch.setenv("DOCKER_HOST", socket)
            wait_until(answers, f"dockerd (log: {folder}/log)", timeout_seconds=START_SECONDS)
            yield "an engine started for these tests"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
