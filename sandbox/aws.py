"""The local AWS as a process, with everything that a deployment needs: bucket, roles, release, images."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config

from infra import release
from sandbox.folders import UnusableFolder
from sandbox.processes import DidNotStart, running, wait_for_port

if TYPE_CHECKING:
    from mypy_boto3_iam import IAMClient
    from mypy_boto3_s3 import S3Client

REGION = "eu-west-1"
BUCKET = "orchard-demo"
SERVICE_ROLE = "EMR_DefaultRole_V2"
# The policy of the service role that EMR's console creates.
SERVICE_POLICY = "arn:aws:iam::aws:policy/service-role/AmazonEMRServicePolicy_v2"
# The policies of the nodes' role: that of EMR's default role, and what sessions on a held cluster need.
NODE_POLICIES = (
    "arn:aws:iam::aws:policy/service-role/AmazonElasticMapReduceforEC2Role",
    "arn:aws:iam::aws:policy/AmazonSSMManagedInstanceCore",
)
MANAGED_POLICIES_TAG = "for-use-with-amazon-emr-managed-policies"
INSTANCE_PROFILE = "EMR_EC2_DefaultRole"
DATASET_PREFIX = "images/"
NAMES_SHOWN = 5
# The variable with further options of the local AWS, and the options that it may not have, with what to do instead.
OPTIONS_VARIABLE = "LOCAL_AWS_OPTIONS"
SET_BY_SANDBOX = {
    "--port": "`make up AWS_PORT=…` sets the port, and other programs use a free one",
    "--data": "the option --folder sets the folder of each program",
}


class BadFileName(ValueError):
    """The names of some files cannot be keys on S3."""

    def __init__(self, names: list[str]) -> None:
        shown = ", ".join(names[:NAMES_SHOWN]) + (", …" if len(names) > NAMES_SHOWN else "")
        super().__init__(
            f"the names of {len(names)} files are not UTF-8, as keys on S3 must be: {shown}. Rename them, for example "
            "with convmv"
        )


class BadOptions(ValueError):
    """The options of the local AWS in the variable LOCAL_AWS_OPTIONS are wrong."""

    def __init__(self, value: str, why: str) -> None:
        super().__init__(f"the variable {OPTIONS_VARIABLE} is {value!r}: {why}")


# The errors of the set-up whose message is all that the user needs.
SET_UP_ERRORS = (FileNotFoundError, FileExistsError, UnusableFolder, BadFileName, BadOptions, DidNotStart)


def client(service: str, endpoint_url: str, attempts: int = 6) -> Any:
    """Create a boto3 client for a service of the local AWS, which sends a request at most `attempts` times."""
    return boto3.client(  # type: ignore[call-overload]  # the service is a variable
        service,
        endpoint_url=endpoint_url,
        region_name=REGION,
        aws_access_key_id="local",
        aws_secret_access_key="local",  # noqa: S106  # the local AWS accepts any credentials
        config=Config(retries={"mode": "standard", "total_max_attempts": attempts}),
    )


def local_aws_command(data: Path, port: int, *options: str) -> list[str]:
    """Return the command that runs the local AWS on a port, with its clusters below `data`.

    The options in the variable LOCAL_AWS_OPTIONS come first: `options` count more.

    Raises:
        BadOptions: the variable is not quoted as in a shell, or has an option that the sandbox itself sets.
    """
    own = ["--port", str(port), "--data", str(data)]
    return [sys.executable, "-m", "local_aws", *options_of_environment(), *own, *options]


def options_of_environment() -> list[str]:
    """Return the options of the local AWS in the variable LOCAL_AWS_OPTIONS, which are quoted as in a shell.

    Raises:
        BadOptions: the variable is not quoted as in a shell, or has an option that the sandbox itself sets.
    """
    value = os.environ.get(OPTIONS_VARIABLE, "")
    try:
        options = shlex.split(value)
    except ValueError as error:
        raise BadOptions(value, f"{error}: quote each option as in a shell") from error
    for name, instead in SET_BY_SANDBOX.items():
        if any(option.split("=")[0] == name for option in options):
            raise BadOptions(value, f"remove {name}: {instead}")
    return options


def is_like_emr() -> bool:
    """Return whether LOCAL_AWS_OPTIONS makes the local AWS as slow as EMR, with EMR's limits on requests.

    Raises:
        BadOptions: see `options_of_environment`.
    """
    return "--like-emr" in options_of_environment()


def wait_for_local_aws(port: int, process: subprocess.Popen[bytes], log_file: Path) -> None:
    """Wait until a local AWS that was started listens on its port.

    Raises:
        DidNotStart: it does not listen within a minute, or exits, for example because of a wrong option.
    """
    try:
        wait_for_port(port, process, log_file)
    except DidNotStart as error:
        value = os.environ.get(OPTIONS_VARIABLE)
        raise DidNotStart(f"{error}\nThe variable {OPTIONS_VARIABLE} is {value!r}" if value else str(error)) from error


@contextmanager
def local_aws(data: Path, port: int, log_file: Path, *options: str) -> Iterator[str]:
    """Run the local AWS as a process while the context is open, and yield its endpoint URL.

    Raises:
        DidNotStart: the local AWS does not start, for example because the port is in use.
        BadOptions: the options in LOCAL_AWS_OPTIONS are wrong.
    """
    with running(local_aws_command(data, port, *options), log_file, os.environ) as process:
        wait_for_local_aws(port, process, log_file)
        yield f"http://127.0.0.1:{port}"


def provision(endpoint_url: str, build_dir: Path) -> str:
    """Create the bucket and the roles, tag the default VPC, upload the release, and return the release's version.

    Raises:
        infra.release.PartMissing: a part of the release has not been built.
    """
    s3, iam = client("s3", endpoint_url), client("iam", endpoint_url)
    s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
    create_role(iam, SERVICE_ROLE, "elasticmapreduce")
    iam.attach_role_policy(RoleName=SERVICE_ROLE, PolicyArn=SERVICE_POLICY)
    create_role(iam, INSTANCE_PROFILE, "ec2")
    for policy in NODE_POLICIES:
        iam.attach_role_policy(RoleName=INSTANCE_PROFILE, PolicyArn=policy)
    iam.create_service_linked_role(AWSServiceName="spot.amazonaws.com")
    iam.create_instance_profile(InstanceProfileName=INSTANCE_PROFILE)
    iam.add_role_to_instance_profile(InstanceProfileName=INSTANCE_PROFILE, RoleName=INSTANCE_PROFILE)
    tag_default_vpc(client("ec2", endpoint_url))
    return release.upload(s3, BUCKET, release.collect(build_dir))


def create_role(iam: "IAMClient", name: str, service: str) -> str:
    """Create a role that a service may assume, for example `ec2`, and return its ARN."""
    trust = {"Effect": "Allow", "Principal": {"Service": f"{service}.amazonaws.com"}, "Action": "sts:AssumeRole"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    return iam.create_role(RoleName=name, AssumeRolePolicyDocument=document)["Role"]["Arn"]


def tag_default_vpc(ec2: Any) -> None:
    """Give the default VPC and its subnets the tag that the policy of the service role asks for.

    https://docs.aws.amazon.com/emr/latest/ManagementGuide/emr-managed-iam-policies.html
    """
    subnets = ec2.describe_subnets(Filters=[{"Name": "default-for-az", "Values": ["true"]}])["Subnets"]
    resources = {subnet[key] for subnet in subnets for key in ("SubnetId", "VpcId")}
    ec2.create_tags(Resources=sorted(resources), Tags=[{"Key": MANAGED_POLICIES_TAG, "Value": "true"}])


def upload_images(s3: "S3Client", folder: Path, prefix: str = DATASET_PREFIX) -> int:
    """Upload every file in a folder and its subfolders, and return the number of files.

    Raises:
        FileNotFoundError: the folder does not exist or contains no files.
        BadFileName: the name of a file is not UTF-8. Nothing is uploaded.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    if not files:
        raise FileNotFoundError(f"no files in {folder}: use DATA=FOLDER with a folder of images per label")
    names = {file: str(file.relative_to(folder)) for file in files}
    readable = {file: os.fsencode(name).decode("utf-8", "backslashreplace") for file, name in names.items()}
    if wrong := [readable[file] for file in files if readable[file] != names[file]]:
        raise BadFileName(wrong)
    for file in files:
        s3.put_object(Bucket=BUCKET, Key=f"{prefix}{file.relative_to(folder).as_posix()}", Body=file.read_bytes())
    return len(files)
