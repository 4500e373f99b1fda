"""The validation of a cluster's instances, roles, subnets and steps."""

from typing import Any

import boto3
import pytest

from local_aws.emr.checks import check_instance_types
from local_aws.emr.errors import ValidationFailed
from local_aws.emr.model import SECURITY_GROUPS
from tests.local_aws.user import REGION, ROLES, User, bash, command, refusal

MASTER = {"InstanceRole": "MASTER", "InstanceType": "m5.xlarge", "InstanceCount": 1}
FLEET: dict[str, Any] = {
    "InstanceFleetType": "MASTER",
    "TargetOnDemandCapacity": 1,
    "InstanceTypeConfigs": [{"InstanceType": "m5.xlarge"}],
}
TASK = {"InstanceFleetType": "TASK", "TargetSpotCapacity": 1, "InstanceTypeConfigs": [{"InstanceType": "m5.xlarge"}]}
CORE = {**FLEET, "InstanceFleetType": "CORE"}
SMALLEST = {"MasterInstanceType": "m5.xlarge", "InstanceCount": 1}
NOWHERE = "arn:aws:iam::123456789012"


def spot(**specification: Any) -> dict[str, Any]:
    """Return fleets with a task fleet on Spot that has these changes in its specification."""
    valid = {"TimeoutDurationMinutes": 5, "TimeoutAction": "SWITCH_TO_ON_DEMAND"}
    task = {**TASK, "LaunchSpecifications": {"SpotSpecification": {**valid, **specification}}}
    return {"InstanceFleets": [FLEET, CORE, task]}


def run(user: User, **request: Any) -> Any:
    """Call RunJobFlow with the smallest valid request and these changes."""
    return user.emr.run_job_flow(
        **{"Name": "checked", "ReleaseLabel": "emr-7.14.0", "Instances": SMALLEST, **ROLES, **request}
    )


