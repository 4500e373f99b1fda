import time
from typing import TYPE_CHECKING

from demo import watch
from sandbox import aws

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
