"""The EMR of one server: its clusters."""

import logging
from collections.abc import Callable
from typing import Final

from local_aws.emr.errors import NoSuchCluster
from local_aws.emr.life import ClusterLife, Timings
from local_aws.emr.model import Cluster, Wire
from local_aws.emr.runner import Runner
from local_aws.state import StateFolder

log = logging.getLogger(__name__)

CLUSTERS: Final = "clusters"
ACCOUNT: Final = "account"


class Emr:
    """Everything that the operations know of.

    `lives` are the clusters by their id, oldest first; security configurations are by region and name.
    """

    def __init__(self, runner: Runner, timings: Timings, state: StateFolder) -> None:
        self._runner = runner
        self._timings = timings
        self._state = state
        self.lives: dict[str, ClusterLife] = {}
        self.security_configurations: dict[tuple[str, str], Wire] = {}
        self.block_public_access: dict[str, Wire] = {}
        self.before_start: Callable[[ClusterLife], None] = lambda _: None

    def start(self, cluster: Cluster) -> Cluster:
        """Let a new cluster live."""
        log.info("cluster %s: STARTING %s", cluster.id, cluster.request["Name"])
        life = self._take(cluster)
        self.before_start(life)
        life.start()
        return cluster

    def restore(self) -> None:
        """Go on with the clusters that the state holds.

        Raises:
            UnusableState: it cannot be read.
        """
        for security_configurations, block_public_access in self._state.read(ACCOUNT):
            self.security_configurations, self.block_public_access = security_configurations, block_public_access
        clusters: list[Cluster] = list(self._state.read(CLUSTERS))
        for cluster in sorted(clusters, key=lambda cluster: cluster.timeline["CreationDateTime"]):
            log.info("cluster %s: restored %s %s", cluster.id, cluster.state, cluster.request["Name"])
            self._take(cluster).resume()

    def life(self, cluster_id: str) -> ClusterLife:
        """The life of a cluster.

        Raises:
            NoSuchCluster: there is none with this id.
        """
        if cluster_id not in self.lives:
            raise NoSuchCluster(cluster_id)
        return self.lives[cluster_id]

    def keep_account(self) -> None:
        """Keep what is not of one cluster."""
        self._state.write(ACCOUNT, ACCOUNT, (self.security_configurations, self.block_public_access))

    def shutdown(self) -> None:
        """Kill all processes and wait until they are gone; the clusters stay as they are, for the next server."""
        lives = list(self.lives.values())
        for life in lives:
            life.leave()
        for life in lives:
            life.join()

    def _take(self, cluster: Cluster) -> ClusterLife:
        life = ClusterLife(cluster, self._runner, self._timings, self._keep)
        self.lives[cluster.id] = life
        return life

    def _keep(self, cluster: Cluster) -> None:
        self._state.write(CLUSTERS, cluster.id, cluster)
