import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import boto3
import botocore.endpoint
import pytest

from local_aws.client import LocalAwsClient
from orchard.airflow.costs import find_cost, record_final_cost, spent_so_far
from tests.local_aws.user import BUCKET, REGION, User
from tests.plugins.airflow.tasks import NOT_CLEARED, SETTINGS, TaskInstance, create_cluster, execute, plan_of

if TYPE_CHECKING:
    from mypy_boto3_glue import GlueClient

pytestmark = pytest.mark.usefixtures("local_aws")
SINCE = NOT_CLEARED.run_after


def test_the_cost_so_far_is_known_while_the_cluster_is_active(user: User, request_: dict[str, Any]) -> None:
    cluster_id = execute(create_cluster(request_))
    cost = find_cost(SETTINGS, plan_of(request_), SINCE)
    user.terminate(cluster_id)
    assert cost is not None
    assert [cluster.cluster_id for cluster in cost.clusters] == [cluster_id]
    assert cost.usd > 0


def test_what_a_run_has_taken_so_far_is_its_time_since_its_start_and_the_cost_of_its_clusters(
    local_aws: LocalAwsClient, request_: dict[str, Any]
) -> None:
    started = replace(NOT_CLEARED, start_date=datetime.now(UTC) - timedelta(minutes=90))
    spent = spent_so_far(SETTINGS, plan_of(request_), started)
    assert spent.minutes == pytest.approx(90, abs=1)
    assert spent.usd == 0
    local_aws.fail("emr:ListClusters", "AccessDeniedException")
    assert spent_so_far(SETTINGS, plan_of(request_), started).usd is None


def test_a_cost_above_the_threshold_is_a_warning(
    user: User, request_: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    cluster_id = execute(create_cluster(request_))
    user.terminate(cluster_id)
    for limit in (0.0, 1000.0):
        ti = TaskInstance()
        record_final_cost(ti, replace(SETTINGS, warn_cost_usd=limit), plan_of(request_), SINCE)
        assert ti.xcoms["cost"]["usd"] > 0
    assert caplog.text.count("cost: cost_usd is ") == 1
    assert "above ORCHARD_WARN_COST_USD 0: " in caplog.text


def test_a_cost_that_cannot_be_found_is_a_warning(
    local_aws: LocalAwsClient, request_: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    local_aws.fail("emr:ListClusters", "AccessDeniedException")
    assert find_cost(SETTINGS, plan_of(request_), SINCE) is None
    assert "the cost of the run is unknown: ClientError" in caplog.text


def test_the_cost_is_found_although_emr_throttles_the_requests_for_a_while(
    local_aws: LocalAwsClient, request_: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(botocore.endpoint, "time", SimpleNamespace(sleep=waits.append))
    local_aws.fail("emr:ListClusters", "ThrottlingException", calls=list(range(1, 8)))
    assert find_cost(SETTINGS, plan_of(request_), SINCE) is not None
    assert len(waits) == 7


def test_a_cost_that_cannot_be_recorded_is_a_warning(
    user: User, request_: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    database = f"db_{uuid.uuid4().hex}"
    glue: GlueClient = boto3.client("glue", region_name=REGION, endpoint_url=user.endpoint_url)
    glue.create_database(DatabaseInput={"Name": database})
    lost = {"table_type": "ICEBERG", "metadata_location": f"s3://{BUCKET}/warehouse/runs/metadata/lost.json"}
    glue.create_table(DatabaseName=database, TableInput={"Name": "runs", "Parameters": lost})
    ti = TaskInstance()
    record_final_cost(ti, replace(SETTINGS, catalog_database=database), plan_of(request_), SINCE)
    assert ti.xcoms == {}
    assert "the cost of the run is not recorded: FileNotFoundError" in caplog.text
