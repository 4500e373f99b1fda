"""Run the DAG on a local AWS, once or several times, and report what each run did."""

import argparse
import json
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from botocore.exceptions import ClientError

from demo import watch
from demo.bars import StepBars
from sandbox import airflow, aws, pictures, processes
from sandbox.folders import ROOT, image_folder

DAG_ID = "fruit_features"
TERMINATED_TIMEOUT_SECONDS = 120
# The tables whose rows are copied after a run.
TABLES = ("features", "images", "rejects", "embeddings")


class Interrupted(BaseException):
    """Ctrl-C, SIGTERM or SIGHUP: stop everything and exit."""


def _interrupt(number: int, _frame: object) -> None:
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)  # a second Ctrl-C must not interrupt the clean-up
    raise Interrupted(signal.Signals(number).name)


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise Interrupted on the signals that request an exit."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    yield


class TimedPrinter:
    """Prints each line after the seconds since the start."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._lock = threading.Lock()

    def __call__(self, line: str) -> None:
        with self._lock:
            print(f"{time.monotonic() - self._started:7.1f} s  {line}", flush=True)


def argument_parser(program: str, description: str | None, example: str, folder: Path) -> argparse.ArgumentParser:
    """Return a parser with the options that all programs have. `folder` is the default of `--folder`."""
    parser = argparse.ArgumentParser(
        prog=program, description=description, epilog=example, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=image_folder, help="folder that contains a folder of images per label (default: rendered images)"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=folder,
        help=f"folder for logs and results (default: {folder.relative_to(ROOT)})",
    )
    parser.add_argument(
        "--build-dir", type=Path, default=ROOT / "build", help="folder with wheels/ and model/ (default: build)"
    )
    parser.add_argument(
        "--params", type=json.loads, default={}, help="JSON object with the DAG's params, as in Airflow's trigger form"
    )
    return parser


def run_program(run: Callable[[watch.PrintLine], int], *errors: type[Exception]) -> int:
    """Call a function that prints its progress, and return its exit code, or another one if it is interrupted.

    The errors of the set-up, and the given ones, have a message that is all that the user needs.
    """
    expected: tuple[type[Exception], ...] = (*aws.SET_UP_ERRORS, *errors, ClientError)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    print_line = TimedPrinter()
    try:
        with interruptible():
            return run(print_line)
    except Interrupted as signal_name:
        print_line(f"{signal_name}: all processes are stopped")
        return 130
    except expected as error:
        print_line(f"failed: {error}")
        return 1


@dataclass(frozen=True)
class Deployment:
    """A local AWS with a release, and an Airflow without a server."""

    folder: Path
    url: str
    s3: Any
    emr: Any
    env: Mapping[str, str]
    print_line: watch.PrintLine


@dataclass(frozen=True)
class Run:
    """A run that has finished.

    `planned` is the XCom `summary` of the task `plan`, `published` the summary that `publish` returned, and `cost` the
    XCom `cost` of `verdict`. Each is None if its task did not return it. `clusters` lists the clusters of the
    run, each with its steps.
    """

    state: str
    tasks: Mapping[str, str]
    planned: Mapping[str, Any] | None
    published: Mapping[str, Any] | None
    cost: Mapping[str, Any] | None
    clusters: list[dict[str, Any]]
    task_seconds: Mapping[str, float]
    seconds: float

    @property
    def clusters_alive(self) -> int:
        """The number of the run's clusters that are still active."""
        return sum(cluster["Status"]["State"] not in watch.ENDED for cluster in self.clusters)


@contextmanager
def deployment(folder: Path, build_dir: Path, print_line: watch.PrintLine) -> Iterator[Deployment]:
    """Start a local AWS, upload the release, and set up Airflow; stop everything when the context is left.

    Args:
        folder: an empty folder for logs, the nodes of the clusters and Airflow's home.
        build_dir: the folder of the release's wheels and model.
        print_line: prints a line about the progress.

    Raises:
        FileNotFoundError: the release has not been built.
        sandbox.processes.DidNotStart: the local AWS or Airflow does not start.
    """
    with ExitStack() as cleanup:
        port = processes.free_port()
        url = cleanup.enter_context(aws.local_aws(folder / "aws", port, folder / "local_aws.log"))
        print_line(f"local AWS on {url}, log in {folder / 'local_aws.log'}")
        release = aws.provision(url, build_dir)
        print_line(f"release {release}")
        env = airflow.airflow_environment(folder / "airflow", url, release)
        airflow.migrate_airflow(env, folder / "airflow-db.log")
        print_line("Airflow is set up")
        yield Deployment(folder, url, aws.client("s3", url), aws.client("emr", url), env, print_line)


