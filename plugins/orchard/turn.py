"""Whose turn it is: a run waits while another one works on its dataset, and while as many clusters run as may."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchard.cluster import DAG_TAG, DATASET_TAG, NAME_PREFIX, RUN_TAG
from orchard.emr import LIVE, list_clusters
from orchard.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_emr import EMRClient

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LiveCluster:
    """A cluster of ours, and what its tags tell."""

    id: str
    state: str
    run_id: str
    dataset: str

    def __str__(self) -> str:
        """The cluster as messages name it."""
        return f"{self.id} ({self.state}) of run {self.run_id!r}"


def live_clusters(emr: "EMRClient") -> list[LiveCluster]:
    """The clusters that Orchard made and that still live; one that is TERMINATING does no more work."""
    found = []
    for summary in list_clusters(emr, LIVE):
        # ListClusters tells no tags; the name spares a call for each cluster of somebody else.
        if not summary["Name"].startswith(NAME_PREFIX):
            continue
        cluster = emr.describe_cluster(ClusterId=summary["Id"])["Cluster"]
        tags = {tag["Key"]: tag.get("Value", "") for tag in cluster.get("Tags", [])}
        state = cluster["Status"]["State"]
        if DAG_TAG in tags and state in LIVE:  # it may have ended since it was listed
            found.append(LiveCluster(cluster["Id"], state, tags.get(RUN_TAG, ""), tags.get(DATASET_TAG, "")))
    return found


def reasons_to_wait(emr: "EMRClient", settings: Settings, run: Mapping[str, Any]) -> list[str]:
    """Why a run must not make its cluster yet, one sentence each; nothing when it is its turn.

    Two runs that ask in the seconds before either has made its cluster do not see each other. They then run at once,
    which costs twice but does no harm: each has a folder of its own.
    """
    tags = {tag["Key"]: tag["Value"] for tag in run["cluster"]["Tags"]}
    clusters = live_clusters(emr)
    reasons = [
        f"cluster {cluster} works on the same dataset, {run['dataset_uri']}: this run waits until it ends"
        for cluster in clusters
        if cluster.dataset == tags[DATASET_TAG] and cluster.run_id != tags[RUN_TAG]
    ]
    if len(clusters) >= settings.max_running_clusters:
        reasons.append(
            f"{len(clusters)} clusters of Orchard's run, and ORCHARD_MAX_RUNNING_CLUSTERS is "
            f"{settings.max_running_clusters}: this run waits until one ends: {', '.join(map(str, clusters))}"
        )
    if not reasons:
        log.info(
            "preflight: %d of at most %d clusters run, none on %s",
            len(clusters),
            settings.max_running_clusters,
            run["dataset_uri"],
        )
    return reasons
