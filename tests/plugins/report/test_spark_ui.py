from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.config import Config

from local_aws.client import LocalAwsClient
from local_aws.emr import daemon, history
from local_aws.server import LocalAws
from orchard.cluster.tags import DAG_TAG, RUN_TAG
from orchard.report import spark_ui
from orchard.report.spark_ui import (
    NoSparkUi,
    SparkUiDenied,
    SparkUiNotReady,
    UnknownCluster,
    is_cluster_of_run,
    spark_ui_url,
)
from orchard.run.names import cluster_name, run_name
from orchard.settings import Settings
from tests.local_aws.java import PORT, SERVES, Java
from tests.local_aws.user import REGION, User

if TYPE_CHECKING:
    from mypy_boto3_emr import EMRClient

DAG_ID, RUN_ID = "fruit_features", "manual__2026-11-22T02:00:00+00:00~a"
SETTINGS = Settings(bucket="fruits", release="0123456789ab", deployment="prod")
ACTIONS = (
    "DescribeCluster",
    "CreatePersistentAppUI",
    "DescribePersistentAppUI",
    "GetPersistentAppUIPresignedURL",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAws]:
    with LocalAws(tmp_path_factory.mktemp("aws")) as started:
        yield started


@pytest.fixture(scope="module")
def user(server: LocalAws) -> User:
    return User(server.endpoint_url)


@pytest.fixture
def emr(user: User) -> "EMRClient":
    return user.emr


@pytest.fixture(scope="module")
def cluster_id(user: User) -> str:
    """A cluster of the run RUN_ID that has terminated."""
    return start(user)


@pytest.fixture
def java(server: LocalAws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Java]:
    """In the place of Java, a program that says that it serves on PORT."""
    monkeypatch.setattr(daemon, "JAVA_HOME", tmp_path)
    monkeypatch.setattr(history, "LISTING_SECONDS", 0)
    monkeypatch.setattr(spark_ui, "POLL_SECONDS", 0.05)
    found = Java(tmp_path)
    found.behave(SERVES)
    yield found
    server.emr.history.stop()


@pytest.fixture
def local_aws(server: LocalAws) -> Iterator[LocalAwsClient]:
    client = LocalAwsClient(server.endpoint_url)
    yield client
    client.clear()


def start(user: User, run_id: str = RUN_ID, **tags: str) -> str:
    """Run a cluster of a run to its end, and return its id."""
    name = run_name(datetime(2026, 11, 22, 2, tzinfo=UTC), run_id, SETTINGS.deployment)
    tags = {DAG_TAG: DAG_ID, RUN_TAG: run_id.replace("~", "@"), **tags}
    return user.run(
        Name=cluster_name(SETTINGS.bucket, SETTINGS.deployment, name, "images"),
        Tags=[{"Key": key, "Value": value} for key, value in tags.items()],
    )


def test_the_url_of_a_clusters_spark_ui_is_made_when_it_is_asked_for(
    emr: "EMRClient", java: Java, cluster_id: str
) -> None:
    assert spark_ui_url(emr, cluster_id) == f"http://127.0.0.1:{PORT}/"
    assert spark_ui_url(emr, cluster_id) == f"http://127.0.0.1:{PORT}/"
    assert len(java.pids(1)) == 1


def test_a_cluster_that_emr_does_not_know_has_no_spark_ui(emr: "EMRClient") -> None:
    for unknown in ("j-0000000000000", "..", "j" * 300):
        with pytest.raises(UnknownCluster, match=f"EMR does not know the cluster {unknown}: .* Look at the logs"):
            spark_ui_url(emr, unknown)


@pytest.mark.parametrize("action", ACTIONS)
def test_a_missing_permission_is_named(
    emr: "EMRClient", java: Java, local_aws: LocalAwsClient, cluster_id: str, action: str
) -> None:
    local_aws.fail(f"emr:{action}", "AccessDeniedException")
    with pytest.raises(
        SparkUiDenied, match=f"may not call elasticmapreduce:{action} for the cluster {cluster_id}: grant"
    ):
        spark_ui_url(emr, cluster_id)


def test_a_ui_that_emr_has_not_created_in_time_is_to_be_opened_again(
    emr: "EMRClient", java: Java, cluster_id: str
) -> None:
    java.behave("exec sleep 60")
    with pytest.raises(SparkUiNotReady, match=rf"{cluster_id} \(CREATING\): try again in a minute"):
        spark_ui_url(emr, cluster_id, wait_seconds=0.2)


def test_a_ui_that_emr_cannot_create_is_reported_at_once_with_its_reason(
    emr: "EMRClient", java: Java, cluster_id: str
) -> None:
    java.behave("echo no memory >&2; exit 1")
    with pytest.raises(
        NoSparkUi, match=rf"(?s){cluster_id}: Spark's history server has ended.*no memory\. EMR keeps it"
    ):
        spark_ui_url(emr, cluster_id, wait_seconds=30)


def test_an_emr_that_does_not_answer_is_reported(local_aws: LocalAwsClient, server: LocalAws, cluster_id: str) -> None:
    config = Config(read_timeout=0.3, retries={"total_max_attempts": 1})
    keys: dict[str, Any] = {"aws_access_key_id": "user", "aws_secret_access_key": "secret"}
    emr = boto3.client("emr", endpoint_url=server.endpoint_url, region_name=REGION, config=config, **keys)
    local_aws.hang("emr:DescribeCluster", seconds=2)
    with pytest.raises(NoSparkUi, match="Read timeout"):
        spark_ui_url(emr, cluster_id)
    with pytest.raises(NoSparkUi, match="Read timeout"):
        is_cluster_of_run(emr, SETTINGS, DAG_ID, RUN_ID, cluster_id)


def test_a_cluster_belongs_to_the_run_that_has_created_it(emr: "EMRClient", user: User, cluster_id: str) -> None:
    def is_of(dag_id: str = DAG_ID, run_id: str = RUN_ID, found: str = cluster_id) -> bool:
        return is_cluster_of_run(emr, SETTINGS, dag_id, run_id, found)

    assert is_of()
    assert not is_of(run_id=f"{RUN_ID}2")
    assert not is_of(run_id=RUN_ID.replace("~", "@")), "it has the same tag"
    assert not is_of(dag_id="another_dag")
    assert not is_of(found="j-0000000000000")
    assert not is_of(found="../j-1")
    assert not is_of(found=user.run(Name="of somebody else"))
    assert not is_of(found=start(user, "another run", **{RUN_TAG: RUN_ID.replace("~", "@")})), "anybody may set a tag"
    assert not is_of(found=start(user, **{RUN_TAG: "another run"})), "two run_ids may have the same hash"


def test_a_cluster_of_another_deployment_belongs_to_no_run(emr: "EMRClient", cluster_id: str) -> None:
    for other in (
        Settings(bucket="fruits", release="0123456789ab", deployment="test"),
        Settings(bucket="vegetables", release="0123456789ab", deployment="prod"),
    ):
        assert not is_cluster_of_run(emr, other, DAG_ID, RUN_ID, cluster_id)


def test_a_missing_permission_to_describe_clusters_is_named(
    emr: "EMRClient", local_aws: LocalAwsClient, cluster_id: str
) -> None:
    local_aws.fail("emr:DescribeCluster", "AccessDeniedException")
    with pytest.raises(SparkUiDenied, match="elasticmapreduce:DescribeCluster"):
        is_cluster_of_run(emr, SETTINGS, DAG_ID, RUN_ID, cluster_id)
