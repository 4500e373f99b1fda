import contextlib
import gzip
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.exceptions import ClientError

if TYPE_CHECKING:
    from mypy_boto3_emr import EMRClient
    from mypy_boto3_emr.type_defs import ClusterTypeDef, StepConfigTypeDef, StepTypeDef
    from mypy_boto3_iam import IAMClient
    from mypy_boto3_s3 import S3Client

    Found = TypeVar("Found")

REGION: Final = "eu-west-1"
BUCKET = "local-aws-tests"
LOG_URI = f"s3://{BUCKET}/deep/logs/"
ENDED = ("TERMINATED", "TERMINATED_WITH_ERRORS")
STEP_ENDED = ("COMPLETED", "FAILED", "CANCELLED")
DEADLINE_SECONDS = 30.0
# Those of `aws emr create-default-roles`.
ROLES: Final[dict[str, Any]] = {"ServiceRole": "EMR_DefaultRole", "JobFlowRole": "EMR_EC2_DefaultRole"}


def wait_until(found: "Callable[[], Found | None]", what: str, seconds: float = DEADLINE_SECONDS) -> "Found":
    """What `found` gives as soon as it is true."""
    started = time.monotonic()
    while not (result := found()):
        waited = time.monotonic() - started
        if waited > seconds:
            raise TimeoutError(f"{what}: not within {seconds} s")
        # Ever less often: to ask takes the processor from what is waited for.
        time.sleep(min(0.01 + waited / 10, 0.5))
    return result


