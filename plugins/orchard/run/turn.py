"""Decide whose turn it is: a run waits while another run uses its dataset, and while the cluster limit is reached.

The runs of a dataset wait in a queue with one slot, and all runs that need a cluster in a queue with as many slots as
ORCHARD_MAX_RUNNING_CLUSTERS. A run has its slots until its last task releases them, or until its cluster is held. The
next run takes over the slots of a run that has ended or that Airflow does not know.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from orchard.cluster.emr_clusters import ACTIVE, list_clusters
from orchard.cluster.tags import (
    DAG_TAG,
    DATASET_TAG,
    DEPLOYMENT_TAG,
    HELD_TAG,
    NAME_PREFIX,
    RUN_TAG,
    dataset_tag,
    run_tag,
)
from orchard.run.names import dataset_name
from orchard.run.run_queue import RunKey, RunQueue
from orchard.run.states import StateOfRun, has_ended
from orchard.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_emr import EMRClient
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

LOCKS = "locks"


@dataclass(frozen=True)
class ActiveCluster:
    """One of Orchard's clusters, with the values of its tags."""

    id: str
    state: str
    run_id: str
    deployment: str
    dataset: str
    is_held: bool = False
    """Whether it only waits for a person: its run has released the dataset, and no step of it runs."""

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
            run_id, deployment, dataset = (tags.get(tag, "") for tag in (RUN_TAG, DEPLOYMENT_TAG, DATASET_TAG))
            is_held = HELD_TAG in tags and state == "WAITING"
            found.append(ActiveCluster(cluster["Id"], state, run_id, deployment, dataset, is_held))
    return found


def dataset_queue(s3: "S3Client", settings: Settings, dataset_uri: str) -> RunQueue:
    """Return the queue of the runs of a dataset. It has one slot."""
    digest = hashlib.sha256(dataset_uri.encode()).hexdigest()[:12]  # names of datasets are not unique
    return RunQueue(
        s3, settings.bucket, f"{LOCKS}/{settings.deployment}/datasets/{dataset_name(dataset_uri)[:100]}-{digest}"
    )


def cluster_queue(s3: "S3Client", settings: Settings) -> RunQueue:
    """Return the queue of the runs that need a cluster. It has ORCHARD_MAX_RUNNING_CLUSTERS slots."""
    return RunQueue(s3, settings.bucket, f"{LOCKS}/{settings.deployment}/clusters")


def waiting(what: str, users: Sequence[str], reason: str) -> str:
    """Return why a run waits, as one sentence.

    >>> waiting("dataset s3://b/images/", ["run 'a' of fruit_features"], "next is this run")
    "this run waits for dataset s3://b/images/, used by run 'a' of fruit_features; next is this run"
    """
    return f"this run waits for {what}, used by {', '.join(users) or 'no run'}; {reason}"


@dataclass(frozen=True)
class Turn:
    """The turn of a run on a dataset. `state_of_run` returns the state of another run, as Airflow reports it."""

    s3: "S3Client"
    emr: "EMRClient"
    settings: Settings
    dataset_uri: str
    run: RunKey
    state_of_run: StateOfRun

    def take(self, now: datetime) -> list[str]:
        """Take the turn, or confirm it. Return why the run must wait instead, one sentence per reason.

        The run first gets its dataset, and then a slot for its cluster. It may have the first and wait for the second.
        """
        reasons = [] if self._confirm() else self._take_anew(now)
        if not reasons:
            log.info("turn: %s holds dataset %s and a cluster slot", self.run, self.dataset_uri)
        return reasons

    def take_dataset(self, now: datetime) -> list[str]:
        """Take only the dataset, or confirm it. Return why the run must wait instead, one sentence per reason."""
        return [] if self._confirm() else self._take_dataset_anew(now)

    def release(self) -> None:
        """Release the slots of the run, and delete its tickets."""
        dataset_queue(self.s3, self.settings, self.dataset_uri).leave(self.run)
        cluster_queue(self.s3, self.settings).leave(self.run)

    def _take_anew(self, now: datetime) -> list[str]:
        reasons = self._take_dataset_anew(now)
        if reasons:
            # Otherwise a run that waits for the dataset and one that waits for the slot could wait for each other.
            cluster_queue(self.s3, self.settings).leave(self.run)
            return reasons
        return self._take_cluster_slot(now)

    def _confirm(self) -> bool:
        """Return whether the run has its turn, and confirm it, without a call to Airflow or EMR.

        Another run that has just found that this run has ended can then no longer take its turn.
        """
        dataset = dataset_queue(self.s3, self.settings, self.dataset_uri)
        return dataset.confirm(self.run) and cluster_queue(self.s3, self.settings).confirm(self.run)

    def _take_dataset_anew(self, now: datetime) -> list[str]:
        queue = dataset_queue(self.s3, self.settings, self.dataset_uri)
        taken = queue.taken_slots(self._has_ended)
        reason = queue.take_slot(self.run, taken, 1, self._has_ended, now)
        if reason is not None:
            return [waiting(f"dataset {self.dataset_uri}", [str(slot.run) for slot in taken], reason)]
        # The cluster of a run that has ended may still be active: its teardown failed, or the run was deleted.
        return [
            f"cluster {cluster} processes the same dataset, {self.dataset_uri}: this run waits until it terminates"
            for cluster in active_clusters(self.emr)
            if cluster.dataset == dataset_tag(self.dataset_uri)
            and not cluster.is_held
            and not self._is_of(cluster, self.run)
        ]

    def _take_cluster_slot(self, now: datetime) -> list[str]:
        queue, limit = cluster_queue(self.s3, self.settings), self.settings.max_running_clusters
        taken = queue.taken_slots(self._has_ended)
        clusters = active_clusters(self.emr)
        # A cluster without a slot belongs to another deployment, or to a run that has ended, or it is held.
        known = [self.run, *(slot.run for slot in taken)]
        others = [cluster for cluster in clusters if not any(self._is_of(cluster, run) for run in known)]
        reason = queue.take_slot(self.run, taken, limit - len(others), self._has_ended, now)
        if reason is None:
            return []
        users = [*map(str, others), *(str(slot.run) for slot in taken)]
        return [waiting(f"one of {limit} cluster slots (ORCHARD_MAX_RUNNING_CLUSTERS)", users, reason)]

    def _is_of(self, cluster: ActiveCluster, run: RunKey) -> bool:
        # Two deployments may have runs of the same run_id.
        return (cluster.run_id, cluster.deployment) == (run_tag(run.run_id), self.settings.deployment)

    def _has_ended(self, run: RunKey) -> bool:
        # The run itself has not ended, whatever Airflow reports.
        return run != self.run and has_ended(self.state_of_run(run.dag_id, run.run_id))
