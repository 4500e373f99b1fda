"""What a run takes beside its Spark steps, in the real processes of Airflow: `measure`.

Airflow's API tells when the run started and ended and, asked twice a second, which tasks hold a worker slot; EMR's
tells when the cluster was ready and when each step ran.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from demo import stack, up

DAG = "fruit_features"
OVER = ("success", "failed")
# The tasks that do nothing but wait.
WAITING = ("preflight", "cluster_ready", "cluster_gone")
SAMPLE_SECONDS = 0.5
RUN_TIMEOUT_SECONDS = 900
# Imports that an Airflow process has made before it parses a file.
PARSE = """
import runpy, sys, time
import airflow.sdk, airflow.dag_processing.dagbag
started = time.monotonic()
runpy.run_path(sys.argv[1])
print(time.monotonic() - started)
"""


@dataclass(frozen=True)
class Airflow:
    """Airflow's REST API, for a user who is logged in."""

    url: str
    token: str

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """The answer to a request."""
        headers = {"Authorization": f"Bearer {self.token}"}
        answer = httpx.request(method, f"{self.url}/api/v2/{path}", json=body, headers=headers, timeout=30)
        return answer.raise_for_status().json()


@contextmanager
def running(folder: Path, data: Path, build_dir: Path) -> Iterator[tuple[Airflow, Any]]:
    """What `make up` starts; Airflow's API, and a client for the local EMR."""
    aws_port, web_port = stack.free_port(), stack.free_port()
    try:
        up.up(folder, build_dir, data, aws_port, web_port)
        (password,) = json.loads((folder / "passwords.json").read_text()).values()
        url = f"http://127.0.0.1:{web_port}"
        login = httpx.post(f"{url}/auth/token", json={"username": up.USER, "password": password}, timeout=30)
        yield Airflow(url, login.json()["access_token"]), stack.client("emr", f"http://127.0.0.1:{aws_port}")
    finally:
        up.down(folder)


def last_nights_run(airflow: Airflow) -> str:
    """The id of the one run that the scheduler makes.

    Raises:
        TimeoutError: it makes none.
    """
    deadline = time.monotonic() + RUN_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        if runs := airflow.call("GET", f"dags/{DAG}/dagRuns")["dag_runs"]:
            return str(runs[0]["dag_run_id"])
        time.sleep(SAMPLE_SECONDS)
    raise TimeoutError(f"the scheduler has made no run within {RUN_TIMEOUT_SECONDS} s")


def follow(airflow: Airflow, run_id: str) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Wait for the run's end; the run, and when each task was seen in a worker slot.

    Raises:
        TimeoutError: it does not end.
    """
    path = f"dags/{DAG}/dagRuns/{quote(run_id)}"
    seen: dict[str, list[float]] = {}
    deadline = time.monotonic() + RUN_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        for task in airflow.call("GET", f"{path}/taskInstances")["task_instances"]:
            if task["state"] == "running":
                seen.setdefault(task["task_id"], []).append(time.time())
        run: dict[str, Any] = airflow.call("GET", path)
        if run["state"] in OVER:
            return run, seen
        time.sleep(SAMPLE_SECONDS)
    raise TimeoutError(f"{run_id} has not ended within {RUN_TIMEOUT_SECONDS} s")


def longest(moments: list[float]) -> float:
    """The longest time, in seconds, over which something was seen without a gap of more than three samples."""
    best, first = 0.0, moments[0]
    for before, moment in pairwise(moments):
        if moment - before > 3 * SAMPLE_SECONDS:
            first = moment
        best = max(best, moment - first)
    return best


def seconds(timeline: Mapping[str, datetime], start: str, end: str) -> float:
    """From one moment of EMR's timeline to another."""
    return (timeline[end] - timeline[start]).total_seconds()


def measure(folder: Path, data: Path, build_dir: Path) -> dict[str, Any]:
    """One round: last night's run, which starts as soon as the DAG is not paused, over the images below `data`.

    Raises:
        RuntimeError: the run fails.
    """
    with running(folder, data, build_dir) as (airflow, emr):
        airflow.call("PATCH", f"dags/{DAG}", {"is_paused": False})
        run_id = last_nights_run(airflow)
        run, seen = follow(airflow, run_id)
        if run["state"] != "success":
            raise RuntimeError(f"the run {run_id} failed; the logs are in {folder}")
        publish = airflow.call("GET", f"dags/{DAG}/dagRuns/{quote(run_id)}/taskInstances/publish")
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
    """What parsing the DAG's file takes in a process that has imported Airflow."""
    env = {
        **stack.airflow_environment(folder / "parse", "http://127.0.0.1:1", "none"),
        "PYTHONPATH": str(stack.ROOT / "plugins"),
    }
    command = [sys.executable, "-c", PARSE, str(stack.ROOT / "dags/fruit_features.py")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])
