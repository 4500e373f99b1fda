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

from sandbox import aws

if TYPE_CHECKING:
    from collections.abc import Iterator

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
# Options of spark-submit: the short programs of the tests do not repay the second compiler of the JVM.
QUICK_JVM: Final = ("--conf", "spark.driver.extraJavaOptions=-XX:TieredStopAtLevel=1")
# The default roles of `aws emr create-default-roles`.
ROLES: Final[dict[str, Any]] = {"ServiceRole": "EMR_DefaultRole", "JobFlowRole": "EMR_EC2_DefaultRole"}


@contextlib.contextmanager
def default_node_role(iam: "IAMClient") -> "Iterator[str]":
    """Yield the name of EMR's default role for nodes. It exists while the context is open, unless it existed before."""
    name, created = ROLES["JobFlowRole"], False
    with contextlib.suppress(iam.exceptions.EntityAlreadyExistsException):
        aws.create_role(iam, name, "ec2")
        created = True
    yield name
    if created:
        iam.delete_role(RoleName=name)


def wait_until(found: "Callable[[], Found | None]", what: str, seconds: float = DEADLINE_SECONDS) -> "Found":
    """Wait until `found` returns something true, and return it."""
    started = time.monotonic()
    while not (result := found()):
        waited = time.monotonic() - started
        if waited > seconds:
            raise TimeoutError(f"waited {seconds} s for {what}")
        # Poll ever less often, because polling slows down the processes that the test waits for.
        time.sleep(min(0.01 + waited / 10, 0.5))
    return result


