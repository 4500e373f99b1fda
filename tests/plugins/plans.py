"""Plans of runs, as the task `plan` returns them."""

import json
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any

import boto3
from pyiceberg.catalog import Catalog

from orchard.run.plan import Planned, RunPlan, plan_run
from orchard.settings import Settings
from orchard.storage import split_uri
from orchard.tables.catalog import open_catalog

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

DEFAULT_PARAMS = {
    "n_components": 0.95,
    "pca_mode": "refit",
    "max_reject_ratio": 0.05,
    "max_lost_ratio": 0.5,
    "max_bytes": 67_108_864,
    "max_pixels": 50_000_000,
    "retry_rejects": False,
    "full_refresh": False,
    "instance_type": "m5.xlarge",
    "core_instances": 2,
    "target_minutes": 20,
    "max_cost_usd": None,
    "hold_minutes": 0,
}
DAG_ID = "fruit_features"
RUN_ID = "manual__2026-11-22T02:00:00+00:00"
RUN_AFTER = datetime(2026, 11, 22, 2, tzinfo=UTC)


class LocalSession(boto3.Session):
    """A session of a user whose services are all at one URL."""

    def __init__(self, endpoint_url: str) -> None:
        super().__init__()
        self._endpoint_url = endpoint_url

    def client(self, service_name: Any, **arguments: Any) -> Any:  # type: ignore[override]
        return super().client(service_name, endpoint_url=self._endpoint_url, **arguments)


@cache
def _session(endpoint_url: str) -> LocalSession:
    return LocalSession(endpoint_url)


def catalog_of(s3: "S3Client", settings: Settings) -> Catalog:
    """Return the catalog of the AWS that a client belongs to."""
    return open_catalog(_session(s3.meta.endpoint_url), settings)


def planned(s3: "S3Client", settings: Settings, run_id: str = RUN_ID, **params: Any) -> Planned:
    """Return the plan of a run that has the DAG's default params, except for those given, and what has changed."""
    values = {"dataset_uri": settings.dataset_uri, **DEFAULT_PARAMS, **params}
    catalog = catalog_of(s3, settings)
    return plan_run(s3, catalog, settings, values, dag_id=DAG_ID, run_id=run_id, run_after=RUN_AFTER)


def plan(s3: "S3Client", settings: Settings, run_id: str = RUN_ID, **params: Any) -> RunPlan:
    """Return the plan of a run, as `planned` does."""
    return planned(s3, settings, run_id, **params).run


def put_images(s3: "S3Client", bucket: str, prefix: str = "images/", count: int = 2, **arguments: Any) -> None:
    """Put images below a prefix. A plan does not read them. `arguments` are those of PutObject."""
    for number in range(1, count + 1):
        s3.put_object(Bucket=bucket, Key=f"{prefix}Kiwi/{number}.jpg", **{"Body": b"12345", **arguments})


def keys(s3: "S3Client", uri: str) -> list[str]:
    """Return the keys of the objects below a URI."""
    bucket, prefix = split_uri(uri)
    return [item["Key"] for item in s3.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])]


def metrics(s3: "S3Client", run: Planned) -> dict[str, Any]:
    """Return the content of the plan.metrics.json of a run."""
    bucket, prefix = split_uri(run.run["run_uri"])
    content: dict[str, Any] = json.loads(s3.get_object(Bucket=bucket, Key=f"{prefix}/plan.metrics.json")["Body"].read())
    return content
