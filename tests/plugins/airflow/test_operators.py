"""The operators against a local AWS with injected faults."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException
from botocore.exceptions import ClientError

from local_aws.client import LocalAwsClient
from orchard.airflow.operators import CLEAR_NUMBER
from tests.local_aws.airflow_task import fire
from tests.local_aws.user import User, bash
from tests.plugins.airflow.tasks import (
    DagRun,
    TaskInstance,
    add_step,
    cleared_run,
    clusters_gone,
    clusters_of_run,
    create_cluster,
    defer,
    execute,
    plan_of,
    resume,
    step_config,
    take_turn,
    terminate_clusters,
    wait_until_ready,
)

pytestmark = pytest.mark.usefixtures("local_aws")


def test_a_retry_adopts_the_cluster_of_the_first_attempt(user: User, request_: dict[str, Any]) -> None:
    first = execute(create_cluster(request_))
    assert execute(create_cluster(request_)) == first
    assert clusters_of_run(user, request_) == [first]


def test_a_cluster_is_adopted_if_the_answer_to_its_creation_was_lost(
    user: User, local_aws: LocalAwsClient, request_: dict[str, Any]
) -> None:
    local_aws.lose_answer("emr:RunJobFlow", calls=[1])
    with pytest.raises(Exception, match="Connection was closed"):
        execute(create_cluster(request_))
    assert execute(create_cluster(request_)) in clusters_of_run(user, request_)
    assert len(clusters_of_run(user, request_)) == 1


def test_a_terminating_cluster_is_not_adopted(user: User, request_: dict[str, Any]) -> None:
    first = execute(create_cluster(request_))
    user.terminate(first)
    second = execute(create_cluster(request_))
    assert clusters_of_run(user, request_) == [second, first]


def test_a_new_cluster_is_not_described(local_aws: LocalAwsClient, request_: dict[str, Any]) -> None:
    assert take_turn(request_) == []
    for code in ("AccessDeniedException", "ThrottlingException"):
        local_aws.fail("emr:DescribeCluster", code)
    assert execute(create_cluster(request_)).startswith("j-")


def test_a_request_that_emr_refuses_is_not_retried(user: User, request_: dict[str, Any]) -> None:
    with pytest.raises(AirflowFailException, match=r"EMR rejected the cluster: .*release label is invalid"):
        execute(create_cluster({**request_, "ReleaseLabel": "emr-7.99.0"}))
    assert clusters_of_run(user, request_) == []


def test_a_killed_task_terminates_the_cluster_that_it_created(user: User, request_: dict[str, Any]) -> None:
    task = create_cluster(request_)
    created = execute(task)
    task.on_kill()
    user.wait_for(created, "TERMINATED")


def test_a_retry_adopts_the_step_of_the_first_attempt(user: User, cluster_id: str) -> None:
    step = step_config("sleep 0.3")
    first = execute(add_step(cluster_id, step))
    assert execute(add_step(cluster_id, step)) == first
    user.wait_for_step(cluster_id, first, "COMPLETED")
    assert execute(add_step(cluster_id, step)) == first


def test_a_step_is_adopted_if_the_answer_to_its_creation_was_lost(
    user: User, local_aws: LocalAwsClient, cluster_id: str
) -> None:
    step = step_config("exit 0")
    local_aws.lose_answer("emr:AddJobFlowSteps", calls=[1])
    with pytest.raises(Exception, match="Connection was closed"):
        execute(add_step(cluster_id, step))
    adopted = execute(add_step(cluster_id, step))
    assert [item["Id"] for item in user.steps(cluster_id) if item["Name"] == step["Name"]] == [adopted]


def test_a_failed_step_is_added_again(user: User, cluster_id: str) -> None:
    step = step_config("exit 1")
    failed = execute(add_step(cluster_id, step))
    user.wait_for_step(cluster_id, failed, "FAILED")
    assert execute(add_step(cluster_id, step)) != failed


def test_a_step_for_a_terminated_cluster_fails_without_retry_and_reports_why_the_cluster_terminated(
    user: User,
) -> None:
    terminated = user.run(bash("exit 0"))
    with pytest.raises(AirflowFailException, match=f"cluster {terminated} is TERMINATED .ALL_STEPS_COMPLETED"):
        execute(add_step(terminated, step_config("exit 0")))


def test_a_cluster_is_created_only_when_it_is_the_runs_turn(user: User, request_: dict[str, Any]) -> None:
    """The run has finished and its turn has gone to another run. Then a user clears `create_cluster`, no setup."""
    execute(create_cluster(request_), TaskInstance("other"))
    execute(terminate_clusters(request_))
    (first,) = clusters_of_run(user, request_)
    user.wait_for(first, "TERMINATED")
    task = create_cluster(request_)
    cleared = cleared_run()
    deferred = defer(task, TaskInstance("own", {"other": "running"}), cleared)
    assert clusters_of_run(user, request_) == [first]
    created = resume(task, deferred, fire(deferred), TaskInstance("own", {"other": "success"}), cleared)
    assert clusters_of_run(user, request_) == [created, first]
    user.terminate(created)


def test_a_run_does_not_wait_for_its_turn_for_ever(request_: dict[str, Any]) -> None:
    execute(create_cluster(request_), TaskInstance("other"))
    execute(terminate_clusters(request_))
    with pytest.raises(AirflowFailException, match=r"waited for its turn for too long: this run waits for dataset"):
        execute(
            create_cluster(request_),
            TaskInstance("own", {"other": "running"}),
            DagRun(datetime.now(UTC) - timedelta(hours=25)),
        )


def test_a_step_whose_cluster_has_terminated_with_an_earlier_round_gets_a_new_cluster(
    user: User, request_: dict[str, Any]
) -> None:
    old = execute(create_cluster(request_))
    user.terminate(old)
    user.wait_for(old, "TERMINATED")
    cleared, plan = cleared_run(), plan_of(request_)
    first = execute(add_step(old, step_config("exit 0"), plan), dag_run=cleared)
    second = execute(add_step(old, step_config("exit 0"), plan), dag_run=cleared)
    new, _ = clusters_of_run(user, request_)
    assert {step["Id"] for step in user.steps(new)} == {first, second}
    user.terminate(new)


def test_a_step_does_not_get_a_second_cluster_in_a_round(user: User, request_: dict[str, Any]) -> None:
    old = execute(create_cluster(request_))
    user.terminate(old)
    user.wait_for(old, "TERMINATED")
    cleared, plan = cleared_run(), plan_of(request_)
    execute(add_step(old, step_config("exit 0"), plan), dag_run=cleared)
    new, _ = clusters_of_run(user, request_)
    user.terminate(new)
    user.wait_for(new, "TERMINATED")
    with pytest.raises(AirflowFailException, match=f"cluster {new} is TERMINATED .USER_REQUEST"):
        execute(add_step(old, step_config("exit 0"), plan), dag_run=cleared)
    assert clusters_of_run(user, request_) == [new, old]


def test_a_cleared_task_that_adds_a_step_gets_a_new_cluster_although_the_run_has_not_started_again(
    user: User, request_: dict[str, Any]
) -> None:
    """A user clears `add_step` while the run is still active, for example while its teardown runs."""
    step, plan = step_config("exit 0"), plan_of(request_)
    old = execute(create_cluster(request_))
    user.terminate(old)
    user.wait_for(old, "TERMINATED")
    with pytest.raises(AirflowFailException, match=f"cluster {old} is TERMINATED"):
        execute(add_step(old, step, plan))
    execute(add_step(old, step, plan), TaskInstance(was_cleared=True))
    new, _ = clusters_of_run(user, request_)
    assert [item["Name"] for item in user.steps(new)] == [step["Name"]]
    user.terminate(new)


@pytest.mark.parametrize("forgotten", ["j-0000000000000", "None"])
def test_a_step_whose_cluster_emr_does_not_know_gets_a_new_one(
    user: User, request_: dict[str, Any], forgotten: str
) -> None:
    """EMR forgets clusters after two months. Before a run has created one, the id of its cluster is None."""
    step, plan = step_config("exit 0"), plan_of(request_)
    execute(add_step(forgotten, step, plan))
    (new,) = clusters_of_run(user, request_)
    assert [item["Name"] for item in user.steps(new)] == [step["Name"]]
    user.terminate(new)


def test_a_step_is_added_with_the_number_of_clears_before_it(user: User, request_: dict[str, Any]) -> None:
    step, plan = step_config("sleep 60"), plan_of(request_)
    created, cleared = execute(create_cluster(request_)), cleared_run()
    new = TaskInstance()
    execute(add_step(created, step, plan), new, cleared)
    assert new.xcoms[CLEAR_NUMBER] == 1
    # A retry of the first attempt adopts the step, and so does the first attempt after a clear, which cancels the step.
    retry, after_clear = TaskInstance(), TaskInstance(was_cleared=True)
    retry.try_number = 2
    for ti in (retry, after_clear):
        execute(add_step(created, step, plan), ti, cleared)
    assert (retry.xcoms[CLEAR_NUMBER], after_clear.xcoms[CLEAR_NUMBER]) == (1, 0)
    assert len(user.steps(created)) == 1
    user.terminate(created)


def test_all_clusters_of_a_run_are_terminated_and_no_other(user: User, request_: dict[str, Any]) -> None:
    other = user.start(keep_alive=True)
    first = user.emr.run_job_flow(**request_)["JobFlowId"]
    second = user.emr.run_job_flow(**request_)["JobFlowId"]
    terminated = execute(terminate_clusters(request_, first))
    assert terminated == [first, second]
    for cluster_id in terminated:
        user.wait_for(cluster_id, "TERMINATED")
    assert clusters_gone(request_, *terminated)
    assert user.state(other) != "TERMINATED"
    user.terminate(other)


def test_a_cluster_is_found_by_its_name_if_its_id_is_unknown(user: User, request_: dict[str, Any]) -> None:
    created = user.emr.run_job_flow(**request_)["JobFlowId"]
    assert execute(terminate_clusters(request_, None, None)) == [created]


def test_a_run_without_a_cluster_terminates_nothing(request_: dict[str, Any]) -> None:
    assert execute(terminate_clusters(request_, None, None)) == []
    assert clusters_gone(request_, None, None)


@pytest.mark.parametrize("denied", ["emr:DescribeCluster", "emr:ListClusters"])
def test_a_cluster_is_terminated_without_permission_to_describe_or_list_clusters(
    user: User, local_aws: LocalAwsClient, request_: dict[str, Any], denied: str
) -> None:
    created = execute(create_cluster(request_))
    local_aws.fail(denied, "AccessDeniedException")
    if denied == "emr:ListClusters":
        # The run may have other clusters, so the task fails. The known cluster is terminated.
        with pytest.raises(ExceptionGroup, match="may still be active"):
            execute(terminate_clusters(request_, created))
    else:
        execute(terminate_clusters(request_, created))
    local_aws.clear()
    user.wait_for(created, "TERMINATED")


def test_a_cluster_with_termination_protection_is_terminated(user: User, request_: dict[str, Any]) -> None:
    protected = {**request_, "Instances": {**request_["Instances"], "TerminationProtected": True}}
    created = execute(create_cluster(protected))
    execute(terminate_clusters(protected, created))
    user.wait_for(created, "TERMINATED")


def test_a_terminated_cluster_can_be_terminated_again(user: User, request_: dict[str, Any]) -> None:
    created = execute(create_cluster(request_))
    LocalAwsClient(user.endpoint_url).lose_instances(wait_until_ready(request_, created))
    user.wait_for(created, "TERMINATED_WITH_ERRORS")
    assert execute(terminate_clusters(request_, created, created)) == [created]
    assert clusters_gone(request_, created)


def test_the_task_fails_if_emr_refuses_to_terminate_a_cluster(
    user: User, local_aws: LocalAwsClient, request_: dict[str, Any]
) -> None:
    created = execute(create_cluster(request_))
    local_aws.fail("emr:TerminateJobFlows", "AccessDeniedException", calls=[1])
    with pytest.raises(ExceptionGroup) as failed:
        execute(terminate_clusters(request_, created))
    assert "AccessDenied" in str(failed.value.exceptions[0])
    execute(terminate_clusters(request_, created))
    user.wait_for(created, "TERMINATED")


def invalid(request: dict[str, Any], count: Any) -> dict[str, Any]:
    """Return the request with a count that botocore, or EMR, refuses."""
    return {**request, "Instances": {**request["Instances"], "InstanceCount": count}}


@pytest.mark.parametrize(
    ("count", "fault"), [(2.0, "Invalid type for parameter Instances.InstanceCount"), (-1, "ValidationException")]
)
def test_a_cluster_that_botocore_or_emr_refuses_is_not_tried_again(
    user: User, request_: dict[str, Any], count: Any, fault: str
) -> None:
    with pytest.raises(AirflowFailException, match="EMR rejected the cluster: ") as error:
        execute(create_cluster(invalid(request_, count)))
    assert fault in str(error.value)
    assert clusters_of_run(user, request_) == []


@pytest.mark.parametrize("code", ["ThrottlingException", "InternalServerException", "AccessDeniedException"])
def test_a_refusal_that_may_end_by_itself_is_left_to_the_retries(
    local_aws: LocalAwsClient, request_: dict[str, Any], cluster_id: str, code: Any
) -> None:
    local_aws.fail("emr:RunJobFlow", code)
    local_aws.fail("emr:AddJobFlowSteps", code)
    for task in (create_cluster(request_), add_step(cluster_id, step_config("exit 0"))):
        with pytest.raises(ClientError, match=code):
            execute(task)


def test_a_step_that_botocore_refuses_is_not_tried_again(cluster_id: str) -> None:
    step = {**step_config("exit 0"), "HadoopJarStep": {"Jar": "command-runner.jar", "Args": ["sleep", 2.0]}}
    with pytest.raises(AirflowFailException, match=f"Invalid type for parameter .*; cluster {cluster_id} is "):
        execute(add_step(cluster_id, step))
