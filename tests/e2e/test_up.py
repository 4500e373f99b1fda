"""`make up`: Airflow's four processes and the local AWS, two runs at the same time, and `make down`."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote
from zoneinfo import ZoneInfo

import httpx
import pytest

from orchard.cluster.tags import DAG_TAG, DEPLOYMENT_TAG, MANAGED_POLICIES_TAG, RUN_TAG
from orchard.report.spark_ui import spark_ui_url
from orchard.run.names import cluster_name, run_name
from orchard.run.steps import STEPS
from orchard.settings import default_deployment
from sandbox import aws, pictures
from sandbox.airflow import FINISHED, USER, AirflowApi, run_path
from sandbox.folders import ROOT
from sandbox.processes import free_port, wait_until
from tests.e2e.processes import left_running

DAG = "fruit_features"
RUN_TIMEOUT_SECONDS = 300
# A cluster that is like EMR needs 4.5 minutes until it is ready, and one until it has terminated. Each of the six
# sensors of a run polls only every 30 seconds.
LIKE_EMR_RUN_TIMEOUT_SECONDS = RUN_TIMEOUT_SECONDS + 600


@dataclass(frozen=True)
class Started:
    """What `make up` starts: Airflow's REST API, the URL of the local AWS, and the folder of both."""

    api: AirflowApi
    aws_url: str
    folder: Path