def is_running(pid: int) -> bool:
    """Whether a process lives; a zombie that nobody has buried yet does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def wait_for_death(pid: int) -> None:
    """Wait until a process is gone; SIGKILL takes a moment."""
    wait_until(lambda: not is_running(pid), f"the death of pid {pid}", seconds=5)


def read_pid(file: Path) -> int:
    """The process id in a file that a step is about to write."""
    return int(wait_until(lambda: file.read_text().strip() if file.exists() else None, f"a pid in {file}"))


def until(file: Path) -> str:
    """A line of shell that waits for a file."""
    return f"until [ -e {file} ]; do sleep 0.02; done"


def grandchild(pid_file: Path) -> str:
    """A line of shell that writes the pid of a program that it started, and waits for its end."""
    return f"sleep 60 & echo $! > {pid_file}; wait"


def runaway(pid_file: Path) -> str:
    """A line of shell that starts a program in a process group of its own, which writes its pid."""
    return f"setsid sh -c 'echo $$ > {pid_file}; exec sleep 60' & {until(pid_file)}"


def command(*arguments: str, on_failure: str = "CONTINUE", jar: str = "command-runner.jar") -> "StepConfigTypeDef":
    """A step that runs a command."""
    step: Any = {
        "Name": " ".join(arguments)[:50] or jar,
        "ActionOnFailure": on_failure,
        "HadoopJarStep": {"Jar": jar, "Args": list(arguments)},
    }
    checked: StepConfigTypeDef = step
    return checked


def bash(script: str, on_failure: str = "CONTINUE") -> "StepConfigTypeDef":
    """A step that runs a line of shell."""
    return command("bash", "-c", script, on_failure=on_failure)


def refusal(call: "Callable[..., Any]", **parameters: Any) -> tuple[str, str]:
    """The code and the message of the error that a call gets."""
    with pytest.raises(ClientError) as refused:
        call(**parameters)
    said = refused.value.response["Error"]
    return said["Code"], said["Message"]


class User:
    """Somebody who drives a local AWS with boto3; its account has the default roles."""

    def __init__(self, endpoint_url: str) -> None:
        session = boto3.Session(aws_access_key_id="user", aws_secret_access_key="secret", region_name=REGION)
        self.emr: EMRClient = session.client("emr", endpoint_url=endpoint_url)
        self.s3: S3Client = session.client("s3", endpoint_url=endpoint_url)
        self.endpoint_url = endpoint_url
        self._make_roles(session.client("iam", endpoint_url=endpoint_url))

    @staticmethod
    def _make_roles(iam: "IAMClient") -> None:
        # moto's roles belong to the process: other users may have made them.
        with contextlib.suppress(iam.exceptions.EntityAlreadyExistsException):
            iam.create_role(RoleName=ROLES["ServiceRole"], AssumeRolePolicyDocument="{}")
        with contextlib.suppress(iam.exceptions.EntityAlreadyExistsException):
            iam.create_instance_profile(InstanceProfileName=ROLES["JobFlowRole"])

    def make_bucket(self) -> None:
        """Make the bucket of the scripts and the logs, which others of this process may have made."""
        with contextlib.suppress(self.s3.exceptions.BucketAlreadyOwnedByYou):
            self.s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})

    def start(self, *steps: "StepConfigTypeDef", keep_alive: bool = False, **request: Any) -> str:
        """Start a cluster and return its id; its bootstrap actions are given as (script URI, arguments...)."""
        actions = [
            {"Name": f"action {number}", "ScriptBootstrapAction": {"Path": uri, "Args": list(arguments)}}
            for number, (uri, *arguments) in enumerate(request.pop("bootstrap", []), start=1)
        ]
        whole: dict[str, Any] = {
            "Name": "a test's cluster",
            "ReleaseLabel": "emr-7.14.0",
            "LogUri": LOG_URI,
            **ROLES,
            "BootstrapActions": actions,
            "Steps": list(steps),
            **request,
        }
        if whole["LogUri"] is None:
            del whole["LogUri"]
        instances = request.get("Instances", {})
        one = {} if "InstanceGroups" in instances else {"MasterInstanceType": "m5.xlarge", "InstanceCount": 1}
        whole["Instances"] = {**one, "KeepJobFlowAliveWhenNoSteps": keep_alive, **instances}
        return self.emr.run_job_flow(**whole)["JobFlowId"]

    def run(self, *steps: "StepConfigTypeDef", **request: Any) -> str:
        """Run a cluster to its end and return its id."""
        cluster_id = self.start(*steps, **request)
        self.wait_for(cluster_id, *ENDED)
        return cluster_id

    def add(self, cluster_id: str, *steps: "StepConfigTypeDef") -> list[str]:
        """Add steps and return their ids."""
        return self.emr.add_job_flow_steps(JobFlowId=cluster_id, Steps=list(steps))["StepIds"]

    def terminate(self, cluster_id: str) -> None:
        """Ask for a cluster's end."""
        self.emr.terminate_job_flows(JobFlowIds=[cluster_id])

    def cluster(self, cluster_id: str) -> "ClusterTypeDef":
        """The cluster as it is now."""
        return self.emr.describe_cluster(ClusterId=cluster_id)["Cluster"]

    def state(self, cluster_id: str) -> str:
        """The cluster's state."""
        return self.cluster(cluster_id)["Status"]["State"]

    def end_code(self, cluster_id: str) -> str:
        """Why the cluster has ended."""
        return self.cluster(cluster_id)["Status"]["StateChangeReason"]["Code"]

    def steps(self, cluster_id: str) -> "list[StepTypeDef]":
        """The cluster's steps, in the order in which they were added."""
        listed = [step["Id"] for step in self.emr.list_steps(ClusterId=cluster_id)["Steps"]]
        return [self.step(cluster_id, step_id) for step_id in reversed(listed)]

    def step(self, cluster_id: str, step_id: str) -> "StepTypeDef":
        """The step as it is now."""
        return self.emr.describe_step(ClusterId=cluster_id, StepId=step_id)["Step"]

    def step_states(self, cluster_id: str) -> list[str]:
        """The states of the steps, in the order in which they were added."""
        return [step["Status"]["State"] for step in self.steps(cluster_id)]

    def wait_for(self, cluster_id: str, *states: str) -> "ClusterTypeDef":
        """Wait until the cluster is in one of these states."""

        def arrived() -> "ClusterTypeDef | None":
            cluster = self.cluster(cluster_id)
            if cluster["Status"]["State"] in ENDED and cluster["Status"]["State"] not in states:
                raise AssertionError(f"{cluster_id} should become {states}: {cluster['Status']}")
            return cluster if cluster["Status"]["State"] in states else None

        return wait_until(arrived, f"{cluster_id} in {states}", seconds=150)

    def wait_for_step(self, cluster_id: str, step_id: str, *states: str) -> "StepTypeDef":
        """Wait until the step is in one of these states."""

        def arrived() -> "StepTypeDef | None":
            step = self.step(cluster_id, step_id)
            if step["Status"]["State"] in STEP_ENDED and step["Status"]["State"] not in states:
                raise AssertionError(f"{step_id} should become {states}: {step['Status']}")
            return step if step["Status"]["State"] in states else None

        return wait_until(arrived, f"{step_id} in {states}")

    def put(self, key: str, content: str | bytes) -> str:
        """Put an object and return its URI."""
        self.s3.put_object(Bucket=BUCKET, Key=key, Body=content)
        return f"s3://{BUCKET}/{key}"

    def read_log(self, uri: str) -> str:
        """The text of a zipped object."""
        where = urlsplit(uri)
        body = self.s3.get_object(Bucket=where.netloc, Key=where.path.lstrip("/"))["Body"].read()
        return gzip.decompress(body).decode()

    def keys(self, uri: str) -> list[str]:
        """The names of the objects in a folder, without the folder."""
        where = urlsplit(uri)
        prefix = where.path.lstrip("/")
        listed = self.s3.list_objects_v2(Bucket=where.netloc, Prefix=prefix).get("Contents", [])
        return sorted(item["Key"].removeprefix(prefix) for item in listed)
