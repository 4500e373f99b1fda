"""A whole Orchard on this machine whose parts can be killed and started again: local AWS, Airflow's four processes."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import boto3
import httpx
from pyiceberg.exceptions import NoSuchTableError

from demo import pictures, stack, up
from demo.__main__ import migrate_airflow
from local_aws.client import LocalAwsClient
from orchard.catalog import current_run, open_catalog
from orchard.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_emr import EMRClient
    from mypy_boto3_s3 import S3Client

DAG = "fruit_features"
RUN_SECONDS = 240
MOMENT_SECONDS = 90
LIVE = ("STARTING", "BOOTSTRAPPING", "RUNNING", "WAITING", "TERMINATING")
OVER = ("success", "failed")
AIRFLOW = {"api-server": ["api-server"], **up.COMPONENTS}


def wait_until(true: "Callable[[], Any]", what: str, seconds: float = MOMENT_SECONDS) -> Any:
    """What a question gives as soon as it is true. Answers that do not come, from a part that is down, count as no.

    Raises:
        TimeoutError: it does not come true.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            if found := true():
                return found
        except (httpx.TransportError, OSError):
            found = None
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(0.2)


@dataclass
class Run:
    """One run of the DAG on a stand."""

    stand: "Stand"
    run_id: str
    dataset_uri: str

    @property
    def path(self) -> str:
        """Where the REST API has it."""
        return f"dags/{DAG}/dagRuns/{quote(self.run_id)}"

    def state(self) -> str:
        """The run's state."""
        return str(self.stand.call("GET", self.path)["state"])

    def tasks(self) -> dict[str, str]:
        """The state of each task."""
        listed = self.stand.call("GET", f"{self.path}/taskInstances")["task_instances"]
        return {task["task_id"]: str(task["state"]) for task in listed}

    def task(self, task_id: str) -> dict[str, Any]:
        """One task instance."""
        found: dict[str, Any] = self.stand.call("GET", f"{self.path}/taskInstances/{task_id}")
        return found

    def wait_for(self, task_id: str, *states: str, seconds: float = MOMENT_SECONDS) -> None:
        """Wait until a task is in one of these states."""
        wait_until(lambda: self.tasks()[task_id] in states, f"{self.run_id}: {task_id} in {states}", seconds)

    def wait_for_end(self, seconds: float = RUN_SECONDS) -> str:
        """The state in which the run ends."""
        wait_until(lambda: self.state() in OVER, f"the end of {self.run_id}", seconds)
        return self.state()

    def clusters(self) -> list[dict[str, Any]]:
        """The run's clusters, newest first."""
        listed = []
        pages = self.stand.emr.get_paginator("list_clusters").paginate()
        for cluster in (item for page in pages for item in page["Clusters"]):
            tags = self.stand.emr.describe_cluster(ClusterId=cluster["Id"])["Cluster"].get("Tags", [])
            if {"Key": "orchard:run_id", "Value": self.run_id} in tags:
                listed.append(dict(cluster))
        return listed

    def live_clusters(self) -> list[str]:
        """The ids of the run's clusters that have not ended."""
        return [item["Id"] for item in self.clusters() if item["Status"]["State"] in LIVE]

    def wait_for_cluster(self) -> str:
        """The id of the run's cluster, as soon as there is one that lives."""
        return str(wait_until(self.live_clusters, f"a cluster of {self.run_id}")[0])

    def wait_for_step(self, name: str, *states: str) -> tuple[str, str]:
        """The ids of the cluster and the step, as soon as a step with this name is in one of these states."""

        def found() -> tuple[str, str] | None:
            for cluster_id in self.live_clusters():
                for step in self.stand.emr.list_steps(ClusterId=cluster_id)["Steps"]:
                    if step["Name"] == name and step["Status"]["State"] in states:
                        return cluster_id, step["Id"]
            return None

        ids: tuple[str, str] = wait_until(found, f"{self.run_id}: step {name} in {states}")
        return ids

    def log(self, task_id: str) -> str:
        """What all tries of a task have logged."""
        pattern = f"dag_id={DAG}/run_id={self.run_id}/task_id={task_id}/*.log"
        files = sorted((self.stand.folder / "airflow/logs").glob(pattern))
        return "\n".join(file.read_text(errors="replace") for file in files)

    def is_published(self) -> bool:
        """Whether readers of the tables see this run as its dataset's present one."""
        shown = self.stand.published(self.dataset_uri)
        return shown is not None and shown == self.run_uri()

    def run_uri(self) -> str | None:
        """The run's folder, once it is planned."""
        answer = self.stand.request("GET", f"{self.path}/taskInstances/plan/xcomEntries/return_value")
        return str(answer.json()["value"]["run_uri"]) if answer.is_success else None

    def mark(self, state: str) -> None:
        """Mark the run, as in the UI."""
        self.stand.call("PATCH", self.path, {"state": state})

    def clear(self, *task_ids: str) -> None:
        """Clear tasks with downstream, as in the UI."""
        body = {"dry_run": False, "dag_run_id": self.run_id, "task_ids": list(task_ids), "include_downstream": True}
        self.stand.call("POST", f"dags/{DAG}/clearTaskInstances", {**body, "only_failed": False})


