"""Run the whole pipeline once on this machine, show its progress, and stop everything at the end.

The logs, the run's files and summary.json remain in the folder of the run.
"""

import argparse
import json
import logging
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from botocore.exceptions import ClientError

from demo import watch
from sandbox import airflow, aws, pictures, processes
from sandbox.folders import ROOT, image_folder, make_empty

DAG_ID = "fruit_features"
# The keys of the summary that `publish` writes, which the summary of the demo repeats.
RUN_KEYS = (
    "images_listed",
    "images_ingested",
    "images_rejected",
    "reject_reasons",
    "ignored",
    "features_rows",
    "embeddings_rows",
    "n_components",
    "explained_variance",
    "step_seconds",
    "step_images_per_second",
    "model",
    "run_uri",
    "database",
    "tables",
)
TERMINATED_TIMEOUT_SECONDS = 20
EXAMPLE = """\
example:
  python -m demo --data ~/fruits --params '{"n_components": 50}'
"""


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


def run_demo(
    folder: Path, build_dir: Path, data: Path | None, params: Mapping[str, Any], print_line: watch.PrintLine
) -> dict[str, Any]:
    """Run the pipeline, and return the summary of the run, whether it succeeds or fails.

    Args:
        folder: the folder for logs, the nodes of the clusters and Airflow's home. It is emptied first.
        build_dir: the folder of the release's wheels and model.
        data: the folder of the images, or None to render some.
        params: the params of the DAG.
        print_line: prints a line about the progress.

    Raises:
        FileNotFoundError: there are no images in `data`, or the release has not been built.
        sandbox.aws.BadFileName: the name of a file in `data` is not UTF-8.
        FileExistsError: `folder` contains the images, or files that are not from an earlier run.
        sandbox.folders.UnusableFolder: Airflow cannot use `folder`.
        sandbox.processes.DidNotStart: the local AWS or Airflow does not start.
    """
    make_empty(folder, data)
    with ExitStack() as cleanup:
        port = processes.free_port()
        url = cleanup.enter_context(aws.local_aws(folder / "aws", port, folder / "local_aws.log"))
        print_line(f"local AWS on {url}, log in {folder / 'local_aws.log'}")
        release = aws.provision(url, build_dir)
        if data is None:
            data = folder / "pictures"
            print_line(f"rendered {pictures.write_dataset(data)} images in {data}")
        s3, emr = aws.client("s3", url), aws.client("emr", url)
        count = aws.upload_images(s3, data)
        print_line(f"release {release}; {count} files from {data} in s3://{aws.BUCKET}/{aws.DATASET_PREFIX}")

        env = airflow.airflow_environment(folder / "airflow", url, release)
        airflow.migrate_airflow(env, folder / "airflow-db.log")
        print_line("Airflow is set up; running the DAG fruit_features")
        times = watch.TaskTimes(print_line)
        with watch.EmrWatcher(emr, print_line):
            outcome = run_dag(env, folder, params, times)
            clusters = wait_until_terminated(emr)
        published = read_run_summary(s3) or {}
        if published:
            download_run(s3, published["run_uri"], folder / "run")
            print_line(f"copied the run's files to {folder / 'run'}")
        return {
            "run_state": outcome["run_state"],
            **{key: published.get(key) for key in RUN_KEYS},
            "clusters_created": len(clusters),
            "clusters_alive": sum(cluster["Status"]["State"] not in watch.ENDED for cluster in clusters),
            "clusters": {cluster["Id"]: cluster["Status"]["State"] for cluster in clusters},
            "failed_steps": {
                step["Name"]: step["Status"].get("FailureDetails", {}).get("Message", "")
                for cluster in clusters
                for step in cluster["Steps"]
                if step["Status"]["State"] == "FAILED"
            },
            "tasks": outcome["tasks"],
            "seconds": times.seconds(),
        }


def run_dag(env: Mapping[str, str], folder: Path, params: Mapping[str, Any], times: watch.TaskTimes) -> dict[str, Any]:
    """Run the DAG in a process of its own, follow its log, and return the outcome that the process writes.

    Raises:
        DidNotStart: the process exits without an outcome.
    """
    outcome = folder / "outcome.json"
    log_file = folder / "airflow.log"
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


def wait_until_terminated(emr: Any) -> list[dict[str, Any]]:
    """Wait at most 20 s for terminating clusters, then return all clusters."""
    deadline = time.monotonic() + TERMINATED_TIMEOUT_SECONDS
    while True:
        clusters = watch.clusters(emr)
        terminating = [cluster for cluster in clusters if cluster["Status"]["State"] == "TERMINATING"]
        if not terminating or time.monotonic() > deadline:
            return clusters
        time.sleep(0.2)


