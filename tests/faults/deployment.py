"""A complete Orchard on this machine whose parts can be killed and restarted: local AWS, Airflow's four processes."""

import json
import os
import signal
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import httpx
from pyiceberg.catalog import Catalog

from local_aws.client import LocalAwsClient
from local_aws.emr.process import descendants
from orchard.run.names import run_id_of
from orchard.settings import Settings
from orchard.storage import split_uri
from orchard.tables.catalog import open_catalog
from orchard.tables.state import published_state
from sandbox import airflow, aws, pictures, processes, up
from sandbox.airflow import AirflowApi, run_path

if TYPE_CHECKING:
    from mypy_boto3_emr import EMRClient
    from mypy_boto3_s3 import S3Client

DAG = "fruit_features"
# The name of the SNS topic of the alerts and of the queue that receives them.
ALERTS = "alerts"
RUN_TIMEOUT_SECONDS = 240
DEFAULT_TIMEOUT_SECONDS = 90
ACTIVE = ("STARTING", "BOOTSTRAPPING", "RUNNING", "WAITING", "TERMINATING")
AIRFLOW = {"api-server": ["api-server"], **airflow.COMPONENTS}


def wait_until(poll: "Callable[[], Any]", description: str, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS) -> Any:
    """Return the first true result of `poll`. A part that is down and does not respond counts as a false result.

    Raises:
        TimeoutError: there is no true result in time.
    """
    return processes.wait_until(
        poll, description, timeout_seconds=timeout_seconds, retry_on=(httpx.TransportError, OSError)
    )


