"""Plans of runs, as the task `plan` returns them."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from orchard.run.plan import RunPlan, plan_run
from orchard.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

DAG_ID = "fruit_features"
RUN_ID = "manual__2026-11-22T02:00:00+00:00"
RUN_AFTER = datetime(2026, 11, 22, 2, tzinfo=UTC)


def plan(s3: "S3Client", settings: Settings, run_id: str = RUN_ID, **params: Any) -> RunPlan:
    """Return the plan of a run that has the DAG's default params, except for those given."""
    defaults = {
        "dataset_uri": settings.dataset_uri,
        "n_components": 0.95,
        "max_reject_ratio": 0.05,
        "instance_type": "m5.xlarge",
        "core_instances": 2,
    }
    return plan_run(s3, settings, {**defaults, **params}, dag_id=DAG_ID, run_id=run_id, run_after=RUN_AFTER)
