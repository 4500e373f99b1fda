"""What a run has cost, as its tasks find and record it. A cost that is unknown never fails a run."""

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from airflow.providers.amazon.aws.hooks.base_aws import AwsBaseHook

from orchard.airflow.planning import open_tables
from orchard.cluster.cost import RunCost, cost_of_run
from orchard.cluster.prices import read_prices
from orchard.run.notices import cost_warnings
from orchard.run.sentence import Spent
from orchard.settings import Settings

log = logging.getLogger(__name__)

# EMR throttles all clients of an account together. Nobody looks for the cost of a run later, so requests are retried
# for 35 seconds on average, and not for 8 as by default.
PATIENT: Mapping[str, Any] = {"retries": {"mode": "standard", "total_max_attempts": 8}}
# The key of the XCom with the cost of a run.
COST = "cost"


def find_cost(settings: Settings, plan: Mapping[str, Any], since: datetime) -> RunCost | None:
    """Return what a run has cost until now, or None if that is unknown. `since` is a time before its first cluster."""
    try:
        emr: Any = AwsBaseHook(client_type="emr", region_name=settings.region, config=dict(PATIENT)).conn
        return cost_of_run(emr, plan["cluster_name"], since, read_prices(), datetime.now(UTC))
    except Exception as error:
        log.warning("the cost of the run is unknown: %s: %s", type(error).__name__, error)
        return None


def spent_so_far(settings: Settings, plan: Mapping[str, Any], dag_run: Any) -> Spent:
    """Return the minutes since a run started, or was cleared, and what its clusters have cost until now."""
    cost = find_cost(settings, plan, dag_run.run_after)
    minutes = (datetime.now(UTC) - dag_run.start_date).total_seconds() / 60 if dag_run.start_date else None
    return Spent(minutes, cost.usd if cost else None)


def record_final_cost(ti: Any, settings: Settings, plan: Mapping[str, Any], since: datetime) -> None:
    """Record the cost of a run whose clusters have terminated: in its folder, in the table `runs`, and as an XCom."""
    # Imported here because each parse of the DAG imports this module, and pyiceberg takes long to import.
    from orchard.run.cost import record_cost

    cost = find_cost(settings, plan, since)
    if cost is None:
        return
    for warning in cost_warnings(cost.usd, settings):
        log.warning("cost: %s", warning)
    try:
        s3: Any = AwsBaseHook(client_type="s3", region_name=settings.region).conn
        ti.xcom_push(COST, record_cost(s3, open_tables(settings), settings, plan, cost))
    except Exception as error:
        log.warning("the cost of the run is not recorded: %s: %s", type(error).__name__, error)
