"""Terminate Orchard's clusters that no active run owns, in case the teardown of their run did not."""

import logging
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from orchard.cluster.emr_clusters import ACTIVE, list_clusters, terminate_cluster
from orchard.cluster.tags import DAG_TAG, DEPLOYMENT_TAG, RUN_TAG, run_id_from_tag
from orchard.run.hold import hold_of
from orchard.run.names import hash_in_cluster_name, run_id_hash
from orchard.run.states import StateOfRun, has_ended
from orchard.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_emr import EMRClient
    from mypy_boto3_emr.type_defs import ClusterTypeDef

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Whether to terminate a cluster, and why. `run_state` is "unknown" or "not asked" where there is no state."""

    cluster_id: str
    name: str
    state: str
    dag_id: str
    run_id: str
    run_state: str
    age_hours: float
    terminate: bool
    why: str


def clusters_of_deployment(emr: "EMRClient", settings: Settings) -> list[tuple[str, str]]:
    """Return the id and the name of each active cluster whose name belongs to this deployment."""
    listed = [(cluster["Id"], cluster["Name"]) for cluster in list_clusters(emr, ACTIVE)]
    return [(cluster_id, name) for cluster_id, name in listed if _run_hash(name, settings)]


def _run_hash(name: str, settings: Settings) -> str | None:
    return hash_in_cluster_name(name, settings.bucket, settings.deployment)


def decide(cluster: "ClusterTypeDef", settings: Settings, state_of_run: StateOfRun, now: datetime) -> Decision | None:
    """Decide what to do with a cluster of this deployment. Return None if it lacks the deployment's tags.

    Raises:
        Exception: any error of `state_of_run`. The state is then unknown, and the cluster must not be terminated.
    """
    tags = {tag["Key"]: tag["Value"] for tag in cluster.get("Tags", [])}
    if not {DAG_TAG, RUN_TAG} <= tags.keys() or tags.get(DEPLOYMENT_TAG) != settings.deployment:
        return None
    dag_id, run_id = tags[DAG_TAG], run_id_from_tag(tags[RUN_TAG])
    age = now - cluster["Status"]["Timeline"]["CreationDateTime"]
    run_state, terminate = "not asked", False
    held = hold_of(tags)
    if age > timedelta(hours=settings.max_cluster_hours) + held:
        # Its run may still be active, but the timeouts do not allow a run to take that long.
        added = f" and the {held / timedelta(minutes=1):g} minutes of its hold" if held else ""
        terminate, why = True, f"it is older than {settings.max_cluster_hours} hours{added}"
    elif run_id_hash(run_id, settings.deployment) != _run_hash(cluster["Name"], settings):
        # A deployment may allow run_ids that a tag cannot contain. Airflow would not know the changed run_id, although
        # its run is active.
        why = "its tag does not contain the run_id in its name"
    else:
        state = state_of_run(dag_id, run_id)
        run_state = state or "unknown"
        terminate, why = has_ended(state), f"its run is {run_state}"
    return Decision(
        cluster_id=cluster["Id"],
        name=cluster["Name"],
        state=cluster["Status"]["State"],
        dag_id=dag_id,
        run_id=run_id,
        run_state=run_state,
        age_hours=round(age / timedelta(hours=1), 2),
        terminate=terminate,
        why=why,
    )


def terminate_orphans(
    emr: "EMRClient", settings: Settings, state_of_run: StateOfRun, *, now: datetime, dry_run: bool = False
) -> list[dict[str, Any]]:
    """Request termination of each cluster of this deployment whose run has finished or is unknown, or that is too old.

    Returns:
        The decision on each active cluster of this deployment, with what was done as `outcome`: "terminated", "kept"
        or, in a dry run, "would be terminated".

    Raises:
        ExceptionGroup: some clusters could not be handled. All others have been handled.
        botocore.exceptions.ClientError: EMR did not list the clusters. No cluster was terminated.
    """
    terminated = "would be terminated" if dry_run else "terminated"
    report: list[dict[str, Any]] = []
    failed: dict[str, Exception] = {}
    for cluster_id, name in clusters_of_deployment(emr, settings):
        try:
            decision = decide(emr.describe_cluster(ClusterId=cluster_id)["Cluster"], settings, state_of_run, now)
            if decision is not None and decision.terminate and not dry_run:
                terminate_cluster(emr, cluster_id)
        except Exception as error:
            log.exception("cluster %s %s: failed", cluster_id, name)
            failed[cluster_id] = error
            continue
        if decision is None:
            log.info("cluster %s %s: kept: it lacks the tags of deployment %s", cluster_id, name, settings.deployment)
            continue
        outcome = terminated if decision.terminate else "kept"
        report.append({**asdict(decision), "outcome": outcome})
        age, run = f"{decision.age_hours:.1f} h old", f"run {decision.run_id} of {decision.dag_id}"
        log.info("cluster %s %s, %s, %s: %s: %s", cluster_id, name, age, run, outcome, decision.why)
    count = sum(decision["terminate"] for decision in report)
    log.info("janitor: %d clusters, %d %s, %d failed", len(report) + len(failed), count, terminated, len(failed))
    if failed:
        faults = "; ".join(f"{cluster_id}: {error}" for cluster_id, error in failed.items())
        raise ExceptionGroup(
            f"clusters that may still be active, because the janitor could not describe or terminate them: {faults}",
            list(failed.values()),
        )
    return report
