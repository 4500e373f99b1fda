"""Policies and other settings of a cluster that can change after its creation."""

from pathlib import Path
from typing import Any

import pytest

from tests.local_aws.user import User, bash, refusal, until

UNKNOWN_CLUSTER = "j-0000000000000"


@pytest.fixture(scope="module")
def ended(user: User) -> str:
    return user.run()


def test_an_auto_termination_policy_is_stored_changed_and_removed(user: User) -> None:
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


def test_an_auto_termination_policy_applies_to_a_cluster_that_is_already_idle(
    user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("local_aws.emr.checks.MIN_IDLE_TIMEOUT_SECONDS", 0)
    cluster_id = user.start(keep_alive=True)
    user.wait_for(cluster_id, "WAITING")
    user.emr.put_auto_termination_policy(ClusterId=cluster_id, AutoTerminationPolicy={"IdleTimeout": 0})
    ended = user.wait_for(cluster_id, "TERMINATED")
    assert "idle" in ended["Status"]["StateChangeReason"]["Message"]


def test_an_idle_cluster_stays_after_its_auto_termination_policy_is_removed(
    user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("local_aws.emr.checks.MIN_IDLE_TIMEOUT_SECONDS", 0)
    policy = {"IdleTimeout": 1}
    first = user.start(keep_alive=True, AutoTerminationPolicy=policy)
    user.emr.remove_auto_termination_policy(ClusterId=first)
    user.wait_for(first, "WAITING")
    second = user.start(keep_alive=True, AutoTerminationPolicy=policy)
    user.wait_for(second, "TERMINATED")  # it became idle later than the first
    assert user.state(first) == "WAITING"


def test_a_managed_scaling_policy_is_stored_and_removed(user: User, waiting: str) -> None:
    def stored() -> Any:
        return user.emr.get_managed_scaling_policy(ClusterId=waiting).get("ManagedScalingPolicy")

    limits: Any = {"UnitType": "Instances", "MinimumCapacityUnits": 1, "MaximumCapacityUnits": 4}
    assert stored() is None
    user.emr.put_managed_scaling_policy(ClusterId=waiting, ManagedScalingPolicy={"ComputeLimits": limits})
    assert stored() == {"ComputeLimits": limits}
    user.emr.remove_managed_scaling_policy(ClusterId=waiting)
    assert stored() is None


def test_a_higher_concurrency_level_starts_a_pending_step(user: User, tmp_path: Path) -> None:
    first = bash(f"{until(tmp_path / 'second')}")
    cluster_id = user.start(first, bash(f"touch {tmp_path}/second"))
    assert user.emr.modify_cluster(ClusterId=cluster_id, StepConcurrencyLevel=2)["StepConcurrencyLevel"] == 2
    user.wait_for(cluster_id, "TERMINATED")
    assert user.step_states(cluster_id) == ["COMPLETED", "COMPLETED"]
    assert user.cluster(cluster_id)["StepConcurrencyLevel"] == 2


def test_a_waiting_cluster_terminates_when_it_is_no_longer_kept_alive(user: User) -> None:
    cluster_id = user.start(keep_alive=True)
    user.wait_for(cluster_id, "WAITING")
    user.emr.set_keep_job_flow_alive_when_no_steps(JobFlowIds=[cluster_id], KeepJobFlowAliveWhenNoSteps=False)
    user.wait_for(cluster_id, "TERMINATED")
    assert (user.end_code(cluster_id), user.cluster(cluster_id)["AutoTerminate"]) == ("ALL_STEPS_COMPLETED", True)


def test_settings_of_a_cluster_are_described(user: User, waiting: str) -> None:
    def settings() -> tuple[bool, bool]:
        cluster = user.cluster(waiting)
        return cluster["VisibleToAllUsers"], cluster["UnhealthyNodeReplacement"]

    assert settings() == (True, False)
    user.emr.set_visible_to_all_users(JobFlowIds=[waiting], VisibleToAllUsers=False)
    user.emr.set_unhealthy_node_replacement(JobFlowIds=[waiting], UnhealthyNodeReplacement=True)
    assert settings() == (False, True)


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
def test_an_ended_or_unknown_cluster_rejects_policies(
    user: User, ended: str, operation: str, parameters: dict[str, Any]
) -> None:
    call = getattr(user.emr, operation)
    code, message = refusal(call, ClusterId=ended, **parameters)
    assert (code, f"{ended} is TERMINATED" in message) == ("ValidationException", True)
    assert refusal(call, ClusterId=UNKNOWN_CLUSTER, **parameters)[0] == "InvalidRequestException"
