"""`python -m demo [--data FOLDER]`: run the whole pipeline once on this machine, and leave nothing running."""

import argparse
import json
import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from botocore.exceptions import ClientError

from demo import pictures, stack, watch

DAG_ID = "fruit_features"
RUN_KEYS = (
    "images_listed",
    "images_ingested",
    "images_rejected",
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
GONE_TIMEOUT_SECONDS = 20


class Interrupted(BaseException):
    """Ctrl-C, SIGTERM or SIGHUP: unwind and stop everything."""


def _interrupt(number: int, _frame: object) -> None:
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)  # a second Ctrl-C must not break off the tidying up
    raise Interrupted(signal.Signals(number).name)


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn the signals that ask for an end into Interrupted."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    yield


class Teller:
    """Prints lines with the seconds since the start before them."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._lock = threading.Lock()

    def __call__(self, line: str) -> None:
        with self._lock:
            print(f"{time.monotonic() - self._began:7.1f} s  {line}", flush=True)


def run_demo(
    folder: Path, build_dir: Path, data: Path | None, params: Mapping[str, Any], say: watch.Say
) -> dict[str, Any]:
    """Run the pipeline on the images below `data`, or on rendered pictures; return the summary, also of a failed run.

    Everything of the run lies in `folder`: logs, the nodes of the clusters, Airflow's home, `summary.json`.

    Raises:
        FileNotFoundError: no images in `data`, or the release has not been built.
        FileExistsError: `folder` holds something else than an earlier run, or the images.
        demo.stack.DidNotStart: the local AWS or Airflow cannot be started.
    """
    stack.make_empty(folder, data)
    with ExitStack() as cleanup:
        port = stack.free_port()
        url = cleanup.enter_context(stack.local_aws(folder / "aws", port, folder / "local_aws.log"))
        say(f"local AWS on {url}, its log in {folder / 'local_aws.log'}")
        release = stack.provision(url, build_dir)
        if data is None:
            data = folder / "pictures"
            say(f"rendered {pictures.write_dataset(data)} pictures into {data}")
        s3, emr = stack.client("s3", url), stack.client("emr", url)
        uploaded = stack.upload_images(s3, data)
        say(f"release {release}; {uploaded} files of {data} in s3://{stack.BUCKET}/{stack.DATASET_PREFIX}")

        env = stack.airflow_environment(folder / "airflow", url, release)
        migrate_airflow(env, folder / "airflow-db.log")
        say("Airflow is set up; running the DAG fruit_features")
        times = watch.TaskTimes(say)
        with watch.EmrWatcher(emr, say):
            outcome = run_dag(env, folder, params, times)
            found = wait_until_gone(emr)
        published = read_run_summary(s3) or {}
        if published:
            download_run(s3, published["run_uri"], folder / "run")
            say(f"copied the run's files to {folder / 'run'}")
        return {
            "run_state": outcome["run_state"],
            **{key: published.get(key) for key in RUN_KEYS},
            "clusters_created": len(found),
            "clusters_alive": sum(cluster["Status"]["State"] not in watch.OVER for cluster in found),
            "clusters": {cluster["Id"]: cluster["Status"]["State"] for cluster in found},
            "failed_steps": {
                step["Name"]: step["Status"].get("FailureDetails", {}).get("Message", "")
                for cluster in found
                for step in cluster["Steps"]
                if step["Status"]["State"] == "FAILED"
            },
            "tasks": outcome["tasks"],
            "seconds": times.seconds(),
        }


def migrate_airflow(env: Mapping[str, str], log_file: Path) -> None:
    """Make Airflow's database.

    Raises:
        DidNotStart: Airflow cannot be set up.
    """
    done = subprocess.run(["airflow", "db", "migrate"], env=dict(env), capture_output=True, text=True, check=False)
    log_file.write_text(done.stdout + done.stderr)
    if done.returncode != 0:
        raise stack.DidNotStart(f"`airflow db migrate` failed, see {log_file}: {done.stderr[-500:]}")


def run_dag(env: Mapping[str, str], folder: Path, params: Mapping[str, Any], times: watch.TaskTimes) -> dict[str, Any]:
    """Run the DAG in a process of its own and follow its log.

    Raises:
        DidNotStart: the process ended without a word about the run.
    """
    outcome = folder / "outcome.json"
    log_file = folder / "airflow.log"
    command = [sys.executable, "-m", "demo.dag_run", "--dag-id", DAG_ID, "--outcome", str(outcome)]
    with stack.running([*command, "--params", json.dumps(params)], log_file, env) as process, log_file.open() as log:

        def lines() -> Iterator[str]:
            partial = ""
            while True:
                ended = process.poll() is not None
                while line := log.readline():
                    partial += line
                    if partial.endswith("\n"):
                        yield partial
                        partial = ""
                if ended:
                    return
                time.sleep(0.1)

        times.follow(lines())
    if not outcome.exists():
        tail = "\n".join(log_file.read_text(errors="replace").splitlines()[-15:])
        raise stack.DidNotStart(f"the DAG did not run; the end of {log_file}:\n{tail}")
    read: dict[str, Any] = json.loads(outcome.read_text())
    return read


def wait_until_gone(emr: Any) -> list[dict[str, Any]]:
    """The clusters, after a moment for those that are just terminating."""
    deadline = time.monotonic() + GONE_TIMEOUT_SECONDS
    while True:
        found = watch.clusters(emr)
        ending = [cluster for cluster in found if cluster["Status"]["State"] == "TERMINATING"]
        if not ending or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


def read_run_summary(s3: Any) -> dict[str, Any] | None:
    """The `summary.json` that publish wrote, if it did."""
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=stack.BUCKET, Prefix="runs/"):
        for item in page.get("Contents", []):
            if item["Key"].endswith("/summary.json"):
                content = s3.get_object(Bucket=stack.BUCKET, Key=item["Key"])["Body"].read()
                summary: dict[str, Any] = json.loads(content)
                return summary
    return None


def download_run(s3: Any, run_uri: str, folder: Path) -> None:
    """Copy a run's files from the local S3, which keeps them only while it lives."""
    parts = urlsplit(run_uri)
    prefix = parts.path.lstrip("/") + "/"
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=parts.netloc, Prefix=prefix):
        for item in page.get("Contents", []):
            target = folder / item["Key"].removeprefix(prefix)
            target.parent.mkdir(parents=True, exist_ok=True)
            s3.download_file(parts.netloc, item["Key"], str(target))