def count_clusters(user: User) -> int:
    """Count the clusters on all pages."""
    return sum(len(page["Clusters"]) for page in user.emr.get_paginator("list_clusters").paginate())


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        (
            {"Instances": {"MasterInstanceType": "m5.huge"}},
            "ValidationException",
            "Instance type 'm5.huge' is not supported by emr-7.14.0.",
        ),
        (
            {"Applications": [{"Name": "Spark"}, {"Name": "Sparky"}]},
            "ValidationException",
            "Specified application: Sparky is invalid. Use one of: AmazonCloudWatchAgent, ",
        ),
        # Releases differ: 5.36 is older than this instance type.
        (
            {"Instances": {"MasterInstanceType": "m8g.xlarge"}, "ReleaseLabel": "emr-5.36.0"},
            "ValidationException",
            "Instance type 'm8g.xlarge' is not supported by emr-5.36.0.",
        ),
        (
            {"Instances": {"InstanceGroups": [MASTER, {**MASTER, "InstanceRole": "CORE", "InstanceType": "x"}]}},
            "ValidationException",
            "Instance type 'x'",
        ),
        (
            {"Instances": {"InstanceFleets": [{**FLEET, "InstanceTypeConfigs": [{"InstanceType": "y"}]}]}},
            "ValidationException",
            "Instance type 'y'",
        ),
        (
            {"Instances": {"InstanceGroups": [MASTER], "InstanceFleets": [FLEET]}},
            "ValidationException",
            "The request has InstanceGroups and InstanceFleets.",
        ),
        (
            {"Instances": {"InstanceGroups": [MASTER], "InstanceCount": 3}},
            "ValidationException",
            "The request has InstanceGroups and InstanceCount.",
        ),
        (
            {"Instances": {"InstanceGroups": [{**MASTER, "InstanceRole": "CORE"}]}},
            "ValidationException",
            "must have 1 master instance, or 3 for high availability, not 0.",
        ),
        (
            {"Instances": {"InstanceFleets": [{**FLEET, "TargetOnDemandCapacity": 2}]}},
            "ValidationException",
            "must have 1 master instance, or 3 for high availability, not 2.",
        ),
        (
            {"Instances": {}},
            "ValidationException",
            "Instances must have MasterInstanceType, InstanceGroups or InstanceFleets.",
        ),
        ({"Instances": {"InstanceCount": 1}}, "ValidationException", "must have MasterInstanceType"),
        ({"Instances": {**SMALLEST, "InstanceCount": 0}}, "ValidationException", "must be at least 1, not 0."),
        (
            {"JobFlowRole": "no-profile", "ServiceRole": "no-role"},
            "ValidationException",
            "Invalid InstanceProfile: no-profile. EMR service role no-role is invalid.",
        ),
        ({"JobFlowRole": ""}, "ValidationException", "InstanceProfile is required for creating cluster."),
        ({"ServiceRole": ""}, "ValidationException", "ServiceRole is required for creating cluster."),
        ({"JobFlowRole": "no-profile"}, "ValidationException", "Invalid InstanceProfile: no-profile."),
        # A role is not an instance profile.
        ({"JobFlowRole": "checked-role"}, "ValidationException", "Invalid InstanceProfile: checked-role."),
        ({"ServiceRole": "no-role"}, "ValidationException", "EMR service role no-role is invalid."),
        ({"ServiceRole": f"{NOWHERE}:role/no-role"}, "ValidationException", f"{NOWHERE}:role/no-role is invalid."),
        ({"SecurityConfiguration": "none"}, "InvalidRequestException", "Security configuration with name 'none'"),
        ({"Instances": {**SMALLEST, "Ec2SubnetId": "subnet-0"}}, "ValidationException", "'subnet-0' does not exist."),
        (
            {"Instances": {**SMALLEST, "Ec2SubnetIds": ["subnet-1"]}},
            "ValidationException",
            "'subnet-1' does not exist.",
        ),
        (
            {"Instances": {**SMALLEST, "EmrManagedMasterSecurityGroup": "sg-1"}},
            "ValidationException",
            "you must also specify EmrManagedSlaveSecurityGroup.",
        ),
        (
            {"Instances": {**SMALLEST, "EmrManagedSlaveSecurityGroup": "sg-1"}},
            "ValidationException",
            "you must also specify EmrManagedMasterSecurityGroup.",
        ),
        (
            {"Instances": {**SMALLEST, "ServiceAccessSecurityGroup": "sg-1"}},
            "ValidationException",
            "If you specify ServiceAccessSecurityGroup, you must also specify EmrManagedMasterSecurityGroup.",
        ),
        (
            {"Instances": {**SMALLEST, **dict.fromkeys(SECURITY_GROUPS, "sg-1")}},
            "ValidationException",
            "The security group 'sg-1' does not exist.",
        ),
        (
            {"Instances": {**SMALLEST, "AdditionalSlaveSecurityGroups": ["sg-1"]}},
            "ValidationException",
            "The security group 'sg-1' does not exist.",
        ),
        (
            {"Instances": {**SMALLEST, "AdditionalMasterSecurityGroups": ["sg-1"] * 5}},
            "ValidationException",
            "Maximum number(4) of security groups exceeded for AdditionalMasterSecurityGroups.",
        ),
        ({"StepConcurrencyLevel": 0}, "ValidationException", "between 1 and 256, not 0."),
        ({"StepConcurrencyLevel": 257}, "ValidationException", "between 1 and 256, not 257."),
        (
            {"StepConcurrencyLevel": 2, "Steps": [bash("true"), bash("false", on_failure="CANCEL_AND_WAIT")]},
            "ValidationException",
            "ActionOnFailure CANCEL_AND_WAIT of step 'bash -c false' is not valid",
        ),
        (
            {"Steps": [command("true", "x" * 10_237)]},
            "ValidationException",
            "have 10241 characters in total; at most 10240",
        ),
        ({"Steps": [bash("true")] * 257}, "ValidationException", "257 of 256."),
        (
            {"AutoTerminationPolicy": {"IdleTimeout": 59}},
            "ValidationException",
            "between 60 and 604800 seconds, not 59.",
        ),
        ({"AutoTerminationPolicy": {"IdleTimeout": 604_801}}, "ValidationException", "not 604801."),
        ({"Instances": spot(TimeoutDurationMinutes=4)}, "ValidationException", "between 5 and 1440, not 4."),
        ({"Instances": spot(TimeoutDurationMinutes=1441)}, "ValidationException", "between 5 and 1440, not 1441."),
        ({"Instances": spot(TimeoutAction="RETRY")}, "ValidationException", "must be one of [SWITCH_TO_ON_DEMAND"),
        ({"Instances": {"InstanceFleets": [FLEET, TASK]}}, "ValidationException", "must have core instances."),
        (
            {"Instances": {"InstanceFleets": [FLEET, CORE, CORE]}},
            "ValidationException",
            "one instance fleet of each type, not MASTER, CORE, CORE.",
        ),
        (
            {"Instances": {"InstanceFleets": [{**FLEET, "InstanceTypeConfigs": FLEET["InstanceTypeConfigs"] * 6}]}},
            "ValidationException",
            "without an allocation strategy can have 5 instance types, not 6.",
        ),
        # What botocore leaves to the service.
        ({"Name": "n" * 257}, "ValidationException", "Value at 'Name' must have a length of at most 256"),
        ({"Name": "a\0"}, "ValidationException", "Value 'a\0' at 'Name' must match"),
        (
            {"Instances": {"InstanceFleets": [{**FLEET, "Name": "n" * 257}]}},
            "ValidationException",
            "Value at 'Instances.InstanceFleets[0].Name' must have a length of at most 256",
        ),
    ],
)
def test_an_invalid_cluster_is_rejected_with_the_reason_and_not_created(
    user: User, resources: dict[str, str], request_: dict[str, Any], code: str, message: str
) -> None:
    before = count_clusters(user)
    error = refusal(run, user=user, **request_)
    assert error[0] == code
    assert message in error[1]
    assert count_clusters(user) == before


