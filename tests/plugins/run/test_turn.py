from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

import boto3
import pytest

from orchard.run.plan import RunPlan
from orchard.run.turn import reasons_to_wait
from orchard.settings import Settings
from tests.plugins import plans

if TYPE_CHECKING:
    from mypy_boto3_emr import EMRClient
    from mypy_boto3_s3 import S3Client

Plan: TypeAlias = Callable[..., RunPlan]
Start: TypeAlias = Callable[[RunPlan], str]


@pytest.fixture
def settings(released: Settings, role: str) -> Settings:
    return Settings(bucket=released.bucket, release=released.release, service_role=role, instance_profile=role)


@pytest.fixture
def plan(s3: "S3Client", settings: Settings) -> Plan:
    """Plans a run of a dataset that has two images."""

    def planned(run_id: str, prefix: str = "images/") -> RunPlan:
        plans.put_images(s3, settings.bucket, prefix)
        return plans.plan(s3, settings, run_id, dataset_uri=f"s3://{settings.bucket}/{prefix}")

    return planned


@pytest.fixture
def emr(aws_url: str) -> Iterator["EMRClient"]:
    """EMR in a region in which no other test has clusters. All are terminated after the test."""
    client = boto3.client("emr", endpoint_url=aws_url, region_name="eu-west-3")
    yield client
    client.terminate_job_flows(JobFlowIds=[cluster["Id"] for cluster in client.list_clusters()["Clusters"]])


@pytest.fixture
def start(emr: "EMRClient") -> Start:
    """Creates the cluster of a run, without its bootstrap action."""

    def started(run: RunPlan) -> str:
        return emr.run_job_flow(**{**run["cluster"], "BootstrapActions": []})["JobFlowId"]

    return started


def test_a_single_run_does_not_wait(emr: "EMRClient", settings: Settings, plan: Plan) -> None:
    assert reasons_to_wait(emr, settings, plan("manual__1")) == []


def test_a_second_run_of_a_dataset_waits_for_the_first_and_the_reason_names_its_cluster(
    emr: "EMRClient", settings: Settings, plan: Plan, start: Start
) -> None:
    first = start(plan("manual__1"))
    (reason,) = reasons_to_wait(emr, settings, plan("manual__2"))
    state = emr.describe_cluster(ClusterId=first)["Cluster"]["Status"]["State"]
    assert reason == (
        f"cluster {first} ({state}) of run 'manual__1' processes the same dataset, s3://{settings.bucket}/images/: "
        "this run waits until it terminates"
    )
    emr.terminate_job_flows(JobFlowIds=[first])
    assert reasons_to_wait(emr, settings, plan("manual__2")) == []


@pytest.mark.parametrize("prefix", ["images/2/", "image/", "images/".ljust(300, "x") + "/", "lot#1/"])
def test_a_run_of_another_dataset_does_not_wait(
    emr: "EMRClient", settings: Settings, plan: Plan, start: Start, prefix: str
) -> None:
    for other in ("images/", "images/".ljust(301, "x") + "/", "lot?1/"):
        start(plan("manual__1", other))
    assert reasons_to_wait(emr, settings, plan("manual__2", prefix)) == []


@pytest.mark.parametrize("prefix", ["lot#1/", "x" * 300 + "/"])
def test_a_dataset_whose_uri_is_not_a_valid_tag_is_recognised(
    emr: "EMRClient", settings: Settings, plan: Plan, start: Start, prefix: str
) -> None:
    start(plan("manual__1", prefix))
    assert len(reasons_to_wait(emr, settings, plan("manual__2", prefix))) == 1


def test_a_run_does_not_wait_for_its_own_cluster(
    emr: "EMRClient", settings: Settings, plan: Plan, start: Start
) -> None:
    start(plan("manual__1"))
    assert reasons_to_wait(emr, settings, plan("manual__1")) == []


def test_a_run_waits_at_the_cluster_limit_and_the_reason_names_the_active_clusters(
    emr: "EMRClient", settings: Settings, plan: Plan, start: Start
) -> None:
    assert settings.max_running_clusters == 4
    ids = [start(plan(f"manual__{number}", f"lot{number}/")) for number in range(3)]
    assert reasons_to_wait(emr, settings, plan("manual__5")) == []
    ids.append(start(plan("manual__3", "lot3/")))
    (reason,) = reasons_to_wait(emr, settings, plan("manual__5"))
    assert reason.startswith(
        "4 of Orchard's clusters are active, and ORCHARD_MAX_RUNNING_CLUSTERS is 4: "
        "this run waits until one terminates: "
    )
    for number, cluster_id in enumerate(ids):
        assert cluster_id in reason
        assert f"'manual__{number}'" in reason
    emr.terminate_job_flows(JobFlowIds=ids[:1])
    assert reasons_to_wait(emr, settings, plan("manual__5")) == []


@pytest.mark.parametrize("change", [{"Name": "another-program"}, {"Tags": []}])
def test_clusters_of_other_programs_do_not_count(
    emr: "EMRClient", settings: Settings, plan: Plan, start: Start, change: dict[str, Any]
) -> None:
    foreign = plan("manual__1")
    foreign["cluster"] |= change
    for _ in range(5):
        start(foreign)
    assert reasons_to_wait(emr, settings, plan("manual__2")) == []
