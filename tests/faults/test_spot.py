"""The outcome of a run whose Spot workers are taken away, or for which EC2 has no Spot capacity."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from local_aws.emr.executors import executors
from local_aws.emr.process import descendants
from sandbox import up
from tests.conftest import ROOT
from tests.faults.conftest import Check
from tests.faults.deployment import Deployment, build, wait_until

# The plan assumes that an image takes four minutes, so that a few images need four workers. What it learns from earlier
# runs about the start of a cluster changes nothing. All tasks load this file.
SLOW = """
from orchard.cluster.sizing import Speed
Speed.task_seconds = lambda speed, work: 240.0 * work.images
Speed.fixed_seconds = lambda speed: 510.0
"""
TARGET_MINUTES = 12
SPOT_WORKERS = 3
STEP_TIMEOUT_SECONDS = 240


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, build_dir: Path) -> Iterator[Deployment]:
    """A deployment whose steps run on two executors, and whose plans need several workers."""
    folder = tmp_path_factory.mktemp("deployment")
    dags = folder / "dags"
    shutil.copytree(ROOT / "dags", dags, ignore=shutil.ignore_patterns("__pycache__"))
    with (dags / "fruit_features.py").open("a") as file:
        file.write(SLOW)
    try:
        yield build(folder, build_dir, AIRFLOW__CORE__DAGS_FOLDER=str(dags), LOCAL_EMR_MASTER="standalone[2,1,512]")
    finally:
        up.down(folder)


def working_executors(deployment: Deployment, cluster_id: str) -> list[int]:
    """Return the executors of a cluster that have started a task: its Python workers are their child processes."""
    home = deployment.folder / "aws/clusters" / cluster_id / "home/hadoop"
    return [pid for pid in executors(home) if descendants(pid)]


def task_instances(deployment: Deployment, cluster_id: str) -> list[Any]:
    return list(deployment.emr.list_instances(ClusterId=cluster_id, InstanceFleetType="TASK")["Instances"])


@pytest.mark.slow
def test_the_spot_workers_are_taken_away_twice_during_features(deployment: Deployment, check: Check) -> None:
    run = deployment.trigger(target_minutes=TARGET_MINUTES)
    cluster_id, _ = run.wait_for_step("features", "RUNNING", timeout_seconds=STEP_TIMEOUT_SECONDS)
    deployment.aws.latency(4)  # so that the tasks take some time
    gone: set[int] = set()
    for number in (1, 2):
        wait_until(
            lambda: len(set(working_executors(deployment, cluster_id)) - gone) >= 2,  # noqa: B023
            f"two executors that work before interruption {number}",
        )
        taken, killed = deployment.aws.interrupt_spot(cluster_id)
        assert (len(taken), len(killed)) == (SPOT_WORKERS, 1), "the other executor is the core instance's"
        gone |= set(killed)
    assert run.wait_for_step("features", "RUNNING"), "both times during the step"
    deployment.aws.clear()
    interrupted = [item["Status"] for item in task_instances(deployment, cluster_id)[: 2 * SPOT_WORKERS]]
    assert [status["State"] for status in interrupted] == ["TERMINATED"] * 6
    assert all("Server.SpotInstanceTermination" in status["StateChangeReason"]["Message"] for status in interrupted)
    check(run, "success")
    published = run.summary("publish", "return_value") or {}
    assert (published["images_ingested"], published["features_rows"], published["embeddings_rows"]) == (12, 12, 12)


@pytest.mark.slow
def test_ec2_refuses_the_spot_capacity(deployment: Deployment, check: Check) -> None:
    deployment.aws.limit_spot(0)
    run = deployment.trigger(target_minutes=TARGET_MINUTES)
    cluster_id, _ = run.wait_for_step("ingest", "RUNNING", timeout_seconds=STEP_TIMEOUT_SECONDS)
    instances = task_instances(deployment, cluster_id)
    assert [item["Market"] for item in instances] == ["ON_DEMAND"] * SPOT_WORKERS
    check(run, "success")
    planned = run.summary() or {}
    assert (planned["core_instances"], planned["task_instances"]) == (1, SPOT_WORKERS)
    assert planned["estimate"]["usd_with_spot"][1] < planned["estimate"]["usd"]
