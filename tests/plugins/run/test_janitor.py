import logging
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
from botocore.exceptions import ClientError

from local_aws.client import LocalAwsClient
from orchard.cluster.tags import DAG_TAG, DEPLOYMENT_TAG, HELD_TAG, HOLD_TAG, RUN_TAG
from orchard.run.janitor import clusters_of_deployment, decide, terminate_orphans
from orchard.run.names import cluster_name, run_name
from orchard.settings import Settings
from tests.plugins.plans import DAG_ID, RUN_AFTER, RUN_ID, plan, put_images

if TYPE_CHECKING:
    from mypy_boto3_emr import EMRClient
    from mypy_boto3_s3 import S3Client

CreateCluster: TypeAlias = Callable[..., str]
RunJanitor: TypeAlias = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def settings() -> Settings:
    """A new deployment for each test. No cluster of another test has the name of its bucket."""
    return Settings(bucket=f"test-{uuid.uuid4().hex[:12]}", release="0123456789ab")


@pytest.fixture
def create_cluster(emr: "EMRClient", role: str, settings: Settings) -> Iterator[CreateCluster]:
    """Creates clusters as a run does, without bootstrap action and steps. Terminates them after the test."""
    created = []

    def create(
        run_id: str = RUN_ID,
        *,
        bucket: str = settings.bucket,
        deployment: str = settings.deployment,
        tags: dict[str, str] | None = None,
        protected: bool = False,
    ) -> str:
        own_tags = {DAG_TAG: DAG_ID, RUN_TAG: run_id.replace("~", "@"), DEPLOYMENT_TAG: deployment}
        tags = own_tags if tags is None else tags
        cluster_id = emr.run_job_flow(
            Name=cluster_name(bucket, deployment, run_name(RUN_AFTER, run_id, deployment), "images"),
            ReleaseLabel="emr-7.14.0",
            Instances={
                "MasterInstanceType": "m5.xlarge",
                "InstanceCount": 1,
                "KeepJobFlowAliveWhenNoSteps": True,
                "TerminationProtected": protected,
            },
            Tags=[{"Key": key, "Value": value} for key, value in tags.items()],
            ServiceRole=role,
            JobFlowRole=role,
        )["JobFlowId"]
        created.append(cluster_id)
        return cluster_id

    yield create
    for cluster_id in created:
        emr.set_termination_protection(JobFlowIds=[cluster_id], TerminationProtected=False)
    emr.terminate_job_flows(JobFlowIds=created)


@pytest.fixture
def faults(aws_url: str) -> Iterator[LocalAwsClient]:
    client = LocalAwsClient(aws_url)
    yield client
    client.clear()


@pytest.fixture
def run_janitor(emr: "EMRClient", settings: Settings) -> RunJanitor:
    """Runs the janitor in an Airflow that has only the given runs. `run` stands for the run with RUN_ID."""

    def run(hours_later: float = 0, dry_run: bool = False, **states: str) -> list[dict[str, Any]]:
        runs = {(DAG_ID, RUN_ID if name == "run" else name): state for name, state in states.items()}
        now = datetime.now(UTC) + timedelta(hours=hours_later)
        return terminate_orphans(emr, settings, lambda *ids: runs.get(ids), now=now, dry_run=dry_run)

    return run


def is_active(emr: "EMRClient", cluster_id: str) -> bool:
    state = emr.describe_cluster(ClusterId=cluster_id)["Cluster"]["Status"]["State"]
    return not state.startswith("TERMINAT")


def unreachable(dag_id: str, run_id: str) -> str | None:
    raise ConnectionError("Airflow's API does not answer")


@pytest.mark.parametrize("state", ["success", "failed"])
def test_the_cluster_of_a_finished_run_is_terminated(
    emr: "EMRClient", create_cluster: CreateCluster, run_janitor: RunJanitor, state: str
) -> None:
    cluster_id = create_cluster()
    (row,) = run_janitor(run=state)
    assert (row["cluster_id"], row["outcome"], row["why"]) == (cluster_id, "terminated", f"its run is {state}")
    assert not is_active(emr, cluster_id)


