"""What happens to a cluster, in a thread of its own: provision, bootstrap, run the steps, wait, end."""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from local_aws.emr.errors import ClusterIsOver, NoSuchStep, Protected
from local_aws.emr.model import CLEAN_ENDS, Cluster, Step, Wire
from local_aws.emr.node import Node
from local_aws.emr.process import Process, last_lines
from local_aws.emr.runner import Runner

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
MESSAGE_CHARACTERS = 1500


@dataclass(frozen=True)
class End:
    """Why a cluster ends: the Code and Message of its StateChangeReason."""

    code: str
    message: str


USER_REQUEST = End("USER_REQUEST", "Terminated by user request")
SERVER_STOPPED = End("INTERNAL_ERROR", "local_aws was stopped")
STEPS_COMPLETED = End("ALL_STEPS_COMPLETED", "Steps completed")
STEP_FAILURE = End("STEP_FAILURE", "Shut down as step failed")
IDLE = End("ALL_STEPS_COMPLETED", "Auto-terminated: idle for longer than IdleTimeout")


@dataclass(frozen=True)
class Timings:
    """How long a cluster stays in the states that take minutes on EMR, besides what it really does there."""

    starting_seconds: float = 0
    bootstrapping_seconds: float = 0
    terminating_seconds: float = 0


