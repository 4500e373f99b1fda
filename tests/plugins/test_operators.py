"""The operators of the cluster's life against a local AWS that goes wrong on demand."""

import asyncio
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import PokeReturnValue
from airflow.sdk.bases.operator import BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException, TaskDeferred

from local_aws.client import LocalAwsClient
from local_aws.server import LocalAws
from orchard.links import StepLogsLink
from orchard.operators import (
    AddStepOperator,
    ClusterReadySensor,
    ClustersGoneSensor,
    CreateClusterOperator,
    StepEndSensor,
    TerminateClustersOperator,
)
from tests.local_aws.airflow_task import TaskInstance, defer, execute, fire, point_airflow_at, resume
from tests.local_aws.user import BUCKET, LOG_URI, REGION, ROLES, User, bash, grandchild, read_pid, wait_for_death

WHERE: dict[str, Any] = {"region_name": REGION}


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    with LocalAws(tmp_path_factory.mktemp("aws")) as server:
        somebody = User(server.endpoint_url)
        somebody.make_bucket()
        yield somebody


@pytest.fixture(autouse=True)
def local_aws(user: User, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalAwsClient]:
    point_airflow_at(user.endpoint_url, monkeypatch)
    client = LocalAwsClient(user.endpoint_url)
    yield client
    client.clear()


@pytest.fixture
def request_() -> dict[str, Any]:
    """A run's request, with a name that is the run's alone."""
    return {
        "Name": f"orchard-{uuid.uuid4().hex}",
        "ReleaseLabel": "emr-7.14.0",
        "LogUri": LOG_URI,
        "Instances": {"InstanceCount": 1, "MasterInstanceType": "m5.xlarge", "KeepJobFlowAliveWhenNoSteps": True},
        **ROLES,
    }


def named(user: User, request: dict[str, Any]) -> list[str]:
    """The ids of the clusters of a run, newest first."""
    return [item["Id"] for item in user.emr.list_clusters()["Clusters"] if item["Name"] == request["Name"]]


def create(request: dict[str, Any]) -> BaseOperator:
    return CreateClusterOperator(task_id="create_cluster", job_flow_overrides=str(request), **WHERE)


def ready(request: dict[str, Any], cluster_id: str) -> PokeReturnValue:
    """What one poke of the sensor finds."""
    sensor = ClusterReadySensor(task_id="cluster_ready", job_flow_id=cluster_id, request=str(request), **WHERE)
    return sensor.poke({"ti": TaskInstance()})  # type: ignore[typeddict-item]


def wait_until_ready(request: dict[str, Any], cluster_id: str) -> str:
    while not (found := ready(request, cluster_id)):
        pass
    return str(found.xcom_value)


def step_of(script: str) -> dict[str, Any]:
    """A step with a name of its own, as each step of a run has."""
    return {**bash(script), "Name": f"step-{uuid.uuid4().hex}"}


def add(cluster_id: str, step: dict[str, Any]) -> BaseOperator:
    return AddStepOperator(task_id="ingest.add_step", job_flow_id=cluster_id, step=step, **WHERE)


def wait(cluster_id: str, step_id: str, budget: timedelta = timedelta(minutes=1)) -> BaseOperator:
    return StepEndSensor(
        task_id="ingest.wait_step",
        job_flow_id=cluster_id,
        step_id=step_id,
        budget=budget,
        log_uri=LOG_URI,
        poke_interval=1,
        **WHERE,
    )


def terminate(request: dict[str, Any], *known_ids: str) -> BaseOperator:
    return TerminateClustersOperator(
        task_id="terminate_cluster", cluster_name=request["Name"], known_ids=list(known_ids), **WHERE
    )


def gone(request: dict[str, Any], *known_ids: str) -> bool:
    """What one poke of the sensor finds."""
    sensor = ClustersGoneSensor(
        task_id="cluster_gone", cluster_name=request["Name"], known_ids=list(known_ids), **WHERE
    )
    return sensor.poke({"ti": TaskInstance()})  # type: ignore[typeddict-item]


@pytest.fixture(scope="module")
def cluster_id(user: User) -> str:
    """A cluster that waits for steps."""
    made = user.start(keep_alive=True)
    user.wait_for(made, "WAITING")
    return made


def test_a_second_try_adopts_the_cluster_of_the_first(user: User, request_: dict[str, Any]) -> None:
    first = execute(create(request_))
    assert execute(create(request_)) == first
    assert named(user, request_) == [first]