@pytest.mark.parametrize("state", ["queued", "running", "a state of a later Airflow"])
def test_the_cluster_of_a_run_in_any_other_state_is_kept(
    emr: "EMRClient", create_cluster: CreateCluster, run_janitor: RunJanitor, state: str
) -> None:
    cluster_id = create_cluster()
    (row,) = run_janitor(run=state)
    assert (row["outcome"], row["why"]) == ("kept", f"its run is {state}")
    assert is_active(emr, cluster_id)


def test_the_cluster_of_a_run_that_airflow_does_not_know_is_terminated(
    emr: "EMRClient", create_cluster: CreateCluster, run_janitor: RunJanitor
) -> None:
    cluster_id = create_cluster()
    (row,) = run_janitor(another_run="running")
    assert (row["outcome"], row["run_state"]) == ("terminated", "unknown")
    assert not is_active(emr, cluster_id)


def test_a_cluster_that_is_too_old_is_terminated_even_if_its_run_is_active(
    emr: "EMRClient", create_cluster: CreateCluster, run_janitor: RunJanitor, settings: Settings
) -> None:
    cluster_id = create_cluster()
    (young,) = run_janitor(run="running", hours_later=settings.max_cluster_hours - 0.1)
    assert young["outcome"] == "kept"
    (old,) = run_janitor(run="running", hours_later=settings.max_cluster_hours + 0.1)
    assert (old["outcome"], old["why"], old["age_hours"]) == (
        "terminated",
        "it is older than 12 hours",
        pytest.approx(12.1),
    )
    assert not is_active(emr, cluster_id)


@pytest.mark.parametrize(("value", "minutes"), [("90", 90), ("100000", 240), ("soon", 0)])
def test_a_held_cluster_may_be_older_by_its_hold(
    emr: "EMRClient",
    create_cluster: CreateCluster,
    run_janitor: RunJanitor,
    settings: Settings,
    value: str,
    minutes: int,
) -> None:
    tags = {DAG_TAG: DAG_ID, RUN_TAG: RUN_ID, DEPLOYMENT_TAG: settings.deployment, HOLD_TAG: value}
    cluster_id = create_cluster(tags=tags)
    limit = settings.max_cluster_hours + minutes / 60
    (young,) = run_janitor(run="running", hours_later=limit - 0.1)
    assert young["outcome"] == "kept"
    (old,) = run_janitor(run="running", hours_later=limit + 0.1)
    added = f" and the {minutes} minutes of its hold" if minutes else ""
    assert (old["outcome"], old["why"]) == ("terminated", f"it is older than 12 hours{added}")
    assert not is_active(emr, cluster_id)


@pytest.mark.parametrize("states", [{"run": "success"}, {"run": "failed"}, {}])
def test_a_held_cluster_whose_run_is_over_or_unknown_is_terminated(
    emr: "EMRClient",
    create_cluster: CreateCluster,
    run_janitor: RunJanitor,
    settings: Settings,
    states: dict[str, str],
) -> None:
    tags = {DAG_TAG: DAG_ID, RUN_TAG: RUN_ID, DEPLOYMENT_TAG: settings.deployment, HOLD_TAG: "240", HELD_TAG: "2100"}
    cluster_id = create_cluster(tags=tags)
    (row,) = run_janitor(**states)
    assert row["outcome"] == "terminated"
    assert not is_active(emr, cluster_id)


@pytest.mark.parametrize("tags", [{}, {DAG_TAG: DAG_ID}, {RUN_TAG: RUN_ID}, {"orchard:owner": "fruits"}])
def test_a_cluster_without_orchards_tags_is_kept_whatever_its_age(
    emr: "EMRClient", create_cluster: CreateCluster, run_janitor: RunJanitor, tags: dict[str, str]
) -> None:
    cluster_id = create_cluster(tags=tags)
    assert run_janitor(hours_later=1000) == []
    assert is_active(emr, cluster_id)


