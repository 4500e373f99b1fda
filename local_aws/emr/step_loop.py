"""Run the steps of a ready cluster: in order, with as many at once as its StepConcurrencyLevel allows."""

import logging
import threading
import time
from functools import partial
from typing import Final

from local_aws.emr.control import ClusterControl
from local_aws.emr.end_reasons import IDLE, STEP_FAILURE, STEPS_COMPLETED
from local_aws.emr.late_logs import LateLogs
from local_aws.emr.model import Step, Wire
from local_aws.emr.node import Node
from local_aws.emr.process import Process, last_lines
from local_aws.emr.runner import Runner, log_file, step_logs

log = logging.getLogger(__name__)

INTERRUPTED: Final = {"Reason": "Unknown Error.", "Message": "local_aws was restarted while the step was running"}


class StepLoop:
    """Runs the steps of a cluster, each in a thread of its own."""

    def __init__(self, control: ClusterControl, runner: Runner, log_delay_seconds: float) -> None:
        self._control = control
        self._runner = runner
        self._log_delay_seconds = log_delay_seconds

    def fail_interrupted(self) -> None:
        """End the steps that were running on an earlier server. Call it inside a change."""
        for step in self._control.cluster.steps:
            if step.state == "CANCEL_PENDING":
                step.move_to("CANCELLED", "Job terminated")
            elif step.state == "RUNNING":
                self._fail(step, INTERRUPTED)

    def run(self, node: Node) -> None:
        """Run steps until the cluster ends or is detached."""
        logs = LateLogs(self._control, partial(self._upload_logs, node), self._log_delay_seconds)
        logs.start()
        threads = []
        while (step := self._next()) is not None:
            thread = threading.Thread(target=self._run_step, args=(node, step), name=step.id, daemon=True)
            thread.start()
            threads.append(thread)
        for thread in threads:
            thread.join()
        logs.finish()

    def _next(self) -> Step | None:
        """Wait for a step that may run, and return it as RUNNING; return None when the cluster stops."""
        control, cluster = self._control, self._control.cluster
        idle_since = time.monotonic()
        with control.changed:
            while not control.stopped:
                running = [step for step in cluster.steps if step.state in ("RUNNING", "CANCEL_PENDING")]
                pending = [step for step in cluster.steps if step.state == "PENDING"]
                if pending and len(running) < cluster.step_concurrency_level:
                    with control.change():
                        if cluster.state != "RUNNING":
                            control.move_to("RUNNING")
                        pending[0].move_to("RUNNING")
                    return pending[0]
                if running:
                    idle_since = time.monotonic()
                    control.changed.wait()
                    continue
                if not cluster.keep_alive:
                    control.begin_end(STEPS_COMPLETED)
                    break
                if cluster.state != "WAITING":
                    control.move_to("WAITING")
                    idle_since = time.monotonic()
                idle_timeout = cluster.idle_timeout_seconds
                remaining = None if idle_timeout is None else idle_since + idle_timeout - time.monotonic()
                if remaining is not None and remaining <= 0:
                    control.begin_end(IDLE)
                    break
                control.changed.wait(remaining)
            return None

    def _run_step(self, node: Node, step: Step) -> None:
        try:
            self._execute(node, step)
        except Exception:
            self._control.fail_internally()
        with self._control.changed:
            self._control.changed.notify_all()

    def _execute(self, node: Node, step: Step) -> None:
        control, name = self._control, step.config["Name"]
        log.info("cluster %s: step %s %s: RUNNING", control.cluster.id, step.id, name)
        started = time.monotonic()
        try:
            process = self._runner.start_step(node, step.id, step.config["HadoopJarStep"])
        except (OSError, ValueError) as error:
            with control.change():
                self._fail(step, {"Reason": "Cannot start the command.", "Message": str(error)})
            return
        code = self._wait(process, step)
        if code is None and control.detached:
            return
        with control.change():
            if code is None:
                step.move_to("CANCELLED", "Job terminated")
            elif code == 0:
                step.move_to("COMPLETED")
            else:
                ending = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
                message = last_lines(process.logs) or f"The command {ending} and wrote no output."
                reason = f"Killed by signal {-code}." if code < 0 else "Unknown Error."
                file = log_file(control.cluster.request.get("LogUri"), self._log_key(step))
                self._fail(step, {"Reason": reason, "Message": message, **({"LogFile": file} if file else {})})
        log.info(
            "cluster %s: step %s %s: %s after %.1f s",
            control.cluster.id,
            step.id,
            name,
            step.state,
            time.monotonic() - started,
        )

    def _wait(self, process: Process, step: Step) -> int | None:
        with self._control.changed:
            self._control.processes[step.id] = process
            self._control.changed.notify_all()
        return self._control.wait(process, lambda: step.state == "CANCEL_PENDING")

    def _upload_logs(self, node: Node, step: Step) -> None:
        log_uri = self._control.cluster.request.get("LogUri")
        self._runner.upload_logs(node, step_logs(node, step.id), log_uri, self._log_key(step))

    def _log_key(self, step: Step) -> str:
        return f"{self._control.cluster.id}/steps/{step.id}"

    def _fail(self, step: Step, failure: Wire) -> None:
        """Move a step to FAILED and apply its ActionOnFailure. Call it inside a change."""
        step.move_to("FAILED", failure=failure)
        if step.action_on_failure == "TERMINATE_CLUSTER":
            if not self._control.cluster.ending:
                self._control.begin_end(STEP_FAILURE)
        elif step.action_on_failure == "CANCEL_AND_WAIT":
            for other in self._control.cluster.steps:
                if other.state == "PENDING":
                    other.move_to("CANCELLED", "Job terminated")