def read_run_summary(s3: Any) -> dict[str, Any] | None:
    """Return the content of the `summary.json` that `publish` writes, or None if it does not exist."""
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=aws.BUCKET, Prefix="runs/"):
        for item in page.get("Contents", []):
            if item["Key"].endswith("/summary.json"):
                content = s3.get_object(Bucket=aws.BUCKET, Key=item["Key"])["Body"].read()
                summary: dict[str, Any] = json.loads(content)
                return summary
    return None


def download_run(s3: Any, run_uri: str, folder: Path) -> None:
    """Copy a run's files from the local S3, so that they can be read after the local AWS has stopped."""
    parts = urlsplit(run_uri)
    prefix = parts.path.lstrip("/") + "/"
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=parts.netloc, Prefix=prefix):
        for item in page.get("Contents", []):
            target = folder / item["Key"].removeprefix(prefix)
            target.parent.mkdir(parents=True, exist_ok=True)
            s3.download_file(parts.netloc, item["Key"], str(target))


def table(summary: Mapping[str, Any]) -> str:
    """Format the summary as a short table."""
    rows = [("run", summary["run_state"])]
    if summary["images_listed"] is not None:
        rows += [
            ("images", f"{summary['images_ingested']} of {summary['images_listed']}"),
            ("rejects", _with_counts(summary["images_rejected"], summary.get("reject_reasons"))),
            *_ignored_rows(summary.get("ignored") or {}, summary["images_listed"]),
            *(
                (
                    name,
                    f"{seconds:.1f} s, {summary['step_images_per_second'][name]:.0f} images/s, including Spark's start",
                )
                for name, seconds in summary["step_seconds"].items()
            ),
            ("n_components", f"{summary['n_components']}, {summary['explained_variance']:.1%} of the variance kept"),
            *(
                (f"{summary['database']}.{name}", f"{table['rows']} rows, snapshot {table['snapshot_id']}")
                for name, table in summary["tables"].items()
            ),
        ]
    rows += [("cluster", f"{cluster} {state}") for cluster, state in summary["clusters"].items()]
    rows += [("task failed", name) for name, state in summary["tasks"].items() if state == "failed"]
    rows += [
        (f"step {name} failed", (message.splitlines() or ["see the log of the step"])[-1])
        for name, message in summary["failed_steps"].items()
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


def _with_counts(total: int, counts: Mapping[str, int] | None) -> str:
    """Format a total and what it consists of, the most common first."""
    ordered = sorted((counts or {}).items(), key=lambda item: (-item[1], item[0]))
    return f"{total}: {', '.join(f'{count} {name}' for name, count in ordered)}" if ordered else str(total)


def _ignored_rows(ignored: Mapping[str, int], images: int) -> list[tuple[str, str]]:
    """Return a row with the number of ignored objects per ending, if there are any."""
    total = sum(ignored.values())
    warning = ", more than the images" if total > images else ""
    return [("ignored", _with_counts(total, ignored) + warning)] if total else []


def main(argv: list[str] | None = None) -> int:
    """Run the demo, and return 0 if the run succeeds and no cluster is active at the end."""
    parser = argparse.ArgumentParser(
        prog="python -m demo",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data", type=image_folder, help="folder that contains a folder of images per label (default: rendered images)"
    )
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "build/demo", help="folder for logs and results (default: build/demo)"
    )
    parser.add_argument(
        "--build-dir", type=Path, default=ROOT / "build", help="folder with wheels/ and model/ (default: build)"
    )
    parser.add_argument(
        "--params", type=json.loads, default={}, help="JSON object with the DAG's params, as in Airflow's trigger form"
    )
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    print_line = TimedPrinter()
    try:
        with interruptible():
            summary = run_demo(arguments.folder, arguments.build_dir, arguments.data, arguments.params, print_line)
    except Interrupted as signal_name:
        print_line(f"{signal_name}: all processes are stopped")
        return 130
    except (*aws.SET_UP_ERRORS, ClientError) as error:
        print_line(f"failed: {error}")
        return 1
    target = arguments.folder / "summary.json"
    target.write_text(json.dumps(summary, indent=2))
    print(table(summary))
    print(f"  summary written to {target}, logs in the same folder")
    return 0 if summary["run_state"] == "success" and summary["clusters_alive"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
