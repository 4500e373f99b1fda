import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from demo import watch
from local_aws.emr.life import Timings
from local_aws.server import LocalAws
from sandbox import aws
from sandbox.processes import wait_until

if TYPE_CHECKING:
    from mypy_boto3_emr import EMRClient
    from mypy_boto3_iam import IAMClient


def test_a_task_lasts_from_its_first_start_to_its_last_end() -> None:
    lines: list[str] = []
    times = watch.TaskTimes(lines.append)

    def log() -> "list[str]":
        return [
            "[DAG TEST] starting task_id=plan map_index=-1",
            "something else",
            "[DAG TEST] end task task_id=plan map_index=-1",
            "[DAG TEST] starting task_id=cluster_ready map_index=-1",
            "[DAG TEST] end task task_id=cluster_ready map_index=-1",
            "[DAG TEST] starting task_id=cluster_ready map_index=-1",
        ]

    def slowly() -> "list[str]":
        time.sleep(0.2)
        return ["[DAG TEST] end task task_id=cluster_ready map_index=-1"]

    times.follow(log())
    times.follow(slowly())
    assert lines == ["task plan", "task cluster_ready"]
    assert times.seconds()["plan"] == 0
    assert times.seconds()["cluster_ready"] >= 0.2


def test_every_state_of_a_cluster_and_its_steps_is_printed(aws_url: str, iam: "IAMClient") -> None:
    iam.create_role(RoleName="watched", AssumeRolePolicyDocument="{}")
    iam.create_instance_profile(InstanceProfileName="watched")
    emr: EMRClient = aws.client("emr", aws_url)
    lines: list[str] = []
    with watch.EmrWatcher(emr, lines.append):
        cluster_id = emr.run_job_flow(
            Name="watched",
            ReleaseLabel="emr-7.14.0",
            ServiceRole="watched",
            JobFlowRole="watched",
            Instances={"MasterInstanceType": "m5.xlarge", "InstanceCount": 1},
            Steps=[
                {
                    "Name": "wait",
                    "ActionOnFailure": "CONTINUE",
                    "HadoopJarStep": {"Jar": "command-runner.jar", "Args": ["sleep", "1"]},
                }
            ],
        )["JobFlowId"]
        deadline = time.monotonic() + 20
        while f"  cluster {cluster_id} TERMINATED (Steps completed)" not in lines and time.monotonic() < deadline:
            time.sleep(0.1)
    assert f"  cluster {cluster_id} RUNNING" in lines
    assert f"  cluster {cluster_id} TERMINATED (Steps completed)" in lines
    assert lines.index("  step wait RUNNING") < lines.index("  step wait COMPLETED")
    (found,) = [cluster for cluster in watch.clusters(emr) if cluster["Id"] == cluster_id]
    assert [step["Name"] for step in found["Steps"]] == ["wait"]
    assert cluster_id not in [cluster["Id"] for cluster in watch.clusters(emr, without=[cluster_id])]


def test_a_watcher_that_is_throttled_leaves_requests_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.02)
    with LocalAws(tmp_path / "aws", timings=Timings(throttles=True)) as server:
        watching, other = (aws.client("emr", server.endpoint_url, attempts=1) for _ in range(2))
        statuses: list[int] = []
        watching.meta.events.register(
            "after-call.emr.ListClusters", lambda http_response, **_: statuses.append(http_response.status_code)
        )
        with watch.EmrWatcher(watching, print):
            wait_until(lambda: 400 in statuses, "the end of the burst", timeout_seconds=20)
            throttled = len(statuses)
            time.sleep(watch.THROTTLED_POLL_SECONDS - 1)
            assert other.list_clusters()["Clusters"] == []
            assert len(statuses) <= throttled + 1
            wait_until(lambda: 200 in statuses[throttled:], "the next poll", timeout_seconds=20)