def test_a_cluster_whose_answer_was_lost_is_adopted(
    user: User, local_aws: LocalAwsClient, request_: dict[str, Any]
) -> None:
    local_aws.lose_answer("emr:RunJobFlow", calls=[1])
    with pytest.raises(Exception, match="Connection was closed"):
        execute(create(request_))
    assert execute(create(request_)) in named(user, request_)
    assert len(named(user, request_)) == 1


def test_a_cluster_that_ends_is_not_adopted(user: User, request_: dict[str, Any]) -> None:
    first = execute(create(request_))
    user.terminate(first)
    second = execute(create(request_))
    assert named(user, request_) == [second, first]


def test_nothing_is_asked_of_a_cluster_that_has_just_been_made(
    local_aws: LocalAwsClient, request_: dict[str, Any]
) -> None:
    for code in ("AccessDeniedException", "ThrottlingException"):
        local_aws.fail("emr:DescribeCluster", code)
    assert execute(create(request_)).startswith("j-")


def test_a_request_that_emr_refuses_is_not_tried_again(user: User, request_: dict[str, Any]) -> None:
    with pytest.raises(AirflowFailException, match=r"EMR refuses the cluster: .*release label is invalid"):
        execute(create({**request_, "ReleaseLabel": "emr-7.99.0"}))
    assert named(user, request_) == []


def test_a_task_that_is_killed_ends_the_cluster_that_it_made(user: User, request_: dict[str, Any]) -> None:
    task = create(request_)
    made = execute(task)
    task.on_kill()
    user.wait_for(made, "TERMINATED")


def test_a_cluster_that_comes_up_is_the_one_that_is_used(request_: dict[str, Any]) -> None:
    made = execute(create(request_))
    assert wait_until_ready(request_, made) == made


def test_a_cluster_that_did_not_come_up_for_what_may_heal_is_replaced(
    user: User, local_aws: LocalAwsClient, request_: dict[str, Any]
) -> None:
    local_aws.end_cluster("BOOTSTRAP_FAILURE", calls=[1])
    made = execute(create(request_))
    used = wait_until_ready(request_, made)
    assert named(user, request_) == [used, made]
    assert used != made


def test_the_third_cluster_is_the_last(user: User, local_aws: LocalAwsClient, request_: dict[str, Any]) -> None:
    local_aws.end_cluster("BOOTSTRAP_FAILURE")
    made = execute(create(request_))
    with pytest.raises(
        AirflowFailException, match=r"did not come up: .*BOOTSTRAP_FAILURE.*number 3, which is the last"
    ):
        wait_until_ready(request_, made)
    clusters = named(user, request_)
    assert len(clusters) == 3
    assert {user.end_code(cluster) for cluster in clusters} == {"BOOTSTRAP_FAILURE"}


@pytest.mark.parametrize("how", ["VALIDATION_ERROR", "USER_REQUEST"])
def test_a_cluster_that_would_not_come_up_again_is_not_replaced(
    user: User, local_aws: LocalAwsClient, request_: dict[str, Any], how: str
) -> None:
    if how == "VALIDATION_ERROR":
        local_aws.end_cluster("VALIDATION_ERROR")
    made = execute(create(request_))
    if how == "USER_REQUEST":
        user.terminate(made)
    with pytest.raises(AirflowFailException, match=f"cluster {made} did not come up: .*{how}"):
        wait_until_ready(request_, made)
    assert named(user, request_) == [made]


def test_a_second_try_adopts_the_step_of_the_first(user: User, cluster_id: str) -> None:
    step = step_of("sleep 0.3")
    first = execute(add(cluster_id, step))
    assert execute(add(cluster_id, step)) == first
    user.wait_for_step(cluster_id, first, "COMPLETED")
    assert execute(add(cluster_id, step)) == first


def test_a_step_whose_answer_was_lost_is_adopted(user: User, local_aws: LocalAwsClient, cluster_id: str) -> None:
    step = step_of("exit 0")
    local_aws.lose_answer("emr:AddJobFlowSteps", calls=[1])
    with pytest.raises(Exception, match="Connection was closed"):
        execute(add(cluster_id, step))
    adopted = execute(add(cluster_id, step))
    assert [item["Id"] for item in user.steps(cluster_id) if item["Name"] == step["Name"]] == [adopted]


def test_a_step_that_has_failed_is_added_anew(user: User, cluster_id: str) -> None:
    step = step_of("exit 1")
    failed = execute(add(cluster_id, step))
    user.wait_for_step(cluster_id, failed, "FAILED")
    assert execute(add(cluster_id, step)) != failed


