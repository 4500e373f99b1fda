"""What EMR refuses of a cluster's hardware, surroundings and steps."""

from typing import Any

import boto3
import pytest

from local_aws.emr.checks import check_instance_types
from local_aws.emr.errors import ValidationFailed
from tests.local_aws.user import REGION, ROLES, User, bash, command, refusal

MASTER = {"InstanceRole": "MASTER", "InstanceType": "m5.xlarge", "InstanceCount": 1}
FLEET = {
    "InstanceFleetType": "MASTER",
    "TargetOnDemandCapacity": 1,
    "InstanceTypeConfigs": [{"InstanceType": "m5.xlarge"}],
}
SMALLEST = {"MasterInstanceType": "m5.xlarge", "InstanceCount": 1}
NOWHERE = "arn:aws:iam::123456789012"


def run(user: User, **request: Any) -> Any:
    """RunJobFlow with nothing but what is asked for."""
    return user.emr.run_job_flow(
        **{"Name": "checked", "ReleaseLabel": "emr-7.14.0", "Instances": SMALLEST, **ROLES, **request}
    )


def count_clusters(user: User) -> int:
    """How many there are, on all pages."""
    return sum(len(page["Clusters"]) for page in user.emr.get_paginator("list_clusters").paginate())


@pytest.mark.parametrize(
    ("request_", "code", "named"),
    [
        (
            {"Instances": {"MasterInstanceType": "m5.huge"}},
            "ValidationException",
            "Instance type 'm5.huge' is not supported by emr-7.14.0.",
        ),
        # Releases differ: 5.36 came before this type.
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
            "1 master instance, or 3 for high availability, not 0.",
        ),
        (
            {"Instances": {"InstanceFleets": [{**FLEET, "TargetOnDemandCapacity": 2}]}},
            "ValidationException",
            "1 master instance, or 3 for high availability, not 2.",
        ),
        (
            {"Instances": {}},
            "ValidationException",
            "Instances has none of MasterInstanceType, InstanceGroups, InstanceFleets.",
        ),
        ({"Instances": {"InstanceCount": 1}}, "ValidationException", "has none of MasterInstanceType"),
        ({"Instances": {**SMALLEST, "InstanceCount": 0}}, "ValidationException", "must be at least 1, not 0."),
        (
            {"JobFlowRole": "no-profile", "ServiceRole": "no-role"},
            "ValidationException",
            "Invalid InstanceProfile: no-profile. EMR service role no-role is invalid.",
        ),
        ({"JobFlowRole": ""}, "ValidationException", "InstanceProfile is required for creating cluster."),
        ({"ServiceRole": ""}, "ValidationException", "ServiceRole is required for creating cluster."),
        ({"JobFlowRole": "no-profile"}, "ValidationException", "Invalid InstanceProfile: no-profile."),
        # A role is no instance profile.
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
            "have 10241 characters in all; at most 10240",
        ),
        ({"Steps": [bash("true")] * 257}, "ValidationException", "257 of 256."),
        (
            {"AutoTerminationPolicy": {"IdleTimeout": 59}},
            "ValidationException",
            "between 60 and 604800 seconds, not 59.",
        ),
        ({"AutoTerminationPolicy": {"IdleTimeout": 604_801}}, "ValidationException", "not 604801."),
    ],
)
def test_a_cluster_that_breaks_a_rule_is_refused_by_name_and_not_made(
    user: User, surroundings: dict[str, str], request_: dict[str, Any], code: str, named: str
) -> None:
    before = count_clusters(user)
    said = refusal(run, user=user, **request_)
    assert said[0] == code
    assert named in said[1]
    assert count_clusters(user) == before


@pytest.fixture(scope="module")
def surroundings(user: User) -> dict[str, str]:
    """What a cluster may name: a role, a profile in a path, a security configuration and a subnet."""
    session = boto3.Session(aws_access_key_id="user", aws_secret_access_key="secret", region_name=REGION)
    iam = session.client("iam", endpoint_url=user.endpoint_url)
    role = iam.create_role(RoleName="checked-role", AssumeRolePolicyDocument="{}")["Role"]
    profile = iam.create_instance_profile(InstanceProfileName="checked-profile", Path="/a/")["InstanceProfile"]
    user.emr.create_security_configuration(Name="checked", SecurityConfiguration="{}")
    subnets = session.client("ec2", endpoint_url=user.endpoint_url).describe_subnets()["Subnets"]
    return {"role": role["Arn"], "profile": profile["Arn"], "subnet": subnets[0]["SubnetId"]}