@pytest.fixture(scope="module")
def resources(user: User) -> dict[str, str]:
    """The ARNs and ids of what a cluster can use: a role, an instance profile with a path, and a subnet."""
    session = boto3.Session(aws_access_key_id="user", aws_secret_access_key="secret", region_name=REGION)
    iam = session.client("iam", endpoint_url=user.endpoint_url)
    role = iam.create_role(RoleName="checked-role", AssumeRolePolicyDocument="{}")["Role"]
    profile = iam.create_instance_profile(InstanceProfileName="checked-profile", Path="/a/")["InstanceProfile"]
    user.emr.create_security_configuration(Name="checked", SecurityConfiguration="{}")
    subnets = session.client("ec2", endpoint_url=user.endpoint_url).describe_subnets()["Subnets"]
    return {"role": role["Arn"], "profile": profile["Arn"], "subnet": subnets[0]["SubnetId"]}


@pytest.mark.parametrize("by_arn", [False, True])
def test_a_cluster_can_use_existing_roles_subnets_and_security_configurations(
    user: User, resources: dict[str, str], by_arn: bool
) -> None:
    created = run(
        user,
        ServiceRole=resources["role"] if by_arn else "checked-role",
        JobFlowRole=resources["profile"] if by_arn else "checked-profile",
        SecurityConfiguration="checked",
        Instances={"Ec2SubnetIds": [resources["subnet"]], "InstanceFleets": [FLEET]},
    )
    user.wait_for(created["JobFlowId"], "TERMINATED")
    assert user.cluster(created["JobFlowId"])["SecurityConfiguration"] == "checked"


@pytest.mark.parametrize(
    "request_",
    [
        {"AutoTerminationPolicy": {"IdleTimeout": 60}},
        {"AutoTerminationPolicy": {"IdleTimeout": 604_800}},
        {"StepConcurrencyLevel": 256, "Steps": [bash("true")]},
        {"Steps": [command("true", "x" * 10_236)]},
        {"Instances": {"InstanceGroups": [{**MASTER, "InstanceCount": 3}]}},
        {"Instances": spot()},
        {"Instances": spot(TimeoutDurationMinutes=1440, AllocationStrategy="price-capacity-optimized")},
        {"Name": "n" * 256},
        {"Name": "née 🍎"},
        {"Applications": [{"Name": "spark"}, {"Name": "JupyterHub"}]},
    ],
)
def test_values_at_the_limits_are_allowed(user: User, request_: dict[str, Any]) -> None:
    cluster_id = run(user, **request_)["JobFlowId"]
    user.wait_for(cluster_id, "TERMINATED")
    assert set(user.step_states(cluster_id)) <= {"COMPLETED"}


def test_a_release_with_an_empty_table_allows_every_instance_type() -> None:
    check_instance_types(["m3.xlarge"], "emr-5.0.2")
    with pytest.raises(ValidationFailed, match="huge"):
        check_instance_types(["m3.xlarge", "m3.huge"], "emr-5.0.3")


@pytest.mark.parametrize("action", ["TERMINATE_CLUSTER", "TERMINATE_JOB_FLOW", "CANCEL_AND_WAIT"])
def test_a_concurrent_cluster_rejects_steps_whose_failure_affects_others(user: User, action: str) -> None:
    cluster_id = user.start(keep_alive=True, StepConcurrencyLevel=2)
    code, message = refusal(user.emr.add_job_flow_steps, JobFlowId=cluster_id, Steps=[bash("true", on_failure=action)])
    assert (code, f"ActionOnFailure {action} of step" in message) == ("ValidationException", True)
    assert user.steps(cluster_id) == []
    user.emr.modify_cluster(ClusterId=cluster_id, StepConcurrencyLevel=1)
    (step_id,) = user.add(cluster_id, bash("true", on_failure=action))
    user.wait_for_step(cluster_id, step_id, "COMPLETED")


def test_at_most_256_steps_can_be_active_and_ended_steps_do_not_count(user: User) -> None:
    cluster_id = user.start(bash("true"), bash("sleep 60"), keep_alive=True)
    user.wait_for_step(cluster_id, user.steps(cluster_id)[0]["Id"], "COMPLETED")
    step_ids = user.add(cluster_id, *[bash("true")] * 255)
    code, message = refusal(user.emr.add_job_flow_steps, JobFlowId=cluster_id, Steps=[bash("true")])
    assert (code, "257 of 256" in message) == ("ValidationException", True)
    user.emr.cancel_steps(ClusterId=cluster_id, StepIds=step_ids[:1])
    user.add(cluster_id, bash("true"))
    user.terminate(cluster_id)


def test_changes_to_a_cluster_are_validated(user: User) -> None:
    cluster_id = user.start(keep_alive=True)
    error = refusal(user.emr.modify_cluster, ClusterId=cluster_id, StepConcurrencyLevel=300)
    assert error == ("ValidationException", "StepConcurrencyLevel must be between 1 and 256, not 300.")
    policy: Any = {"IdleTimeout": 1}
    error = refusal(user.emr.put_auto_termination_policy, ClusterId=cluster_id, AutoTerminationPolicy=policy)
    assert error == ("ValidationException", "IdleTimeout must be between 60 and 604800 seconds, not 1.")
    assert user.cluster(cluster_id)["StepConcurrencyLevel"] == 1
    assert "AutoTerminationPolicy" not in user.emr.get_auto_termination_policy(ClusterId=cluster_id)