def test_a_step_for_a_cluster_that_has_gone_fails_for_good_and_says_how_the_cluster_ended(user: User) -> None:
    ended = user.run(bash("exit 0"))
    with pytest.raises(AirflowFailException, match=f"cluster {ended} is TERMINATED .ALL_STEPS_COMPLETED"):
        execute(add(ended, step_of("exit 0")))


def test_a_link_leads_to_the_folder_of_the_steps_logs(cluster_id: str) -> None:
    step_id = execute(add(cluster_id, step_of("sleep 1")))
    task_instance = TaskInstance()
    with pytest.raises(TaskDeferred):
        execute(wait(cluster_id, step_id), task_instance)
    link = StepLogsLink().format_link(**task_instance.xcoms[StepLogsLink.key])
    assert link == (
        f"https://console.aws.amazon.com/s3/buckets/{BUCKET}?region={REGION}"
        f"&prefix=deep/logs/{cluster_id}/steps/{step_id}/"
    )


def test_a_step_that_completes_is_waited_for_in_the_triggerer(cluster_id: str) -> None:
    step_id = execute(add(cluster_id, step_of("sleep 1")))
    task = wait(cluster_id, step_id)
    deferred = defer(task)
    event = fire(deferred)
    assert event["status"] == "success"
    resume(task, deferred, event)


def test_a_step_that_fails_is_explained_with_the_last_lines_of_its_log(cluster_id: str) -> None:
    script = "for n in $(seq 80); do echo line $n; done; echo 'ValueError: no such fruit: pear' >&2; sleep 1; exit 3"
    step_id = execute(add(cluster_id, step_of(script)))
    task = wait(cluster_id, step_id)
    deferred = defer(task)
    with pytest.raises(AirflowFailException) as failed:
        resume(task, deferred, fire(deferred))
    said = str(failed.value).splitlines()
    folder = f"{LOG_URI}{cluster_id}/steps/{step_id}/"
    assert f"({step_id}) is FAILED" in said[0]
    assert said[1] == "ValueError: no such fruit: pear"
    assert said[2] == f"the last 1 lines of {folder}stderr.gz:"
    assert said[-1] == f"all logs: {folder}"


def test_of_a_long_log_the_last_fifty_lines_are_shown(user: User, cluster_id: str) -> None:
    step_id = execute(add(cluster_id, step_of("for n in $(seq 80); do echo line $n; done; exit 3")))
    user.wait_for_step(cluster_id, step_id, "FAILED")
    with pytest.raises(AirflowFailException) as failed:
        execute(wait(cluster_id, step_id))
    said = str(failed.value)
    assert [line for line in said.splitlines() if line.startswith("line ")] == [f"line {n}" for n in range(31, 81)]


def test_a_step_whose_cluster_was_ended_says_so(user: User) -> None:
    ended = user.start(bash("sleep 60"))
    (step,) = user.steps(ended)
    user.wait_for_step(ended, step["Id"], "RUNNING")
    user.terminate(ended)
    user.wait_for(ended, "TERMINATED")
    with pytest.raises(AirflowFailException, match="USER_REQUEST: Terminated by user request"):
        execute(wait(ended, step["Id"]))


def test_a_step_that_exceeds_its_budget_is_cancelled(user: User, cluster_id: str, tmp_path: Path) -> None:
    step_id = execute(add(cluster_id, step_of(grandchild(tmp_path / "pid"))))
    pid = read_pid(tmp_path / "pid")
    task = wait(cluster_id, step_id, budget=timedelta(seconds=6))
    deferred = defer(task)
    event = fire(deferred)
    assert event["status"] == "error"
    message = "has not ended within 0.1 minutes and is cancelled; .* ORCHARD_INGEST_TIMEOUT_MINUTES"
    with pytest.raises(AirflowFailException, match=message):
        resume(task, deferred, event)
    user.wait_for_step(cluster_id, step_id, "CANCELLED")
    wait_for_death(pid)


def test_a_retry_gives_a_step_no_more_time(user: User, cluster_id: str) -> None:
    step_id = execute(add(cluster_id, step_of("sleep 60")))
    with pytest.raises(AirflowFailException, match="has not ended within 0 minutes"):
        execute(wait(cluster_id, step_id, budget=timedelta(0)))
    user.wait_for_step(cluster_id, step_id, "CANCELLED")


