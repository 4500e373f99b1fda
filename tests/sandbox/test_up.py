import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox import up


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = up.spawn("sleeper", [sys.executable, "-c", "import time; time.sleep(60)"], tmp_path, os.environ)
    yield process
    process.kill()
    process.wait()


def test_a_started_process_is_recorded_and_running(sleeper: subprocess.Popen[bytes], tmp_path: Path) -> None:
    records = up.read_records(tmp_path)
    assert records["sleeper"]["pid"] == sleeper.pid
    assert up.is_running(records["sleeper"])


def test_another_process_with_the_same_pid_is_not_taken_for_the_recorded_one(sleeper: subprocess.Popen[bytes]) -> None:
    record = {"pid": sleeper.pid, "started": up.start_time(sleeper.pid) - 1}
    assert not up.is_running(record)


def test_a_process_that_has_exited_is_not_running(sleeper: subprocess.Popen[bytes], tmp_path: Path) -> None:
    sleeper.kill()
    sleeper.wait()
    assert not up.is_running(up.read_records(tmp_path)["sleeper"])


def test_down_stops_the_recorded_processes_and_deletes_the_record(
    sleeper: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    assert up.down(tmp_path) == 1
    assert sleeper.wait(5) != 0
    assert up.down(tmp_path) == 0


def test_a_second_up_fails_while_the_first_is_running(sleeper: subprocess.Popen[bytes], tmp_path: Path) -> None:
    with pytest.raises(up.AlreadyRunning, match="stop it with `make down`"):
        up.up(tmp_path, tmp_path, None, 0, 0)
    assert sleeper.poll() is None
