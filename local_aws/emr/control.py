"""A cluster, its lock, and the calls that change its state."""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from local_aws.emr.end_reasons import INTERNAL_ERROR, USER_REQUEST, EndReason
from local_aws.emr.errors import ClusterHasEnded, NoSuchStep, TerminationProtected
from local_aws.emr.model import Cluster, Step, Wire
from local_aws.emr.process import Process

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1


class ClusterControl:
    """Controls a cluster on behalf of API calls, faults, and the threads that run it.

    `changed` guards the cluster: hold it to read, and use `change()` to write, which also saves the cluster.
    `processes` are the commands of steps by step id. `on_state` is called with each new state of the cluster.
    """

    def __init__(self, cluster: Cluster, save: Callable[[Cluster], None] = lambda _: None) -> None:
        self.cluster = cluster
        self.changed = threading.Condition(threading.RLock())
        self.processes: dict[str, Process] = {}
        self.on_state: Callable[[str], None] = lambda _: None
        self._save = save
        self._detached = False
        self._end_reason: EndReason | None = None
        if cluster.state == "TERMINATING":
            self._end_reason = EndReason(cluster.reason["Code"], cluster.reason["Message"])

    @contextmanager
    def change(self) -> Iterator[Cluster]:
        """Hold the lock to change the cluster, then save it; if the body raises, nothing is saved."""
        with self.changed:
            yield self.cluster
            self._save(self.cluster)
            self.changed.notify_all()

    def detach(self) -> None:
        """Stop running the cluster but keep its state, so that the next server can resume it."""
        with self.changed:
            self._detached = True
            self.changed.notify_all()

    @property
    def detached(self) -> bool:
        """Whether this server no longer runs the cluster."""
        return self._detached

    @property
    def stopped(self) -> bool:
        """Whether nothing new may start, because the cluster is ending or detached."""
        return self._end_reason is not None or self._detached

    @property
    def end_reason(self) -> EndReason | None:
        """Why the cluster ends; None while it is active."""
        return self._end_reason

    def step(self, step_id: str) -> Step:
        """Return the step with this id.

        Raises:
            NoSuchStep: the cluster has no step with this id.
        """
        for step in self.cluster.steps:
            if step.id == step_id:
                return step
        raise NoSuchStep(step_id)

    def check_not_ending(self) -> None:
        """Reject a change to a cluster that has ended or is terminating. Call it with `changed` held.

        Raises:
            ClusterHasEnded: the cluster has ended or is terminating.
        """
        if self.cluster.ending:
            raise ClusterHasEnded(self.cluster.id, self.cluster.state)

    def add_steps(self, configs: Iterable[Wire], execution_role_arn: str = "") -> list[Step]:
        """Append steps and return them. The runtime role of the steps is kept, and has no effect.

        Raises:
            ClusterHasEnded: the cluster accepts no more steps.
        """
        with self.change():
            self.check_not_ending()
            steps = [Step(config, execution_role_arn=execution_role_arn) for config in configs]
            self.cluster.steps += steps
            return steps

    def cancel_step(self, step: Step) -> str | None:
        """Cancel a pending or running step; for a step in another state, return why it cannot be cancelled."""
        with self.change():
            if step.state == "PENDING":
                step.move_to("CANCELLED", "Job terminated")
            elif step.state == "RUNNING":
                step.move_to("CANCEL_PENDING")
            else:
                return f"Step {step.id} is {step.state}"
            return None

    def terminate(self, reason: EndReason = USER_REQUEST) -> None:
        """Request termination of the cluster; nothing changes if it has ended or is terminating.

        Raises:
            TerminationProtected: a user requests it, and the cluster has termination protection.
        """
        with self.changed:
            if self.cluster.ending:
                return
            if reason is USER_REQUEST and self.cluster.termination_protected:
                raise TerminationProtected(self.cluster.id)
            self.begin_end(reason)

    def begin_end(self, reason: EndReason, error_code: str | None = None) -> None:
        """Start terminating an active cluster; with an error code, it gets ErrorDetails."""
        with self.change():
            if error_code is not None:
                self.cluster.error_details = [{"ErrorCode": error_code, "ErrorMessage": reason.message}]
            self._end_reason = reason
            self.cluster.reason = {"Code": reason.code, "Message": reason.message}
            self.move_to("TERMINATING")

    def move_to(self, state: str) -> None:
        """Move the cluster to a new state."""
        with self.change():
            self.cluster.move_to(state)
            log.info("cluster %s: %s %s", self.cluster.id, state, self.cluster.reason.get("Message", ""))
            self.on_state(state)

    def fail_internally(self) -> None:
        """Log the current exception with its traceback, and end the cluster with INTERNAL_ERROR."""
        log.exception("cluster %s: internal error", self.cluster.id)
        self.terminate(INTERNAL_ERROR)

    def wait(self, process: Process, is_cancelled: Callable[[], bool] = lambda: False) -> int | None:
        """Wait for a command and return its exit code; None if it was killed because it or the cluster was stopped."""
        while (code := process.wait(POLL_SECONDS)) is None:
            with self.changed:
                stop = self.stopped or is_cancelled()
            if stop:
                process.kill()
                return None
        return code