def test_a_poll_that_is_lost_is_worth_a_retry(local_aws: LocalAwsClient, user: User, cluster_id: str) -> None:
    step_id = execute(add(cluster_id, step_of("sleep 60")))
    task = wait(cluster_id, step_id)
    deferred = defer(task)
    local_aws.fail("emr:DescribeStep", "AccessDeniedException", calls=[1])
    event = fire(deferred)
    with pytest.raises(AirflowException, match="was lost sight of") as lost:
        resume(task, deferred, event)
    assert not isinstance(lost.value, AirflowFailException)
    user.emr.cancel_steps(ClusterId=cluster_id, StepIds=[step_id])


def test_a_user_who_ends_the_wait_ends_the_step(user: User, cluster_id: str, tmp_path: Path) -> None:
    step_id = execute(add(cluster_id, step_of(grandchild(tmp_path / "pid"))))
    pid = read_pid(tmp_path / "pid")
    trigger: Any = defer(wait(cluster_id, step_id)).trigger
    asyncio.run(trigger.on_kill())
    user.wait_for_step(cluster_id, step_id, "CANCELLED")
    wait_for_death(pid)


def test_all_clusters_of_a_run_are_ended_and_no_other(user: User, request_: dict[str, Any]) -> None:
    other = user.start(keep_alive=True)
    first = user.emr.run_job_flow(**request_)["JobFlowId"]
    second = user.emr.run_job_flow(**request_)["JobFlowId"]
    ended = execute(terminate(request_, first))
    assert ended == [first, second]
    for made in ended:
        user.wait_for(made, "TERMINATED")
    assert gone(request_, *ended)
    assert user.state(other) != "TERMINATED"
    user.terminate(other)


def test_a_cluster_is_found_without_its_id(user: User, request_: dict[str, Any]) -> None:
    made = user.emr.run_job_flow(**request_)["JobFlowId"]
    assert execute(terminate(request_, "None", "None")) == [made]


def test_who_waits_for_a_clusters_end_asks_for_it_once_more(
    user: User, local_aws: LocalAwsClient, request_: dict[str, Any]
) -> None:
    made = execute(create(request_))
    local_aws.fail("emr:TerminateJobFlows", "AccessDeniedException", calls=[1])
    assert not gone(request_, made)
    assert not gone(request_, made)
    user.wait_for(made, "TERMINATED")
    assert gone(request_, made)


def test_a_run_that_made_no_cluster_has_none_to_end(request_: dict[str, Any]) -> None:
    assert execute(terminate(request_, "None", "None")) == []
    assert gone(request_)


@pytest.mark.parametrize("denied", ["emr:DescribeCluster", "emr:ListClusters"])
def test_a_cluster_is_ended_when_it_may_not_be_looked_at(
    user: User, local_aws: LocalAwsClient, request_: dict[str, Any], denied: str
) -> None:
    made = execute(create(request_))
    local_aws.fail(denied, "AccessDeniedException")
    if denied == "emr:ListClusters":
        # Whether there are others is not known, so the task fails; but this one is ended.
        with pytest.raises(ExceptionGroup, match="may still live"):
            execute(terminate(request_, made))
    else:
        execute(terminate(request_, made))
    local_aws.clear()
    user.wait_for(made, "TERMINATED")


def test_a_protected_cluster_is_ended(user: User, request_: dict[str, Any]) -> None:
    protected = {**request_, "Instances": {**request_["Instances"], "TerminationProtected": True}}
    made = execute(create(protected))
    execute(terminate(protected, made))
    user.wait_for(made, "TERMINATED")


def test_clusters_that_are_over_are_no_trouble(user: User, request_: dict[str, Any]) -> None:
    made = execute(create({**request_, "Name": request_["Name"]}))
    LocalAwsClient(user.endpoint_url).lose_instances(wait_until_ready(request_, made))
    user.wait_for(made, "TERMINATED_WITH_ERRORS")
    assert execute(terminate(request_, made, made)) == [made]
    assert gone(request_, made)


def test_an_end_that_is_refused_fails_the_task(user: User, local_aws: LocalAwsClient, request_: dict[str, Any]) -> None:
    made = execute(create(request_))
    local_aws.fail("emr:TerminateJobFlows", "AccessDeniedException", calls=[1])
    with pytest.raises(ExceptionGroup) as failed:
        execute(terminate(request_, made))
    assert "AccessDenied" in str(failed.value.exceptions[0])
    execute(terminate(request_, made))
    user.wait_for(made, "TERMINATED")