def table(summary: Mapping[str, Any]) -> str:
    """The short table at the end."""
    rows = [("run", summary["run_state"])]
    if summary["images_listed"] is not None:
        rows += [
            ("images", f"{summary['images_ingested']} of {summary['images_listed']}"),
            ("rejects", str(summary["images_rejected"])),
            *(
                (
                    name,
                    f"{seconds:.1f} s, {summary['step_images_per_second'][name]:.0f} images/s, Spark's start included",
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
        (f"step {name} failed", (message.splitlines() or ["its log says why"])[-1])
        for name, message in summary["failed_steps"].items()
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


def main(argv: list[str] | None = None) -> int:
    """Run; 0 when the run succeeded and no cluster is left."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument(
        "--data", type=stack.image_folder, help="folder of images, a folder per label; default: rendered pictures"
    )
    parser.add_argument("--folder", type=Path, default=stack.ROOT / "build/demo", help="for all that the run leaves")
    parser.add_argument("--build-dir", type=Path, default=stack.ROOT / "build", help="with wheels/ and model/")
    parser.add_argument("--params", type=json.loads, default={}, help="JSON object, as in the UI's trigger form")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    say = Teller()
    try:
        with interruptible():
            summary = run_demo(arguments.folder, arguments.build_dir, arguments.data, arguments.params, say)
    except Interrupted as signal_name:
        say(f"{signal_name}: stopped, nothing is left running")
        return 130
    except (FileNotFoundError, FileExistsError, stack.DidNotStart, ClientError) as error:
        say(f"failed: {error}")
        return 1
    target = arguments.folder / "summary.json"
    target.write_text(json.dumps(summary, indent=2))
    print(table(summary))
    print(f"  written to {target}; logs are beside it")
    return 0 if summary["run_state"] == "success" and summary["clusters_alive"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
