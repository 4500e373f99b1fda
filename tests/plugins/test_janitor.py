import logging
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
from botocore.exceptions import ClientError

from local_aws.client import LocalAwsClient
from orchard.cluster import DAG_TAG, RUN_TAG
from orchard.janitor import hash_in_name, judge, our_clusters, reap_clusters, run_id_of_tag
from orchard.plan import plan_run, run_name
from orchard.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_emr import EMRClient
    from mypy_boto3_iam import IAMClient
    from mypy_boto3_s3 import S3Client

DAG_ID = "fruit_features"
RUN_ID = "manual__2026-11-22T02:00:00+00:00"
RUN_AFTER = datetime(2026, 11, 22, 2, tzinfo=UTC)
MakeCluster: TypeAlias = Callable[..., str]


@pytest.fixture
def settings() -> Settings:
    """A deployment of its own for a test: no cluster of another one's is named for its bucket."""
    return Settings(bucket=f"test-{uuid.uuid4().hex[:12]}", release="0123456789ab")


@pytest.fixture(scope="module")
def role(iam: "IAMClient") -> str:
    name = f"janitor-{uuid.uuid4().hex[:12]}"
    iam.create_role(RoleName=name, AssumeRolePolicyDocument="{}")
    iam.create_instance_profile(InstanceProfileName=name)
    return name


