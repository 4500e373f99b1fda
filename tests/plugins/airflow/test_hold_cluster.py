"""The task `hold_cluster` and its trigger against a local AWS with injected faults."""

import json
import re
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow.sdk.bases.operator import TriggerFailureReason
from airflow.sdk.exceptions import TaskDeferred
from botocore.exceptions import ClientError

from local_aws.client import LocalAwsClient
from orchard.airflow.triggers import HoldEndTrigger
from orchard.cluster.tags import HELD_TAG
from orchard.run.hold import Hold
from orchard.storage import split_uri
from tests.local_aws.airflow_task import fire
from tests.local_aws.user import REGION, User
from tests.plugins.airflow.tasks import (
    TaskInstance,
    context,
    create_cluster,
    defer,
    execute,
    hold_cluster,
    plan_of,
    resume,
    take_turn,
    wait_until_ready,
)

pytestmark = pytest.mark.usefixtures("local_aws")

PUBLISHED = {"publish": "success"}
LONG = 60


@pytest.fixture
def cluster_id(request_: dict[str, Any]) -> str:
    """The cluster of the run, which is ready."""
    return wait_until_ready(request_, execute(create_cluster(request_)))


def held(user: User, request: dict[str, Any], minutes: float = LONG) -> dict[str, Any]:
    """Return the plan of a run with a hold. It is published."""
    plan = plan_of(request) | {"hold_minutes": minutes}
    user.put(f"{split_uri(plan['run_uri'])[1]}/summary.json", "{}")
    return plan


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the lines of the task's log that are about the hold."""
    return [line.strip() for line in re.findall(r"\] (hold: .*) \[airflow\.task", capsys.readouterr().out)]


@pytest.mark.parametrize("planned", [{"hold_minutes": 0}, {}])
def test_without_a_hold_the_task_ends_at_once_without_a_call(
    user: User, local_aws: LocalAwsClient, request_: dict[str, Any], planned: dict[str, Any]
) -> None:
    """The plan of an earlier release has no `hold_minutes`."""
    local_aws.fail("emr", "AccessDeniedException")
    local_aws.fail("s3", "AccessDenied")
    assert hold_cluster("j-1", plan_of(request_) | planned).poke(context(TaskInstance())) is True


@pytest.mark.parametrize("state", [None, "scheduled", "running", "up_for_retry"])
def test_the_task_waits_while_publish_has_not_finished(user: User, request_: dict[str, Any], state: str | None) -> None:
    task = hold_cluster("j-1", held(user, request_))
    assert task.mode == "reschedule", "it holds no worker meanwhile"
    assert task.poke(context(TaskInstance(task_states={"publish": state}))) is False


@pytest.mark.parametrize("state", ["failed", "upstream_failed", "skipped"])
def test_a_cluster_is_not_held_if_publish_did_not_succeed(
    user: User, request_: dict[str, Any], cluster_id: str, state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ti = TaskInstance(task_states={"publish": state})
    assert hold_cluster(cluster_id, held(user, request_)).poke(context(ti)) is True
    assert lines(capsys) == [f"hold: publish is {state}: the cluster is not held, and is terminated now"]
    assert HELD_TAG not in tags(user, cluster_id)


def tags(user: User, cluster_id: str) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in user.emr.describe_cluster(ClusterId=cluster_id)["Cluster"]["Tags"]}


