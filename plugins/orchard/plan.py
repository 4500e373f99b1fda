"""The first task of a run: look at the dataset, name the run, size the cluster."""

import hashlib
import logging
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from orchard.cluster import DAG_TAG, DATASET_TAG, NAME_PREFIX, RUN_TAG, ClusterSpec, run_job_flow_request
from orchard.dataset import dataset_name, survey
from orchard.errors import WillNotHeal
from orchard.release import read_release
from orchard.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

PARAMS = ("dataset_uri", "n_components", "max_reject_ratio", "instance_type", "core_instances")
# Of a tag's value, and of a cluster's name.
MAX_CHARACTERS = 256


class UnknownParams(WillNotHeal):
    """The run was triggered with params that the DAG does not have, which Airflow lets pass."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(f"no param is named {', '.join(map(repr, names))}: there are {', '.join(PARAMS)}")


def run_name(run_after: datetime, run_id: str) -> str:
    """The name of a run's folder: a run_id itself holds characters that Hadoop's paths refuse.

    >>> run_name(datetime(2026, 11, 22, 2, tzinfo=UTC), "manual__2026-11-22T02:00:00+00:00")
    '20261122T020000-e20065'
    """
    return f"{run_after.astimezone(UTC):%Y%m%dT%H%M%S}-{hashlib.sha256(run_id.encode()).hexdigest()[:6]}"


def tag_value(text: str) -> str:
    """Text as a tag's value may be: at most 256 letters, digits, spaces and _ . : / = + - @.

    >>> tag_value("manual__2026-11-22T02:00:00+00:00 ~ again")
    'manual__2026-11-22T02:00:00+00:00 _ again'
    """
    return re.sub(r"[^\w .:/=+@-]", "_", text)[:MAX_CHARACTERS]


def dataset_tag(uri: str) -> str:
    """A dataset's URI as a tag's value; one that a tag cannot hold gets a hash, as no two datasets may look alike.

    >>> dataset_tag("s3://bucket/images/"), dataset_tag("s3://bucket/lot#3/")
    ('s3://bucket/images/', 's3://bucket/lot_3/ 4860c698c7e6')
    """
    value = tag_value(uri)
    if value == uri:
        return value
    digest = hashlib.sha256(uri.encode()).hexdigest()[:12]
    return f"{value[: MAX_CHARACTERS - len(digest) - 1]} {digest}"


def plan_run(
    s3: "S3Client", settings: Settings, params: Mapping[str, Any], *, dag_id: str, run_id: str, run_after: datetime
) -> dict[str, Any]:
    """What the following tasks need to know: URIs, the count of images, the RunJobFlow request.

    Raises:
        UnknownParams: a param is misspelt; without it the run would take the nightly one's value.
        NoImages: nothing below the dataset's prefix is an image.
        NoRelease: the release that the settings name is not on S3.
    """
    unknown = sorted(set(params) - set(PARAMS))
    if unknown:
        raise UnknownParams(unknown)
    dataset_uri = params["dataset_uri"]
    contents = survey(s3, dataset_uri)
    release = read_release(s3, settings)
    dataset = dataset_name(dataset_uri)
    name = run_name(run_after, run_id)
    tags = {
        "for-use-with-amazon-emr-managed-policies": "true",
        DAG_TAG: dag_id,
        # All that a run_id may hold but a tag may not.
        RUN_TAG: tag_value(run_id.replace("~", "@")),
        DATASET_TAG: dataset_tag(dataset_uri),
        "orchard:owner": settings.owner,
    }
    spec = ClusterSpec(
        # No other deployment of the account has the bucket, and no other run of this one the name.
        name=f"{NAME_PREFIX}{settings.bucket}-{name}-{dataset}"[:MAX_CHARACTERS],
        instance_type=params["instance_type"],
        core_instances=params["core_instances"],
        tags=tags,
    )
    log.info(
        "plan: %d images, %.1f MB below %s; cluster of 1 + %d %s, %d task slots, %.2f USD an hour",
        contents.images,
        contents.bytes / 1e6,
        dataset_uri,
        spec.core_instances,
        spec.instance_type,
        spec.task_slots,
        spec.usd_per_hour,
    )
    return {
        "dataset_uri": dataset_uri,
        "run_uri": f"{settings.bucket_uri}/runs/{dataset}/{name}",
        "release_uri": release.uri,
        "model_uri": release.model_uri,
        "images": contents.images,
        "cluster": run_job_flow_request(spec, settings),
    }
