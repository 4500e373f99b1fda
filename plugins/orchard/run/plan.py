"""The first task of a run: count the images, name the run, build the requests to EMR."""

import logging
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypedDict

from orchard.cluster.request import ClusterSpec, run_job_flow_request
from orchard.cluster.tags import DAG_TAG, DATASET_TAG, DEPLOYMENT_TAG, OWNER_TAG, RUN_TAG, dataset_tag, run_tag
from orchard.dataset.listing import DatasetSize, TooManyRejects, describe_rejects, measure_dataset
from orchard.errors import PermanentError
from orchard.release import read_release
from orchard.run.names import cluster_name, dataset_name, run_name
from orchard.run.params import RunParams
from orchard.run.steps import step_configs
from orchard.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

# Fewer have no variance.
MIN_IMAGES = 2


class TooFewImages(PermanentError):
    """The dataset has fewer readable images than the PCA needs."""

    def __init__(self, dataset_uri: str, readable: int, n_components: float) -> None:
        if readable < MIN_IMAGES:
            remedy = f"a PCA needs at least {MIN_IMAGES}: add images, or use another dataset_uri"
        else:
            remedy = f"n_components is {n_components}: use at most {readable}, or a share of the variance such as 0.95"
        super().__init__(f"{dataset_uri} has {readable} readable images, but {remedy}")


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
    """Plan a run from the params of Airflow's form or API.

    Raises:
        UnknownParams: a param is misspelt.
        BadParams: a param has a value that a run cannot use.
        NoImages: the dataset's prefix contains no image.
        CannotList: the dataset's bucket does not exist.
        TooManyRejects: the listing shows that more images cannot be read than the run tolerates.
        TooFewImages: there are fewer readable images than components.
        NoRelease: the release of the settings is not on S3.
        ArgumentsTooLong: a step's arguments are longer than EMR's limit.
    """
    parsed = RunParams.parse(params)
    dataset_uri = parsed.dataset_uri
    size = measure_dataset(s3, dataset_uri, parsed.max_bytes)
    check_size(size, parsed)
    release = read_release(s3, settings)
    dataset, name = dataset_name(dataset_uri), run_name(run_after, run_id, settings.deployment)
    run_uri = f"{settings.bucket_uri}/runs/{dataset}/{name}"
    spec = ClusterSpec(
        name=cluster_name(settings.bucket, settings.deployment, name, dataset),
        instance_type=parsed.instance_type,
        core_instances=parsed.core_instances,
        tags={
            # AmazonEMRServicePolicy_v2 requires this tag.
            "for-use-with-amazon-emr-managed-policies": "true",
            DAG_TAG: dag_id,
            RUN_TAG: run_tag(run_id),
            DEPLOYMENT_TAG: settings.deployment,
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
    ingest, features, pca = step_configs(release, run_uri=run_uri, params=parsed)
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


def check_size(size: DatasetSize, params: RunParams) -> None:
    """Check that a dataset has enough readable images for a run. Warn of images that `ingest` will reject.

    Raises:
        TooManyRejects: the listing shows that more images cannot be read than the run tolerates.
        TooFewImages: there are fewer readable images than components.
    """
    if (size.images - size.readable) / size.images > params.max_reject_ratio:
        raise TooManyRejects(params.dataset_uri, size, params.max_reject_ratio)
    if size.rejects:
        log.warning(
            "plan: %d of %d images below %s cannot be read and will be rejected: %s",
            size.images - size.readable,
            size.images,
            params.dataset_uri,
            describe_rejects(size),
        )
    if size.readable < max(MIN_IMAGES, params.n_components):
        raise TooFewImages(params.dataset_uri, size.readable, params.n_components)
