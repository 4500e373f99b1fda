"""The EMR of one server: its clusters and its account settings."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from local_aws.emr.control import ClusterControl
from local_aws.emr.errors import NoSuchCluster
from local_aws.emr.history import HistoryServers
from local_aws.emr.life import ClusterLife, Timings
from local_aws.emr.model import Cluster, Wire
from local_aws.emr.node import HOME
from local_aws.emr.runner import Runner
from local_aws.state import StateFolder

log = logging.getLogger(__name__)

CLUSTERS: Final = "clusters"
ACCOUNT: Final = "account"


class Emr:
    """The state that the operations read and change.

    `controls` holds the clusters by id, oldest first. Security configurations are by region and name, and
    `block_public_access` is by region. `history` holds Spark's history servers, and `before_start` is
    called with each new cluster.
    """

    def __init__(self, runner: Runner, timings: Timings, state: StateFolder) -> None:
        self._runner = runner
        self._timings = timings
        self._state = state
        self._lives: list[ClusterLife] = []
        self.controls: dict[str, ClusterControl] = {}
        self.security_configurations: dict[tuple[str, str], Wire] = {}
        self.block_public_access: dict[str, Wire] = {}
        # The runner is asked when a history server starts: an EMR that starts no cluster needs none.
        self.history = HistoryServers(lambda cluster_id: runner.node_folder(cluster_id))
        self.before_start: Callable[[ClusterControl], None] = lambda _: None

    def start(self, cluster: Cluster) -> None:
        """Start a new cluster."""
        log.info("cluster %s: STARTING %s", cluster.id, cluster.request["Name"])
        life = self._add(cluster)
        self.before_start(self.controls[cluster.id])
        life.start()

    def restore(self) -> None:
        """Load the saved clusters and account settings, and resume the clusters.

        Raises:
            UnusableState: the state cannot be read.
        """
        for security_configurations, block_public_access in self._state.read(ACCOUNT):
            self.security_configurations, self.block_public_access = security_configurations, block_public_access
        clusters: list[Cluster] = list(self._state.read(CLUSTERS))
        for cluster in sorted(clusters, key=lambda cluster: cluster.timeline["CreationDateTime"]):
            log.info("cluster %s: restored %s %s", cluster.id, cluster.state, cluster.request["Name"])
            self._add(cluster).resume()

    def control(self, cluster_id: str) -> ClusterControl:
        """Return the control of a cluster.

        Raises:
            NoSuchCluster: there is no cluster with this id.
        """
        if cluster_id not in self.controls:
            raise NoSuchCluster(cluster_id)
        return self.controls[cluster_id]

    def home(self, cluster_id: str) -> Path:
        """Return the home folder of a cluster's node."""
        return self._runner.node_folder(cluster_id) / HOME

    def save_account(self) -> None:
        """Save the security configurations and the block public access settings."""
        self._state.write(ACCOUNT, ACCOUNT, (self.security_configurations, self.block_public_access))

    def shutdown(self) -> None:
        """Kill all processes and wait for them; the clusters keep their state, for the next server to resume."""
        self.history.stop()
        lives = list(self._lives)
        for life in lives:
            life.control.detach()
        for life in lives:
            life.join()

    def _add(self, cluster: Cluster) -> ClusterLife:
        control = ClusterControl(cluster, self._save)
        life = ClusterLife(control, self._runner, self._timings)
        self._lives.append(life)
        self.controls[cluster.id] = control
        return life

    def _save(self, cluster: Cluster) -> None:
        self._state.write(CLUSTERS, cluster.id, cluster)
