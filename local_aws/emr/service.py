"""The EMR of one server: its clusters."""

import logging
from collections.abc import Callable

from local_aws.emr.errors import NoSuchCluster
from local_aws.emr.life import SERVER_STOPPED, ClusterLife, Timings
from local_aws.emr.model import Cluster, Wire
from local_aws.emr.runner import Runner

log = logging.getLogger(__name__)


class Emr:
    """Everything that the operations know of.

    `lives` are the clusters by their id, oldest first; security configurations are by region and name.
    """

    def __init__(self, runner: Runner, timings: Timings) -> None:
        self._runner = runner
        self._timings = timings
        self.lives: dict[str, ClusterLife] = {}
        self.security_configurations: dict[tuple[str, str], Wire] = {}
        self.block_public_access: dict[str, Wire] = {}
        self.before_start: Callable[[ClusterLife], None] = lambda _: None

    def start(self, cluster: Cluster) -> Cluster:
        """Let a new cluster live."""
        life = self.lives[cluster.id] = ClusterLife(cluster, self._runner, self._timings)
        log.info("cluster %s: STARTING %s", cluster.id, cluster.request["Name"])
        self.before_start(life)
        life.start()
        return cluster

    def life(self, cluster_id: str) -> ClusterLife:
        """The life of a cluster.

        Raises:
            NoSuchCluster: there is none with this id.
        """
        if cluster_id not in self.lives:
            raise NoSuchCluster(cluster_id)
        return self.lives[cluster_id]

    def shutdown(self) -> None:
        """End all clusters and wait until their processes are gone."""
        lives = list(self.lives.values())
        for life in lives:
            life.terminate(SERVER_STOPPED)
        for life in lives:
            life.join()