def run_up(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "sandbox.up", "--folder", str(folder), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    data, folder = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("up")
    pictures.write_dataset(data, per_class=1)
    aws_port, web_port = free_port(), free_port()
    ports = ("--aws-port", str(aws_port), "--web-port", str(web_port))
    done = run_up(folder, "--data", str(data), *ports)
    try:
        assert done.returncode == 0, done.stdout + done.stderr
        shown = re.search(r"Airflow on (\S+)  user (\S+)  password (\S+)", done.stdout)
        assert shown is not None, done.stdout
        url, user, password = shown.groups()
        assert (url, user) == (f"http://127.0.0.1:{web_port}", USER)
        yield Started(AirflowApi.log_in(web_port, password), f"http://127.0.0.1:{aws_port}", folder)
    finally:
        run_up(folder, "--down")


def test_all_four_processes_of_airflow_are_healthy_and_its_dags_load(started: Started) -> None:
    health = started.api.call("GET", "monitor/health")
    assert {name: part["status"] for name, part in health.items()} == dict.fromkeys(
        ("metadatabase", "scheduler", "triggerer", "dag_processor"), "healthy"
    )
    assert started.api.call("GET", "importErrors")["total_entries"] == 0


def listening_addresses(folder: Path) -> set[str]:
    """Return the addresses on which the processes of a folder listen, in the kernel's notation."""
    inodes = {
        link.readlink().name.removeprefix("socket:[").removesuffix("]")
        for pid in left_running(folder)
        for link in Path(f"/proc/{pid}/fd").iterdir()
        if link.is_symlink() and str(link.readlink()).startswith("socket:[")
    }
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                found.add(fields[1].split(":")[0])
    return found


def test_the_servers_are_reachable_from_this_machine_only(started: Started) -> None:
    assert listening_addresses(started.folder) == {"0100007F"}, "127.0.0.1 in the kernel's notation"


def test_the_error_about_an_invalid_param_names_the_param(started: Started) -> None:
    body = {"logical_date": None, "conf": {"core_instances": 0}}
    response = started.api.request("POST", f"dags/{DAG}/dagRuns", body)
    assert response.status_code == 400
    assert "Invalid input for param core_instances: 0 is less than the minimum of 1" in response.text


def nightly_run_is_far() -> bool:
    """Return whether it is not about 02:00 in Paris, when the schedule adds a run of its own."""
    now = datetime.now(ZoneInfo("Europe/Paris"))
    return not 115 <= 60 * now.hour + now.minute <= 126


def test_a_run_with_a_new_prefix_and_one_with_the_defaults_succeed_in_parallel(started: Started) -> None:
    wait_until(nightly_run_is_far, "the end of the nightly run's time", timeout_seconds=12 * 60)
    s3 = aws.client("s3", started.aws_url)
    for item in s3.list_objects_v2(Bucket=aws.BUCKET, Prefix=aws.DATASET_PREFIX)["Contents"][:6]:
        key = item["Key"].replace(aws.DATASET_PREFIX, "by-hand/")
        s3.copy_object(Bucket=aws.BUCKET, Key=key, CopySource={"Bucket": aws.BUCKET, "Key": item["Key"]})
    first = started.api.trigger(DAG, {"dataset_uri": f"s3://{aws.BUCKET}/by-hand/", "n_components": 3})
    started.api.set_paused(DAG, paused=False)  # as the first *Trigger* in the UI does
    wait_until(lambda: started.api.run(DAG, first)["state"] == "running", "the first run", timeout_seconds=60)
    assert [run["dag_run_id"] for run in started.api.runs(DAG)] == [first], "the first click makes one run"
    second = started.api.trigger(DAG, {})

    def both_finished() -> list[Any] | None:
        runs = started.api.runs(DAG)
        return runs if all(run["state"] in FINISHED for run in runs) else None

    timeout_seconds = LIKE_EMR_RUN_TIMEOUT_SECONDS if aws.is_like_emr() else RUN_TIMEOUT_SECONDS
    runs = wait_until(both_finished, "the end of both runs", timeout_seconds=timeout_seconds)
    assert {run["dag_run_id"]: run["state"] for run in runs} == {first: "success", second: "success"}
    published = [event["extra"] for event in started.api.call("GET", "assets/events")["asset_events"]]
    assert {Path(event["dataset_uri"]).name: event["embeddings_rows"] for event in published} == {
        "images": 12,
        "by-hand": 6,
    }
    assert all(event["cost_usd"] > 0 and event["tables"]["embeddings"]["snapshot_id"] for event in published)
    clusters = aws.client("emr", started.aws_url).list_clusters()["Clusters"]
    assert [cluster["Status"]["State"] for cluster in clusters] == ["TERMINATED", "TERMINATED"]
    for task_id in ("plan", "publish"):
        task = f"{run_path(DAG, first)}/taskInstances/{task_id}"
        sentence = started.api.call("GET", f"{task}/xcomEntries/summary")["value"]["sentence"]
        assert sentence.startswith("6 images, all new")
        (log,) = (started.folder / "airflow/logs").glob(f"dag_id={DAG}/run_id={first}/task_id={task_id}/*.log")
        events = [json.loads(line)["event"] for line in log.read_text().splitlines()]
        assert [event for event in events if event != "::endgroup::"][-1] == f"{task_id}: {sentence}"


def test_every_link_on_the_tasks_of_a_run_opens(started: Started) -> None:
    run_id = next(run["dag_run_id"] for run in started.api.runs(DAG))
    tasks = started.api.tasks(DAG, run_id)
    path = f"{run_path(DAG, run_id)}/taskInstances"
    links = {task: started.api.call("GET", f"{path}/{task}/links")["extra_links"] for task in tasks}
    report = f"/orchard/dags/{DAG}/runs/{quote(run_id, safe='')}/"
    assert {found["Report"] for found in links.values()} == {report}
    (run_folder,) = {found["Run Folder"] for found in links.values()}
    assert "summary.json" in opened(run_folder)
    (cluster,) = {found["EMR Cluster"] for found in links.values() if "EMR Cluster" in found}
    assert "features" in opened(cluster)
    cluster_id = cluster.rpartition("/")[2]
    for step in STEPS:
        found = links[f"{step}.wait_step"]
        assert "stderr.gz" in opened(found["Step Logs"])
        assert found["Spark UI"] == f"{report}spark-ui/{cluster_id}"


def opened(url: str) -> str:
    """Return the page of the local AWS at a URL."""
    return httpx.get(url).raise_for_status().text


def test_the_spark_ui_of_a_run_shows_its_steps_on_this_machine_only(started: Started) -> None:
    emr = aws.client("emr", started.aws_url)
    cluster_id = emr.list_clusters()["Clusters"][0]["Id"]
    url = spark_ui_url(emr, cluster_id, wait_seconds=60)
    applications = httpx.get(f"{url}api/v1/applications").json()
    assert len(applications) == len(STEPS)
    assert all(application["attempts"][0]["completed"] for application in applications)
    assert httpx.get(url).status_code == 200
    # Java listens with IPv6 sockets for both versions.
    assert listening_addresses(started.folder) <= {"0100007F", "0000000000000000FFFF00000100007F"}


def test_the_janitor_terminates_the_clusters_of_finished_and_unknown_runs_and_keeps_the_one_of_an_active_run(
    started: Started,
) -> None:
    started.api.set_paused(DAG, paused=True)  # triggered runs stay queued
    # Airflow allows a tilde in a run_id, but EMR does not allow it in a tag. The finished run is one of the janitor,
    # because marking a run that has a teardown does not finish it at once.
    dag_ids = {"active~1": DAG, "finished~1": "emr_janitor", "unknown~1": DAG}
    for run_id in ("active~1", "finished~1"):
        body = {"logical_date": None, "dag_run_id": run_id}
        started.api.call("POST", f"dags/{dag_ids[run_id]}/dagRuns", body)
    started.api.call("PATCH", "dags/emr_janitor/dagRuns/finished~1", {"state": "failed"})
    emr = aws.client("emr", started.aws_url)
    deployment = default_deployment(aws.BUCKET, started.api.url)
    cluster_ids = {}
    for run_id, dag_id in dag_ids.items():
        tags = {DAG_TAG: dag_id, RUN_TAG: run_id.replace("~", "@"), DEPLOYMENT_TAG: deployment}
        tags[MANAGED_POLICIES_TAG] = "true"  # otherwise EMR refuses the cluster
        response = emr.run_job_flow(
            Name=cluster_name(aws.BUCKET, deployment, run_name(datetime.now(UTC), run_id, deployment), "images"),
            ReleaseLabel="emr-7.14.0",
            Instances={"MasterInstanceType": "m5.xlarge", "InstanceCount": 1, "KeepJobFlowAliveWhenNoSteps": True},
            ServiceRole=aws.SERVICE_ROLE,
            JobFlowRole=aws.INSTANCE_PROFILE,
            Tags=[{"Key": key, "Value": value} for key, value in tags.items()],
        )
        cluster_ids[run_id] = response["JobFlowId"]
    started.api.set_paused("emr_janitor", paused=False)  # this also starts the run that was due last

    def first_run() -> Any:
        runs = started.api.call("GET", "dags/emr_janitor/dagRuns?run_type=scheduled&order_by=run_after")["dag_runs"]
        return runs[0] if runs and runs[0]["state"] in FINISHED else None

    run = wait_until(first_run, "the end of the janitor's run", timeout_seconds=60)
    assert run["state"] == "success"
    task = f"{run_path('emr_janitor', run['dag_run_id'])}/taskInstances/reap"
    report = started.api.call("GET", f"{task}/xcomEntries/return_value")["value"]
    assert {row["run_id"]: (row["cluster_id"], row["run_state"], row["outcome"]) for row in report} == {
        "active~1": (cluster_ids["active~1"], "queued", "kept"),
        "finished~1": (cluster_ids["finished~1"], "failed", "terminated"),
        "unknown~1": (cluster_ids["unknown~1"], "unknown", "terminated"),
    }
    states = {
        run_id: emr.describe_cluster(ClusterId=cluster_ids[run_id])["Cluster"]["Status"]["State"]
        for run_id in cluster_ids
    }
    assert {run_id for run_id, state in states.items() if not state.startswith("TERMINAT")} == {"active~1"}


def test_a_second_up_fails_and_the_first_keeps_running(started: Started) -> None:
    done = run_up(started.folder)
    assert done.returncode == 1
    assert "Orchard is already running: stop it with `make down`" in done.stdout
    assert started.api.call("GET", "monitor/health")["scheduler"]["status"] == "healthy"


def test_down_leaves_no_process_running(started: Started) -> None:
    done = run_up(started.folder, "--down")
    assert done.stdout == "stopped 5 processes\n"
    wait_until(lambda: not left_running(started.folder), "the exit of every process", timeout_seconds=10)
