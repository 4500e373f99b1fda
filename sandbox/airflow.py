"""Airflow on this machine: its environment, its database, its processes and its REST API."""

import json
import os
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from sandbox.aws import BUCKET, DATASET_PREFIX, INSTANCE_PROFILE, REGION, SERVICE_ROLE, is_like_emr
from sandbox.folders import ROOT
from sandbox.processes import DidNotStart

USER = "admin"
# Airflow's processes besides the API server, with the arguments of the `airflow` command.
COMPONENTS = {
    # Without --skip-serve-logs the last two serve their logs to the whole network.
    "dag-processor": ["dag-processor"],
    "scheduler": ["scheduler", "--skip-serve-logs"],
    "triggerer": ["triggerer", "--skip-serve-logs"],
}
READY_TIMEOUT_SECONDS = 120
REQUEST_TIMEOUT_SECONDS = 30
# The states in which a run has finished.
FINISHED = ("success", "failed")


def airflow_environment(home: Path, endpoint_url: str, release_version: str) -> dict[str, str]:
    """Return the environment of Airflow: Orchard's DAGs, plugins and settings, and the local AWS.

    Variables of this process that configure Airflow, AWS or Orchard are left out.

    Raises:
        sandbox.aws.BadOptions: the options in LOCAL_AWS_OPTIONS are wrong.
    """
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith(("AIRFLOW_", "AWS_", "ORCHARD_"))},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PARALLELISM": "4",
        # The processes share a SQLite file. By default, a write fails if it must wait for another for 5 seconds.
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home.absolute()}/airflow.db?timeout=60",
        # Airflow may notice this many seconds late that a task's process has exited. If a sensor pokes again before
        # that, Airflow marks it failed. So this value must be less than ORCHARD_POLL_SECONDS. Airflow's default of 5
        # is too large for the 2 below.
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
        "AIRFLOW_CONN_AWS_DEFAULT": "aws://",
        "AWS_ENDPOINT_URL": endpoint_url,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ACCESS_KEY_ID": "airflow",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_EC2_METADATA_DISABLED": "true",
        "ORCHARD_BUCKET": BUCKET,
        "ORCHARD_RELEASE": release_version,
        "ORCHARD_REGION": REGION,
        "ORCHARD_SERVICE_ROLE": SERVICE_ROLE,
        "ORCHARD_INSTANCE_PROFILE": INSTANCE_PROFILE,
        "ORCHARD_DATASET_PREFIX": DATASET_PREFIX,
        # EMR throttles requests: a local AWS that is like EMR is polled as rarely as EMR, with Orchard's default.
        **({} if is_like_emr() else {"ORCHARD_POLL_SECONDS": "2"}),
    }


def server_environment(web_port: int, passwords: Path) -> dict[str, str]:
    """Return the variables that Airflow's server processes share: the API server's address, secrets, and the user."""
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


def write_password(passwords: Path) -> str:
    """Write a new password for USER into Airflow's file of passwords, and return it."""
    password = secrets.token_urlsafe(9)
    passwords.touch(mode=0o600)
    passwords.write_text(json.dumps({USER: password}))
    return password


def migrate_airflow(env: Mapping[str, str], log_file: Path) -> None:
    """Create or upgrade Airflow's database.

    Raises:
        DidNotStart: `airflow db migrate` fails.
    """
    done = subprocess.run(["airflow", "db", "migrate"], env=dict(env), capture_output=True, text=True, check=False)
    log_file.write_text(done.stdout + done.stderr)
    if done.returncode != 0:
        raise DidNotStart(f"`airflow db migrate` failed, see {log_file}: {done.stderr[-500:]}")


def wait_until_ready(web_port: int, api_server: subprocess.Popen[bytes], folder: Path) -> None:
    """Wait until Airflow reports all of its components as healthy.

    Args:
        web_port: the port of the API server.
        api_server: its process.
        folder: the folder of the log files, for the error message.

    Raises:
        DidNotStart: a component is not healthy within two minutes, or the API server exits.
    """
    deadline = time.monotonic() + READY_TIMEOUT_SECONDS
    health: dict[str, dict[str, str]] = {}
    while time.monotonic() < deadline and api_server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{web_port}/api/v2/monitor/health", timeout=5) as response:
                health = json.load(response)
        except (urllib.error.URLError, OSError):
            health = {}
        if health and all(component["status"] == "healthy" for component in health.values()):
            return
        time.sleep(0.5)
    raise DidNotStart(f"Airflow is not ready ({health or 'no response'}): see the logs in {folder}")


class RequestFailed(RuntimeError):
    """Airflow's REST API responds with an error."""


@dataclass(frozen=True)
class AirflowApi:
    """A client for Airflow's REST API."""

    url: str
    token: str = field(repr=False)

    @classmethod
    def log_in(cls, web_port: int, password: str, base_path: str = "") -> "AirflowApi":
        """Return a client that is logged in as USER. `base_path` is the path below which Airflow is served.

        Raises:
            httpx.HTTPStatusError: the password is wrong.
        """
        url = f"http://127.0.0.1:{web_port}{base_path}"
        login = {"username": USER, "password": password}
        response = httpx.post(f"{url}/auth/token", json=login, timeout=REQUEST_TIMEOUT_SECONDS)
        return cls(url, response.raise_for_status().json()["access_token"])

    def request(self, method: str, path: str, body: Any = None) -> httpx.Response:
        """Send a request and return the response, even if it is an error."""
        headers = {"Authorization": f"Bearer {self.token}"}
        url = f"{self.url}/api/v2/{path}"
        return httpx.request(method, url, json=body, headers=headers, timeout=REQUEST_TIMEOUT_SECONDS)

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Send a request and return the content of the response.

        Raises:
            RequestFailed: the response is an error.
        """
        response = self.request(method, path, body)
        if not response.is_success:
            raise RequestFailed(f"{method} {path}: HTTP {response.status_code}: {response.text}")
        return response.json()

    def set_paused(self, dag_id: str, *, paused: bool) -> None:
        """Pause or unpause a DAG."""
        self.call("PATCH", f"dags/{dag_id}", {"is_paused": paused})

    def trigger(
        self,
        dag_id: str,
        params: Mapping[str, Any],
        logical_date: datetime | None = None,
        run_after: datetime | None = None,
    ) -> str:
        """Start a run and return its run_id. `run_after` is its due time, by default now.

        Raises:
            RequestFailed: Airflow rejects a parameter.
        """
        body: dict[str, Any] = {"logical_date": logical_date and logical_date.isoformat(), "conf": dict(params)}
        if run_after is not None:
            body["run_after"] = run_after.isoformat()
        return str(self.call("POST", f"dags/{dag_id}/dagRuns", body)["dag_run_id"])

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        """Return the runs of a DAG."""
        listed: list[dict[str, Any]] = self.call("GET", f"dags/{dag_id}/dagRuns")["dag_runs"]
        return listed

    def run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        """Return a run."""
        found: dict[str, Any] = self.call("GET", run_path(dag_id, run_id))
        return found

    def tasks(self, dag_id: str, run_id: str) -> dict[str, dict[str, Any]]:
        """Return the task instances of a run by task_id."""
        listed = self.call("GET", f"{run_path(dag_id, run_id)}/taskInstances")["task_instances"]
        return {task["task_id"]: task for task in listed}


def run_path(dag_id: str, run_id: str) -> str:
    """Return the path of a run in Airflow's REST API. A run_id contains characters that a URL must quote."""
    return f"dags/{dag_id}/dagRuns/{quote(run_id)}"
