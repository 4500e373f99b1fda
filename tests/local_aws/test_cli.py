"""The real AWS CLI, as a user of `aws emr` runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3

from tests.local_aws.user import LOG_URI, REGION, ROLES, User, until


def aws(user: User, folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run `aws emr` without any user's configuration.

    The endpoint is an option, because the commands of `aws emr` ignore AWS_ENDPOINT_URL.
    """
    return run(user, folder, "--endpoint-url", user.endpoint_url, "emr", *arguments)


def run(user: User, folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run `aws` without any user's configuration."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ENDPOINT_URL": user.endpoint_url,
        "AWS_ACCESS_KEY_ID": "user",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }
    return subprocess.run(
        [sys.executable, "-m", "awscli", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def output(completed: "subprocess.CompletedProcess[str]") -> Any:
    """Return the JSON that a successful command printed; None if it printed nothing."""
    assert (completed.returncode, completed.stderr) == (0, "")
    return json.loads(completed.stdout or "null")


def test_the_cli_creates_describes_and_awaits_a_cluster(user: User, tmp_path: Path) -> None:
    go = tmp_path / "go"
    created = output(
        aws(
            user,
            tmp_path,
            *("create-cluster", "--name", "by hand", "--release-label", "emr-7.14.0", "--use-default-roles"),
            *("--applications", "Name=Spark", "--instance-type", "m5.xlarge", "--instance-count", "2"),
            *("--steps", f'[{{"Name": "go", "Jar": "command-runner.jar", "Args": ["bash", "-c", "{until(go)}"]}}]'),
            *("--auto-terminate", "--tags", "team=fruit"),
        )
    )
    cluster_id = created["ClusterId"]

    cluster = output(aws(user, tmp_path, "describe-cluster", "--cluster-id", cluster_id))["Cluster"]
    assert (cluster["Name"], cluster["Tags"]) == ("by hand", [{"Key": "team", "Value": "fruit"}])
    assert [group["InstanceGroupType"] for group in cluster["InstanceGroups"]] == ["MASTER", "CORE"]
    assert cluster["ServiceRole"] == "EMR_DefaultRole"

    step = "Type=CUSTOM_JAR,Name=late,Jar=command-runner.jar,Args=[true]"
    (step_id,) = output(aws(user, tmp_path, "add-steps", "--cluster-id", cluster_id, "--steps", step))["StepIds"]
    go.touch()
    output(aws(user, tmp_path, "wait", "cluster-terminated", "--cluster-id", cluster_id))
    assert user.step(cluster_id, step_id)["Status"]["State"] == "COMPLETED"
    listed = output(aws(user, tmp_path, "list-clusters", "--terminated"))["Clusters"]
    assert cluster_id in [cluster["Id"] for cluster in listed]


def test_what_the_cli_adds_to_a_request_by_itself_runs(user: User, tmp_path: Path) -> None:
    program = user.put("cli/hello.py", "print('hello')")
    created = output(
        aws(
            user,
            tmp_path,
            *("create-cluster", "--release-label", "emr-7.14.0", "--use-default-roles", "--enable-debugging"),
            *("--log-uri", LOG_URI, "--instance-type", "m5.xlarge", "--instance-count", "1", "--auto-terminate"),
            *("--applications", "Name=Spark", "Name=Hive"),
            *("--steps", f"Type=Spark,Args=[--deploy-mode,cluster,{program}]"),
            *("Type=CUSTOM_JAR,Jar=command-runner.jar,Args=[spark-submit,--version]", "Type=HIVE,Args=[-f,s3://b/x.q]"),
        )
    )
    user.wait_for(created["ClusterId"], "TERMINATED")
    steps = user.steps(created["ClusterId"])
    assert [(step["Name"], step["Status"]["State"]) for step in steps] == [
        ("Setup Hadoop Debugging", "COMPLETED"),
        ("Spark application", "COMPLETED"),
        ("Custom JAR", "COMPLETED"),
        ("Hive program", "FAILED"),
    ]
    assert "'hive-script'; the node has" in steps[-1]["Status"]["FailureDetails"]["Message"]


def test_the_cli_puts_an_auto_termination_policy(user: User, tmp_path: Path) -> None:
    cluster_id = user.start(keep_alive=True)
    policy = ("--auto-termination-policy", "IdleTimeout=120")
    output(aws(user, tmp_path, "put-auto-termination-policy", "--cluster-id", cluster_id, *policy))
    stored = user.emr.get_auto_termination_policy(ClusterId=cluster_id)["AutoTerminationPolicy"]
    assert stored == {"IdleTimeout": 120}


def test_the_cli_prints_the_code_and_message_of_an_error(user: User, tmp_path: Path) -> None:
    failed = aws(
        user,
        tmp_path,
        *("create-cluster", "--release-label", "emr-7.14.0", "--use-default-roles"),
        *("--instance-type", "m5.huge", "--instance-count", "1"),
    )
    assert failed.returncode != 0
    assert "(ValidationException) when calling the RunJobFlow operation: Instance type 'm5.huge'" in failed.stderr


def test_create_default_roles_creates_the_roles_of_emr(user: User, tmp_path: Path) -> None:
    session = boto3.Session(aws_access_key_id="user", aws_secret_access_key="secret", region_name=REGION)
    iam = session.client("iam", endpoint_url=user.endpoint_url)
    iam.delete_role(RoleName=ROLES["ServiceRole"])
    iam.delete_instance_profile(InstanceProfileName=ROLES["JobFlowRole"])
    create = ("create-cluster", "--release-label", "emr-7.14.0", "--use-default-roles", "--auto-terminate")
    size = ("--instance-type", "m5.xlarge", "--instance-count", "1")
    failed = aws(user, tmp_path, *create, *size)
    assert "Invalid InstanceProfile: EMR_EC2_DefaultRole. EMR service role EMR_DefaultRole is invalid." in failed.stderr

    # Without --endpoint-url: the command derives the service principal from EMR's real endpoint, but sends it nothing.
    created = output(run(user, tmp_path, "emr", "create-default-roles"))
    names = ["EMR_EC2_DefaultRole", "EMR_DefaultRole", "EMR_AutoScaling_DefaultRole"]
    assert [role["Role"]["RoleName"] for role in created] == names
    (policy,) = iam.list_attached_role_policies(RoleName=ROLES["ServiceRole"])["AttachedPolicies"]
    assert policy["PolicyArn"] == "arn:aws:iam::aws:policy/service-role/AmazonElasticMapReduceRole"
    cluster_id = output(aws(user, tmp_path, *create, *size))["ClusterId"]
    user.wait_for(cluster_id, "TERMINATED")
