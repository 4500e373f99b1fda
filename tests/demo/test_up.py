import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo import up


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = up.spawn("sleeper", [sys.executable, "-c", "import time; time.sleep(60)"], tmp_path, os.environ)
    yield process
    process.kill()
    process.wait()


def test_a_started_process_is_noted_and_alive(sleeper: subprocess.Popen[bytes], tmp_path: Path) -> None:
    noted = up.read_processes(tmp_path)
    assert noted["sleeper"]["pid"] == sleeper.pid
    assert up.alive(noted["sleeper"])


def test_another_process_with_the_same_pid_is_not_mistaken_for_ours(sleeper: subprocess.Popen[bytes]) -> None:
    noted = {"pid": sleeper.pid, "started": up.process_started(sleeper.pid) - 1}
    assert not up.alive(noted)


def test_a_process_that_has_ended_is_not_alive(sleeper: subprocess.Popen[bytes], tmp_path: Path) -> None:
    sleeper.kill()
    sleeper.wait()
    assert not up.alive(up.read_processes(tmp_path)["sleeper"])


def test_down_ends_what_was_noted_and_forgets_it(sleeper: subprocess.Popen[bytes], tmp_path: Path) -> None:
    assert up.down(tmp_path) == 1
    assert sleeper.wait(5) != 0
    assert up.down(tmp_path) == 0


def test_a_second_up_is_refused_while_the_first_runs(sleeper: subprocess.Popen[bytes], tmp_path: Path) -> None:
    with pytest.raises(up.AlreadyUp, match="`make down` stops it"):
        up.up(tmp_path, tmp_path, None, 0, 0)
    assert sleeper.poll() is None
