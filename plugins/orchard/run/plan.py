"""The first task of a run: name the run, build the requests to EMR, and find out what has changed in the dataset."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from pyiceberg.catalog import Catalog

from orchard.cluster.request import ClusterSpec, requested_workers, run_job_flow_request
from orchard.cluster.tags import (
    DAG_TAG,
    DATASET_TAG,
    DEPLOYMENT_TAG,
    HOLD_TAG,
    MANAGED_POLICIES_TAG,
    OWNER_TAG,
    RUN_TAG,
    dataset_tag,
    run_tag,
)
from orchard.release import Release, check_wheels, read_release
from orchard.run.changes import Code, plan_changes
from orchard.run.hold import check_hold
from orchard.run.names import cluster_name, dataset_name, run_id_of, run_name
from orchard.run.params import RunParams
from orchard.run.plan_files import read_plan
from orchard.run.steps import step_configs
from orchard.settings import Settings
from orchard.tables.state import published_state

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)


class RunPlan(TypedDict):
    """The XCom of the task `plan`: the input of the tasks that follow. It does not depend on what has changed.

    `cluster` is the RunJobFlow request; the steps are StepConfigs of AddJobFlowSteps.
    """

    dataset_uri: str
    run_uri: str
    scratch_uri: str
    cluster_name: str
    cluster: dict[str, Any]
    ingest_step: dict[str, Any]
    features_step: dict[str, Any]
    pca_step: dict[str, Any]
    hold_minutes: NotRequired[int]
    """Plans of earlier releases lack it."""


@dataclass(frozen=True)
class Planned:
    """The plan of a run, and the counts of what has changed: see `plan_changes`."""

    run: RunPlan
    changes: Mapping[str, Any]


def plan_run(
    s3: "S3Client",
    catalog: Catalog,
    settings: Settings,
    params: Mapping[str, Any],
    *,
    dag_id: str,
    run_id: str,
    run_after: datetime,
    end_earlier_round: Callable[[RunPlan], None] | None = None,
) -> Planned:
    """Plan a run from the params of Airflow's form or API.

    `end_earlier_round`, if given, ends what a cleared run has left, before anything is planned: a new plan must not use
    steps that worked on the old one.

    Raises:
        UnknownParams: a param is misspelt.
        BadParams: a param has a value that a run cannot use.
        NoRelease: the release of the settings is not on S3.
        NoWheels: the release has no wheels for the architecture of the instance type.
        NoJupyterHub: the cluster is to be held, but its EMR release has no JupyterHub.
        ArgumentsTooLong: a step's arguments are longer than EMR's limit.
        PermanentError: see `plan_changes`.
    """
    parsed = RunParams.parse(params)
    check_hold(settings, parsed.hold_minutes)
    release = read_release(s3, settings)
    check_wheels(release, settings, parsed.instance_type)
    name = run_name(run_after, run_id, settings.deployment)
    tags = {
        # AmazonEMRServicePolicy_v2 requires this tag.
        MANAGED_POLICIES_TAG: "true",
        DAG_TAG: dag_id,
        RUN_TAG: run_tag(run_id),
        DEPLOYMENT_TAG: settings.deployment,
        DATASET_TAG: dataset_tag(parsed.dataset_uri),
        OWNER_TAG: settings.owner,
        **({HOLD_TAG: str(parsed.hold_minutes)} if parsed.hold_minutes else {}),
    }
    cluster = cluster_name(settings.bucket, settings.deployment, name, dataset_name(parsed.dataset_uri))
    run = build_run(settings, release, parsed, cluster, name)
    if end_earlier_round is not None:
        end_earlier_round(run)
    code = Code(release=settings.release, model=release.model_name, decoder=release.decoder)
    changes = plan_changes(s3, catalog, settings, run, parsed, code)
    if not changes["nothing_to_do"]:
        spec = ClusterSpec(
            name=cluster,
            instance_type=parsed.instance_type,
            core_instances=changes["core_instances"],
            task_instances=changes["task_instances"],
            tags=tags,
            hold_minutes=parsed.hold_minutes,
        )
        run["cluster"] = run_job_flow_request(spec, settings)
    return Planned(run, changes)


def build_run(settings: Settings, release: Release, params: RunParams, cluster: str, name: str) -> RunPlan:
    """Return the plan of a run that has a name, without the request for its cluster.

    Raises:
        ArgumentsTooLong: a step's arguments are longer than EMR's limit.
    """
    folder = f"{dataset_name(params.dataset_uri)}/{name}"
    run_uri, scratch_uri = f"{settings.bucket_uri}/runs/{folder}", f"{settings.bucket_uri}/scratch/{folder}"
    ingest, features, pca = step_configs(release, settings, params, run_uri=run_uri, scratch_uri=scratch_uri)
    return {
        "dataset_uri": params.dataset_uri,
        "run_uri": run_uri,
        "scratch_uri": scratch_uri,
        "cluster_name": cluster,
        "cluster": {},
        "ingest_step": ingest,
        "features_step": features,
        "pca_step": pca,
        "hold_minutes": params.hold_minutes,
    }


def why_outdated(s3: "S3Client", catalog: Catalog, settings: Settings, run: Mapping[str, Any]) -> str:
    """Return why a run's plan is outdated: the tables show another run of the dataset since. Return "" if it is not.

    Raises:
        NoPlan: the run has no plan.
    """
    planned = read_plan(s3, run["run_uri"])
    base = planned["base_run_id"]
    state = published_state(catalog, settings, run["dataset_uri"])
    published = state and state.run_id
    if published == base and not planned["base_is_complete"] and state and state.is_complete:
        return f"run {base} of {run['dataset_uri']} was not yet published completely when this run was planned"
    if published in (base, run_id_of(run["run_uri"])):
        return ""
    shown = f"run {published} of {run['dataset_uri']}" if published else f"no run of {run['dataset_uri']}"
    return f"the tables show {shown}, but this run was planned after {f'run {base}' if base else 'none'}"


def plan_again(
    s3: "S3Client", catalog: Catalog, settings: Settings, run: Mapping[str, Any], params: Mapping[str, Any]
) -> dict[str, Any]:
    """Find out again what has changed, for a run whose plan is outdated, with the release that it was planned with.

    Raises:
        PermanentError: see `plan_changes`.
    """
    earlier = read_plan(s3, run["run_uri"])
    code = Code(release=earlier.get("release"), model=earlier["model"], decoder=earlier["decoder"])
    parsed = RunParams.parse(params)
    # The request for the cluster stays as it is.
    return plan_changes(s3, catalog, settings, run, parsed, code, requested_workers(run["cluster"]))
