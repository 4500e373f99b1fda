"""What happens to a cluster, in a thread of its own: provision, bootstrap, run the steps, end."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from local_aws.emr.ends import INTERNAL_ERROR, SERVER_RESTARTED, STEPS_COMPLETED, USER_REQUEST, End
from local_aws.emr.errors import ClusterIsOver, NoSuchStep, Protected
from local_aws.emr.model import Cluster, Step, Wire
from local_aws.emr.node import Node
from local_aws.emr.process import Process
from local_aws.emr.runner import Runner
from local_aws.emr.step_loop import StepLoop

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Timings:
    """How long a cluster stays in the states that take minutes on EMR, besides what it really does there."""

    starting_seconds: float = 0
    bootstrapping_seconds: float = 0
    terminating_seconds: float = 0


class ClusterLife:
    """A cluster, the thread that moves it on, and the calls that change its course.

    `changed` guards the cluster. Who changes it does so in `change()`, which keeps what has become of it.
    """

    def __init__(
        self, cluster: Cluster, runner: Runner, timings: Timings, keep: Callable[[Cluster], None] = lambda _: None
    ) -> None:
        self.cluster = cluster
        self.changed = threading.Condition(threading.RLock())
        self.processes: dict[str, Process] = {}  # by step
        self.on_state: Callable[[str], None] = lambda _: None
        self._timings = timings
        self._runner = runner
        self._keep = keep
        self._end: End | None = None
        self._left = False
        self._steps = StepLoop(self, runner)
        self._thread = threading.Thread(target=self._live, name=cluster.id, daemon=True)

    @contextmanager
    def change(self) -> Iterator[Cluster]:
        """Change the cluster; nothing is kept of a change that raises."""
        with self.changed:
            yield self.cluster
            self._keep(self.cluster)
            self.changed.notify_all()

    def start(self) -> None:
        """Begin to provision."""
        with self.change():
            self._thread.start()

    def resume(self) -> None:
        """Go on with a cluster of a server that has gone, and with it all that ran there."""
        with self.change() as cluster:
            if cluster.over:
                return
            if cluster.state == "TERMINATING":
                self._end = End(cluster.reason["Code"], cluster.reason["Message"])
            elif cluster.state in ("STARTING", "BOOTSTRAPPING"):
                self.begin_end(SERVER_RESTARTED)
            else:
                self._steps.lose_running()
            self._thread.start()

    def leave(self) -> None:
        """Kill what runs and let the cluster be as it is, for another server to resume."""
        with self.changed:
            self._left = True
            self.changed.notify_all()

    def join(self) -> None:
        """Wait until the cluster is over or left."""
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def stopped(self) -> bool:
        """Whether nothing more is to be begun: the cluster ends, or is left."""
        return self._end is not None or self._left

    @property
    def left(self) -> bool:
        """Whether the cluster is to stay as it is."""
        return self._left

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
        with self.change():
            self.refuse_when_ending()
            steps = [Step(config) for config in configs]
            self.cluster.steps += steps
            return steps

    def cancel_step(self, step: Step) -> str | None:
        """Cancel a step that is not over; return why not, if it cannot be."""
        with self.change():
            if step.state == "PENDING":
                step.move_to("CANCELLED", "Job terminated")
            elif step.state == "RUNNING":
                step.move_to("CANCEL_PENDING")
            else:
                return f"Step {step.id} is {step.state}"
            return None

    def terminate(self, end: End = USER_REQUEST) -> None:
        """Ask for the end; it comes soon after. A cluster that is over stays as it is.

        Raises:
            Protected: a user asks and the cluster has termination protection.
        """
        with self.changed:
            if self.cluster.ending:
                return
            if end is USER_REQUEST and self.cluster.termination_protected:
                raise Protected(self.cluster.id)
            self.begin_end(end)

    def begin_end(self, end: End) -> None:
        """End the cluster, which is not about to yet."""
        with self.change():
            self._end = end
            self.cluster.reason = {"Code": end.code, "Message": end.message}
            self.move_to("TERMINATING")

    def move_to(self, state: str) -> None:
        """Take a new state."""
        with self.change():
            self.cluster.move_to(state)
            log.info("cluster %s: %s %s", self.cluster.id, state, self.cluster.reason.get("Message", ""))
            self.on_state(state)

    def fail_internally(self) -> None:
        """End the cluster for a fault of ours, with its traceback in the log."""
        log.exception("cluster %s: internal error", self.cluster.id)
        self.terminate(INTERNAL_ERROR)

    def wait(self, process: Process, cancelled: Callable[[], bool] = lambda: False) -> int | None:
        """The exit code; None when the command was killed for the cluster's end or for being cancelled."""
        while (code := process.wait(POLL_SECONDS)) is None:
            with self.changed:
                stop = self.stopped or cancelled()
            if stop:
                process.kill()
                return None
        return code

    def _live(self) -> None:
        try:
            node = self._runner.make_node(
                self.cluster.id, self.cluster.region, self.cluster.request.get("Configurations", [])
            )
            if self.cluster.state in ("RUNNING", "WAITING") or self._bootstrap(node):
                self._steps.run(node)
        except Exception:
            self.fail_internally()
        with self.changed:
            self.changed.wait_for(lambda: self._left, self._timings.terminating_seconds)
            if not self._left:
                self._die()

    def _die(self) -> None:
        with self.change() as cluster:
            for step in cluster.steps:
                if step.active:
                    step.move_to("CANCELLED", "Job terminated")
            clean = (self._end or STEPS_COMPLETED).clean
            self.move_to("TERMINATED" if clean else "TERMINATED_WITH_ERRORS")

    def _pause(self, seconds: float) -> bool:
        """Wait, but not beyond the cluster's end; whether it lives. To be called with `changed`."""
        return not self.changed.wait_for(lambda: self.stopped, seconds)

    def _bootstrap(self, node: Node) -> bool:
        """Run the bootstrap actions; whether the cluster lives."""
        with self.changed:
            if not self._pause(self._timings.starting_seconds):
                return False
            self.move_to("BOOTSTRAPPING")
            if not self._pause(self._timings.bootstrapping_seconds):
                return False
        instance = self.cluster.list_instances()[0]["Ec2InstanceId"]
        for number, action in enumerate(self.cluster.request.get("BootstrapActions", []), start=1):
            started = time.monotonic()
            try:
                process = self._runner.start_bootstrap_action(node, action, number)
            except Exception as error:
                path = action["ScriptBootstrapAction"]["Path"]
                self._fail_bootstrap(f"On the master instance ({instance}), bootstrap action {number}, {path}: {error}")
                return False
            code = self.wait(process)
            key = f"{self.cluster.id}/node/{instance}/bootstrap-actions/{number}"
            log_file = self._runner.upload_logs(node, process.logs, self.cluster.request.get("LogUri"), key)
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
                message = f"bootstrap action {number} returned a non-zero return code: {code}"
                where = log_file or process.logs / "stderr"
                self._fail_bootstrap(f"On the master instance ({instance}), {message}; its log is {where}")
                return False
        return True

    def _fail_bootstrap(self, message: str) -> None:
        with self.changed:
            if self._end is None:
                self.cluster.error_details = [{"ErrorCode": "BOOTSTRAP_FAILURE", "ErrorMessage": message}]
                self.begin_end(End("BOOTSTRAP_FAILURE", message))
