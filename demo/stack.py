"""The local AWS with everything in it that a deployment needs: bucket, roles, release, images."""

import argparse
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config

from infra import release

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

ROOT = Path(__file__).parent.parent
REGION = "eu-west-1"
BUCKET = "orchard-demo"
SERVICE_ROLE = "EMR_DefaultRole_V2"
INSTANCE_PROFILE = "EMR_EC2_DefaultRole"
DATASET_PREFIX = "images/"
# What a folder of ours is known by before it is emptied.
MARK = ".orchard-demo"
START_TIMEOUT_SECONDS = 60
STOP_TIMEOUT_SECONDS = 20


class DidNotStart(RuntimeError):
    """A process of ours ended, or does not answer, right after it was started."""


def image_folder(text: str) -> Path:
    """A folder that is there, for argparse."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(
            f"there is no folder {text}: give DATA=FOLDER with a folder of images per label"
        )
    return Path(text)


def make_empty(folder: Path, data: Path | None) -> None:
    """Make a folder for a run, without what an earlier run left in it.

    Raises:
        FileExistsError: it holds something that no run has left, or the images of this one.
    """
    if data is not None and data.resolve().is_relative_to(folder.resolve()):
        raise FileExistsError(f"{data} lies in {folder}, which is emptied first: copy the images elsewhere")
    if folder.exists() and any(folder.iterdir()) and not (folder / MARK).exists():
        raise FileExistsError(f"{folder} holds something else than an earlier run: give another --folder, or delete it")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / MARK).touch()


def free_port(wanted: int = 0) -> int:
    """The wanted port of 127.0.0.1, or any that nobody listens on just now.

    Raises:
        DidNotStart: the wanted port is taken.
    """
    try:
        with socket.create_server(("127.0.0.1", wanted)) as probe:
            port: int = probe.getsockname()[1]
            return port
    except OSError as error:
        raise DidNotStart(f"port {wanted} of 127.0.0.1 cannot be had ({error}); choose another") from error


@contextmanager
def running(command: Sequence[str], log_file: Path, env: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A program in a process group of its own, ended with its whole group: politely, then by force."""
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and its group."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            log.warning("pid %d does not end within %d s", process.pid, STOP_TIMEOUT_SECONDS)
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def wait_for_port(port: int, process: subprocess.Popen[bytes], log_file: Path) -> None:
    """Wait until a started server listens.

    Raises:
        DidNotStart: it ended, or does not listen within a minute.
    """
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    tail = "\n".join(log_file.read_text(errors="replace").splitlines()[-10:])
    raise DidNotStart(f"nothing listens on 127.0.0.1:{port}; the end of {log_file}:\n{tail}")


def client(service: str, endpoint_url: str) -> Any:
    """A boto3 client for the local AWS."""
    return boto3.client(  # type: ignore[call-overload]  # the service is a variable
        service,
        endpoint_url=endpoint_url,
        region_name=REGION,
        aws_access_key_id="local",
        aws_secret_access_key="local",  # noqa: S106  # the local AWS takes any
        config=Config(retries={"mode": "standard", "max_attempts": 5}),
    )


@contextmanager
def local_aws(data: Path, port: int, log_file: Path) -> Iterator[str]:
    """The local AWS as a process of its own; gives its endpoint URL.

    Raises:
        DidNotStart: it does not come up, for example because the port is taken.
    """
    command = [sys.executable, "-m", "local_aws", "--port", str(port), "--data", str(data)]
    with running(command, log_file, os.environ) as process:
        wait_for_port(port, process, log_file)
        yield f"http://127.0.0.1:{port}"


def provision(endpoint_url: str, build_dir: Path) -> str:
    """Make the bucket and the roles, upload the release; return its version."""
    s3, iam = client("s3", endpoint_url), client("iam", endpoint_url)
    s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
    for role in (SERVICE_ROLE, INSTANCE_PROFILE):
        iam.create_role(RoleName=role, AssumeRolePolicyDocument="{}")
    iam.create_instance_profile(InstanceProfileName=INSTANCE_PROFILE)
    iam.add_role_to_instance_profile(InstanceProfileName=INSTANCE_PROFILE, RoleName=INSTANCE_PROFILE)
    return release.upload(s3, BUCKET, release.collect(build_dir))


def upload_images(s3: "S3Client", folder: Path, prefix: str = DATASET_PREFIX) -> int:
    """Upload every file below a folder; return their number.

    Raises:
        FileNotFoundError: there is no such folder, or no file in it.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    if not files:
        raise FileNotFoundError(f"no files in {folder}: give DATA=FOLDER with a folder of images per label")
    for file in files:
        s3.put_object(Bucket=BUCKET, Key=f"{prefix}{file.relative_to(folder).as_posix()}", Body=file.read_bytes())
    return len(files)


def airflow_environment(home: Path, endpoint_url: str, release_version: str) -> dict[str, str]:
    """The environment of Airflow: our DAGs and plugins, the local AWS, and what a deployment configures."""
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith(("AIRFLOW_", "AWS_", "ORCHARD_"))},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PARALLELISM": "4",
        # Airflow may notice the end of a task's process this much later. A sensor that polls again before that is taken
        # for failed, so it must be less than ORCHARD_POLL_SECONDS; Airflow's 5 is more than the 2 below.
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
        "AIRFLOW_CONN_AWS_DEFAULT": "aws://",
        "AWS_ENDPOINT_URL": endpoint_url,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_EC2_METADATA_DISABLED": "true",
        "ORCHARD_BUCKET": BUCKET,
        "ORCHARD_RELEASE": release_version,
        "ORCHARD_REGION": REGION,
        "ORCHARD_SERVICE_ROLE": SERVICE_ROLE,
        "ORCHARD_INSTANCE_PROFILE": INSTANCE_PROFILE,
        "ORCHARD_DATASET_PREFIX": DATASET_PREFIX,
        "ORCHARD_POLL_SECONDS": "2",
    }
