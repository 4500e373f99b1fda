"""`python -m demo.up` starts the local AWS and Airflow's four processes to click through; with --down it stops them."""

import argparse
import json
import logging
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from demo import pictures, stack
from demo.__main__ import migrate_airflow

USER = "admin"
PROCESSES = "processes.json"
READY_TIMEOUT_SECONDS = 120
COMPONENTS = {
    # Without --skip-serve-logs the last two serve their logs to the whole network.
    "dag-processor": ["dag-processor"],
    "scheduler": ["scheduler", "--skip-serve-logs"],
    "triggerer": ["triggerer", "--skip-serve-logs"],
}


class AlreadyUp(RuntimeError):
    """The processes of an earlier `make up` still run."""


def spawn(name: str, command: list[str], folder: Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a program that outlives this one, in a session of its own, and note its pid for `down`."""
    with (folder / f"{name}.log").open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=stack.ROOT,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    noted = read_processes(folder)
    noted[name] = {"pid": process.pid, "started": process_started(process.pid)}
    (folder / PROCESSES).write_text(json.dumps(noted, indent=2))
    return process


def read_processes(folder: Path) -> dict[str, dict[str, int]]:
    """The noted processes, by name."""
    file = folder / PROCESSES
    noted: dict[str, dict[str, int]] = json.loads(file.read_text()) if file.exists() else {}
    return noted


def process_started(pid: int) -> int:
    """When a process started, in clock ticks since boot, so that a pid used anew is not mistaken; 0 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except FileNotFoundError:
        return 0
    return 0 if fields[0] == "Z" else int(fields[19])


def alive(noted: Mapping[str, int]) -> bool:
    """Whether a noted process still runs."""
    return process_started(noted["pid"]) == noted["started"] != 0


def up(folder: Path, build_dir: Path, data: Path | None, aws_port: int, web_port: int) -> None:
    """Start everything, wait until it answers, and print where it is.

    Raises:
        AlreadyUp: an earlier one still runs.
        demo.stack.DidNotStart: a port is taken, or a process ended or does not answer.
    """
    if any(alive(noted) for noted in read_processes(folder).values()):
        raise AlreadyUp("it is up already; `make down` stops it")
    for port in (aws_port, web_port):
        stack.free_port(port)
    stack.make_empty(folder, data)
    command = [sys.executable, "-m", "local_aws", "--port", str(aws_port), "--data", str(folder / "aws")]
    process = spawn("local_aws", command, folder, os.environ)
    stack.wait_for_port(aws_port, process, folder / "local_aws.log")
    url = f"http://127.0.0.1:{aws_port}"
    release = stack.provision(url, build_dir)
    if data is None:
        data = folder / "pictures"
        pictures.write_dataset(data)
    uploaded = stack.upload_images(stack.client("s3", url), data)
    print(f"local AWS on {url}: {uploaded} files in s3://{stack.BUCKET}/{stack.DATASET_PREFIX}")

    password = secrets.token_urlsafe(9)
    passwords = folder / "passwords.json"
    passwords.touch(mode=0o600)
    passwords.write_text(json.dumps({USER: password}))
    env = {
        **stack.airflow_environment(folder / "airflow", url, release),
        **server_environment(web_port, passwords),
    }
    migrate_airflow(env, folder / "airflow-db.log")
    api_server = spawn("api-server", ["airflow", "api-server"], folder, env)
    for name, arguments in COMPONENTS.items():
        spawn(name, ["airflow", *arguments], folder, env)
    wait_until_ready(web_port, api_server, folder)
    print(f"Airflow on http://127.0.0.1:{web_port}  user {USER}  password {password}")
    print("Trigger the DAG fruit_features there; unpausing it starts last night's run, too")
    print(f"logs in {folder}; `make down` stops it all")


def server_environment(web_port: int, passwords: Path) -> dict[str, str]:
    """What Airflow's own processes need to find each other, and to know the user of a file of passwords."""
    return {
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(web_port),
        "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{web_port}",
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API__SECRET_KEY": secrets.token_hex(16),
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{web_port}/execution/",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
    }


def wait_until_ready(web_port: int, api_server: subprocess.Popen[bytes], folder: Path) -> None:
    """Wait until all components of Airflow report that they are healthy.

    Raises:
        DidNotStart: they do not within two minutes.
    """
    deadline = time.monotonic() + READY_TIMEOUT_SECONDS
    health: dict[str, dict[str, str]] = {}
    while time.monotonic() < deadline and api_server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{web_port}/api/v2/monitor/health", timeout=5) as answer:
                health = json.load(answer)
        except (urllib.error.URLError, OSError):
            health = {}
        if health and all(part["status"] == "healthy" for part in health.values()):
            return
        time.sleep(0.5)
    raise stack.DidNotStart(f"Airflow is not ready ({health or 'no answer'}); see the logs in {folder}")


def down(folder: Path) -> int:
    """Stop what `up` started, the local AWS last; return how many processes that were."""
    noted = {name: item for name, item in read_processes(folder).items() if alive(item)}
    order = sorted(noted, key=lambda name: name == "local_aws")
    for name in order:
        pid = noted[name]["pid"]
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + stack.STOP_TIMEOUT_SECONDS
        while alive(noted[name]) and time.monotonic() < deadline:
            time.sleep(0.1)
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    (folder / PROCESSES).unlink(missing_ok=True)
    return len(order)


def main(argv: list[str] | None = None) -> int:
    """Start or stop."""
    parser = argparse.ArgumentParser(prog="python -m demo.up", description=__doc__)
    parser.add_argument("--down", action="store_true", help="stop what an earlier call started")
    parser.add_argument(
        "--data", type=stack.image_folder, help="folder of images, a folder per label; default: rendered pictures"
    )
    parser.add_argument("--folder", type=Path, default=stack.ROOT / "build/up", help="for logs, database, clusters")
    parser.add_argument("--build-dir", type=Path, default=stack.ROOT / "build", help="with wheels/ and model/")
    parser.add_argument("--aws-port", type=int, default=5000)
    parser.add_argument("--web-port", type=int, default=8080)
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    if arguments.down:
        print(f"stopped {down(arguments.folder)} processes")
        return 0
    try:
        up(arguments.folder, arguments.build_dir, arguments.data, arguments.aws_port, arguments.web_port)
    except AlreadyUp as error:
        print(f"failed: {error}")
        return 1
    except (FileNotFoundError, FileExistsError, stack.DidNotStart, KeyboardInterrupt) as error:
        down(arguments.folder)
        print(f"failed: {error or 'interrupted'}; everything that was started is stopped")
        return 1
    except BaseException:
        down(arguments.folder)
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
