"""A run whose cluster is held after its publication, with real Airflow processes and real Spark steps."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from sandbox import aws, up
from tests.conftest import record_calls
from tests.faults.deployment import DAG, RUN_TIMEOUT_SECONDS, Deployment, Run, build, wait_until

pytestmark = pytest.mark.slow

HOLD = "hold_cluster"
# A cluster that is like EMR needs 4.5 minutes until it is ready, and one until it has terminated.
LIKE_EMR = aws.is_like_emr()
SLOWER_SECONDS = 600 if LIKE_EMR else 0
MOST_SECONDS_TO_END = 150 if LIKE_EMR else 60
SETTINGS = {"ORCHARD_POLL_SECONDS": "10", "ORCHARD_READY_TIMEOUT_MINUTES": "10"} if LIKE_EMR else {}


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, build_dir: Path) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("held")
    with record_calls("hold"):
        try:
            yield build(folder, build_dir, **SETTINGS)
        finally:
            up.down(folder)


def hold_of(run: Run) -> dict[str, Any]:
    """Wait until the hold of a run has started, and return its XCom."""
    run.wait_for(HOLD, "deferred", timeout_seconds=240 + SLOWER_SECONDS)
    found = run.summary(HOLD, "hold")
    assert found is not None
    return found


def state_of(deployment: Deployment, cluster_id: str) -> str:
    return deployment.emr.describe_cluster(ClusterId=cluster_id)["Cluster"]["Status"]["State"]


def test_a_held_cluster_waits_for_a_minute_after_its_publication_and_the_next_run_does_not_wait_for_it(
    deployment: Deployment,
) -> None:
    run = deployment.trigger(hold_minutes=1)
    hold = hold_of(run)
    cluster_id = hold["cluster_id"]
    assert run.is_published()
    assert run.tasks()["publish"] == "success"
    assert state_of(deployment, cluster_id) == "WAITING"
    assert deployment.locks() == [], "the turn is free"
    cluster = deployment.emr.describe_cluster(ClusterId=cluster_id)["Cluster"]
    assert {application["Name"] for application in cluster["Applications"]} == {"Spark", "JupyterHub"}
    primary = deployment.emr.list_instances(ClusterId=cluster_id, InstanceFleetType="MASTER")["Instances"]
    assert hold["instance_id"] == primary[0]["Ec2InstanceId"]
    page = page_of(deployment, run)
    assert f"Cluster {cluster_id} is held until" in page
    assert f"--target {hold['instance_id']}" in page

    second = deployment.trigger(run.dataset_uri, full_refresh=True)
    second.wait_for("wait_turn", "success")
    assert run.tasks()[HOLD] == "deferred"
    assert state_of(deployment, cluster_id) == "WAITING"

    until = datetime.fromisoformat(hold["until"])
    published = run.times("publish")[1]
    assert until - timedelta(minutes=1) <= published <= until
    assert run.wait_for_end() == "success"
    ended = run.clusters()[0]["Status"]["Timeline"]["EndDateTime"]
    assert until <= ended <= until + timedelta(seconds=MOST_SECONDS_TO_END)
    assert run.active_clusters() == []
    log = run.log(HOLD)
    assert f"cluster {cluster_id} is kept until" in log
    assert hold["command"] in json_lines(log)
    assert "hold: ended, because hold_minutes have passed" in log
    cost = run.summary("verdict", "cost")
    assert cost is not None
    assert cost["minutes"] > 1, "the hold is part of the cost"
    assert "is held until" not in page_of(deployment, run)
    assert second.wait_for_end(timeout_seconds=480 + SLOWER_SECONDS) == "success"


def json_lines(log: str) -> str:
    """Return the messages of a log, without the escapes of JSON."""
    return "\n".join(str(json.loads(line).get("event")) for line in log.splitlines() if line.startswith("{"))


def page_of(deployment: Deployment, run: Run) -> str:
    """Return the first section of the report of a run."""
    api = deployment.api
    url = f"{api.url}/orchard/dags/{DAG}/runs/{quote(run.run_id, safe='')}/happened"
    return httpx.get(url, cookies={"_token": api.token}, timeout=60).raise_for_status().text


@pytest.mark.parametrize("state", ["success", "failed"])
def test_a_person_who_marks_the_hold_ends_it_and_the_run_succeeds(deployment: Deployment, state: str) -> None:
    run = deployment.trigger(hold_minutes=240)
    hold = hold_of(run)
    began = datetime.now(UTC)
    body = {"new_state": state}
    deployment.api.call("PATCH", f"{run.path}/taskInstances/{HOLD}", body)
    assert run.wait_for_end() == "success"
    assert datetime.now(UTC) - began < timedelta(minutes=3)
    assert state_of(deployment, hold["cluster_id"]) == "TERMINATED"
    assert run.is_published()
    assert run.tasks()[HOLD] == state


def test_a_hold_ends_when_somebody_terminates_its_cluster(deployment: Deployment) -> None:
    run = deployment.trigger(hold_minutes=240)
    hold = hold_of(run)
    deployment.emr.terminate_job_flows(JobFlowIds=[hold["cluster_id"]])
    assert run.wait_for_end() == "success"
    assert "hold: ended, because cluster" in run.log(HOLD)
    assert run.tasks()[HOLD] == "success"


def test_a_cluster_is_not_held_for_a_run_that_is_not_published(deployment: Deployment) -> None:
    with deployment.setting("ORCHARD_STOP_EXPLAINED_VARIANCE", "1"):
        run = deployment.trigger(hold_minutes=240)
        assert run.wait_for_end(RUN_TIMEOUT_SECONDS + SLOWER_SECONDS) == "failed"
    assert run.tasks()["publish"] == "failed"
    assert "the cluster is not held" in run.log(HOLD)
    wait_until(lambda: not run.active_clusters(), "the termination of the cluster")