@dataclass
class Run:
    """A run of the DAG."""

    deployment: "Deployment"
    run_id: str
    dataset_uri: str
    # How often the run has ended as failed so far, as the test expects it.
    failures: int = 0

    @property
    def path(self) -> str:
        """The path of the run in Airflow's REST API."""
        return run_path(DAG, self.run_id)

    def state(self) -> str:
        """Return the state of the run."""
        return str(self.deployment.api.run(DAG, self.run_id)["state"])

    def tasks(self) -> dict[str, str]:
        """Return the state of each task."""
        tasks = self.deployment.api.tasks(DAG, self.run_id)
        return {task_id: str(task["state"]) for task_id, task in tasks.items()}

    def task(self, task_id: str) -> dict[str, Any]:
        """Return a task instance."""
        return self.deployment.api.tasks(DAG, self.run_id)[task_id]

    def wait_for(self, task_id: str, *states: str, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS) -> None:
        """Wait until a task is in one of the given states."""
        wait_until(lambda: self.tasks()[task_id] in states, f"{self.run_id}: {task_id} in {states}", timeout_seconds)

    def wait_for_end(self, timeout_seconds: float = RUN_TIMEOUT_SECONDS) -> str:
        """Wait until the run has finished, and return its state."""
        wait_until(lambda: self.state() in airflow.FINISHED, f"the end of {self.run_id}", timeout_seconds)
        return self.state()

    def clusters(self) -> list[dict[str, Any]]:
        """Return the clusters of the run, newest first."""
        listed = []
        pages = self.deployment.emr.get_paginator("list_clusters").paginate()
        for cluster in (item for page in pages for item in page["Clusters"]):
            tags = self.deployment.emr.describe_cluster(ClusterId=cluster["Id"])["Cluster"].get("Tags", [])
            if {"Key": "orchard:run_id", "Value": self.run_id} in tags:
                listed.append(dict(cluster))
        return listed

    def active_clusters(self) -> list[str]:
        """Return the ids of the clusters of the run that have not terminated."""
        return [item["Id"] for item in self.clusters() if item["Status"]["State"] in ACTIVE]

    def wait_for_cluster(self) -> str:
        """Wait for an active cluster of the run, and return its id."""
        return str(wait_until(self.active_clusters, f"an active cluster of {self.run_id}")[0])

    def wait_for_step(
        self, name: str, *states: str, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    ) -> tuple[str, str]:
        """Wait until a step is in one of the given states, and return the ids of its cluster and of the step."""

        def found() -> tuple[str, str] | None:
            for cluster_id in self.active_clusters():
                for step in self.deployment.emr.list_steps(ClusterId=cluster_id)["Steps"]:
                    if step["Name"] == name and step["Status"]["State"] in states:
                        return cluster_id, step["Id"]
            return None

        ids: tuple[str, str] = wait_until(found, f"{self.run_id}: step {name} in {states}", timeout_seconds)
        return ids

    def log(self, task_id: str) -> str:
        """Return the log of all attempts of a task."""
        pattern = f"dag_id={DAG}/run_id={self.run_id}/task_id={task_id}/*.log"
        files = sorted((self.deployment.folder / "airflow/logs").glob(pattern))
        return "\n".join(file.read_text(errors="replace") for file in files)

    def is_published(self) -> bool:
        """Return whether readers of the tables see this run as the current run of its dataset."""
        published, run_uri = self.deployment.published(self.dataset_uri), self.run_uri()
        return published is not None and run_uri is not None and published == run_id_of(run_uri)

    def run_uri(self) -> str | None:
        """Return the URI of the run folder, or None before `plan` has succeeded."""
        summary = self.summary()
        return None if summary is None else str(summary["run_uri"])

    def summary(self, task_id: str = "plan", key: str = "summary") -> dict[str, Any] | None:
        """Return what a task has found to have changed, or None before it has succeeded."""
        path = f"{self.path}/taskInstances/{task_id}/xcomEntries/{key}"
        response = self.deployment.api.request("GET", path)
        return dict(response.json()["value"]) if response.is_success else None

    def mark(self, state: str) -> None:
        """Set the state of the run, as in the UI."""
        self.deployment.api.call("PATCH", self.path, {"state": state})

    def clear(self, *task_ids: str, downstream: bool = True, only_failed: bool = False) -> None:
        """Clear tasks, by default with their downstream tasks, as in the UI, and wait until the run is active."""
        body = {"dry_run": False, "dag_run_id": self.run_id, "task_ids": list(task_ids)}
        options = {"include_downstream": downstream, "only_failed": only_failed}
        self.deployment.api.call("POST", f"dags/{DAG}/clearTaskInstances", {**body, **options})
        self._wait_until_active()

    def clear_run(self, *, only_failed: bool = False) -> None:
        """Clear all tasks of the run, or all that failed, as in the UI, and wait until the run is active."""
        self.deployment.api.call("POST", f"{self.path}/clear", {"dry_run": False, "only_failed": only_failed})
        self._wait_until_active()

    def times(self, task_id: str) -> tuple[datetime, datetime]:
        """Return the start and the end of a task that has finished."""
        task = self.task(task_id)
        return datetime.fromisoformat(task["start_date"]), datetime.fromisoformat(task["end_date"])

    def _wait_until_active(self) -> None:
        wait_until(lambda: self.state() not in airflow.FINISHED, f"{self.run_id} to be active after it was cleared")


