"""Measure the time that a run spends outside its Spark steps, with Airflow's real processes.

Airflow's API returns when the run started and ended. Two samples per second show which tasks occupy a worker slot.
EMR's API returns when the cluster was ready and when each step ran.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from sandbox import up
from sandbox.airflow import FINISHED, AirflowApi, airflow_environment
from sandbox.aws import client
from sandbox.folders import ROOT
from sandbox.processes import free_port, wait_until

DAG = "fruit_features"
# The tasks that only wait, besides the wait_step of each step.
WAITING = ("wait_turn", "cluster_ready", "hold_cluster", "cluster_gone", "verdict")
SAMPLE_SECONDS = 0.5
RUN_TIMEOUT_SECONDS = 900
# An Airflow process has made these imports before it parses a file.
PARSE = """
import runpy, sys, time
import airflow.sdk, airflow.dag_processing.dagbag
started = time.monotonic()
runpy.run_path(sys.argv[1])
print(time.monotonic() - started)
"""


@contextmanager
def running(folder: Path, data: Path, build_dir: Path) -> Iterator[tuple[AirflowApi, Any]]:
    """Run what `make up` starts while the context is open, and yield Airflow's API and a client for the local EMR."""
    aws_port, web_port = free_port(), free_port()
    try:
        up.up(folder, build_dir, data, aws_port, web_port)
        (password,) = json.loads((folder / "passwords.json").read_text()).values()
        yield AirflowApi.log_in(web_port, password), client("emr", f"http://127.0.0.1:{aws_port}")
    finally:
        up.down(folder)


def follow(api: AirflowApi, run_id: str) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Wait for the end of a run. Return the run, and for each task the times at which it occupied a worker slot.

    Raises:
        TimeoutError: the run does not finish.
    """
    seen: dict[str, list[float]] = {}

    def finished() -> dict[str, Any] | None:
        for task_id, task in api.tasks(DAG, run_id).items():
            if task["state"] == "running":
                seen.setdefault(task_id, []).append(time.time())
        run = api.run(DAG, run_id)
        return run if run["state"] in FINISHED else None

    run = wait_until(
        finished, f"the end of {run_id}", timeout_seconds=RUN_TIMEOUT_SECONDS, interval_seconds=SAMPLE_SECONDS
    )
    return run, seen


def longest(moments: list[float]) -> float:
    """Return the longest time in seconds between samples that have no gap of more than three samples."""
    best, first = 0.0, moments[0]
    for before, moment in pairwise(moments):
        if moment - before > 3 * SAMPLE_SECONDS:
            first = moment
        best = max(best, moment - first)
    return best


def seconds(timeline: Mapping[str, datetime], start: str, end: str) -> float:
    """Return the seconds between two entries of an EMR timeline."""
    return (timeline[end] - timeline[start]).total_seconds()


def measure(folder: Path, data: Path, build_dir: Path) -> dict[str, Any]:
    """Measure one round: a run over the images in `data`, with the default params.

    Raises:
        RuntimeError: the run fails.
    """
    with running(folder, data, build_dir) as (api, emr):
        api.set_paused(DAG, paused=False)
        run_id = api.trigger(DAG, {})
        run, seen = follow(api, run_id)
        if run["state"] != "success":
            raise RuntimeError(f"run {run_id} failed: see the logs in {folder}")
        publish = api.tasks(DAG, run_id)["publish"]
        (cluster,) = emr.list_clusters()["Clusters"]
        steps = emr.list_steps(ClusterId=cluster["Id"])["Steps"]
    timeline = cluster["Status"]["Timeline"]
    run_seconds = (datetime.fromisoformat(run["end_date"]) - datetime.fromisoformat(run["start_date"])).total_seconds()
    start_seconds = seconds(timeline, "CreationDateTime", "ReadyDateTime")
    step_seconds = {step["Name"]: seconds(step["Status"]["Timeline"], "StartDateTime", "EndDateTime") for step in steps}
    ready_to_published = (datetime.fromisoformat(publish["end_date"]) - timeline["ReadyDateTime"]).total_seconds()
    waiting = [task for task in seen if task in WAITING or task.endswith("wait_step")]
    return {
        "run": run_seconds,
        "cluster_start": start_seconds,
        "steps": step_seconds,
        "rest": run_seconds - start_seconds - sum(step_seconds.values()),
        "rest_from_ready_to_published": ready_to_published - sum(step_seconds.values()),
        "longest_slot_of_a_waiting_task": max((longest(seen[task]) for task in waiting), default=0.0),
        "parse": parse_seconds(folder),
    }


def parse_seconds(folder: Path) -> float:
    """Return how many seconds a process that has imported Airflow takes to parse the file of the DAG."""
    env = {
        **airflow_environment(folder / "parse", "http://127.0.0.1:1", "none"),
        "PYTHONPATH": str(ROOT / "plugins"),
    }
    command = [sys.executable, "-c", PARSE, str(ROOT / "dags/fruit_features.py")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])
