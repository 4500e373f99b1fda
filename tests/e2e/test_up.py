"""`make up`: Airflow's four processes and the local AWS, a run that is triggered by hand, and `make down`."""

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from demo import pictures, stack
from orchard.cluster import DAG_TAG, RUN_TAG
from orchard.plan import run_name
from tests.e2e.processes import left_running
from tests.local_aws.user import wait_until

RUN_TIMEOUT_SECONDS = 300


@dataclass(frozen=True)
class Airflow:
    """The REST API of a running Airflow, and the local AWS behind it."""

    url: str
    token: str
    folder: Path
    aws_url: str

    def call(self, path: str, body: Any = None, method: str = "GET") -> Any:
        answer = self.request(method, path, body)
        assert answer.is_success, answer.text
        return answer.json()

    def request(self, method: str, path: str, body: Any = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.token}"}
        return httpx.request(method, f"{self.url}/api/v2/{path}", json=body, headers=headers, timeout=30)

    def trigger(self, **params: Any) -> httpx.Response:
        return self.request("POST", "dags/fruit_features/dagRuns", {"logical_date": None, "conf": params})


def run_up(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "demo.up", "--folder", str(folder), *arguments]
    return subprocess.run(command, cwd=stack.ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Airflow]:
    data, folder = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("up")
    pictures.write_dataset(data, per_class=1)
    aws_port, web_port = stack.free_port(), stack.free_port()
    ports = ("--aws-port", str(aws_port), "--web-port", str(web_port))
    done = run_up(folder, "--data", str(data), *ports)
    try:
        assert done.returncode == 0, done.stdout + done.stderr
        shown = re.search(r"Airflow on (\S+)  user (\S+)  password (\S+)", done.stdout)
        assert shown is not None, done.stdout
        url, user, password = shown.groups()
        login = httpx.post(f"{url}/auth/token", json={"username": user, "password": password}, timeout=30)
        yield Airflow(url, login.json()["access_token"], folder, f"http://127.0.0.1:{aws_port}")
    finally:
        run_up(folder, "--down")


def test_all_four_processes_of_airflow_and_the_local_aws_run(airflow: Airflow) -> None:
    health = airflow.call("monitor/health")
    assert {name: part["status"] for name, part in health.items()} == dict.fromkeys(
        ("metadatabase", "scheduler", "triggerer", "dag_processor"), "healthy"
    )
    assert airflow.call("importErrors")["total_entries"] == 0


def test_the_servers_are_reached_from_this_machine_only(airflow: Airflow) -> None:
    inodes = {
        link.readlink().name.removeprefix("socket:[").removesuffix("]")
        for pid in left_running(airflow.folder)
        for link in Path(f"/proc/{pid}/fd").iterdir()
        if link.is_symlink() and str(link.readlink()).startswith("socket:[")
    }
    listening = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                listening.add(fields[1].split(":")[0])
    assert listening == {"0100007F"}, "127.0.0.1, as the kernel writes it"


def test_a_param_that_is_not_possible_is_refused_and_named(airflow: Airflow) -> None:
    refused = airflow.trigger(core_instances=0)
    assert refused.status_code == 400
    assert "Invalid input for param core_instances: 0 is less than the minimum of 1" in refused.text


def test_a_run_by_hand_with_a_new_prefix_and_the_nightly_run_both_succeed_at_once(airflow: Airflow) -> None:
    s3 = stack.client("s3", airflow.aws_url)
    for item in s3.list_objects_v2(Bucket=stack.BUCKET, Prefix=stack.DATASET_PREFIX)["Contents"][:6]:
        key = item["Key"].replace(stack.DATASET_PREFIX, "by-hand/")
        s3.copy_object(Bucket=stack.BUCKET, Key=key, CopySource={"Bucket": stack.BUCKET, "Key": item["Key"]})
    assert airflow.trigger(dataset_uri=f"s3://{stack.BUCKET}/by-hand/", n_components=3).is_success
    airflow.call("dags/fruit_features", {"is_paused": False}, "PATCH")  # and last night's run begins

    def runs() -> list[Any]:
        listed: list[Any] = airflow.call("dags/fruit_features/dagRuns")["dag_runs"]
        return listed

    def over() -> bool:
        return len(runs()) == 2 and all(run["state"] in ("success", "failed") for run in runs())

    wait_until(over, "the end of both runs", RUN_TIMEOUT_SECONDS)
    assert {run["run_type"]: run["state"] for run in runs()} == {"manual": "success", "scheduled": "success"}
    published = [event["extra"] for event in airflow.call("assets/events")["asset_events"]]
    assert {Path(event["dataset_uri"]).name: event["embeddings_rows"] for event in published} == {
        "images": 12,
        "by-hand": 6,
    }
    clusters = stack.client("emr", airflow.aws_url).list_clusters()["Clusters"]
    assert [cluster["Status"]["State"] for cluster in clusters] == ["TERMINATED", "TERMINATED"]


