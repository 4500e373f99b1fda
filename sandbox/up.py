"""Start the local AWS and Airflow in the background, to use in a browser, or stop them with --down."""

import argparse
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from sandbox import airflow, aws, pictures, processes
from sandbox.folders import ROOT, image_folder, make_empty

# The file in which `up` records the processes that `down` stops.
PROCESSES = "processes.json"
EXAMPLE = """\
example:
  python -m sandbox.up --data ~/fruits
  python -m sandbox.up --down
"""


class AlreadyRunning(RuntimeError):
    """The processes of an earlier `up` are still running."""


def spawn(name: str, command: list[str], folder: Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a program that keeps running after this one exits, and record it for `down`."""
    process = processes.start(command, folder / f"{name}.log", env)
    records = read_records(folder)
    records[name] = {"pid": process.pid, "started": start_time(process.pid)}
    (folder / PROCESSES).write_text(json.dumps(records, indent=2))
    return process


def read_records(folder: Path) -> dict[str, dict[str, int]]:
    """Return the recorded processes by name: the pid and the start time of each."""
    file = folder / PROCESSES
    records: dict[str, dict[str, int]] = json.loads(file.read_text()) if file.exists() else {}
    return records


def start_time(pid: int) -> int:
    """Return when a process started, in clock ticks since boot, or 0 if it is not running.

    A pid alone does not identify a process, because the kernel reuses pids.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except FileNotFoundError:
        return 0
    return 0 if fields[0] == "Z" else int(fields[19])


def is_running(record: Mapping[str, int]) -> bool:
    """Return whether a recorded process is still running."""
    return start_time(record["pid"]) == record["started"] != 0


def up(folder: Path, build_dir: Path, data: Path | None, aws_port: int, web_port: int) -> None:
    """Start everything, wait until it responds, and print the addresses.

    Args:
        folder: the folder for logs, Airflow's database and the clusters. It is emptied first.
        build_dir: the folder of the release's wheels and model.
        data: the folder of the images, or None to render some.
        aws_port: the port of the local AWS.
        web_port: the port of Airflow's API server.

    Raises:
        AlreadyRunning: the processes of an earlier call are still running.
        sandbox.folders.UnusableFolder: Airflow cannot use the folder.
        sandbox.processes.DidNotStart: a port is in use, or a process exits or does not respond.
        sandbox.aws.BadOptions: the options in LOCAL_AWS_OPTIONS are wrong.
        FileExistsError: the folder contains the images, or files that are not from an earlier run.
        FileNotFoundError: there are no images, or the release has not been built.
    """
    if any(is_running(record) for record in read_records(folder).values()):
        raise AlreadyRunning("Orchard is already running: stop it with `make down`")
    for port in (aws_port, web_port):
        processes.free_port(port)
    make_empty(folder, data)
    process = spawn("local_aws", aws.local_aws_command(folder / "aws", aws_port), folder, os.environ)
    aws.wait_for_local_aws(aws_port, process, folder / "local_aws.log")
    url = f"http://127.0.0.1:{aws_port}"
    release = aws.provision(url, build_dir)
    if data is None:
        data = folder / "pictures"
        pictures.write_dataset(data)
    count = aws.upload_images(aws.client("s3", url), data)
    print(f"local AWS on {url}: {count} files in s3://{aws.BUCKET}/{aws.DATASET_PREFIX}")

    passwords = folder / "passwords.json"
    password = airflow.write_password(passwords)
    env = {
        **airflow.airflow_environment(folder / "airflow", url, release),
        **airflow.server_environment(web_port, passwords),
    }
    airflow.migrate_airflow(env, folder / "airflow-db.log")
    api_server = spawn("api-server", ["airflow", "api-server"], folder, env)
    for name, arguments in airflow.COMPONENTS.items():
        spawn(name, ["airflow", *arguments], folder, env)
    airflow.wait_until_ready(web_port, api_server, folder)
    print(f"Airflow on http://127.0.0.1:{web_port}  user {airflow.USER}  password {password}")
    print("Trigger the DAG Fruit features (fruit_features). That also unpauses it: it then runs every night at 02:00.")
    print(f"The logs are in {folder}. Stop everything with `make down`.")


def down(folder: Path) -> int:
    """Stop the processes that `up` started, the local AWS last, and return their number."""
    records = {name: record for name, record in read_records(folder).items() if is_running(record)}
    stop_together([record for name, record in records.items() if name != "local_aws"])
    stop_together([record for name, record in records.items() if name == "local_aws"])
    (folder / PROCESSES).unlink(missing_ok=True)
    return len(records)


def stop_together(records: Sequence[Mapping[str, int]]) -> None:
    """Stop recorded processes and their groups: all with SIGTERM, and after a timeout with SIGKILL."""
    for record in records:
        if is_running(record):
            with contextlib.suppress(ProcessLookupError):
                os.kill(record["pid"], signal.SIGTERM)
    deadline = time.monotonic() + processes.STOP_TIMEOUT_SECONDS
    while any(map(is_running, records)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for record in records:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(record["pid"], signal.SIGKILL)


def main(argv: list[str] | None = None) -> int:
    """Start or stop everything, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m sandbox.up",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--down", action="store_true", help="stop the processes that an earlier call started")
    parser.add_argument(
        "--data", type=image_folder, help="folder that contains a folder of images per label (default: rendered images)"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=ROOT / "build/up",
        help="folder for logs, Airflow's database and the clusters (default: build/up)",
    )
    parser.add_argument(
        "--build-dir",
        type=Path,
        default=ROOT / "build",
        help="folder that contains wheels/ and model/ (default: build)",
    )
    parser.add_argument("--aws-port", type=int, default=5000, help="port of the local AWS (default: %(default)s)")
    parser.add_argument("--web-port", type=int, default=8080, help="port of Airflow (default: %(default)s)")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    if arguments.down:
        print(f"stopped {down(arguments.folder)} processes")
        return 0
    try:
        up(arguments.folder, arguments.build_dir, arguments.data, arguments.aws_port, arguments.web_port)
    except AlreadyRunning as error:
        print(f"failed: {error}")
        return 1
    except (*aws.SET_UP_ERRORS, KeyboardInterrupt) as error:
        down(arguments.folder)
        print(f"failed: {error or 'interrupted'}. All processes that were started are stopped.")
        return 1
    except BaseException:
        down(arguments.folder)
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