@pytest.fixture
def make_cluster(emr: "EMRClient", role: str, settings: Settings) -> Iterator[MakeCluster]:
    """Makes clusters as a run does, but with neither bootstrap action nor step; ends them after the test."""
    made = []

    def make(
        run_id: str = RUN_ID, *, bucket: str = "", tags: dict[str, str] | None = None, protected: bool = False
    ) -> str:
        tags = {DAG_TAG: DAG_ID, RUN_TAG: run_id.replace("~", "@")} if tags is None else tags
        cluster_id = emr.run_job_flow(
            Name=f"orchard-{bucket or settings.bucket}-{run_name(RUN_AFTER, run_id)}-images",
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
        made.append(cluster_id)
        return cluster_id

    yield make
    for cluster_id in made:
        emr.set_termination_protection(JobFlowIds=[cluster_id], TerminationProtected=False)
    emr.terminate_job_flows(JobFlowIds=made)


@pytest.fixture
def faults(aws_url: str) -> Iterator[LocalAwsClient]:
    client = LocalAwsClient(aws_url)
    yield client
    client.clear()


@pytest.fixture
def reap(emr: "EMRClient", settings: Settings) -> Callable[..., list[dict[str, Any]]]:
    """The janitor, in an Airflow that has the given runs of our DAG and no other."""

    def run(hours_later: float = 0, dry_run: bool = False, **states: str) -> list[dict[str, Any]]:
        runs = {(DAG_ID, RUN_ID if name == "run" else name): state for name, state in states.items()}
        now = datetime.now(UTC) + timedelta(hours=hours_later)
        return reap_clusters(emr, settings, lambda *ids: runs.get(ids), now=now, dry_run=dry_run)

    return run


Reap: TypeAlias = Callable[..., list[dict[str, Any]]]


def lives(emr: "EMRClient", cluster_id: str) -> bool:
    state = emr.describe_cluster(ClusterId=cluster_id)["Cluster"]["Status"]["State"]
    return not state.startswith("TERMINAT")


def unreachable(dag_id: str, run_id: str) -> str | None:
    raise ConnectionError("Airflow's API does not answer")


@pytest.mark.parametrize("state", ["success", "failed"])
def test_the_cluster_of_a_run_that_is_over_is_reaped(
    emr: "EMRClient", make_cluster: MakeCluster, reap: Reap, state: str
) -> None:
    cluster_id = make_cluster()
    (row,) = reap(run=state)
    assert (row["cluster_id"], row["outcome"], row["why"]) == (cluster_id, "reaped", f"its run is {state}")
    assert not lives(emr, cluster_id)


@pytest.mark.parametrize("state", ["queued", "running", "a state of a later Airflow"])
def test_the_cluster_of_any_other_run_is_left_alone(
    emr: "EMRClient", make_cluster: MakeCluster, reap: Reap, state: str
) -> None:
    cluster_id = make_cluster()
    (row,) = reap(run=state)
    assert (row["outcome"], row["why"]) == ("left alone", f"its run is {state}")
    assert lives(emr, cluster_id)


def test_the_cluster_of_a_run_that_airflow_does_not_know_is_reaped(
    emr: "EMRClient", make_cluster: MakeCluster, reap: Reap
) -> None:
    cluster_id = make_cluster()
    (row,) = reap(another_run="running")
    assert (row["outcome"], row["run_state"]) == ("reaped", "unknown")
    assert not lives(emr, cluster_id)


def test_a_cluster_that_is_too_old_is_reaped_even_if_its_run_is_live(
    emr: "EMRClient", make_cluster: MakeCluster, reap: Reap, settings: Settings
) -> None:
    cluster_id = make_cluster()
    (young,) = reap(run="running", hours_later=settings.max_cluster_hours - 0.1)
    assert young["outcome"] == "left alone"
    (old,) = reap(run="running", hours_later=settings.max_cluster_hours + 0.1)
    assert (old["outcome"], old["why"], old["age_hours"]) == (
        "reaped",
        "it is older than 12 hours",
        pytest.approx(12.1),
    )
    assert not lives(emr, cluster_id)


@pytest.mark.parametrize("tags", [{}, {DAG_TAG: DAG_ID}, {RUN_TAG: RUN_ID}, {"orchard:owner": "fruits"}])
def test_a_cluster_without_our_tags_is_left_alone_however_old(
    emr: "EMRClient", make_cluster: MakeCluster, reap: Reap, tags: dict[str, str]
) -> None:
    cluster_id = make_cluster(tags=tags)
    assert reap(hours_later=1000) == []
    assert lives(emr, cluster_id)


def test_a_cluster_of_another_deployment_is_left_alone_however_alike_the_names_of_the_buckets(
    emr: "EMRClient", make_cluster: MakeCluster, reap: Reap, settings: Settings
) -> None:
    others = [make_cluster(bucket=bucket) for bucket in ("fruits-data", f"{settings.bucket}-2", settings.bucket[:-1])]
    assert reap(hours_later=1000) == []
    assert all(lives(emr, cluster_id) for cluster_id in others)


def test_the_cluster_that_a_run_plans_is_known_by_its_name_and_tags(s3: "S3Client", released: Settings) -> None:
    run_id = "manual~2"
    s3.put_object(Bucket=released.bucket, Key="images/Kiwi/1.jpg", Body=b"12345")
    params = {"dataset_uri": released.dataset_uri, "instance_type": "m5.xlarge", "core_instances": 2}
    request = plan_run(s3, released, params, dag_id=DAG_ID, run_id=run_id, run_after=RUN_AFTER)["cluster"]
    name_and_tags: Any = {
        **{key: request[key] for key in ("Name", "Tags")},
        "Id": "j-1",
        "Status": {"State": "WAITING", "Timeline": {"CreationDateTime": RUN_AFTER}},
    }
    verdict = judge(name_and_tags, released, lambda *ids: {(DAG_ID, run_id): "running"}[ids], RUN_AFTER)
    assert verdict is not None
    assert (verdict.run_id, verdict.why) == (run_id, "its run is running")


def test_the_dot_in_a_buckets_name_is_no_wildcard() -> None:
    assert hash_in_name("orchard-my.fruits-20261122T020000-e20065-images", "my.fruits") == "e20065"
    assert hash_in_name("orchard-my-fruits-20261122T020000-e20065-images", "my.fruits") is None


def test_a_cluster_that_ends_already_is_not_looked_at(
    emr: "EMRClient", make_cluster: MakeCluster, reap: Reap, settings: Settings
) -> None:
    make_cluster()
    assert [row["outcome"] for row in reap()] == ["reaped"]
    assert our_clusters(emr, settings) == []
    assert reap() == []


def test_a_run_id_with_a_tilde_is_read_from_its_tag(make_cluster: MakeCluster, reap: Reap) -> None:
    assert run_id_of_tag("again@2") == "again~2"
    make_cluster("again~2")
    (row,) = reap(**{"again~2": "running"})
    assert (row["run_id"], row["run_state"], row["outcome"]) == ("again~2", "running", "left alone")


def test_a_run_whose_id_the_tag_does_not_hold_counts_as_live_until_it_is_too_old(
    emr: "EMRClient", make_cluster: MakeCluster, reap: Reap
) -> None:
    # Airflow may be told to allow such run_ids, but a tag may not hold a #.
    cluster_id = make_cluster("lot #3", tags={DAG_TAG: DAG_ID, RUN_TAG: "lot _3"})
    (row,) = reap(**{"lot #3": "running"})
    assert (row["outcome"], row["run_state"]) == ("left alone", "not asked")
    assert lives(emr, cluster_id)
    (row,) = reap(hours_later=13)
    assert row["outcome"] == "reaped"


def test_a_dry_run_says_what_it_would_do_and_does_nothing(
    emr: "EMRClient", make_cluster: MakeCluster, reap: Reap
) -> None:
    orphan, live = make_cluster("gone"), make_cluster()
    outcomes = {row["cluster_id"]: row["outcome"] for row in reap(run="running", dry_run=True)}
    assert outcomes == {orphan: "would be reaped", live: "left alone"}
    assert lives(emr, orphan)


def test_a_protected_cluster_is_reaped(emr: "EMRClient", make_cluster: MakeCluster, reap: Reap) -> None:
    cluster_id = make_cluster(protected=True)
    assert [row["outcome"] for row in reap()] == ["reaped"]
    assert not lives(emr, cluster_id)


@pytest.mark.parametrize("denied", ["DescribeCluster", "TerminateJobFlows"])
def test_a_cluster_that_cannot_be_handled_fails_the_janitor_but_keeps_it_from_no_other(
    emr: "EMRClient", make_cluster: MakeCluster, reap: Reap, faults: LocalAwsClient, denied: str
) -> None:
    made = {make_cluster("one"), make_cluster("two"), make_cluster("three")}
    faults.fail(f"emr:{denied}", "AccessDeniedException", calls=[2])
    with pytest.raises(ExceptionGroup) as failed:
        reap()
    (left,) = [cluster_id for cluster_id in made if lives(emr, cluster_id)]
    assert f"{left}: An error occurred (AccessDeniedException)" in failed.value.message
    (error,) = failed.value.exceptions
    assert isinstance(error, ClientError)
    assert error.operation_name == denied


def test_where_airflow_does_not_say_whether_a_run_is_live_nothing_is_reaped(
    emr: "EMRClient", make_cluster: MakeCluster, settings: Settings
) -> None:
    made = [make_cluster("one"), make_cluster("two")]
    with pytest.raises(ExceptionGroup, match="Airflow's API does not answer") as failed:
        reap_clusters(emr, settings, unreachable, now=datetime.now(UTC))
    assert len(failed.value.exceptions) == 2
    assert all(lives(emr, cluster_id) for cluster_id in made)


def test_where_clusters_cannot_be_listed_the_janitor_fails(reap: Reap, faults: LocalAwsClient) -> None:
    faults.fail("emr:ListClusters", "AccessDeniedException")
    with pytest.raises(ClientError, match="ListClusters"):
        reap()


def test_the_log_has_a_line_a_cluster_and_a_sum(
    make_cluster: MakeCluster, reap: Reap, caplog: pytest.LogCaptureFixture
) -> None:
    orphan, live, foreign = make_cluster("gone"), make_cluster(), make_cluster(tags={})
    with caplog.at_level(logging.INFO, logger="orchard.janitor"):
        reap(run="running")
    said = {
        record.getMessage().split()[1]: record.getMessage()
        for record in caplog.records[:-1]
        if record.name == "orchard.janitor"
    }
    assert said.keys() == {orphan, live, foreign}
    assert said[orphan].endswith(f"0.0 h old, run gone of {DAG_ID}: reaped: its run is unknown")
    assert said[live].endswith(f"0.0 h old, run {RUN_ID} of {DAG_ID}: left alone: its run is running")
    assert said[foreign].endswith("left alone: it lacks our tags")
    assert caplog.messages[-1] == "janitor: 2 clusters of ours, 1 reaped, 0 failed"