def test_the_janitor_reaps_the_clusters_of_ended_and_unknown_runs_and_spares_that_of_a_live_one(
    airflow: Airflow,
) -> None:
    airflow.call("dags/fruit_features", {"is_paused": True}, "PATCH")  # what is triggered stays queued
    # A tilde is what Airflow allows in a run_id, and EMR does not in a tag. A run with a teardown does not end by word.
    dag_ids = {"live~1": "fruit_features", "over~1": "emr_janitor", "gone~1": "fruit_features"}
    for run_id in ("live~1", "over~1"):
        body = {"logical_date": None, "dag_run_id": run_id}
        airflow.call(f"dags/{dag_ids[run_id]}/dagRuns", body, "POST")
    airflow.call("dags/emr_janitor/dagRuns/over~1", {"state": "failed"}, "PATCH")
    emr = stack.client("emr", airflow.aws_url)
    made = {}
    for run_id, dag_id in dag_ids.items():
        tags = {DAG_TAG: dag_id, RUN_TAG: run_id.replace("~", "@")}
        answer = emr.run_job_flow(
            Name=f"orchard-{stack.BUCKET}-{run_name(datetime.now(UTC), run_id)}-images",
            ReleaseLabel="emr-7.14.0",
            Instances={"MasterInstanceType": "m5.xlarge", "InstanceCount": 1, "KeepJobFlowAliveWhenNoSteps": True},
            ServiceRole=stack.SERVICE_ROLE,
            JobFlowRole=stack.INSTANCE_PROFILE,
            Tags=[{"Key": key, "Value": value} for key, value in tags.items()],
        )
        made[run_id] = answer["JobFlowId"]
    airflow.call("dags/emr_janitor", {"is_paused": False}, "PATCH")  # and the run that was due last begins

    def first_run() -> Any:
        runs = airflow.call("dags/emr_janitor/dagRuns?run_type=scheduled&order_by=run_after")["dag_runs"]
        return runs[0] if runs else {"state": "not there yet"}

    wait_until(lambda: first_run()["state"] in ("success", "failed"), "the end of the janitor's run", 60)
    assert first_run()["state"] == "success"
    reap = f"dags/emr_janitor/dagRuns/{quote(first_run()['dag_run_id'])}/taskInstances/reap"
    report = airflow.call(f"{reap}/xcomEntries/return_value")["value"]
    assert {row["run_id"]: (row["cluster_id"], row["run_state"], row["outcome"]) for row in report} == {
        "live~1": (made["live~1"], "queued", "left alone"),
        "over~1": (made["over~1"], "failed", "reaped"),
        "gone~1": (made["gone~1"], "unknown", "reaped"),
    }
    states = {run_id: emr.describe_cluster(ClusterId=made[run_id])["Cluster"]["Status"]["State"] for run_id in made}
    assert {run_id for run_id, state in states.items() if not state.startswith("TERMINAT")} == {"live~1"}


def test_a_second_up_is_refused_and_the_first_lives_on(airflow: Airflow) -> None:
    done = run_up(airflow.folder)
    assert done.returncode == 1
    assert "it is up already; `make down` stops it" in done.stdout
    assert airflow.call("monitor/health")["scheduler"]["status"] == "healthy"


def test_down_leaves_no_process_behind(airflow: Airflow) -> None:
    done = run_up(airflow.folder, "--down")
    assert done.stdout == "stopped 5 processes\n"
    wait_until(lambda: not left_running(airflow.folder), "the end of every process", 10)
