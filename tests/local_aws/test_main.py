import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.local_aws.program import ROOT, Served, serving, start
from tests.local_aws.user import User, bash, grandchild, is_running, read_pid, runaway, wait_for_death


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path / "data") as program:
        program.user.make_bucket()
        yield program


def start_families(user: User, folder: Path) -> list[int]:
    """Have one cluster in a step and one in a bootstrap action; the pids of what these started themselves."""
    step, away, action = folder / "step.pid", folder / "away.pid", folder / "action.pid"
    script = user.put("family.sh", f"#!/bin/bash\n{grandchild(action)}\n")
    user.start(bash(f"{runaway(away)}; {grandchild(step)}"))
    user.start(bootstrap=[(script,)])
    pids = [read_pid(step), read_pid(away), read_pid(action)]
    assert all(is_running(pid) for pid in pids)
    return pids


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_polite_signal_ends_all_processes_and_then_the_server(
    served: Served, tmp_path: Path, number: signal.Signals
) -> None:
    pids = start_families(served.user, tmp_path)
    served.process.send_signal(number)
    assert served.process.wait(10) == 0
    for pid in pids:
        wait_for_death(pid)


def test_a_killed_server_leaves_no_process_behind(served: Served, tmp_path: Path) -> None:
    pids = start_families(served.user, tmp_path)
    served.process.kill()
    assert served.process.wait(10) == -signal.SIGKILL
    for pid in pids:
        wait_for_death(pid)


def test_a_taken_port_ends_the_program_with_1_and_says_what_to_do(user: User, tmp_path: Path) -> None:
    port = urlsplit(user.endpoint_url).port
    assert port is not None
    log = tmp_path / "log"
    assert start(tmp_path / "data", port, log).wait(20) == 1
    (line,) = log.read_text().splitlines()
    assert f"cannot listen on 127.0.0.1:{port}" in line
    assert "choose another --port" in line


@pytest.mark.parametrize(("file", "master"), [("data", "local"), ("data/standalone", "standalone[1,1,512]")])
def test_a_folder_that_cannot_be_used_ends_the_program_with_1_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, master: str
) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    monkeypatch.setenv("LOCAL_EMR_MASTER", master)
    log = tmp_path / "log"
    assert start(tmp_path / "data", 0, log).wait(20) == 1
    (line,) = log.read_text().splitlines()
    assert f"cannot work in {tmp_path / 'data'}: " in line
    assert str(tmp_path / file) in line.partition("]")[2]
    assert "give another --data" in line


def test_a_data_folder_must_be_given() -> None:
    refused = subprocess.run([sys.executable, "-m", "local_aws"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "--data" in refused.stderr