def test_a_hold_releases_the_turn_tells_how_to_reach_the_cluster_and_waits_in_the_triggerer(
    user: User, request_: dict[str, Any], cluster_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert take_turn(request_) == []
    before = datetime.now(UTC).replace(microsecond=0)
    ti = TaskInstance(task_states=PUBLISHED)
    deferred = defer(hold_cluster(cluster_id, held(user, request_)), ti)
    hold = Hold.from_xcom(ti.xcoms["hold"])
    assert hold is not None
    assert before <= hold.until - timedelta(minutes=LONG) <= datetime.now(UTC)
    (primary,) = user.emr.list_instances(ClusterId=cluster_id, InstanceGroupTypes=["MASTER"])["Instances"]
    assert (hold.cluster_id, hold.instance_id, hold.region) == (cluster_id, primary["Ec2InstanceId"], REGION)
    assert lines(capsys) == [f"hold: {line}" for line in hold.lines()]
    assert tags(user, cluster_id)[HELD_TAG] == hold.until.isoformat()
    assert take_turn(request_, TaskInstance("other", {"run": "running"})) == [], "the turn is free"
    path, arguments = deferred.trigger.serialize()
    assert path == "orchard.airflow.triggers.HoldEndTrigger"
    assert (arguments["until"], arguments["job_flow_id"]) == (hold.until.isoformat(), cluster_id)
    assert deferred.timeout is not None
    assert deferred.timeout > hold.until - datetime.now(UTC), "the trigger ends first"


def test_a_retry_or_a_clear_does_not_prolong_a_hold(user: User, request_: dict[str, Any], cluster_id: str) -> None:
    plan = held(user, request_)
    first: Any = defer(hold_cluster(cluster_id, plan), TaskInstance(task_states=PUBLISHED)).trigger
    time.sleep(1.1)
    again = TaskInstance(task_states=PUBLISHED, was_cleared=True)
    second: Any = defer(hold_cluster(cluster_id, plan), again).trigger
    assert second.until == first.until


def test_a_hold_whose_end_has_passed_does_not_start_again(
    user: User, request_: dict[str, Any], cluster_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = held(user, request_, minutes=1e-6)
    time.sleep(0.1)
    assert hold_cluster(cluster_id, plan).poke(context(TaskInstance(task_states=PUBLISHED))) is True
    (message,) = lines(capsys)
    assert message.startswith("hold: it has ended at ")


def test_there_is_nothing_to_hold_if_the_cluster_has_ended(
    user: User, request_: dict[str, Any], cluster_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    user.terminate(cluster_id)
    user.wait_for(cluster_id, "TERMINATED")
    task = hold_cluster(cluster_id, held(user, request_))
    assert task.poke(context(TaskInstance(task_states=PUBLISHED))) is True
    (message,) = lines(capsys)
    assert f"cluster {cluster_id} is TERMINATED (USER_REQUEST: " in message
    assert message.endswith("there is nothing to hold")


@pytest.mark.parametrize("call", ["emr:ListInstances", "emr:AddTags", "emr:DescribeCluster"])
def test_a_hold_that_cannot_start_is_retried_and_keeps_the_turn(
    user: User, local_aws: LocalAwsClient, request_: dict[str, Any], cluster_id: str, call: str
) -> None:
    assert take_turn(request_) == []
    local_aws.fail(call, "AccessDeniedException")
    task = hold_cluster(cluster_id, held(user, request_))
    with pytest.raises(ClientError, match="AccessDeniedException"):
        execute(task, TaskInstance(task_states=PUBLISHED))
    assert take_turn(request_, TaskInstance("other", {"run": "running"}))
    local_aws.clear()
    with pytest.raises(TaskDeferred):
        execute(task, TaskInstance(task_states=PUBLISHED))


def deferral(user: User, request: dict[str, Any], cluster_id: str, seconds: float) -> tuple[Any, TaskDeferred]:
    """Start a hold that ends in so many seconds. Return the task and its deferral."""
    task = hold_cluster(cluster_id, held(user, request))
    deferred = defer(task, TaskInstance(task_states=PUBLISHED))
    _, arguments = deferred.trigger.serialize()
    until = datetime.now(UTC) + timedelta(seconds=seconds)
    # As the triggerer gets it.
    deferred.trigger = HoldEndTrigger(**json.loads(json.dumps(arguments | {"until": until.isoformat()})))
    return task, deferred


def test_a_hold_ends_when_its_time_is_over(
    user: User, request_: dict[str, Any], cluster_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    task, deferred = deferral(user, request_, cluster_id, seconds=1)
    began = time.monotonic()
    event = fire(deferred)
    assert 0.8 < time.monotonic() - began < 5
    resume(task, deferred, event)
    assert lines(capsys)[-1] == "hold: ended, because hold_minutes have passed"


def test_a_hold_that_continues_after_its_end_ends_at_once(
    user: User, request_: dict[str, Any], cluster_id: str
) -> None:
    """Airflow was restarted after the end."""
    _, deferred = deferral(user, request_, cluster_id, seconds=-60)
    assert fire(deferred) == {"cluster_end": ""}


def test_a_hold_ends_when_somebody_terminates_the_cluster(
    user: User, request_: dict[str, Any], cluster_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    task, deferred = deferral(user, request_, cluster_id, seconds=600)
    user.terminate(cluster_id)
    resume(task, deferred, fire(deferred))
    message = lines(capsys)[-1]
    assert message.startswith(f"hold: ended, because cluster {cluster_id} is TERMINAT")
    assert "USER_REQUEST" in message


def test_an_emr_that_refuses_is_one_warning_and_ends_no_hold(
    user: User,
    local_aws: LocalAwsClient,
    request_: dict[str, Any],
    cluster_id: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, deferred = deferral(user, request_, cluster_id, seconds=2)
    local_aws.fail("emr:DescribeCluster", "AccessDeniedException")
    assert fire(deferred) == {"cluster_end": ""}
    assert capsys.readouterr().out.count(f"the state of cluster {cluster_id} cannot be read") == 1


def test_an_emr_that_does_not_answer_delays_the_end_by_seconds(
    user: User, local_aws: LocalAwsClient, request_: dict[str, Any], cluster_id: str
) -> None:
    _, deferred = deferral(user, request_, cluster_id, seconds=1)
    local_aws.hang("emr:DescribeCluster", 30)
    began = time.monotonic()
    assert fire(deferred) == {"cluster_end": ""}
    assert time.monotonic() - began < 15


def test_a_hold_whose_end_no_triggerer_has_seen_ends_without_a_failure(
    request_: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """The scheduler ends a deferral that has timed out, for example after Airflow was down."""
    task = hold_cluster("j-1", plan_of(request_))
    task.resume_execution("__fail__", {"error": TriggerFailureReason.TRIGGER_TIMEOUT}, context())
    assert "hold: its end has passed while no triggerer was running" in lines(capsys)[0]
