"""What all steps have in common: options, Spark's context, the metrics file."""

import argparse
import json
import logging
import platform
import statistics
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from pyspark import SparkConf, SparkContext

from orchard_spark import failure, objects, parts, progress

log = logging.getLogger(__name__)

_LIBRARIES = ("ai-edge-litert", "numpy", "obstore", "pillow", "pyarrow")


class LostRows(RuntimeError):
    """A step's output rows do not add up to its input rows."""


class StepUnfinished(RuntimeError):
    """An earlier step has not written its metrics, which list its files."""


def run_id(run_uri: str) -> str:
    """Return the run's name: the last part of the run folder's URI.

    >>> run_id("s3://bucket/runs/fruits/20261122T020000-1a2b3c/")
    '20261122T020000-1a2b3c'
    """
    return run_uri.rstrip("/").rsplit("/", 1)[-1]


def argument_parser(description: str, example: str) -> argparse.ArgumentParser:
    """Return the parser of a step's options, with `--run-uri`."""
    parser = argparse.ArgumentParser(
        description=description, epilog=example, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_uri(parser, "--run-uri", "folder of the run, with the metrics of the plan and of the earlier steps")
    return parser


def add_uri(parser: argparse.ArgumentParser, option: str, folder: str) -> None:
    """Add a required option for a folder. `folder` is its help text."""
    parser.add_argument(
        option,
        required=True,
        type=lambda uri: objects.absolute(uri).rstrip("/"),
        help=f"{folder}: an s3:// URI or a local path",
    )


@contextmanager
def running(run_uri: str, name: str) -> Iterator[tuple[SparkContext, progress.Reporter]]:
    """Provide Spark's context for a step, and the reporter of its progress.

    Delete the step's completion markers first, and record its failure.
    """
    with failure.recorded(run_uri, name), spark_context(name) as context:
        delete_completion_markers(run_uri, name)
        with progress.reported(context, run_uri, name) as reporter:
            yield context, reporter


@contextmanager
def spark_context(name: str) -> Iterator[SparkContext]:
    """Provide Spark's context for one step."""
    for library in ("py4j", "botocore"):
        logging.getLogger(library).setLevel(logging.WARNING)
    context = SparkContext.getOrCreate(SparkConf().setAppName(f"orchard-{name}"))
    try:
        yield context
    except Exception:
        # EMR reads the cause from the stderr of the JVM. Spark redirects the stderr of the Python program to stdout.
        jvm: Any = context._jvm
        jvm.java.lang.System.err.println(traceback.format_exc())
        raise
    finally:
        context.stop()


def delete_completion_markers(run_uri: str, step: str) -> None:
    """Delete the completion markers of the run and of this step, and what an earlier attempt has reported."""
    for name in ("summary.json", *(f"{step}.{kind}.json" for kind in ("metrics", "error", "progress"))):
        objects.delete(f"{run_uri.rstrip('/')}/{name}")


class NoInputFiles(RuntimeError):
    """The files that the metrics of a run list have been deleted."""

    def __init__(self, uri: str) -> None:
        super().__init__(f"{uri} does not exist, but the run's metrics list it")


def read_metrics(run_uri: str, step: str) -> dict[str, Any]:
    """Return the content of a step's metrics file.

    Raises:
        StepUnfinished: there is none.
    """
    uri = f"{run_uri.rstrip('/')}/{step}.metrics.json"
    try:
        metrics: dict[str, Any] = json.loads(objects.read(uri))
    except FileNotFoundError as error:
        raise StepUnfinished(f"{uri} does not exist: the step {step} has to finish first") from error
    return metrics


def files_of(metrics: Mapping[str, Any], dataset: str) -> list[parts.Part]:
    """Return the files of a dataset from the metrics of the step that wrote it."""
    return [parts.Part(**file) for file in metrics["files"][dataset]]


def scratch_files(metrics: Mapping[str, Any], dataset: str) -> list[parts.Part]:
    """Return the files of a dataset in the run's scratch folder, which is deleted after the run is published.

    Raises:
        NoInputFiles: they have been deleted.
    """
    files = files_of(metrics, dataset)
    if files and not objects.exists(files[0].uri):
        raise NoInputFiles(files[0].uri)
    return files


def write_metrics(
    run_uri: str,
    step: str,
    *,
    plan_id: str | None,
    files: Mapping[str, Sequence[parts.Part]],
    rows_in: int,
    rows_out: int,
    started: float,
    passes: Sequence[Sequence[parts.TaskUsage]],
    **details: object,
) -> dict[str, object]:
    """Write `<step>.metrics.json` into the run folder, log it, and return its content.

    `plan_id` identifies the plan that the step worked on: a run can be planned again. `files` has the files of each
    dataset that the step wrote. A file that is not among them is not part of the dataset. `started` is
    `time.monotonic()` at the start of the step; `passes` has the tasks of each pass over the data. `task_seconds` is
    the sum over the passes of their longest task; `task_skew` is the longest task over the median task, in the pass
    with the highest skew. `details` are added unchanged.
    """
    seconds = time.monotonic() - started
    durations = [[task.seconds for task in tasks] for tasks in passes if tasks]
    metrics: dict[str, object] = {
        "step": step,
        "run_id": run_id(run_uri),
        "plan_id": plan_id,
        "rows_in": rows_in,
        "rows_out": rows_out,
        "seconds": round(seconds, 3),
        "images_per_second": round(rows_in / seconds, 2),
        "tasks": sum(len(tasks) for tasks in passes),
        "task_seconds": round(sum(max(times) for times in durations), 3),
        "task_skew": round(max((max(times) / statistics.median(times) for times in durations), default=1), 3),
        "worker_peak_mb": round(max((task.peak_bytes for tasks in passes for task in tasks), default=0) / 1e6, 1),
        **details,
        "executable": sys.executable,
        "versions": {
            "python": platform.python_version(),
            "pyspark": SparkContext.getOrCreate().version,
            **{library: version(library) for library in _LIBRARIES},
        },
    }
    log.info("%s: done: %s", step, json.dumps(metrics))
    metrics["files"] = {name: [asdict(part) for part in dataset] for name, dataset in files.items()}
    objects.write(f"{run_uri.rstrip('/')}/{step}.metrics.json", json.dumps(metrics, indent=2).encode())
    return metrics
