"""Plans of runs, as the task `plan` returns them."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from orchard.run.plan import RunPlan, plan_run
from orchard.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

DEFAULT_PARAMS = {
    "n_components": 0.95,
    "max_reject_ratio": 0.05,
    "max_bytes": 67_108_864,
    "max_pixels": 50_000_000,
    "instance_type": "m5.xlarge",
    "core_instances": 2,
}
DAG_ID = "fruit_features"
RUN_ID = "manual__2026-11-22T02:00:00+00:00"
RUN_AFTER = datetime(2026, 11, 22, 2, tzinfo=UTC)


def plan(s3: "S3Client", settings: Settings, run_id: str = RUN_ID, **params: Any) -> RunPlan:
    """Return the plan of a run that has the DAG's default params, except for those given."""
    values = {"dataset_uri": settings.dataset_uri, **DEFAULT_PARAMS, **params}
    return plan_run(s3, settings, values, dag_id=DAG_ID, run_id=run_id, run_after=RUN_AFTER)


def put_images(s3: "S3Client", bucket: str, prefix: str = "images/", count: int = 2, **arguments: Any) -> None:
    """Put images below a prefix. A plan does not read them. `arguments` are those of PutObject."""
    for number in range(1, count + 1):
        s3.put_object(Bucket=bucket, Key=f"{prefix}Kiwi/{number}.jpg", **{"Body": b"12345", **arguments})
