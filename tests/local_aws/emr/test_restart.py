"""Clusters are restored by the next server, but their running steps fail."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from local_aws.emr.life import Timings
from local_aws.server import LocalAws
from tests.local_aws.program import serving
from tests.local_aws.user import (
    BUCKET,
    LOG_URI,
    User,
    bash,
    grandchild,
    read_pid,
    until,
    wait_for_death,
    wait_until,
)

if TYPE_CHECKING:
    from mypy_boto3_emr.type_defs import StepTypeDef

INTERRUPTED = "local_aws was restarted while the step was running"


@dataclass
class Restarted:
    """A user of the second server, the cluster ids by situation, and descriptions of clusters from the first server."""

    user: User
    clusters: dict[str, str]
    before: dict[str, Any]

    def steps(self, name: str) -> "list[StepTypeDef]":
        """Describe the steps of a cluster."""
        return self.user.steps(self.clusters[name])


def running(folder: Path, name: str, on_failure: str) -> Any:
    """Return a step that prints a line, writes the pid of its child, and does not end."""
    return bash(f"echo started; {grandchild(folder / name)}", on_failure)


def start_clusters(user: User, folder: Path) -> dict[str, str]:
    """Start a cluster for each situation in which a server can be killed."""
    action = user.put("restart/slow.sh", f"#!/bin/sh\n{until(folder / 'never')}\n")
    after = bash("echo after")
    clusters = {
        "ended": user.run(bash("exit 1")),
        "bootstrapping": user.start(after, bootstrap=[(action,)]),
        "waiting": user.start(keep_alive=True, Tags=[{"Key": "team", "Value": "fruit"}]),
        "continue": user.start(running(folder, "continue", "CONTINUE"), after),
        "terminate": user.start(running(folder, "terminate", "TERMINATE_CLUSTER"), after),
        "cancel": user.start(running(folder, "cancel", "CANCEL_AND_WAIT"), after, keep_alive=True),
    }
    user.wait_for(clusters["waiting"], "WAITING")
    user.emr.add_tags(ResourceId=clusters["waiting"], Tags=[{"Key": "late", "Value": "1"}])
    user.emr.put_auto_termination_policy(ClusterId=clusters["waiting"], AutoTerminationPolicy={"IdleTimeout": 900})
    user.emr.set_termination_protection(JobFlowIds=[clusters["waiting"]], TerminationProtected=True)
    user.wait_for(clusters["bootstrapping"], "BOOTSTRAPPING")
    return clusters


@pytest.fixture(scope="module")
def restarted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Restarted]:
    folder = tmp_path_factory.mktemp("restart")
    with serving(folder / "data") as (process, _, user):
        user.make_bucket()
        user.emr.create_security_configuration(Name="example", SecurityConfiguration="{}")
        clusters = start_clusters(user, folder)
        pids = [read_pid(folder / name) for name in ("continue", "terminate", "cancel")]
        before = {name: (user.cluster(clusters[name]), user.steps(clusters[name])) for name in ("ended", "waiting")}
        process.kill()
    for pid in pids:
        wait_for_death(pid)
    with serving(folder / "data") as (_, _, user):
        yield Restarted(user, clusters, before)


def test_all_clusters_are_restored_in_order(restarted: Restarted) -> None:
    listed = [cluster["Id"] for cluster in restarted.user.emr.list_clusters()["Clusters"]]
    assert listed == list(reversed(restarted.clusters.values()))


def test_an_ended_cluster_is_restored_unchanged(restarted: Restarted) -> None:
    cluster_id = restarted.clusters["ended"]
    assert (restarted.user.cluster(cluster_id), restarted.user.steps(cluster_id)) == restarted.before["ended"]


def test_a_waiting_cluster_is_restored_unchanged_and_accepts_steps(restarted: Restarted) -> None:
    user, cluster_id = restarted.user, restarted.clusters["waiting"]
    cluster, _ = restarted.before["waiting"]
    assert user.cluster(cluster_id) == cluster
    assert cluster["TerminationProtected"]
    assert cluster["Tags"] == [{"Key": "team", "Value": "fruit"}, {"Key": "late", "Value": "1"}]
    policy = user.emr.get_auto_termination_policy(ClusterId=cluster_id)["AutoTerminationPolicy"]
    assert policy == {"IdleTimeout": 900}
    (step_id,) = user.add(cluster_id, bash("aws s3 ls"))
    user.wait_for_step(cluster_id, step_id, "COMPLETED")
    assert BUCKET in user.read_log(f"{LOG_URI}{cluster_id}/steps/{step_id}/stdout.gz")


def test_a_running_step_fails_after_a_restart(restarted: Restarted) -> None:
    for name in ("continue", "terminate", "cancel"):
        status = restarted.steps(name)[0]["Status"]
        assert (status["State"], status["FailureDetails"]["Message"]) == ("FAILED", INTERRUPTED)
        assert status["Timeline"]["EndDateTime"] > status["Timeline"]["StartDateTime"]


def test_the_output_of_an_interrupted_step_is_in_its_logs(restarted: Restarted) -> None:
    user, cluster_id = restarted.user, restarted.clusters["continue"]
    folder = f"{LOG_URI}{cluster_id}/steps/{restarted.steps('continue')[0]['Id']}/"
    wait_until(lambda: "stdout.gz" in user.keys(folder), "the log of the interrupted step")
    assert user.read_log(f"{folder}stdout.gz") == "started\n"


def test_an_interrupted_step_triggers_its_action_on_failure(restarted: Restarted) -> None:
    user, clusters = restarted.user, restarted.clusters
    user.wait_for(clusters["continue"], "TERMINATED")
    user.wait_for(clusters["terminate"], "TERMINATED_WITH_ERRORS")
    user.wait_for(clusters["cancel"], "WAITING")
    assert [user.step_states(clusters[name])[1] for name in ("continue", "terminate", "cancel")] == [
        "COMPLETED",
        "CANCELLED",
        "CANCELLED",
    ]
    assert user.end_code(clusters["terminate"]) == "STEP_FAILURE"


def test_a_cluster_that_was_not_ready_ends_with_errors(restarted: Restarted) -> None:
    user, cluster_id = restarted.user, restarted.clusters["bootstrapping"]
    reason = user.wait_for(cluster_id, "TERMINATED_WITH_ERRORS")["Status"]["StateChangeReason"]
    assert reason == {"Code": "INTERNAL_ERROR", "Message": "local_aws was restarted before the cluster was ready"}
    assert user.step_states(cluster_id) == ["CANCELLED"]


def test_security_configurations_are_restored(restarted: Restarted) -> None:
    listed = restarted.user.emr.list_security_configurations()["SecurityConfigurations"]
    assert [item["Name"] for item in listed] == ["example"]


def test_a_stopped_server_leaves_its_clusters_to_the_next_like_a_killed_one(tmp_path: Path) -> None:
    with LocalAws(tmp_path / "data") as server:
        user = User(server.endpoint_url)
        cluster_id = user.start(running(tmp_path, "pid", "CONTINUE"), bash("exit 0"), LogUri=None)
        pid = read_pid(tmp_path / "pid")
    wait_for_death(pid)
    with LocalAws(tmp_path / "data") as server:
        user = User(server.endpoint_url)
        user.wait_for(cluster_id, "TERMINATED")
        assert user.step_states(cluster_id) == ["FAILED", "COMPLETED"]


def test_a_terminating_cluster_keeps_its_reason(tmp_path: Path) -> None:
    with LocalAws(tmp_path / "data", timings=Timings(terminating_seconds=60)) as server:
        user = User(server.endpoint_url)
        cluster_id = user.start(keep_alive=True, LogUri=None)
        user.terminate(cluster_id)
    with LocalAws(tmp_path / "data") as server:
        user = User(server.endpoint_url)
        user.wait_for(cluster_id, "TERMINATED")
        assert user.end_code(cluster_id) == "USER_REQUEST"


def test_a_step_that_was_cancel_pending_is_cancelled(tmp_path: Path) -> None:
    stubborn = f"trap '' TERM; echo $$ > {tmp_path / 'pid'}; while true; do sleep 0.1; done"
    with serving(tmp_path / "data") as (process, _, user):
        cluster_id = user.start(bash(stubborn), keep_alive=True, LogUri=None)
        read_pid(tmp_path / "pid")
        (step,) = user.steps(cluster_id)
        user.emr.cancel_steps(ClusterId=cluster_id, StepIds=[step["Id"]])
        assert user.step_states(cluster_id) == ["CANCEL_PENDING"]
        process.kill()
    with serving(tmp_path / "data") as (_, _, user):
        assert user.step_states(cluster_id) == ["CANCELLED"]
        user.wait_for(cluster_id, "WAITING")