def is_running(pid: int) -> bool:
    """Return whether a process is running; a zombie is not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def wait_for_death(pid: int) -> None:
    """Wait until a process has ended, because SIGKILL takes a moment."""
    wait_until(lambda: not is_running(pid), f"the death of pid {pid}", seconds=5)


def read_pid(file: Path) -> int:
    """Wait until a step writes this file, and return the process id in it."""
    return int(wait_until(lambda: file.read_text().strip() if file.exists() else None, f"a pid in {file}"))


def until(file: Path) -> str:
    """Return a shell command that waits for a file."""
    return f"until [ -e {file} ]; do sleep 0.02; done"


def grandchild(pid_file: Path) -> str:
    """Return a shell command that starts a child process, writes its pid, and waits for it."""
    return f"sleep 60 & echo $! > {pid_file}; wait"


def runaway(pid_file: Path) -> str:
    """Return a shell command that starts a process in a new session, which writes its pid."""
    return f"setsid sh -c 'echo $$ > {pid_file}; exec sleep 60' & {until(pid_file)}"


def command(*arguments: str, on_failure: str = "CONTINUE", jar: str = "command-runner.jar") -> "StepConfigTypeDef":
    """Return a step that runs a command."""
    step: Any = {
        "Name": " ".join(arguments)[:50] or jar,
        "ActionOnFailure": on_failure,
        "HadoopJarStep": {"Jar": jar, "Args": list(arguments)},
    }
    typed: StepConfigTypeDef = step
    return typed


def bash(script: str, on_failure: str = "CONTINUE") -> "StepConfigTypeDef":
    """Return a step that runs a shell command."""
    return command("bash", "-c", script, on_failure=on_failure)


def refusal(call: "Callable[..., Any]", **parameters: Any) -> tuple[str, str]:
    """Return the code and the message of the error that a call raises."""
    with pytest.raises(ClientError) as raised:
        call(**parameters)
    error = raised.value.response["Error"]
    return error["Code"], error["Message"]


class User:
    """A boto3 user of a local AWS, whose account has the default roles."""

    def __init__(self, endpoint_url: str) -> None:
        session = boto3.Session(aws_access_key_id="user", aws_secret_access_key="secret", region_name=REGION)
        self.emr: EMRClient = session.client("emr", endpoint_url=endpoint_url)
        self.s3: S3Client = session.client("s3", endpoint_url=endpoint_url)
        self.endpoint_url = endpoint_url
        self._create_roles(session.client("iam", endpoint_url=endpoint_url))

    @staticmethod
    def _create_roles(iam: "IAMClient") -> None:
        # moto's roles belong to the process: another user may have created them.
        with contextlib.suppress(iam.exceptions.EntityAlreadyExistsException):
            iam.create_role(RoleName=ROLES["ServiceRole"], AssumeRolePolicyDocument="{}")
        with contextlib.suppress(iam.exceptions.EntityAlreadyExistsException):
            iam.create_instance_profile(InstanceProfileName=ROLES["JobFlowRole"])

    def make_bucket(self) -> None:
        """Create the bucket for scripts and logs, unless another user in this process has created it."""
        with contextlib.suppress(self.s3.exceptions.BucketAlreadyOwnedByYou):
            self.s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})

    def start(self, *steps: "StepConfigTypeDef", keep_alive: bool = False, **request: Any) -> str:
        """Create a cluster and return its id; `bootstrap` holds its actions as (script URI, arguments...)."""
        actions = [
            {"Name": f"action {number}", "ScriptBootstrapAction": {"Path": uri, "Args": list(arguments)}}
            for number, (uri, *arguments) in enumerate(request.pop("bootstrap", []), start=1)
        ]
        parameters: dict[str, Any] = {
            "Name": "a test's cluster",
            "ReleaseLabel": "emr-7.14.0",
            "LogUri": LOG_URI,
            **ROLES,
            "BootstrapActions": actions,
            "Steps": list(steps),
            **request,
        }
        if parameters["LogUri"] is None:
            del parameters["LogUri"]
        instances = request.get("Instances", {})
        one = {} if "InstanceGroups" in instances else {"MasterInstanceType": "m5.xlarge", "InstanceCount": 1}
        parameters["Instances"] = {**one, "KeepJobFlowAliveWhenNoSteps": keep_alive, **instances}
        return self.emr.run_job_flow(**parameters)["JobFlowId"]

    def run(self, *steps: "StepConfigTypeDef", **request: Any) -> str:
        """Run a cluster to its end, and return its id."""
        cluster_id = self.start(*steps, **request)
        self.wait_for(cluster_id, *ENDED)
        return cluster_id

    def add(self, cluster_id: str, *steps: "StepConfigTypeDef") -> list[str]:
        """Add steps, and return their ids."""
        return self.emr.add_job_flow_steps(JobFlowId=cluster_id, Steps=list(steps))["StepIds"]

    def terminate(self, cluster_id: str) -> None:
        """Request termination of a cluster."""
        self.emr.terminate_job_flows(JobFlowIds=[cluster_id])

    def cluster(self, cluster_id: str) -> "ClusterTypeDef":
        """Describe a cluster."""
        return self.emr.describe_cluster(ClusterId=cluster_id)["Cluster"]

    def state(self, cluster_id: str) -> str:
        """Return the state of a cluster."""
        return self.cluster(cluster_id)["Status"]["State"]

    def end_code(self, cluster_id: str) -> str:
        """Return the code of a cluster's StateChangeReason."""
        return self.cluster(cluster_id)["Status"]["StateChangeReason"]["Code"]

    def steps(self, cluster_id: str) -> "list[StepTypeDef]":
        """Describe the steps of a cluster, in the order in which they were added."""
        listed = [step["Id"] for step in self.emr.list_steps(ClusterId=cluster_id)["Steps"]]
        return [self.step(cluster_id, step_id) for step_id in reversed(listed)]

    def step(self, cluster_id: str, step_id: str) -> "StepTypeDef":
        """Describe a step."""
        return self.emr.describe_step(ClusterId=cluster_id, StepId=step_id)["Step"]

    def step_states(self, cluster_id: str) -> list[str]:
        """Return the states of the steps, in the order in which they were added."""
        return [step["Status"]["State"] for step in self.steps(cluster_id)]

    def wait_for(self, cluster_id: str, *states: str) -> "ClusterTypeDef":
        """Wait until a cluster is in one of these states, and describe it."""

        def arrived() -> "ClusterTypeDef | None":
            cluster = self.cluster(cluster_id)
            if cluster["Status"]["State"] in ENDED and cluster["Status"]["State"] not in states:
                raise AssertionError(f"{cluster_id} should become {states}: {cluster['Status']}")
            return cluster if cluster["Status"]["State"] in states else None

        return wait_until(arrived, f"{cluster_id} in {states}", seconds=150)

    def wait_for_step(self, cluster_id: str, step_id: str, *states: str) -> "StepTypeDef":
        """Wait until a step is in one of these states, and describe it."""

        def arrived() -> "StepTypeDef | None":
            step = self.step(cluster_id, step_id)
            if step["Status"]["State"] in STEP_ENDED and step["Status"]["State"] not in states:
                raise AssertionError(f"{step_id} should become {states}: {step['Status']}")
            return step if step["Status"]["State"] in states else None

        return wait_until(arrived, f"{step_id} in {states}")

    def put(self, key: str, content: str | bytes) -> str:
        """Upload an object, and return its URI."""
        self.s3.put_object(Bucket=BUCKET, Key=key, Body=content)
        return f"s3://{BUCKET}/{key}"

    def read_log(self, uri: str) -> str:
        """Wait for a compressed log, because the logs of steps are uploaded late, and return its text."""
        where = urlsplit(uri)
        wait_until(lambda: self.keys(uri), uri)
        body = self.s3.get_object(Bucket=where.netloc, Key=where.path.lstrip("/"))["Body"].read()
        return gzip.decompress(body).decode()

    def keys(self, uri: str) -> list[str]:
        """Return the keys of the objects below a prefix, without the prefix."""
        where = urlsplit(uri)
        prefix = where.path.lstrip("/")
        listed = self.s3.list_objects_v2(Bucket=where.netloc, Prefix=prefix).get("Contents", [])
        return sorted(item["Key"].removeprefix(prefix) for item in listed)