def test_a_cluster_of_another_deployment_is_kept_even_if_the_names_of_the_buckets_are_similar(
    emr: "EMRClient", create_cluster: CreateCluster, run_janitor: RunJanitor, settings: Settings
) -> None:
    others = [create_cluster(bucket=bucket) for bucket in ("fruits-data", f"{settings.bucket}-2", settings.bucket[:-1])]
    assert run_janitor(hours_later=1000) == []
    assert all(is_active(emr, cluster_id) for cluster_id in others)


def test_two_airflows_on_one_bucket_keep_each_others_clusters(
    emr: "EMRClient", create_cluster: CreateCluster, settings: Settings
) -> None:
    env = {"ORCHARD_BUCKET": settings.bucket, "ORCHARD_RELEASE": settings.release}
    ours, theirs = (Settings.from_env(env, f"https://airflow-{number}.example.com") for number in (1, 2))
    own, other = (create_cluster(deployment=each.deployment) for each in (ours, theirs))
    report = terminate_orphans(emr, ours, lambda *_: None, now=datetime.now(UTC) + timedelta(hours=1000))
    assert [row["cluster_id"] for row in report] == [own]
    assert not is_active(emr, own)
    assert is_active(emr, other)


def test_a_cluster_that_has_the_deployment_only_in_its_name_or_only_in_its_tag_is_kept(
    emr: "EMRClient", create_cluster: CreateCluster, run_janitor: RunJanitor, settings: Settings
) -> None:
    tags = {DAG_TAG: DAG_ID, RUN_TAG: RUN_ID}
    kept = [
        create_cluster(tags=tags),
        create_cluster(tags={**tags, DEPLOYMENT_TAG: "another"}),
        create_cluster(deployment="another", tags={**tags, DEPLOYMENT_TAG: settings.deployment}),
    ]
    assert run_janitor(hours_later=1000) == []
    assert all(is_active(emr, cluster_id) for cluster_id in kept)


def test_a_cluster_of_a_version_without_deployments_is_kept(
    emr: "EMRClient", create_cluster: CreateCluster, run_janitor: RunJanitor, settings: Settings
) -> None:
    cluster_id = create_cluster(deployment="20261122T020000-e20065-images")
    name = emr.describe_cluster(ClusterId=cluster_id)["Cluster"]["Name"]
    assert name.startswith(f"orchard-{settings.bucket}-20261122T020000-e20065-images")
    assert run_janitor(hours_later=1000) == []
    assert is_active(emr, cluster_id)


def test_the_cluster_of_a_plan_is_recognised_by_its_name_and_tags(s3: "S3Client", released: Settings) -> None:
    run_id = "manual~2"
    put_images(s3, released.bucket)
    request = plan(s3, released, run_id)["cluster"]
    name_and_tags: Any = {
        **{key: request[key] for key in ("Name", "Tags")},
        "Id": "j-1",
        "Status": {"State": "WAITING", "Timeline": {"CreationDateTime": RUN_AFTER}},
    }
    decision = decide(name_and_tags, released, lambda *ids: {(DAG_ID, run_id): "running"}[ids], RUN_AFTER)
    assert decision is not None
    assert (decision.run_id, decision.why) == (run_id, "its run is running")


def test_a_cluster_that_is_already_terminating_is_skipped(
    emr: "EMRClient", create_cluster: CreateCluster, run_janitor: RunJanitor, settings: Settings
) -> None:
    create_cluster()
    assert [row["outcome"] for row in run_janitor()] == ["terminated"]
    assert clusters_of_deployment(emr, settings) == []
    assert run_janitor() == []


def test_a_run_whose_id_contains_a_tilde_is_found_by_its_tag(
    create_cluster: CreateCluster, run_janitor: RunJanitor
) -> None:
    create_cluster("again~2")
    (row,) = run_janitor(**{"again~2": "running"})
    assert (row["run_id"], row["run_state"], row["outcome"]) == ("again~2", "running", "kept")