@pytest.mark.parametrize("by_arn", [False, True])
def test_a_cluster_may_name_what_there_is(user: User, surroundings: dict[str, str], by_arn: bool) -> None:
    made = run(
        user,
        ServiceRole=surroundings["role"] if by_arn else "checked-role",
        JobFlowRole=surroundings["profile"] if by_arn else "checked-profile",
        SecurityConfiguration="checked",
        Instances={"Ec2SubnetIds": [surroundings["subnet"]], "InstanceFleets": [FLEET]},
    )
    user.wait_for(made["JobFlowId"], "TERMINATED")
    assert user.cluster(made["JobFlowId"])["SecurityConfiguration"] == "checked"


@pytest.mark.parametrize(
    "request_",
    [
        {"AutoTerminationPolicy": {"IdleTimeout": 60}},
        {"AutoTerminationPolicy": {"IdleTimeout": 604_800}},
        {"StepConcurrencyLevel": 256, "Steps": [bash("true")]},
        {"Steps": [command("true", "x" * 10_236)]},
        {"Instances": {"InstanceGroups": [{**MASTER, "InstanceCount": 3}]}},
    ],
)
def test_what_is_just_within_the_rules_is_allowed(user: User, request_: dict[str, Any]) -> None:
    cluster_id = run(user, **request_)["JobFlowId"]
    user.wait_for(cluster_id, "TERMINATED")
    assert set(user.step_states(cluster_id)) <= {"COMPLETED"}


def test_a_release_without_a_table_of_types_may_have_any() -> None:
    check_instance_types(["m3.xlarge"], "emr-5.0.2")
    with pytest.raises(ValidationFailed, match="huge"):
        check_instance_types(["m3.xlarge", "m3.huge"], "emr-5.0.3")


@pytest.mark.parametrize("action", ["TERMINATE_CLUSTER", "TERMINATE_JOB_FLOW", "CANCEL_AND_WAIT"])
def test_a_concurrent_cluster_refuses_steps_whose_failure_would_touch_others(user: User, action: str) -> None:
    cluster_id = user.start(keep_alive=True, StepConcurrencyLevel=2)
    code, message = refusal(user.emr.add_job_flow_steps, JobFlowId=cluster_id, Steps=[bash("true", on_failure=action)])
    assert (code, f"ActionOnFailure {action} of step" in message) == ("ValidationException", True)
    assert user.steps(cluster_id) == []
    user.emr.modify_cluster(ClusterId=cluster_id, StepConcurrencyLevel=1)
    (step_id,) = user.add(cluster_id, bash("true", on_failure=action))
    user.wait_for_step(cluster_id, step_id, "COMPLETED")


def test_256_steps_may_be_active_and_those_that_are_over_do_not_count(user: User) -> None:
    cluster_id = user.start(bash("true"), bash("sleep 60"), keep_alive=True)
    user.wait_for_step(cluster_id, user.steps(cluster_id)[0]["Id"], "COMPLETED")
    step_ids = user.add(cluster_id, *[bash("true")] * 255)
    code, message = refusal(user.emr.add_job_flow_steps, JobFlowId=cluster_id, Steps=[bash("true")])
    assert (code, "257 of 256" in message) == ("ValidationException", True)
    user.emr.cancel_steps(ClusterId=cluster_id, StepIds=step_ids[:1])
    user.add(cluster_id, bash("true"))
    user.terminate(cluster_id)


def test_a_modified_cluster_is_checked_as_well(user: User) -> None:
    cluster_id = user.start(keep_alive=True)
    said = refusal(user.emr.modify_cluster, ClusterId=cluster_id, StepConcurrencyLevel=300)
    assert said == ("ValidationException", "StepConcurrencyLevel must be between 1 and 256, not 300.")
    policy: Any = {"IdleTimeout": 1}
    said = refusal(user.emr.put_auto_termination_policy, ClusterId=cluster_id, AutoTerminationPolicy=policy)
    assert said == ("ValidationException", "IdleTimeout must be between 60 and 604800 seconds, not 1.")
    assert user.cluster(cluster_id)["StepConcurrencyLevel"] == 1
    assert "AutoTerminationPolicy" not in user.emr.get_auto_termination_policy(ClusterId=cluster_id)