@dataclass
class Deployment:
    """The running parts, and methods to inspect and to break them."""

    folder: Path
    aws_port: int
    web_port: int
    env: dict[str, str]
    api: AirflowApi = field(init=False)
    datasets: int = 0
    alerts: list[str] = field(default_factory=list)
    processes: "dict[str, subprocess.Popen[bytes]]" = field(default_factory=dict)

    @property
    def aws_url(self) -> str:
        """The endpoint URL of the local AWS."""
        return f"http://127.0.0.1:{self.aws_port}"

    @property
    def aws(self) -> LocalAwsClient:
        """A client that injects faults into the local AWS."""
        return LocalAwsClient(self.aws_url)

    @property
    def emr(self) -> "EMRClient":
        """A client for EMR."""
        client: EMRClient = aws.client("emr", self.aws_url)
        return client

    @property
    def s3(self) -> "S3Client":
        """A client for S3."""
        client: S3Client = aws.client("s3", self.aws_url)
        return client

    def start(self, *names: str) -> None:
        """Start parts, and wait until all of them respond."""
        for name in names:
            self.processes[name] = up.spawn(name, self._command(name), self.folder, self.env)
        if "local_aws" in names:
            processes.wait_for_port(self.aws_port, self.processes["local_aws"], self.folder / "local_aws.log")
        if set(names) & set(AIRFLOW):
            airflow.wait_until_ready(self.web_port, self.processes["api-server"], self.folder)

    def kill(self, *names: str) -> None:
        """Kill parts and their descendant processes with SIGKILL."""
        for name in names:
            process = self.processes.pop(name)
            for pid in [*descendants(process.pid), process.pid]:
                _signal(pid, signal.SIGKILL)
            process.wait()

    def kill_task(self, run: Run, task_id: str) -> None:
        """Kill the processes of a task with SIGKILL."""
        pid = wait_until(lambda: run.task(task_id)["pid"], f"the process of {task_id}")
        for process_id in [*descendants(pid), pid]:
            _signal(process_id, signal.SIGKILL)

    @contextmanager
    def unresponsive_aws(self) -> Iterator[None]:
        """While the context is open, the local AWS accepts connections but does not respond."""
        process = self.processes["local_aws"]
        _signal(process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            _signal(process.pid, signal.SIGCONT)

    def new_dataset(self, images: int = 12, broken: int = 0) -> str:
        """Create a dataset, the first `broken` images of which cannot be decoded, and return its URI."""
        self.datasets += 1
        prefix = f"dataset-{self.datasets:02d}/"
        source = self.folder / "pictures"
        files = sorted(source.rglob("*.jpg"))[:images]
        for number, file in enumerate(files):
            content = file.read_bytes()[:500] if number < broken else file.read_bytes()
            self.s3.put_object(Bucket=aws.BUCKET, Key=prefix + file.relative_to(source).as_posix(), Body=content)
        return f"s3://{aws.BUCKET}/{prefix}"

    def add_image(self, dataset_uri: str) -> None:
        """Add an image to a dataset, whose content no other image has."""
        file = sorted((self.folder / "pictures").rglob("*.jpg"))[0]
        bucket, prefix = split_uri(dataset_uri)
        # Decoders ignore what follows the end of the image.
        body = file.read_bytes() + uuid.uuid4().bytes
        self.s3.put_object(Bucket=bucket, Key=f"{prefix}added/{uuid.uuid4().hex}.jpg", Body=body)

    @contextmanager
    def setting(self, name: str, value: str) -> Iterator[None]:
        """While the context is open, the tasks have another value of a setting. The scheduler starts them."""
        before = self.env.get(name)
        self.env[name] = value
        try:
            self.kill("scheduler")
            self.start("scheduler")
            yield
        finally:
            self.env.pop(name)
            self.env |= {} if before is None else {name: before}
            self.kill("scheduler")
            self.start("scheduler")

    def trigger(
        self,
        dataset_uri: str | None = None,
        logical_date: datetime | None = None,
        run_after: datetime | None = None,
        **params: Any,
    ) -> Run:
        """Start a run. Without a dataset_uri it gets a new dataset."""
        uri = dataset_uri or self.new_dataset()
        run_id = self.api.trigger(DAG, {"dataset_uri": uri, "n_components": 3, **params}, logical_date, run_after)
        return Run(self, run_id, uri)

    def delete(self, run: Run) -> bool:
        """Delete a run while its tasks are running. Return whether Airflow has done so.

        Airflow deletes no running run, but a queued one. Its scheduler may start the run again in between.
        """
        self.api.call("PATCH", run.path, {"state": "queued"})
        return self.api.request("DELETE", run.path).is_success

    def alerts_of(self, run: Run) -> list[str]:
        """Return the alerts about a run that the team has received so far."""
        sqs: Any = aws.client("sqs", self.aws_url)
        queue = sqs.get_queue_url(QueueName=ALERTS)["QueueUrl"]
        while messages := sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10).get("Messages"):
            for message in messages:
                self.alerts.append(json.loads(message["Body"])["Message"])
                sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
        return [alert for alert in self.alerts if f"run {run.run_id} of {DAG} " in alert]

    def create_topic(self) -> str:
        """Create the topic of the alerts and the queue that receives them, and return the topic's ARN."""
        sns: Any = aws.client("sns", self.aws_url)
        sqs: Any = aws.client("sqs", self.aws_url)
        topic = str(sns.create_topic(Name=ALERTS)["TopicArn"])
        queue = sqs.create_queue(QueueName=ALERTS)["QueueUrl"]
        arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)
        return topic

    def published(self, dataset_uri: str) -> str | None:
        """Return the run_id of the rows of a dataset that readers of the tables see, or None."""
        with self.catalog() as catalog:
            state = published_state(catalog, self.settings, dataset_uri)
        return state.run_id if state else None

    @property
    def settings(self) -> Settings:
        """The settings of the deployment."""
        return Settings.from_env({key: value for key, value in self.env.items() if key.startswith("ORCHARD_")})

    @contextmanager
    def catalog(self) -> Iterator[Catalog]:
        """While the context is open, the tables can be read and changed."""
        with _environment(self.env):
            yield open_catalog(boto3.Session(region_name=aws.REGION), self.settings)

    def locks(self) -> list[str]:
        """Return the keys of the tickets and slots of all runs."""
        listed = self.s3.list_objects_v2(Bucket=aws.BUCKET, Prefix="locks/")
        return [item["Key"] for item in listed.get("Contents", [])]

    def events(self) -> list[dict[str, Any]]:
        """Return the events of the assets, with the run that has caused each."""
        return list(self.api.call("GET", "assets/events?limit=100")["asset_events"])

    def _command(self, name: str) -> list[str]:
        if name != "local_aws":
            return ["airflow", *AIRFLOW[name]]
        return aws.local_aws_command(self.folder / "aws", self.aws_port)


