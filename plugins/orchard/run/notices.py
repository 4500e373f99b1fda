"""What the team is told about runs, and what it was told: objects on S3, so that it is told of nothing twice."""

import hashlib
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from orchard.dataset.uri import check_dataset_uri
from orchard.run.names import dataset_name
from orchard.settings import PREFIX, Settings
from orchard.storage import find_json, split_uri, write_json

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

NOTICES = "notices.json"


def failure_uri(settings: Settings, dataset_uri: str) -> str:
    """Return the URI of the object that exists from a failure of a dataset's run until a run of it succeeds.

    The name has a hash, because datasets can have the same folder, and deployments the same bucket.

    Raises:
        BadDatasetUri: no run can have this dataset.
    """
    named = hashlib.sha256(f"{settings.deployment} {check_dataset_uri(dataset_uri)}".encode()).hexdigest()[:12]
    return f"{settings.bucket_uri}/runs/{dataset_name(dataset_uri)}/failed-{named}.json"


def remember_failure(s3: "S3Client", settings: Settings, dataset_uri: str, run_id: str) -> None:
    """Store that a run of a dataset has failed. `run_id` is Airflow's."""
    write_json(s3, failure_uri(settings, dataset_uri), {"dataset_uri": dataset_uri, "run_id": run_id})


def failure_before(s3: "S3Client", settings: Settings, dataset_uri: str) -> str | None:
    """Return the last run of a dataset that has failed, if no run of it has succeeded since."""
    found = find_json(s3, failure_uri(settings, dataset_uri))
    return str(found["run_id"]) if found else None


def forget_failure(s3: "S3Client", settings: Settings, dataset_uri: str) -> None:
    """Store that a run of a dataset has succeeded."""
    bucket, key = split_uri(failure_uri(settings, dataset_uri))
    s3.delete_object(Bucket=bucket, Key=key)


def cost_warnings(usd: float | None, settings: Settings) -> list[str]:
    """Return a message if a run has cost more than the threshold that warns, and none if its cost is unknown."""
    limit = settings.warn_cost_usd
    if usd is None or limit is None or usd <= limit:
        return []
    return [
        f"cost_usd is {usd:.6g}, above {PREFIX}WARN_COST_USD {limit:g}: what the instances of the run's clusters have "
        "cost. Compare it with the estimate in the log of `plan`, and with the XCom `cost` of `verdict`"
    ]


def kind_of(warning: str) -> str:
    """Return the figure that a warning is about. Its value may change when a run is cleared.

    >>> kind_of("drift is 0.31, above ORCHARD_WARN_DRIFT 0.25: compare the new images")
    'drift'
    """
    return warning.partition(" ")[0]


def warnings_told(s3: "S3Client", run_uri: str) -> set[str]:
    """Return the figures of a run of which the team was warned."""
    return set((find_json(s3, f"{run_uri}/{NOTICES}") or {}).get("warnings", []))


def remember_warnings(s3: "S3Client", run_uri: str, kinds: Collection[str]) -> None:
    """Store the figures of a run of which the team was warned."""
    write_json(s3, f"{run_uri}/{NOTICES}", {"warnings": sorted(kinds)})


def untold(warnings: Iterable[str], told: Collection[str]) -> list[str]:
    """Return the warnings about other figures than those of which the team was warned."""
    return [warning for warning in warnings if kind_of(warning) not in told]
