"""What a cluster suffers on demand: its instances go, a step's command is killed, its start fails."""

import signal
from typing import Final

from local_aws.emr.ends import End
from local_aws.emr.life import ClusterLife
from local_aws.faults import ENDS, EndCluster, Faults

STEP_START_SECONDS = 10.0
# By the Code of the StateChangeReason: the ErrorCode of the ErrorDetails, and the message of both.
_DETAILS: Final = {
    "VALIDATION_ERROR": ("VALIDATION_ERROR", "Validation failed: a fault asked for it"),
    "BOOTSTRAP_FAILURE": (
        "BOOTSTRAP_FAILURE",
        "On the master instance, a bootstrap action failed: a fault asked for it",
    ),
    "INSTANCE_FAILURE": ("INSTANCE_FAILURE", "The master node was terminated: its instance has failed"),
}
_SPOT: Final = ("INTERNAL_ERROR_SPOT_NO_CAPACITY_PRIMARY", "The master node was terminated: Spot took it back")


class CannotHarm(Exception):
    """A cluster or step that is over, or about to be."""


def end(life: ClusterLife, code: str) -> None:
    """End a cluster as EMR says it of a fault; what it runs is killed.

    Raises:
        CannotHarm: it ends already.
    """
    with life.changed:
        if life.cluster.ending:
            raise CannotHarm(f"cluster {life.cluster.id} is {life.cluster.state}")
        spot = code == "INSTANCE_FAILURE" and life.cluster.list_instances(["MASTER"])[0]["Market"] == "SPOT"
        error, message = _SPOT if spot else _DETAILS[code]
        life.cluster.error_details = [{"ErrorCode": error, "ErrorMessage": message}]
        life.terminate(End(code, message))


def doom(faults: Faults, life: ClusterLife) -> None:
    """Let the rules for clusters have a cluster that is about to start."""
    for fault in faults.strike("cluster"):
        if isinstance(fault.rule.effect, EndCluster):
            _end_at(life, ENDS[fault.rule.effect.code], fault.rule.effect.code)


def _end_at(life: ClusterLife, state: str, code: str) -> None:
    def arrive(arrived: str) -> None:
        if arrived == state and not life.cluster.ending:
            end(life, code)

    life.on_state = arrive
    arrive(life.cluster.state)


def kill_step(life: ClusterLife, step_id: str, number: signal.Signals) -> None:
    """Send a signal to all processes of a running step.

    Raises:
        NoSuchStep: the cluster has no step with this id.
        CannotHarm: the step does not run.
    """
    with life.changed:
        step = life.step(step_id)
        # A step is RUNNING a moment before its command has started.
        life.changed.wait_for(lambda: step.state != "RUNNING" or step_id in life.processes, STEP_START_SECONDS)
        if step.state != "RUNNING" or step_id not in life.processes:
            raise CannotHarm(f"step {step_id} is {step.state}")
        process = life.processes[step_id]
    if not process.send(number):
        raise CannotHarm(f"the command of step {step_id} has just ended")
