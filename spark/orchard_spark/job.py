"""What the three steps share around their work: Spark's context, progress in the log, the metrics file."""

import json
import logging
import platform
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from pyspark import SparkConf, SparkContext

from orchard_spark import objects, parts

PROGRESS_SECONDS = 10

log = logging.getLogger(__name__)

_LIBRARIES = ("ai-edge-litert", "numpy", "obstore", "pillow", "pyarrow")


class LostRows(RuntimeError):
    """A step's rows out do not add up to its rows in."""


def run_id(run_uri: str) -> str:
    """The run's name: the last part of its folder's URI.

    >>> run_id("s3://bucket/runs/fruits/20261122T020000-1a2b3c/")
    '20261122T020000-1a2b3c'
    """
    return run_uri.rstrip("/").rsplit("/", 1)[-1]


@contextmanager
def spark_context(name: str) -> Iterator[SparkContext]:
    """Spark's context for one step, with a progress line in the log every ten seconds."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for chatty in ("py4j", "botocore"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    context = SparkContext.getOrCreate(SparkConf().setAppName(f"orchard-{name}"))
    done = threading.Event()
    reporter = threading.Thread(target=_report, args=(context, name, done), name="progress", daemon=True)
    reporter.start()
    try:
        yield context
    except Exception:
        # EMR looks for the cause in the step's stderr, and that is the JVM's: Spark sends a Python program's to stdout.
        jvm: Any = context._jvm
        jvm.java.lang.System.err.println(traceback.format_exc())
        raise
    finally:
        done.set()
        reporter.join()
        context.stop()


def reopen(run_uri: str, job: str) -> None:
    """Take back what calls the run, and this step of it, finished: the step is about to be done once more."""
    for name in ("summary.json", f"{job}.metrics.json"):
        objects.delete(f"{run_uri.rstrip('/')}/{name}")


def _report(context: SparkContext, name: str, done: threading.Event) -> None:
    tracker = context.statusTracker()
    while not done.wait(PROGRESS_SECONDS):
        for stage_id in tracker.getActiveStageIds():
            stage = tracker.getStageInfo(stage_id)
            if stage is not None:
                log.info(
                    "%s: stage %d: %d of %d tasks done, %d active",
                    name,
                    stage_id,
                    stage.numCompletedTasks,
                    stage.numTasks,
                    stage.numActiveTasks,
                )


def write_metrics(
    run_uri: str,
    job: str,
    *,
    rows_in: int,
    rows_out: int,
    started: float,
    passes: Sequence[Sequence[parts.Task]],
    **more: object,
) -> dict[str, object]:
    """Write `<job>.metrics.json` into the run's folder and log it; `started` is `time.monotonic()` at the start.

    `passes` are the tasks that did the step's work, a list for each pass over the data: `task_seconds` is how long the
    longest of each took, added up, and `task_skew` the longest's seconds over the median's, in the worst pass.
    """
    seconds = time.monotonic() - started
    taken = [[task.seconds for task in tasks] for tasks in passes if tasks]
    metrics = {
        "job": job,
        "run_id": run_id(run_uri),
        "rows_in": rows_in,
        "rows_out": rows_out,
        "seconds": round(seconds, 3),
        "images_per_second": round(rows_in / seconds, 2),
        "tasks": sum(len(tasks) for tasks in passes),
        "task_seconds": round(sum(max(times) for times in taken), 3),
        "task_skew": round(max((max(times) / statistics.median(times) for times in taken), default=1), 3),
        "worker_peak_mb": round(max((task.peak_bytes for tasks in passes for task in tasks), default=0) / 1e6, 1),
        **more,
        "executable": sys.executable,
        "versions": {
            "python": platform.python_version(),
            "pyspark": SparkContext.getOrCreate().version,
            **{library: version(library) for library in _LIBRARIES},
        },
    }
    objects.write(f"{run_uri.rstrip('/')}/{job}.metrics.json", json.dumps(metrics, indent=2).encode())
    log.info("%s: done: %s", job, json.dumps(metrics))
    return metrics
