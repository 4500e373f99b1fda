"""Decide whose turn it is: a run waits while another run uses its dataset, and while the cluster limit is reached."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchard.cluster.emr_clusters import ACTIVE, list_clusters
from orchard.cluster.tags import DAG_TAG, DATASET_TAG, NAME_PREFIX, RUN_TAG
from orchard.run.plan import RunPlan
from orchard.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_emr import EMRClient

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ActiveCluster:
    """One of Orchard's clusters, with the values of its tags."""

    id: str
    state: str
    run_id: str
    dataset: str

    def __str__(self) -> str:
        """Return the cluster as messages name it."""
        return f"{self.id} ({self.state}) of run {self.run_id!r}"


def active_clusters(emr: "EMRClient") -> list[ActiveCluster]:
    """Return Orchard's active clusters. A cluster that is TERMINATING does no more work."""
    found = []
    for summary in list_clusters(emr, ACTIVE):
        # ListClusters returns no tags. The name saves a DescribeCluster call for each cluster of another program.
        if not summary["Name"].startswith(NAME_PREFIX):
            continue
        cluster = emr.describe_cluster(ClusterId=summary["Id"])["Cluster"]
        tags = {tag["Key"]: tag.get("Value", "") for tag in cluster.get("Tags", [])}
        state = cluster["Status"]["State"]
        if DAG_TAG in tags and state in ACTIVE:  # it may have terminated since it was listed
            found.append(ActiveCluster(cluster["Id"], state, tags.get(RUN_TAG, ""), tags.get(DATASET_TAG, "")))
    return found


def reasons_to_wait(emr: "EMRClient", settings: Settings, plan: RunPlan) -> list[str]:
    """Return why a run must not create its cluster yet, one sentence per reason. Empty when it is the run's turn.

    Two runs that check within seconds of each other, before either has created its cluster, do not see each other.
    Both then run. That costs twice as much but does no harm, because each run has its own folder.
    """
    tags = {tag["Key"]: tag["Value"] for tag in plan["cluster"]["Tags"]}
    clusters = active_clusters(emr)
    reasons = [
        f"cluster {cluster} processes the same dataset, {plan['dataset_uri']}: this run waits until it terminates"
        for cluster in clusters
        if cluster.dataset == tags[DATASET_TAG] and cluster.run_id != tags[RUN_TAG]
    ]
    if len(clusters) >= settings.max_running_clusters:
        reasons.append(
            f"{len(clusters)} of Orchard's clusters are active, and ORCHARD_MAX_RUNNING_CLUSTERS is "
            f"{settings.max_running_clusters}: this run waits until one terminates: {', '.join(map(str, clusters))}"
        )
    if not reasons:
        log.info(
            "preflight: %d of at most %d clusters are active, none on %s",
            len(clusters),
            settings.max_running_clusters,
            plan["dataset_uri"],
        )
    return reasons