class ClusterLife:
    """A cluster, the thread that moves it on, and the calls that change its course. `changed` guards the cluster."""

    def __init__(self, cluster: Cluster, runner: Runner, timings: Timings) -> None:
        self.cluster = cluster
        self._timings = timings
        self.changed = threading.Condition(threading.RLock())
        self._runner = runner
        self._end: End | None = None
        self._hurried = False
        self.processes: dict[str, Process] = {}  # by step
        self.on_state: Callable[[str], None] = lambda _: None
        self._thread = threading.Thread(target=self._live, name=cluster.id, daemon=True)

    def start(self) -> None:
        """Begin to provision."""
        self._thread.start()

    def step(self, step_id: str) -> Step:
        """One of the cluster's steps.

        Raises:
            NoSuchStep: the cluster has none with this id.
        """
        for step in self.cluster.steps:
            if step.id == step_id:
                return step
        raise NoSuchStep(step_id)

    def refuse_when_ending(self) -> None:
        """Refuse a change that comes too late. To be called with `changed`.

        Raises:
            ClusterIsOver: the cluster has ended or is about to.
        """
        if self.cluster.ending:
            raise ClusterIsOver(self.cluster.id, self.cluster.state)

    def add_steps(self, configs: Iterable[Wire]) -> list[Step]:
        """Append steps.

        Raises:
            ClusterIsOver: the cluster takes no more steps.
        """
        with self.changed:
            self.refuse_when_ending()
            steps = [Step(config) for config in configs]
            self.cluster.steps += steps
            self.changed.notify_all()
            return steps

    def cancel_step(self, step: Step) -> str | None:
        """Cancel a step that is not over; return why not, if it cannot be."""
        with self.changed:
            if step.state == "PENDING":
                step.move_to("CANCELLED", "Job terminated")
            elif step.state == "RUNNING":
                step.move_to("CANCEL_PENDING")
            else:
                return f"Step {step.id} is {step.state}"
            self.changed.notify_all()
            return None

    def terminate(self, end: End = USER_REQUEST) -> None:
        """Ask for the end; it comes soon after. A cluster that is over stays as it is.

        Raises:
            Protected: a user asks and the cluster has termination protection.
        """
        with self.changed:
            if end is SERVER_STOPPED:
                self._hurried = True
                self.changed.notify_all()
            if self.cluster.ending:
                return
            if end is USER_REQUEST and self.cluster.termination_protected:
                raise Protected(self.cluster.id)
            self._begin_end(end)

    def join(self) -> None:
        """Wait until the cluster is over."""
        self._thread.join()

    def _begin_end(self, end: End) -> None:
        self._end = end
        self.cluster.reason = {"Code": end.code, "Message": end.message}
        self._move_to("TERMINATING")

    def _move_to(self, state: str) -> None:
        self.cluster.move_to(state)
        log.info("cluster %s: %s %s", self.cluster.id, state, self.cluster.reason.get("Message", ""))
        self.changed.notify_all()
        self.on_state(state)

    def _live(self) -> None:
        try:
            node = self._runner.make_node(
                self.cluster.id, self.cluster.region, self.cluster.request.get("Configurations", [])
            )
            if self._bootstrap(node):
                self._run_steps(node)
        except Exception:
            self._fail_internally()
        with self.changed:
            self.changed.wait_for(lambda: self._hurried, self._timings.terminating_seconds)
            for step in self.cluster.steps:
                if step.active:
                    step.move_to("CANCELLED", "Job terminated")
            clean = (self._end or STEPS_COMPLETED).code in CLEAN_ENDS
            self._move_to("TERMINATED" if clean else "TERMINATED_WITH_ERRORS")

    def _fail_internally(self) -> None:
        log.exception("cluster %s: internal error", self.cluster.id)
        self.terminate(End("INTERNAL_ERROR", "local_aws failed; see its log"))

    def _pause(self, seconds: float) -> bool:
        """Wait, but not beyond the cluster's end; whether it lives. To be called with `changed`."""
        return not self.changed.wait_for(lambda: self._end is not None, seconds)

    def _bootstrap(self, node: Node) -> bool:
        """Run the bootstrap actions; whether the cluster lives."""
        with self.changed:
            if not self._pause(self._timings.starting_seconds):
                return False
            self._move_to("BOOTSTRAPPING")
            if not self._pause(self._timings.bootstrapping_seconds):
                return False
        instance = self.cluster.list_instances()[0]["Ec2InstanceId"]
        for number, action in enumerate(self.cluster.request.get("BootstrapActions", []), start=1):
            started = time.monotonic()
            try:
                process = self._runner.start_bootstrap_action(node, action, number)
            except Exception as error:
                self._fail_bootstrap(f"On the master instance ({instance}), bootstrap action {number}: {error}")
                return False
            code = self._wait(process, None)
            key = f"{self.cluster.id}/node/{instance}/bootstrap-actions/{number}"
            self._runner.upload_logs(node, process.logs, self.cluster.request.get("LogUri"), key)
            log.info(
                "cluster %s: bootstrap action %s: exit code %s after %.1f s",
                self.cluster.id,
                action["Name"],
                code,
                time.monotonic() - started,
            )
            if code is None:
                return False
            if code != 0:
                message = f"bootstrap action {number} returned a non-zero return code"
                self._fail_bootstrap(f"On the master instance ({instance}), {message}")
                return False
        return True

    def _fail_bootstrap(self, message: str) -> None:
        with self.changed:
            if self._end is None:
                self.cluster.error_details = [{"ErrorCode": "BOOTSTRAP_FAILURE", "ErrorMessage": message}]
                self._begin_end(End("BOOTSTRAP_FAILURE", message))

    def _run_steps(self, node: Node) -> None:
        """Run steps until the cluster's end, at most StepConcurrencyLevel of them at once."""
        threads = []
        while (step := self._next_step()) is not None:
            thread = threading.Thread(target=self._run_step, args=(node, step), name=step.id, daemon=True)
            thread.start()
            threads.append(thread)
        for thread in threads:
            thread.join()

    def _next_step(self) -> Step | None:
        """The next step, now RUNNING; waits for one that may run, and gives None at the cluster's end."""
        idle_since = time.monotonic()
        with self.changed:
            while self._end is None:
                running = [step for step in self.cluster.steps if step.state in ("RUNNING", "CANCEL_PENDING")]
                pending = [step for step in self.cluster.steps if step.state == "PENDING"]
                if pending and len(running) < self.cluster.step_concurrency_level:
                    if self.cluster.state != "RUNNING":
                        self._move_to("RUNNING")
                    pending[0].move_to("RUNNING")
                    return pending[0]
                if running:
                    idle_since = time.monotonic()
                    self.changed.wait()
                    continue
                if not self.cluster.keep_alive:
                    self._begin_end(STEPS_COMPLETED)
                    break
                if self.cluster.state != "WAITING":
                    self._move_to("WAITING")
                    idle_since = time.monotonic()
                idle_timeout = self.cluster.idle_timeout_seconds
                left = None if idle_timeout is None else idle_since + idle_timeout - time.monotonic()
                if left is not None and left <= 0:
                    self._begin_end(IDLE)
                    break
                self.changed.wait(left)
            return None

    def _run_step(self, node: Node, step: Step) -> None:
        try:
            self._execute(node, step)
        except Exception:
            self._fail_internally()
        with self.changed:
            self.changed.notify_all()

    def _execute(self, node: Node, step: Step) -> None:
        config = step.config
        log.info("cluster %s: step %s %s: RUNNING", self.cluster.id, step.id, config["Name"])
        started = time.monotonic()
        try:
            process = self._runner.start_step(node, step.id, config["HadoopJarStep"])
        except (OSError, ValueError) as error:
            self._fail_step(step, {"Reason": "Cannot start the command.", "Message": str(error)})
            return
        code = self._wait(process, step)
        key = f"{self.cluster.id}/steps/{step.id}"
        log_file = self._runner.upload_logs(node, process.logs, self.cluster.request.get("LogUri"), key)
        seconds = time.monotonic() - started
        with self.changed:
            if code is None:
                step.move_to("CANCELLED", "Job terminated")
            elif code == 0:
                step.move_to("COMPLETED")
        if code not in (None, 0):
            message = last_lines(process.logs)[-MESSAGE_CHARACTERS:]
            reason = f"Killed by signal {-code}." if code < 0 else "Unknown Error."
            self._fail_step(step, {"Reason": reason, "Message": message, **({"LogFile": log_file} if log_file else {})})
        log.info(
            "cluster %s: step %s %s: %s after %.1f s", self.cluster.id, step.id, config["Name"], step.state, seconds
        )

    def _fail_step(self, step: Step, failure: Wire) -> None:
        with self.changed:
            step.move_to("FAILED", failure=failure)
            if step.action_on_failure == "TERMINATE_CLUSTER":
                if self._end is None:
                    self._begin_end(STEP_FAILURE)
            elif step.action_on_failure == "CANCEL_AND_WAIT":
                for other in self.cluster.steps:
                    if other.state == "PENDING":
                        other.move_to("CANCELLED", "Job terminated")

    def _wait(self, process: Process, step: Step | None) -> int | None:
        """The exit code; None when the cluster's end or the step's cancelling killed the command."""
        if step is not None:
            with self.changed:
                self.processes[step.id] = process
                self.changed.notify_all()
        while (code := process.wait(POLL_SECONDS)) is None:
            with self.changed:
                stop = self._end is not None or (step is not None and step.state == "CANCEL_PENDING")
            if stop:
                process.kill()
                return None
        return code