def test_a_run_whose_id_is_not_in_the_tag_counts_as_active_until_its_cluster_is_too_old(
    emr: "EMRClient", create_cluster: CreateCluster, run_janitor: RunJanitor, settings: Settings
) -> None:
    # Airflow can be configured to allow such run_ids, but a tag cannot contain #.
    cluster_id = create_cluster(
        "lot #3", tags={DAG_TAG: DAG_ID, RUN_TAG: "lot _3", DEPLOYMENT_TAG: settings.deployment}
    )
    (row,) = run_janitor(**{"lot #3": "running"})
    assert (row["outcome"], row["run_state"]) == ("kept", "not asked")
    assert is_active(emr, cluster_id)
    (row,) = run_janitor(hours_later=13)
    assert row["outcome"] == "terminated"


def test_a_dry_run_reports_what_would_be_terminated_and_terminates_nothing(
    emr: "EMRClient", create_cluster: CreateCluster, run_janitor: RunJanitor
) -> None:
    orphan, active = create_cluster("deleted"), create_cluster()
    outcomes = {row["cluster_id"]: row["outcome"] for row in run_janitor(run="running", dry_run=True)}
    assert outcomes == {orphan: "would be terminated", active: "kept"}
    assert is_active(emr, orphan)


def test_a_cluster_with_termination_protection_is_terminated(
    emr: "EMRClient", create_cluster: CreateCluster, run_janitor: RunJanitor
) -> None:
    cluster_id = create_cluster(protected=True)
    assert [row["outcome"] for row in run_janitor()] == ["terminated"]
    assert not is_active(emr, cluster_id)


@pytest.mark.parametrize("denied", ["DescribeCluster", "TerminateJobFlows"])
def test_a_cluster_that_cannot_be_described_or_terminated_fails_the_janitor_after_all_others_are_done(
    emr: "EMRClient", create_cluster: CreateCluster, run_janitor: RunJanitor, faults: LocalAwsClient, denied: str
) -> None:
    created = {create_cluster("one"), create_cluster("two"), create_cluster("three")}
    faults.fail(f"emr:{denied}", "AccessDeniedException", calls=[2])
    with pytest.raises(ExceptionGroup) as failed:
        run_janitor()
    (remaining,) = [cluster_id for cluster_id in created if is_active(emr, cluster_id)]
    assert f"{remaining}: An error occurred (AccessDeniedException)" in failed.value.message
    (error,) = failed.value.exceptions
    assert isinstance(error, ClientError)
    assert error.operation_name == denied


def test_nothing_is_terminated_while_airflow_does_not_answer(
    emr: "EMRClient", create_cluster: CreateCluster, settings: Settings
) -> None:
    created = [create_cluster("one"), create_cluster("two")]
    with pytest.raises(ExceptionGroup, match="Airflow's API does not answer") as failed:
        terminate_orphans(emr, settings, unreachable, now=datetime.now(UTC))
    assert len(failed.value.exceptions) == 2
    assert all(is_active(emr, cluster_id) for cluster_id in created)


def test_the_janitor_fails_if_it_cannot_list_clusters(run_janitor: RunJanitor, faults: LocalAwsClient) -> None:
    faults.fail("emr:ListClusters", "AccessDeniedException")
    with pytest.raises(ClientError, match="ListClusters"):
        run_janitor()


def test_the_log_has_one_line_per_cluster_and_a_total(
    create_cluster: CreateCluster, run_janitor: RunJanitor, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    orphan, active, untagged = create_cluster("deleted"), create_cluster(), create_cluster(tags={})
    with caplog.at_level(logging.INFO, logger="orchard.run.janitor"):
        run_janitor(run="running")
    lines = {
        record.getMessage().split()[1]: record.getMessage()
        for record in caplog.records[:-1]
        if record.name == "orchard.run.janitor"
    }
    assert lines.keys() == {orphan, active, untagged}
    assert lines[orphan].endswith(f"0.0 h old, run deleted of {DAG_ID}: terminated: its run is unknown")
    assert lines[active].endswith(f"0.0 h old, run {RUN_ID} of {DAG_ID}: kept: its run is running")
    assert lines[untagged].endswith(f"kept: it lacks the tags of deployment {settings.deployment}")
    assert caplog.messages[-1] == "janitor: 2 clusters, 1 terminated, 0 failed"