@dataclass
class Stand:
    """What runs, and the ways to look at it and to break it."""

    folder: Path
    aws_port: int
    web_port: int
    env: dict[str, str]
    release: str
    token: str = ""
    datasets: int = 0
    processes: "dict[str, subprocess.Popen[bytes]]" = field(default_factory=dict)

    @property
    def aws_url(self) -> str:
        """The local AWS."""
        return f"http://127.0.0.1:{self.aws_port}"

    @property
    def aws(self) -> LocalAwsClient:
        """The local AWS's faults."""
        return LocalAwsClient(self.aws_url)

    @property
    def emr(self) -> "EMRClient":
        """A client for EMR."""
        made: EMRClient = stack.client("emr", self.aws_url)
        return made

    @property
    def s3(self) -> "S3Client":
        """A client for S3."""
        made: S3Client = stack.client("s3", self.aws_url)
        return made

    def start(self, *names: str) -> None:
        """Start parts, and wait until all of them answer."""
        for name in names:
            self.processes[name] = up.spawn(name, self._command(name), self.folder, self.env)
        if "local_aws" in names:
            stack.wait_for_port(self.aws_port, self.processes["local_aws"], self.folder / "local_aws.log")
        if set(names) & set(AIRFLOW):
            up.wait_until_ready(self.web_port, self.processes["api-server"], self.folder)

    def kill(self, *names: str) -> None:
        """End parts with SIGKILL, and all that they have started."""
        for name in names:
            process = self.processes.pop(name)
            for pid in [*_descendants(process.pid), process.pid]:
                _signal(pid, signal.SIGKILL)
            process.wait()

    def kill_task(self, run: Run, task_id: str) -> None:
        """End with SIGKILL the processes that work on a task."""
        pid = wait_until(lambda: run.task(task_id)["pid"], f"the process of {task_id}")
        for victim in [*_descendants(pid), pid]:
            _signal(victim, signal.SIGKILL)

    @contextmanager
    def silent_aws(self) -> Iterator[None]:
        """The local AWS takes connections and says nothing."""
        process = self.processes["local_aws"]
        _signal(process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            _signal(process.pid, signal.SIGCONT)

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """What Airflow's REST API answers."""
        answer = self.request(method, path, body)
        assert answer.is_success, f"{method} {path}: {answer.text}"
        return answer.json()

    def request(self, method: str, path: str, body: Any = None) -> httpx.Response:
        """An answer of Airflow's REST API."""
        headers = {"Authorization": f"Bearer {self.token}"}
        return httpx.request(
            method, f"http://127.0.0.1:{self.web_port}/api/v2/{path}", json=body, headers=headers, timeout=30
        )

    def login(self) -> None:
        """Get a token."""
        user = json.loads((self.folder / "passwords.json").read_text())
        ((name, password),) = user.items()
        answer = httpx.post(
            f"http://127.0.0.1:{self.web_port}/auth/token", json={"username": name, "password": password}, timeout=30
        )
        self.token = answer.json()["access_token"]

    def new_dataset(self, images: int = 12, broken: int = 0) -> str:
        """The URI of a dataset of its own for a test."""
        self.datasets += 1
        prefix = f"dataset-{self.datasets:02d}/"
        source = self.folder / "pictures"
        files = sorted(source.rglob("*.jpg"))[:images]
        for number, file in enumerate(files):
            content = file.read_bytes()[:500] if number < broken else file.read_bytes()
            self.s3.put_object(Bucket=stack.BUCKET, Key=prefix + file.relative_to(source).as_posix(), Body=content)
        return f"s3://{stack.BUCKET}/{prefix}"

    def trigger(self, dataset_uri: str | None = None, due: datetime | None = None, **params: Any) -> Run:
        """Start a run, with a dataset of its own if none is given; `due` is its logical date."""
        uri = dataset_uri or self.new_dataset()
        conf = {"dataset_uri": uri, "n_components": 3, **params}
        made = self.call("POST", f"dags/{DAG}/dagRuns", {"logical_date": due and due.isoformat(), "conf": conf})
        return Run(self, made["dag_run_id"], uri)

    def published(self, dataset_uri: str) -> str | None:
        """The URI of the run that readers of the tables see of a dataset."""
        settings = Settings.from_env({key: value for key, value in self.env.items() if key.startswith("ORCHARD_")})
        with _environment(self.env):
            catalog = open_catalog(boto3.Session(region_name=stack.REGION), settings)
            try:
                run = current_run(catalog, settings.catalog_database, dataset_uri)
            except NoSuchTableError:
                return None
        return None if run is None else run.run_uri

    def stop(self) -> None:
        """End everything."""
        up.down(self.folder)

    def _command(self, name: str) -> list[str]:
        if name != "local_aws":
            return ["airflow", *AIRFLOW[name]]
        data = str(self.folder / "aws")
        return [sys.executable, "-m", "local_aws", "--port", str(self.aws_port), "--data", data]


def build(folder: Path, build_dir: Path) -> Stand:
    """Start a stand; its DAGs are not paused, but no schedule begins a run."""
    aws_port, web_port = stack.free_port(), stack.free_port()
    pictures.write_dataset(folder / "pictures", per_class=1)
    passwords = folder / "passwords.json"
    passwords.write_text(json.dumps({up.USER: secrets.token_urlsafe(9)}))
    stand = Stand(folder, aws_port, web_port, dict(os.environ), release="")
    stand.start("local_aws")
    stand.release = stack.provision(stand.aws_url, build_dir)
    stand.env = {
        **stack.airflow_environment(folder / "airflow", stand.aws_url, stand.release),
        **up.server_environment(web_port, passwords),
        "AIRFLOW__CORE__PARALLELISM": "8",
        # A worker that was killed is missed within a minute, not five; a triggerer, too.
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_SEC": "2",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "40",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "3",
        "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "2",
        "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "10",
        "AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": "False",
        "ORCHARD_POLL_SECONDS": "3",
        "ORCHARD_READY_TIMEOUT_MINUTES": "2",
    }
    migrate_airflow(stand.env, folder / "airflow-db.log")
    stand.start(*AIRFLOW)
    stand.login()
    for dag_id in (DAG, "emr_janitor"):
        wait_until(lambda dag_id=dag_id: stand.request("GET", f"dags/{dag_id}").is_success, f"the DAG {dag_id}")  # type: ignore[misc]
        stand.call("PATCH", f"dags/{dag_id}", {"is_paused": False})
    return stand


@contextmanager
def _environment(env: "dict[str, str]") -> Iterator[None]:
    names = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update({name: env[name] for name in names})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def _descendants(pid: int) -> Sequence[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
