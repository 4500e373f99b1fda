"""How a cluster that is ready runs its steps: in their order, as many at once as it allows."""

import logging
import threading
import time
from typing import TYPE_CHECKING, Final

from local_aws.emr.ends import IDLE, STEP_FAILURE, STEPS_COMPLETED
from local_aws.emr.model import Step, Wire
from local_aws.emr.node import Node
from local_aws.emr.process import Process, last_lines
from local_aws.emr.runner import Runner, step_logs

if TYPE_CHECKING:
    from local_aws.emr.life import ClusterLife

log = logging.getLogger(__name__)

LOST: Final = {"Reason": "Unknown Error.", "Message": "local_aws was restarted while the step ran"}


class StepLoop:
    """Runs the steps of a living cluster, each in a thread."""

    def __init__(self, life: "ClusterLife", runner: Runner) -> None:
        self._life = life
        self._runner = runner
        self._lost: list[Step] = []

    def lose_running(self) -> None:
        """End the steps that ran on a server that has gone. To be called in a change."""
        for step in self._life.cluster.steps:
            if step.state == "CANCEL_PENDING":
                step.move_to("CANCELLED", "Job terminated")
            elif step.state == "RUNNING":
                self._fail(step, LOST)
            else:
                continue
            self._lost.append(step)

    def run(self, node: Node) -> None:
        """Run steps until the cluster's end, at most StepConcurrencyLevel of them at once."""
        for lost in self._lost:
            self._upload_logs(node, lost)
        threads = []
        while (step := self._next()) is not None:
            thread = threading.Thread(target=self._run_one, args=(node, step), name=step.id, daemon=True)
            thread.start()
            threads.append(thread)
        for thread in threads:
            thread.join()

    def _next(self) -> Step | None:
        """The next step, now RUNNING; waits for one that may run, and gives None at the cluster's end."""
        life, cluster = self._life, self._life.cluster
        idle_since = time.monotonic()
        with life.changed:
            while not life.stopped:
                running = [step for step in cluster.steps if step.state in ("RUNNING", "CANCEL_PENDING")]
                pending = [step for step in cluster.steps if step.state == "PENDING"]
                if pending and len(running) < cluster.step_concurrency_level:
                    with life.change():
                        if cluster.state != "RUNNING":
                            life.move_to("RUNNING")
                        pending[0].move_to("RUNNING")
                    return pending[0]
                if running:
                    idle_since = time.monotonic()
                    life.changed.wait()
                    continue
                if not cluster.keep_alive:
                    life.begin_end(STEPS_COMPLETED)
                    break
                if cluster.state != "WAITING":
                    life.move_to("WAITING")
                    idle_since = time.monotonic()
                idle_timeout = cluster.idle_timeout_seconds
                left = None if idle_timeout is None else idle_since + idle_timeout - time.monotonic()
                if left is not None and left <= 0:
                    life.begin_end(IDLE)
                    break
                life.changed.wait(left)
            return None

    def _run_one(self, node: Node, step: Step) -> None:
        try:
            self._execute(node, step)
        except Exception:
            self._life.fail_internally()
        with self._life.changed:
            self._life.changed.notify_all()

    def _execute(self, node: Node, step: Step) -> None:
        life, name = self._life, step.config["Name"]
        log.info("cluster %s: step %s %s: RUNNING", life.cluster.id, step.id, name)
        started = time.monotonic()
        try:
            process = self._runner.start_step(node, step.id, step.config["HadoopJarStep"])
        except (OSError, ValueError) as error:
            with life.change():
                self._fail(step, {"Reason": "Cannot start the command.", "Message": str(error)})
            return
        code = self._wait(process, step)
        if code is None and life.left:
            return
        log_file = self._upload_logs(node, step)
        with life.change():
            if code is None:
                step.move_to("CANCELLED", "Job terminated")
            elif code == 0:
                step.move_to("COMPLETED")
            else:
                ended = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
                message = last_lines(process.logs) or f"The command {ended} and has said nothing."
                reason = f"Killed by signal {-code}." if code < 0 else "Unknown Error."
                self._fail(step, {"Reason": reason, "Message": message, **({"LogFile": log_file} if log_file else {})})
        log.info(
            "cluster %s: step %s %s: %s after %.1f s",
            life.cluster.id,
            step.id,
            name,
            step.state,
            time.monotonic() - started,
        )

    def _wait(self, process: Process, step: Step) -> int | None:
        with self._life.changed:
            self._life.processes[step.id] = process
            self._life.changed.notify_all()
        return self._life.wait(process, lambda: step.state == "CANCEL_PENDING")

    def _upload_logs(self, node: Node, step: Step) -> str | None:
        cluster = self._life.cluster
        key = f"{cluster.id}/steps/{step.id}"
        return self._runner.upload_logs(node, step_logs(node, step.id), cluster.request.get("LogUri"), key)

    def _fail(self, step: Step, failure: Wire) -> None:
        """Let a step have failed, with what that means for its cluster. To be called in a change."""
        step.move_to("FAILED", failure=failure)
        if step.action_on_failure == "TERMINATE_CLUSTER":
            if not self._life.cluster.ending:
                self._life.begin_end(STEP_FAILURE)
        elif step.action_on_failure == "CANCEL_AND_WAIT":
            for other in self._life.cluster.steps:
                if other.state == "PENDING":
                    other.move_to("CANCELLED", "Job terminated")
