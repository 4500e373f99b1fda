"""Run a cluster in a thread of its own: provision, bootstrap, run the steps, end."""

import logging
import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from local_aws.emr.control import ClusterControl
from local_aws.emr.end_reasons import SERVER_RESTARTED, STEPS_COMPLETED, EndReason
from local_aws.emr.launch import refusal
from local_aws.emr.node import Node
from local_aws.emr.runner import Runner
from local_aws.emr.step_loop import StepLoop

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Timings:
    """Seconds for what takes minutes on EMR.

    They are extra time in some states of a cluster, the time until the upload of a step's logs, and the provisioning
    timeout of fleets for which EC2 lacks Spot capacity. `throttles` is whether requests have EMR's default rates.
    """

    starting_seconds: float = 0
    bootstrapping_seconds: float = 0
    terminating_seconds: float = 0
    log_delay_seconds: float = 3
    spot_timeout_seconds: float = 2
    throttles: bool = False


# What a cluster of a few nodes takes on EMR. The times until it is ready are rough: AWS documents none. EMR uploads
# logs every five minutes: https://docs.aws.amazon.com/emr/latest/ManagementGuide/emr-manage-view-web-log-files.html
LIKE_EMR = Timings(
    starting_seconds=240,
    bootstrapping_seconds=30,
    terminating_seconds=60,
    log_delay_seconds=300,
    spot_timeout_seconds=300,
    throttles=True,
)


def delete_software(root: Path) -> None:
    """Delete what the bootstrap actions of an ended cluster have installed: 320 MB for Orchard's steps.

    EMR's nodes end with their cluster. Here, the rest of a node's folder stays, for those who look for its logs.
    """
    shutil.rmtree(root / "opt", ignore_errors=True)


class ClusterLife:
    """The thread that takes a cluster from STARTING to its end."""

    def __init__(self, control: ClusterControl, runner: Runner, timings: Timings) -> None:
        self.control = control
        self._timings = timings
        self._runner = runner
        self._steps = StepLoop(control, runner, timings.log_delay_seconds)
        self._thread = threading.Thread(target=self._run, name=control.cluster.id, daemon=True)

    def start(self) -> None:
        """Start a new cluster."""
        with self.control.change():
            self._thread.start()

    def resume(self) -> None:
        """Resume a cluster of an earlier server: its running steps fail, and it ends if it was not ready yet."""
        with self.control.change() as cluster:
            if cluster.ended:
                return
            if cluster.state in ("STARTING", "BOOTSTRAPPING"):
                self.control.begin_end(SERVER_RESTARTED)
            elif cluster.state != "TERMINATING":
                self._steps.fail_interrupted()
            self._thread.start()

    def join(self) -> None:
        """Wait until the cluster has ended or is detached, and its processes are gone."""
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        control, cluster = self.control, self.control.cluster
        try:
            node = self._runner.make_node(cluster)
            # A cluster that an earlier server was terminating runs no more steps, but logs may remain to be uploaded.
            if cluster.state in ("RUNNING", "WAITING", "TERMINATING") or self._bootstrap(node):
                self._steps.run(node)
        except Exception:
            control.fail_internally()
        with control.changed:
            control.changed.wait_for(lambda: control.detached, self._timings.terminating_seconds)
            if control.detached:
                return
            self._finish()
        delete_software(self._runner.node_folder(cluster.id))

    def _finish(self) -> None:
        with self.control.change() as cluster:
            for step in cluster.steps:
                if step.active:
                    step.move_to("CANCELLED", "Job terminated")
            clean = (self.control.end_reason or STEPS_COMPLETED).clean
            self.control.move_to("TERMINATED" if clean else "TERMINATED_WITH_ERRORS")

    def _pause(self, seconds: float) -> bool:
        """Wait unless the cluster stops; return whether it is still active. Call it with `changed` held."""
        return not self.control.changed.wait_for(lambda: self.control.stopped, seconds)

    def _bootstrap(self, node: Node) -> bool:
        """Run the bootstrap actions; return whether the cluster is still active."""
        control, cluster = self.control, self.control.cluster
        with control.changed:
            if not self._pause(self._timings.starting_seconds) or self._is_refused() or not self._fill_fleets():
                return False
            control.move_to("BOOTSTRAPPING")
            if not self._pause(self._timings.bootstrapping_seconds):
                return False
        instance = cluster.list_instances()[0]["Ec2InstanceId"]
        for number, action in enumerate(cluster.request.get("BootstrapActions", []), start=1):
            started = time.monotonic()
            try:
                process = self._runner.start_bootstrap_action(node, action, number)
            except Exception as error:
                path = action["ScriptBootstrapAction"]["Path"]
                self._fail_bootstrap(f"On the master instance ({instance}), bootstrap action {number}, {path}: {error}")
                return False
            code = control.wait(process)
            key = f"{cluster.id}/node/{instance}/bootstrap-actions/{number}"
            log_file = self._runner.upload_logs(node, process.logs, cluster.request.get("LogUri"), key)
            log.info(
                "cluster %s: bootstrap action %s: exit code %s after %.1f s",
                cluster.id,
                action["Name"],
                code,
                time.monotonic() - started,
            )
            if code is None:
                return False
            if code != 0:
                message = f"bootstrap action {number} returned a non-zero return code: {code}"
                location = log_file or process.logs / "stderr"
                self._fail_bootstrap(f"On the master instance ({instance}), {message}; its log is {location}")
                return False
        return True

    def _is_refused(self) -> bool:
        """End the cluster if EC2 refuses to launch its instances. Call it with `changed` held."""
        why = refusal(self.control.cluster)
        if why is None:
            return False
        self.control.begin_end(EndReason("VALIDATION_ERROR", why.message), why.error_code)
        return True

    def _fill_fleets(self) -> bool:
        """Wait for the Spot capacity that EC2 lacks, then act as the fleets request.

        Return whether the cluster is still active. Call it with `changed` held.
        """
        lacking = [pool for pool in self.control.cluster.pools if pool.lacking_spot]
        if not lacking:
            return True
        if not self._pause(self._timings.spot_timeout_seconds):
            return False
        for pool in lacking:
            missing = f"instance fleet {pool.id} ({pool.role}) lacks {pool.lacking_spot} Spot instances"
            if pool.timeout_action != "SWITCH_TO_ON_DEMAND":
                message = f"Provisioning timed out: {missing}, because EC2 has no Spot capacity"
                self.control.begin_end(EndReason("INSTANCE_FLEET_TIMEOUT", message))
                return False
            log.info("cluster %s: %s: On-Demand", self.control.cluster.id, missing)
            with self.control.change():
                pool.switched = True
        return True

    def _fail_bootstrap(self, message: str) -> None:
        with self.control.changed:
            if self.control.end_reason is None:
                self.control.begin_end(EndReason("BOOTSTRAP_FAILURE", message), error_code="BOOTSTRAP_FAILURE")
