"""Inject faults into clusters: end a cluster, kill a step, and apply rules to clusters that start."""

import signal
from typing import Final

from local_aws.emr.control import ClusterControl
from local_aws.emr.end_reasons import EndReason
from local_aws.faults.rules import END_STATES, EndCluster, Faults

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
        spot = code == "INSTANCE_FAILURE" and control.cluster.list_instances(["MASTER"])[0]["Market"] == "SPOT"
        error_code, message = _SPOT if spot else _DETAILS[code]
        control.begin_end(EndReason(code, message), error_code)


def arm_cluster_faults(faults: Faults, control: ClusterControl) -> None:
    """Apply the rules for clusters to a cluster that is about to start."""
    for fault in faults.match("cluster"):
        if isinstance(fault.rule.effect, EndCluster):
            _end_in_state(control, END_STATES[fault.rule.effect.code], fault.rule.effect.code)


def _end_in_state(control: ClusterControl, state: str, code: str) -> None:
    def end_if_reached(current: str) -> None:
        if current == state and not control.cluster.ending:
            end_cluster(control, code)

    control.on_state = end_if_reached
    end_if_reached(control.cluster.state)


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
