import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox import processes

# A parent that ignores SIGTERM and has a child process. Both must be stopped.
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_program_is_stopped_with_its_child_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "STOP_TIMEOUT_SECONDS", 1)
    log_file = tmp_path / "log"
    with processes.running([sys.executable, "-c", STUBBORN], log_file, os.environ) as process:
        processes.wait_until(lambda: log_file.read_text().endswith("\n"), "the child's pid", timeout_seconds=20)
        child = int(log_file.read_text())
        assert is_running(child)
    assert process.poll() is not None
    deadline = time.monotonic() + 2
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_running(child)


def test_a_port_in_use_is_an_error_that_names_the_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(processes.DidNotStart, match=f"port {port} of 127.0.0.1 is unavailable"):
            processes.free_port(port)


def test_the_error_about_a_server_that_exits_at_once_contains_the_end_of_its_log(tmp_path: Path) -> None:
    log_file = tmp_path / "log"
    command = [sys.executable, "-c", "raise SystemExit('no such luck')"]
    with (
        processes.running(command, log_file, os.environ) as process,
        pytest.raises(processes.DidNotStart) as error,
    ):
        processes.wait_for_port(processes.free_port(), process, log_file)
    assert "no such luck" in str(error.value)


def test_a_wait_returns_the_first_true_result() -> None:
    results: Iterator[str] = iter(["", "first", "second"])
    assert processes.wait_until(lambda: next(results), "a result", timeout_seconds=5, interval_seconds=0) == "first"


def test_a_wait_that_times_out_names_what_is_missing() -> None:
    with pytest.raises(TimeoutError, match=r"a miracle: not within 0.05 s"):
        processes.wait_until(lambda: None, "a miracle", timeout_seconds=0.05, interval_seconds=0.01)


def test_a_wait_continues_after_the_listed_errors_only() -> None:
    failures = iter([ConnectionError("not yet"), ConnectionError("not yet"), None])

    def poll() -> bool:
        if error := next(failures):
            raise error
        return True

    assert processes.wait_until(poll, "an answer", timeout_seconds=5, interval_seconds=0, retry_on=(OSError,))
    failures = iter([ConnectionError("not yet")])
    with pytest.raises(ConnectionError):
        processes.wait_until(poll, "an answer", timeout_seconds=5, interval_seconds=0)
