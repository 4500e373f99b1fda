"""The cost of a run in its folder and in the table `runs`."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from pyiceberg.catalog import Catalog
from pyiceberg.table import Table

from orchard.cluster.cost import ClusterCost, RunCost
from orchard.run import cost as costs
from orchard.run import record
from orchard.run.cost import record_cost
from orchard.tables.catalog import TABLES
from orchard.tables.history import recent_runs
from tests.plugins.deployed import Deployment, second_of
from tests.plugins.runs import Run

COST = RunCost(
    minutes=12.5,
    ready_seconds=301.5,
    usd=0.1234,
    clusters=[ClusterCost(cluster_id="j-1", minutes=12.5, ready_seconds=301.5, instances=3, usd=0.1234)],
)
ESTIMATE = {
    "instance_type": "m5.xlarge",
    "task_slots": 8,
    "bytes_to_read": 12_345,
    "estimate": {"core_instances": 1, "minutes": 10.5, "usd": 0.1, "usd_with_spot": [0.06, 0.08]},
}


def record_cost_of(deployed: Deployment, run: Run, cost: RunCost = COST) -> dict[str, Any]:
    return record_cost(deployed.s3, deployed.catalog, deployed.settings, run.plan, cost)


def row_of(deployed: Deployment, run: Run) -> dict[str, Any]:
    (row,) = (row for row in deployed.rows("runs") if row["run_id"] == run.name)
    return row


def with_estimate(run: Run) -> Run:
    return replace(run, changed_metrics={**run.changed_metrics, "plan": ESTIMATE})


def test_the_row_of_a_run_gets_the_cost_beside_the_estimate(deployed: Deployment, first: Run) -> None:
    run = with_estimate(first)
    deployed.publish(run)
    before = row_of(deployed, run)
    assert (before["estimated_minutes"], before["estimated_usd"]) == (10.5, 0.1)
    assert before["estimated_usd_with_spot"] == 0.08
    assert (before["task_slots"], before["bytes_read"], before["instance_type"]) == (8, 12_345, "m5.xlarge")
    assert (before["cost_usd"], before["ready_seconds"]) == (None, None)
    content = record_cost_of(deployed, run)
    expected = {
        "ready_seconds": 301.5,
        "cluster_minutes": 12.5,
        "cost_usd": 0.1234,
        "cost_usd_per_million": round(0.1234 / 6 * 10**6, 2),  # it read five images and a broken one
    }
    assert row_of(deployed, run) == before | expected
    body = deployed.s3.get_object(Bucket=run.bucket, Key=f"{run.prefix}/cost.json")["Body"].read()
    assert json.loads(body) == content
    assert (content["usd"], content["usd_per_million"]) == (0.1234, expected["cost_usd_per_million"])
    assert content["clusters"][0]["cluster_id"] == "j-1"


def test_the_estimates_do_not_learn_from_the_start_of_a_held_cluster(deployed: Deployment, first: Run) -> None:
    """It has JupyterHub, so that it starts later. Its hold is part of its cost."""
    deployed.publish(first)
    plan = {**first.plan, "hold_minutes": 60}
    content = record_cost(deployed.s3, deployed.catalog, deployed.settings, plan, COST)
    row = row_of(deployed, first)
    assert (row["ready_seconds"], row["cost_usd"], row["cluster_minutes"]) == (None, 0.1234, 12.5)
    assert content["ready_seconds"] == 301.5


def test_recording_the_same_cost_again_changes_nothing_and_another_one_replaces_it(
    deployed: Deployment, first: Run
) -> None:
    deployed.publish(first)
    record_cost_of(deployed, first)
    versions = deployed.versions()
    record_cost_of(deployed, first)
    assert deployed.versions() == versions
    record_cost_of(deployed, first, replace(COST, usd=0.5))
    assert row_of(deployed, first)["cost_usd"] == 0.5
    assert len(deployed.rows("runs")) == 1


def test_the_rows_of_other_runs_stay_and_a_published_run_stays_complete(deployed: Deployment, first: Run) -> None:
    deployed.publish(first)
    record_cost_of(deployed, first)
    second = second_of(first)
    deployed.publish(second)
    before = row_of(deployed, first)
    record_cost_of(deployed, second, replace(COST, usd=0.9))
    assert row_of(deployed, first) == before
    assert row_of(deployed, second)["cost_usd"] == 0.9
    assert deployed.shows(second)


def test_publishing_a_run_again_keeps_its_cost(deployed: Deployment, first: Run) -> None:
    deployed.publish(first)
    record_cost_of(deployed, first)
    versions = deployed.versions()
    deployed.s3.delete_object(Bucket=first.bucket, Key=f"{first.prefix}/summary.json")
    deployed.publish(first, write=False)
    assert deployed.versions() == versions
    assert row_of(deployed, first)["cost_usd"] == 0.1234


@pytest.mark.parametrize("tables_exist", [False, True])
def test_a_run_that_is_not_published_has_its_cost_in_its_folder_only(
    deployed: Deployment, first: Run, *, tables_exist: bool
) -> None:
    if tables_exist:
        deployed.publish(first)
    run = replace(first, name="20261125T020000-ffffff")
    versions = deployed.versions()
    assert record_cost_of(deployed, run)["usd_per_million"] is None
    assert deployed.versions() == versions
    body = deployed.s3.get_object(Bucket=run.bucket, Key=f"{run.prefix}/cost.json")["Body"].read()
    assert json.loads(body)["usd"] == 0.1234


def test_a_run_that_another_publisher_overtakes_is_recorded_at_the_next_attempt(
    deployed: Deployment, first: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployed.publish(first)
    second = second_of(first)
    attempts: list[Table] = []

    def overtaken(s3: Any, table: Table, *arguments: Any) -> Any:
        change = record.set_values(s3, table, *arguments)
        if not attempts:
            deployed.publish(second)
        attempts.append(table)
        return change

    monkeypatch.setattr(costs, "set_values", overtaken)
    record_cost_of(deployed, first)
    assert len(attempts) == 2
    assert row_of(deployed, first)["cost_usd"] == 0.1234
    assert deployed.shows(second)


def without_new_columns(catalog: Catalog, deployed: Deployment) -> list[str]:
    """Remove the columns from `runs` that the first release of that table did not have. Return their names."""
    table = deployed.table("runs")
    names = [field.name for field in TABLES["runs"].fields]
    new = names[names.index("snapshots") + 1 :]
    with table.update_schema(allow_incompatible_changes=True) as update:
        for name in new:
            update.delete_column(name)
    return new


def test_a_table_of_an_earlier_release_gets_the_columns_and_its_rows_stay(
    deployed: Deployment, catalog: Catalog, first: Run
) -> None:
    deployed.publish(first)
    new = without_new_columns(catalog, deployed)
    old = deployed.rows("runs")
    assert recent_runs(catalog, deployed.settings, datetime.now(UTC))[0]["ready_seconds"] is None
    second = with_estimate(second_of(first))
    deployed.publish(second)
    kept = row_of(deployed, first)
    assert {name: kept[name] for name in old[0]} == old[0]
    assert set(kept) == set(old[0]) | set(new)
    assert row_of(deployed, second)["task_slots"] == 8
    record_cost_of(deployed, second)
    assert row_of(deployed, second)["cost_usd"] == 0.1234
    record_cost_of(deployed, first)
    assert row_of(deployed, first) == kept | {
        "ready_seconds": 301.5,
        "cluster_minutes": 12.5,
        "cost_usd": 0.1234,
        "cost_usd_per_million": round(0.1234 / 6 * 10**6, 2),
    }
