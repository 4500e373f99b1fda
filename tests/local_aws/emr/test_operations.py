"""The operations that the AWS CLI, boto3's waiters and Airflow use, beyond those to run clusters and steps."""

import json
from pathlib import Path
from typing import Any

import boto3
import pyspark
import pytest

from tests.local_aws.user import User, bash, refusal, until

UNKNOWN_CLUSTER = "j-0000000000000"


@pytest.fixture(scope="module")
def ended(user: User) -> str:
    return user.run()


def test_an_auto_termination_policy_is_kept_changed_and_removed(user: User) -> None:
    def policy() -> Any:
        return user.emr.get_auto_termination_policy(ClusterId=cluster_id).get("AutoTerminationPolicy")

    cluster_id = user.start(keep_alive=True, AutoTerminationPolicy={"IdleTimeout": 600})
    assert policy() == {"IdleTimeout": 600}
    user.emr.put_auto_termination_policy(ClusterId=cluster_id, AutoTerminationPolicy={"IdleTimeout": 60})
    assert policy() == {"IdleTimeout": 60}
    user.emr.put_auto_termination_policy(ClusterId=cluster_id)
    assert policy() == {"IdleTimeout": 3600}
    user.emr.remove_auto_termination_policy(ClusterId=cluster_id)
    assert policy() is None