def build(folder: Path, build_dir: Path, *, base_path: str = "", **env: str) -> Deployment:
    """Start a deployment. Its DAGs are not paused, but the scheduler creates no scheduled runs.

    `base_path` is the path below which Airflow is served. `env` are further variables of its processes.
    """
    aws_port, web_port = processes.free_port(), processes.free_port()
    pictures.write_dataset(folder / "pictures", per_class=1)
    deployment = Deployment(folder, aws_port, web_port, {**os.environ, **env})
    deployment.start("local_aws")
    release = aws.provision(deployment.aws_url, build_dir)
    password = airflow.write_password(folder / "passwords.json")
    deployment.env = {
        **airflow.airflow_environment(folder / "airflow", deployment.aws_url, release),
        **airflow.server_environment(web_port, folder / "passwords.json"),
        "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{web_port}{base_path}",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{web_port}{base_path}/execution/",
        "AIRFLOW__CORE__PARALLELISM": "8",
        # With Airflow's defaults, it takes five minutes to detect a killed worker or triggerer.
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_SEC": "2",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "40",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "3",
        "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "2",
        "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "10",
        "AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": "False",
        "ORCHARD_POLL_SECONDS": "3",
        "ORCHARD_READY_TIMEOUT_MINUTES": "2",
        "ORCHARD_ALERT_TOPIC_ARN": deployment.create_topic(),
        **env,
    }
    airflow.migrate_airflow(deployment.env, folder / "airflow-db.log")
    deployment.start(*AIRFLOW)
    api = deployment.api = AirflowApi.log_in(web_port, password, base_path)
    for dag_id in (DAG, "emr_janitor"):
        wait_until(lambda dag_id=dag_id: api.request("GET", f"dags/{dag_id}").is_success, f"the DAG {dag_id}")  # type: ignore[misc]
        api.set_paused(dag_id, paused=False)
    return deployment


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


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
