"""The first task of a run: count the images, name the run, build the requests to EMR."""

import logging
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypedDict

from orchard.cluster.request import ClusterSpec, run_job_flow_request
from orchard.cluster.tags import DAG_TAG, DATASET_TAG, OWNER_TAG, RUN_TAG, dataset_tag, run_tag
from orchard.dataset.listing import measure_dataset
from orchard.errors import PermanentError
from orchard.release import read_release
from orchard.run.names import cluster_name, dataset_name, run_name
from orchard.run.steps import step_configs
from orchard.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

PARAMS = ("dataset_uri", "n_components", "max_reject_ratio", "instance_type", "core_instances")


class UnknownParams(PermanentError):
    """The run was triggered with params that the DAG does not have. Airflow accepts them silently."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(f"unknown params {', '.join(map(repr, names))}: use {', '.join(PARAMS)}")


class RunPlan(TypedDict):
    """The XCom of the task `plan`: the input of the tasks that follow.

    `images` is the number of images; `cluster` is the RunJobFlow request; the steps are StepConfigs of AddJobFlowSteps.
    """

    dataset_uri: str
    run_uri: str
    images: int
    cluster_name: str
    cluster: dict[str, Any]
    ingest_step: dict[str, Any]
    features_step: dict[str, Any]
    pca_step: dict[str, Any]


def plan_run(
    s3: "S3Client", settings: Settings, params: Mapping[str, Any], *, dag_id: str, run_id: str, run_after: datetime
) -> RunPlan:
    """Plan a run.

    Raises:
        UnknownParams: a param is misspelt. Without this check, the run would use the default value.
        NoImages: the dataset's prefix contains no image.
        NoRelease: the release that the settings name is not on S3.
        ArgumentsTooLong: a step's arguments are longer than EMR's limit.
    """
    unknown = sorted(set(params) - set(PARAMS))
    if unknown:
        raise UnknownParams(unknown)
    dataset_uri = params["dataset_uri"]
    size = measure_dataset(s3, dataset_uri)
    release = read_release(s3, settings)
    dataset, name = dataset_name(dataset_uri), run_name(run_after, run_id)
    run_uri = f"{settings.bucket_uri}/runs/{dataset}/{name}"
    spec = ClusterSpec(
        name=cluster_name(settings.bucket, name, dataset),
        instance_type=params["instance_type"],
        core_instances=params["core_instances"],
        tags={
            # AmazonEMRServicePolicy_v2 requires this tag.
            "for-use-with-amazon-emr-managed-policies": "true",
            DAG_TAG: dag_id,
            RUN_TAG: run_tag(run_id),
            DATASET_TAG: dataset_tag(dataset_uri),
            OWNER_TAG: settings.owner,
        },
    )
    log.info(
        "plan: %d images, %.1f MB below %s; cluster of 1 + %d %s, %d task slots, %.2f USD per hour",
        size.images,
        size.bytes / 1e6,
        dataset_uri,
        spec.core_instances,
        spec.instance_type,
        spec.task_slots,
        spec.usd_per_hour,
    )
    ingest, features, pca = step_configs(release, dataset_uri=dataset_uri, run_uri=run_uri, params=params)
    return {
        "dataset_uri": dataset_uri,
        "run_uri": run_uri,
        "images": size.images,
        "cluster_name": spec.name,
        "cluster": run_job_flow_request(spec, settings),
        "ingest_step": ingest,
        "features_step": features,
        "pca_step": pca,
    }