def test_an_auto_termination_policy_ends_a_cluster_that_is_idle_already(
    user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("local_aws.emr.checks.MIN_IDLE_TIMEOUT_SECONDS", 0)
    cluster_id = user.start(keep_alive=True)
    user.wait_for(cluster_id, "WAITING")
    user.emr.put_auto_termination_policy(ClusterId=cluster_id, AutoTerminationPolicy={"IdleTimeout": 0})
    ended = user.wait_for(cluster_id, "TERMINATED")
    assert "idle" in ended["Status"]["StateChangeReason"]["Message"]


def test_without_its_auto_termination_policy_an_idle_cluster_stays(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("local_aws.emr.checks.MIN_IDLE_TIMEOUT_SECONDS", 0)
    policy = {"IdleTimeout": 1}
    first = user.start(keep_alive=True, AutoTerminationPolicy=policy)
    user.emr.remove_auto_termination_policy(ClusterId=first)
    user.wait_for(first, "WAITING")
    second = user.start(keep_alive=True, AutoTerminationPolicy=policy)
    user.wait_for(second, "TERMINATED")  # it began to be idle later, so that the first would be over by now
    assert user.state(first) == "WAITING"


def test_a_managed_scaling_policy_is_kept_and_removed(user: User, waiting: str) -> None:
    def kept() -> Any:
        return user.emr.get_managed_scaling_policy(ClusterId=waiting).get("ManagedScalingPolicy")

    limits: Any = {"UnitType": "Instances", "MinimumCapacityUnits": 1, "MaximumCapacityUnits": 4}
    assert kept() is None
    user.emr.put_managed_scaling_policy(ClusterId=waiting, ManagedScalingPolicy={"ComputeLimits": limits})
    assert kept() == {"ComputeLimits": limits}
    user.emr.remove_managed_scaling_policy(ClusterId=waiting)
    assert kept() is None


def test_a_changed_concurrency_lets_a_waiting_step_run(user: User, tmp_path: Path) -> None:
    first = bash(f"{until(tmp_path / 'second')}")
    cluster_id = user.start(first, bash(f"touch {tmp_path}/second"))
    assert user.emr.modify_cluster(ClusterId=cluster_id, StepConcurrencyLevel=2)["StepConcurrencyLevel"] == 2
    user.wait_for(cluster_id, "TERMINATED")
    assert user.step_states(cluster_id) == ["COMPLETED", "COMPLETED"]
    assert user.cluster(cluster_id)["StepConcurrencyLevel"] == 2


def test_a_waiting_cluster_that_is_no_longer_kept_alive_ends(user: User) -> None:
    cluster_id = user.start(keep_alive=True)
    user.wait_for(cluster_id, "WAITING")
    user.emr.set_keep_job_flow_alive_when_no_steps(JobFlowIds=[cluster_id], KeepJobFlowAliveWhenNoSteps=False)
    user.wait_for(cluster_id, "TERMINATED")
    assert (user.end_code(cluster_id), user.cluster(cluster_id)["AutoTerminate"]) == ("ALL_STEPS_COMPLETED", True)


def test_what_clusters_are_set_to_is_shown(user: User, waiting: str) -> None:
    def shown() -> tuple[bool, bool]:
        cluster = user.cluster(waiting)
        return cluster["VisibleToAllUsers"], cluster["UnhealthyNodeReplacement"]

    assert shown() == (True, False)
    user.emr.set_visible_to_all_users(JobFlowIds=[waiting], VisibleToAllUsers=False)
    user.emr.set_unhealthy_node_replacement(JobFlowIds=[waiting], UnhealthyNodeReplacement=True)
    assert shown() == (False, True)


@pytest.mark.parametrize(
    ("operation", "parameters"),
    [
        ("put_auto_termination_policy", {"AutoTerminationPolicy": {"IdleTimeout": 60}}),
        (
            "put_managed_scaling_policy",
            {
                "ManagedScalingPolicy": {
                    "ComputeLimits": {"UnitType": "VCPU", "MinimumCapacityUnits": 1, "MaximumCapacityUnits": 2}
                }
            },
        ),
        ("modify_cluster", {"StepConcurrencyLevel": 2}),
    ],
)
def test_an_ended_or_unknown_cluster_takes_no_policy(
    user: User, ended: str, operation: str, parameters: dict[str, Any]
) -> None:
    call = getattr(user.emr, operation)
    code, message = refusal(call, ClusterId=ended, **parameters)
    assert (code, f"{ended} is TERMINATED" in message) == ("ValidationException", True)
    assert refusal(call, ClusterId=UNKNOWN_CLUSTER, **parameters)[0] == "InvalidRequestException"


def test_a_security_configuration_is_made_shown_and_deleted(user: User) -> None:
    text = json.dumps({"EncryptionConfiguration": {"EnableInTransitEncryption": False}})
    user.emr.create_security_configuration(Name="shown", SecurityConfiguration=text)
    assert user.emr.describe_security_configuration(Name="shown")["SecurityConfiguration"] == text
    assert "shown" in [item["Name"] for item in user.emr.list_security_configurations()["SecurityConfigurations"]]
    again = refusal(user.emr.create_security_configuration, Name="shown", SecurityConfiguration=text)
    assert again == ("InvalidRequestException", "SecurityConfiguration with name 'shown' already exists.")
    user.emr.delete_security_configuration(Name="shown")
    for call in (user.emr.describe_security_configuration, user.emr.delete_security_configuration):
        said = refusal(call, Name="shown")
        assert said == ("InvalidRequestException", "Security configuration with name 'shown' does not exist.")
    assert (
        refusal(user.emr.create_security_configuration, Name="x", SecurityConfiguration="{")[0] == "ValidationException"
    )


def test_the_block_of_public_access_is_kept_by_region(user: User) -> None:
    session = boto3.Session(aws_access_key_id="user", aws_secret_access_key="secret", region_name="us-west-2")
    elsewhere = session.client("emr", endpoint_url=user.endpoint_url)
    ports = [{"MinRange": 22, "MaxRange": 22}]
    for client in (user.emr, elsewhere):
        block = client.get_block_public_access_configuration()["BlockPublicAccessConfiguration"]
        assert (block["BlockPublicSecurityGroupRules"], block["PermittedPublicSecurityGroupRuleRanges"]) == (
            True,
            ports,
        )
    elsewhere.put_block_public_access_configuration(
        BlockPublicAccessConfiguration={"BlockPublicSecurityGroupRules": False}
    )
    answers = [client.get_block_public_access_configuration() for client in (user.emr, elsewhere)]
    assert [answer["BlockPublicAccessConfiguration"]["BlockPublicSecurityGroupRules"] for answer in answers] == [
        True,
        False,
    ]


def test_release_labels_are_listed_in_pages_and_by_prefix(user: User) -> None:
    first = user.emr.list_release_labels(MaxResults=2, Filters={"Prefix": "emr-7"})
    assert first["ReleaseLabels"] == ["emr-7.14.0", "emr-7.13.0"]
    second = user.emr.list_release_labels(MaxResults=2, Filters={"Prefix": "emr-7"}, NextToken=first["NextToken"])
    assert second["ReleaseLabels"] == ["emr-7.12.0", "emr-7.11.0"]
    assert "NextToken" not in user.emr.list_release_labels(Filters={"Prefix": "emr-7"})
    assert refusal(user.emr.list_release_labels, NextToken="x")[0] == "InvalidRequestException"


def test_a_release_is_described_by_the_spark_that_runs_here(user: User) -> None:
    applications = user.emr.describe_release_label(ReleaseLabel="emr-7.14.0")["Applications"]
    assert applications == [{"Name": "Spark", "Version": pyspark.__version__}]
    assert refusal(user.emr.describe_release_label, ReleaseLabel="emr-0")[0] == "ValidationException"


def test_the_instance_types_of_a_release_are_listed_on_all_pages(user: User) -> None:
    pages = 0
    marker: dict[str, str] = {}
    types: dict[str, Any] = {}
    while pages == 0 or marker:
        answer = user.emr.list_supported_instance_types(ReleaseLabel="emr-7.14.0", **marker)
        types |= {kind["Type"]: kind for kind in answer["SupportedInstanceTypes"]}
        marker = {"Marker": answer["Marker"]} if "Marker" in answer else {}
        pages += 1
    assert pages == -(-len(types) // 50) > 1
    assert (types["m5.xlarge"]["VCPU"], types["m5.xlarge"]["MemoryGB"]) == (4, 16.0)


def test_steps_are_listed_in_pages_of_50_that_states_do_not_shift(user: User, tmp_path: Path) -> None:
    cluster_id = user.start(bash(until(tmp_path / "go"), on_failure="CANCEL_AND_WAIT"), *[bash("true")] * 60)
    pages = [page["Steps"] for page in user.emr.get_paginator("list_steps").paginate(ClusterId=cluster_id)]
    assert [len(page) for page in pages] == [50, 11]
    assert len({step["Id"] for page in pages for step in page}) == 61

    first = user.emr.list_steps(ClusterId=cluster_id, StepStates=["PENDING"])
    user.emr.cancel_steps(ClusterId=cluster_id, StepIds=[first["Marker"]])
    second = user.emr.list_steps(ClusterId=cluster_id, StepStates=["PENDING"], Marker=first["Marker"])
    assert (len(first["Steps"]), len(second["Steps"])) == (50, 10)
    code, _ = refusal(user.emr.list_steps, ClusterId=cluster_id, Marker="s-0000000000000")
    assert code == "InvalidRequestException"
    user.terminate(cluster_id)


def test_clusters_are_listed_in_pages_that_new_clusters_do_not_shift(
    user: User, waiting: str, ended: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("local_aws.emr.operations.paging.PAGE_SIZE", 1)
    waited_for = user.cluster(ended)["Status"]["Timeline"]["CreationDateTime"]
    since = min(waited_for, user.cluster(waiting)["Status"]["Timeline"]["CreationDateTime"])
    whole = [
        cluster["Id"]
        for page in user.emr.get_paginator("list_clusters").paginate(CreatedAfter=since)
        for cluster in page["Clusters"]
    ]
    assert {waiting, ended} <= set(whole)
    first = user.emr.list_clusters(CreatedAfter=since)
    user.start()
    second = user.emr.list_clusters(CreatedAfter=since, Marker=first["Marker"])
    assert [cluster["Id"] for cluster in first["Clusters"] + second["Clusters"]] == whole[:2]


def test_boto3s_waiters_wait(user: User, tmp_path: Path) -> None:
    quick: Any = {"Delay": 1, "MaxAttempts": 20}
    cluster_id = user.start(bash(until(tmp_path / "go")), keep_alive=True)
    user.emr.get_waiter("cluster_running").wait(ClusterId=cluster_id, WaiterConfig=quick)
    (step,) = user.steps(cluster_id)
    (tmp_path / "go").touch()
    user.emr.get_waiter("step_complete").wait(ClusterId=cluster_id, StepId=step["Id"], WaiterConfig=quick)
    assert user.step_states(cluster_id) == ["COMPLETED"]
    user.terminate(cluster_id)
    user.emr.get_waiter("cluster_terminated").wait(ClusterId=cluster_id, WaiterConfig=quick)
    assert user.state(cluster_id) == "TERMINATED"
