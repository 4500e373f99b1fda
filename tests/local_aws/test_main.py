import argparse
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from local_aws.__main__ import main, timings_of
from local_aws.emr.life import LIKE_EMR, Timings
from tests.local_aws.program import ROOT, Served, serving, start
from tests.local_aws.user import User, bash, grandchild, is_running, read_pid, runaway, wait_for_death


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path / "data") as program:
        program.user.make_bucket()
        yield program


def start_process_trees(user: User, folder: Path) -> list[int]:
    """Start a cluster in a step and one in a bootstrap action, and return the pids of their child processes."""
    step, detached, action = folder / "step.pid", folder / "detached.pid", folder / "action.pid"
    script = user.put("family.sh", f"#!/bin/bash\n{grandchild(action)}\n")
    user.start(bash(f"{runaway(detached)}; {grandchild(step)}"))
    user.start(bootstrap=[(script,)])
    pids = [read_pid(step), read_pid(detached), read_pid(action)]
    assert all(is_running(pid) for pid in pids)
    return pids


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_sigterm_and_sigint_kill_all_processes_and_stop_the_server(
    served: Served, tmp_path: Path, number: signal.Signals
) -> None:
    pids = start_process_trees(served.user, tmp_path)
    served.process.send_signal(number)
    assert served.process.wait(10) == 0
    for pid in pids:
        wait_for_death(pid)


def test_a_killed_server_leaves_no_process_behind(served: Served, tmp_path: Path) -> None:
    pids = start_process_trees(served.user, tmp_path)
    served.process.kill()
    assert served.process.wait(10) == -signal.SIGKILL
    for pid in pids:
        wait_for_death(pid)


def test_a_port_in_use_makes_the_program_exit_with_1_and_advice(user: User, tmp_path: Path) -> None:
    port = urlsplit(user.endpoint_url).port
    assert port is not None
    log = tmp_path / "log"
    assert start(tmp_path / "data", port, log).wait(20) == 1
    (line,) = log.read_text().splitlines()
    assert f"cannot listen on 127.0.0.1:{port}" in line
    assert "use another --port" in line


@pytest.mark.parametrize(("file", "master"), [("data", "local"), ("data/standalone", "standalone[1,1,512]")])
def test_an_unusable_folder_makes_the_program_exit_with_1_and_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, master: str
) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    monkeypatch.setenv("LOCAL_EMR_MASTER", master)
    log = tmp_path / "log"
    assert start(tmp_path / "data", 0, log).wait(20) == 1
    (line,) = log.read_text().splitlines()
    assert f"cannot use the folder {tmp_path / 'data'}: " in line
    assert str(tmp_path / file) in line.partition("]")[2]
    assert "use another --data" in line


@pytest.mark.parametrize(("like_emr", "rest"), [(True, LIKE_EMR), (False, Timings())])
def test_a_given_time_counts_more_than_those_of_emr(*, like_emr: bool, rest: Timings) -> None:
    given = argparse.Namespace(like_emr=like_emr, starting_seconds=None, log_delay_seconds=7.0, port=5000)
    assert timings_of(given) == replace(rest, log_delay_seconds=7.0)


@pytest.mark.parametrize("value", ["-5", "nan", "inf", "soon"])
def test_the_error_about_a_time_that_is_none_names_the_option_and_the_value(
    value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--data", "unused", "--starting-seconds", value, "--port", "none"])
    expected = f"argument --starting-seconds: {value} is no time: use a number of seconds, 0 or more"
    assert expected in capsys.readouterr().err


def test_the_data_option_is_required() -> None:
    failed = subprocess.run([sys.executable, "-m", "local_aws"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert "--data" in failed.stderr
