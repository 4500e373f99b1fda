"""Inject faults into clusters: end a cluster, kill a step, and apply rules to clusters that start."""

import logging
import signal
from pathlib import Path
from typing import Final

from local_aws.emr import executors
from local_aws.emr.control import ClusterControl
from local_aws.emr.end_reasons import EndReason
from local_aws.faults.rules import END_STATES, EndCluster, Faults, SpotCapacity

log = logging.getLogger(__name__)

STEP_START_SECONDS = 10.0
# By the Code of the StateChangeReason: the ErrorCode of the ErrorDetails, and the message of both.
_DETAILS: Final = {
    "VALIDATION_ERROR": ("VALIDATION_ERROR", "Validation failed (injected fault)"),
    "BOOTSTRAP_FAILURE": ("BOOTSTRAP_FAILURE", "On the master instance, a bootstrap action failed (injected fault)"),
    "INSTANCE_FAILURE": ("INSTANCE_FAILURE", "The master node was terminated: its instance failed"),
}
_SPOT: Final = ("INTERNAL_ERROR_SPOT_NO_CAPACITY_PRIMARY", "The master node was terminated: Spot interruption")


class CannotInject(Exception):
    """The cluster or step has already ended, or is not running."""


def end_cluster(control: ClusterControl, code: str) -> None:
    """End a cluster with this StateChangeReason code, and kill its processes.

    Raises:
        CannotInject: the cluster has ended or is terminating.
    """
    with control.changed:
        if control.cluster.ending:
            raise CannotInject(f"cluster {control.cluster.id} is {control.cluster.state}")
        masters = control.cluster.list_instances(["MASTER"])
        spot = code == "INSTANCE_FAILURE" and any(instance["Market"] == "SPOT" for instance in masters)
        error_code, message = _SPOT if spot else _DETAILS[code]
        control.begin_end(EndReason(code, message), error_code)


def arm_cluster_faults(faults: Faults, control: ClusterControl) -> None:
    """Apply the rules for clusters to a cluster that is about to start."""
    for fault in faults.match("cluster"):
        match fault.rule.effect:
            case EndCluster(code):
                _end_in_state(control, END_STATES[code], code)
            case SpotCapacity(instances):
                with control.change() as cluster:
                    for pool in cluster.pools:
                        pool.spot_limit = instances if pool.is_fleet else None


def _end_in_state(control: ClusterControl, state: str, code: str) -> None:
    def end_if_reached(current: str) -> None:
        if current == state and not control.cluster.ending:
            end_cluster(control, code)

    control.on_state = end_if_reached
    end_if_reached(control.cluster.state)


def interrupt_spot(control: ClusterControl, home: Path, replace_seconds: float = 0) -> tuple[list[str], list[int]]:
    """Terminate the Spot instances of a cluster's core and task nodes, as EC2 does, and kill their executors.

    The executors stand for the workers, in this order: the On-Demand instances have the oldest executors, and the Spot
    instances all others. Spark starts new executors at once, as for the instances that replace the interrupted ones.

    Returns:
        The ids of the instances, and the pids of the executors. There are no executors if no step runs, or if the Spark
        master is `local`.

    Raises:
        CannotInject: the cluster is not running, or has no Spot instance that runs.
    """
    with control.change() as cluster:
        if cluster.state not in ("RUNNING", "WAITING"):
            raise CannotInject(f"cluster {cluster.id} is {cluster.state}")
        pools = [pool for pool in cluster.pools if pool.role != "MASTER"]
        taken = [name for pool in pools for name in pool.interrupt(cluster.timeline, replace_seconds)]
        if not taken:
            raise CannotInject(f"cluster {cluster.id} has no Spot instance that runs")
        kept = sum(market != "SPOT" for pool in pools for market in pool.markets)
    killed = executors.executors(home)[kept:]
    for pid in killed:
        executors.kill(pid)
    log.info("cluster %s: Spot interruption of %s, executors %s", cluster.id, ", ".join(taken), killed)
    return taken, killed


def kill_step(control: ClusterControl, step_id: str, number: signal.Signals) -> None:
    """Send a signal to all processes of a running step.

    Raises:
        NoSuchStep: the cluster has no step with this id.
        CannotInject: the step is not running.
    """
    with control.changed:
        step = control.step(step_id)
        # A step is RUNNING shortly before its command has started.
        control.changed.wait_for(lambda: step.state != "RUNNING" or step_id in control.processes, STEP_START_SECONDS)
        if step.state != "RUNNING" or step_id not in control.processes:
            raise CannotInject(f"step {step_id} is {step.state}")
        process = control.processes[step_id]
    if not process.send(number):
        raise CannotInject(f"the command of step {step_id} has just ended")