def upload(deployed: Deployment, data: Path | None) -> Path:
    """Upload the images of a folder, or of rendered pictures, and return the folder.

    Raises:
        FileNotFoundError: there are no images in `data`.
        sandbox.aws.BadFileName: the name of a file in `data` is not UTF-8.
    """
    if data is None:
        data = deployed.folder / "pictures"
        deployed.print_line(f"rendered {pictures.write_dataset(data)} images in {data}")
    count = aws.upload_images(deployed.s3, data)
    deployed.print_line(f"{count} files from {data} in s3://{aws.BUCKET}/{aws.DATASET_PREFIX}")
    return data


def run_once(deployed: Deployment, params: Mapping[str, Any], name: str = "") -> Run:
    """Run the DAG to its end. `name` distinguishes the logs of several runs.

    Raises:
        DidNotStart: the process of the DAG exits without an outcome.
    """
    earlier = {cluster["Id"] for cluster in watch.cluster_summaries(deployed.emr)}
    times = watch.TaskTimes(deployed.print_line)
    started = time.monotonic()
    emr_once = aws.client("emr", deployed.url, attempts=1)
    with StepBars(deployed.s3, deployed.print_line) as bars:
        watcher = watch.EmrWatcher(emr_once, deployed.print_line, bars.update, without=earlier)
        with watcher:
            outcome = run_dag(deployed.env, deployed.folder, params, times, name)
            clusters = wait_until_terminated(deployed.emr, without=earlier)
        watcher.show(clusters)
    return Run(
        state=outcome["run_state"],
        tasks=outcome["tasks"],
        planned=outcome["planned"],
        published=outcome["published"],
        cost=outcome["cost"],
        clusters=clusters,
        task_seconds=times.seconds(),
        seconds=round(time.monotonic() - started, 1),
    )


def run_dag(
    env: Mapping[str, str], folder: Path, params: Mapping[str, Any], times: watch.TaskTimes, name: str
) -> dict[str, Any]:
    """Run the DAG in a process of its own, follow its log, and return the outcome that the process writes.

    Raises:
        DidNotStart: the process exits without an outcome.
    """
    outcome = folder / f"outcome{name}.json"
    log_file = folder / f"airflow{name}.log"
    command = [sys.executable, "-m", "sandbox.dag_run", "--dag-id", DAG_ID, "--outcome", str(outcome)]
    with (
        processes.running([*command, "--params", json.dumps(params)], log_file, env) as process,
        log_file.open() as log,
    ):

        def lines() -> Iterator[str]:
            partial = ""
            while True:
                exited = process.poll() is not None
                while line := log.readline():
                    partial += line
                    if partial.endswith("\n"):
                        yield partial
                        partial = ""
                if exited:
                    return
                time.sleep(0.1)

        times.follow(lines())
    if not outcome.exists():
        tail = "\n".join(log_file.read_text(errors="replace").splitlines()[-15:])
        raise processes.DidNotStart(f"the DAG did not run. The last lines of {log_file}:\n{tail}")
    content: dict[str, Any] = json.loads(outcome.read_text())
    return content


def wait_until_terminated(emr: Any, without: Collection[str]) -> list[dict[str, Any]]:
    """Wait at most 2 minutes for terminating clusters, then return all clusters except those with the given ids."""
    deadline = time.monotonic() + TERMINATED_TIMEOUT_SECONDS
    while True:
        clusters = watch.clusters(emr, without)
        terminating = [cluster for cluster in clusters if cluster["Status"]["State"] == "TERMINATING"]
        if not terminating or time.monotonic() > deadline:
            return clusters
        time.sleep(watch.THROTTLED_POLL_SECONDS)


def download_run(s3: Any, run_uri: str, folder: Path) -> None:
    """Copy the files of the only run from the local S3, so that they can be read after the local AWS has stopped.

    The files of a table go to a folder of its name, beside the files of the run's folder.
    """
    for uri in list_files(s3, run_uri):
        copy_file(s3, uri, folder / uri.removeprefix(f"{run_uri}/"))
    for table in TABLES:
        for uri in list_files(s3, f"s3://{aws.BUCKET}/warehouse/{table}/data"):
            copy_file(s3, uri, folder / table / Path(uri).name)


def list_files(s3: Any, uri: str) -> Iterable[str]:
    """Yield the URIs of the objects below a folder."""
    parts = urlsplit(uri)
    prefix = parts.path.lstrip("/") + "/"
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=parts.netloc, Prefix=prefix):
        for item in page.get("Contents", []):
            yield f"s3://{parts.netloc}/{item['Key']}"


def copy_file(s3: Any, uri: str, target: Path) -> None:
    """Copy an object into a local file."""
    bucket, key = uri.removeprefix("s3://").split("/", 1)
    target.parent.mkdir(parents=True, exist_ok=True)
    s3.download_file(bucket, key, str(target))
