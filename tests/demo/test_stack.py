import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from demo import stack

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# A parent that ignores SIGTERM and has a child; each is to be ended.
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_program_is_ended_with_all_that_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "STOP_TIMEOUT_SECONDS", 1)
    log_file = tmp_path / "log"
    with stack.running([sys.executable, "-c", STUBBORN], log_file, os.environ) as process:
        deadline = time.monotonic() + 20
        while not log_file.read_text().endswith("\n") and time.monotonic() < deadline:
            time.sleep(0.05)
        child = int(log_file.read_text())
        assert lives(child)
    assert process.poll() is not None
    deadline = time.monotonic() + 2
    while lives(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not lives(child)


def test_a_taken_port_is_refused_and_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(stack.DidNotStart, match=f"port {port} of 127.0.0.1 cannot be had"):
            stack.free_port(port)


def test_a_folder_is_emptied_only_if_a_run_has_made_it(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "holiday.jpg").write_bytes(b"1")
    with pytest.raises(FileExistsError, match="holds something else than an earlier run: give another --folder"):
        stack.make_empty(photos, None)
    assert (photos / "holiday.jpg").exists()

    stack.make_empty(tmp_path / "run", photos)
    (tmp_path / "run/old.log").write_text("1")
    stack.make_empty(tmp_path / "run", photos)
    assert not (tmp_path / "run/old.log").exists()


def test_images_in_the_folder_of_the_run_are_not_lost(tmp_path: Path) -> None:
    stack.make_empty(tmp_path / "run", None)
    (tmp_path / "run/pictures").mkdir()
    with pytest.raises(FileExistsError, match="copy the images elsewhere"):
        stack.make_empty(tmp_path / "run", tmp_path / "run/pictures")


def test_a_server_that_ends_at_once_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    log_file = tmp_path / "log"
    command = [sys.executable, "-c", "raise SystemExit('no such luck')"]
    with stack.running(command, log_file, os.environ) as process, pytest.raises(stack.DidNotStart) as error:
        stack.wait_for_port(stack.free_port(), process, log_file)
    assert "no such luck" in str(error.value)


def test_every_file_of_a_folder_is_uploaded(
    s3: "S3Client", bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack, "BUCKET", bucket)
    for name in ("Kiwi/1.jpg", "Kiwi/broken.jpg", "Lime/late/2.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    assert stack.upload_images(s3, tmp_path, prefix="new/") == 3
    keys = [item["Key"] for item in s3.list_objects_v2(Bucket=bucket)["Contents"]]
    assert keys == ["new/Kiwi/1.jpg", "new/Kiwi/broken.jpg", "new/Lime/late/2.jpg"]


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_a_folder_without_files_is_named(s3: "S3Client", tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=f"no files in {tmp_path}/{name}: give DATA=FOLDER"):
        stack.upload_images(s3, tmp_path / name)


def test_airflow_sees_nothing_of_a_real_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_PROFILE", "production")
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    monkeypatch.setenv("ORCHARD_SUBNET_IDS", "subnet-real")
    env = stack.airflow_environment(tmp_path, "http://127.0.0.1:5000", "0123456789ab")
    assert env["AWS_ENDPOINT_URL"] == "http://127.0.0.1:5000"
    assert not {"AWS_PROFILE", "AIRFLOW__CORE__EXECUTOR", "ORCHARD_SUBNET_IDS"} & env.keys()


@pytest.mark.parametrize("module", ["demo", "demo.up"])
def test_a_data_folder_that_is_not_there_is_told_before_anything_starts(module: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", module, "--data", str(tmp_path / "none"), "--folder", str(tmp_path / "demo")]
    done = subprocess.run(command, cwd=stack.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"there is no folder {tmp_path}/none: give DATA=FOLDER" in done.stderr
    assert not (tmp_path / "demo").exists()
