"""Upload the logs of steps late, as EMR does: some time after a step has ended, or when its cluster ends."""

import threading
from collections.abc import Callable

from local_aws.emr.control import ClusterControl
from local_aws.emr.model import Step, now


class LateLogs:
    """Uploads the logs of a cluster's steps in a thread of its own, each `delay_seconds` after the end of the step.

    The cluster stores which logs are uploaded, so that the next server uploads the others.
    """

    def __init__(self, control: ClusterControl, upload: Callable[[Step], object], delay_seconds: float) -> None:
        self._control = control
        self._upload = upload
        self._delay_seconds = delay_seconds
        self._thread = threading.Thread(target=self._run, name=f"{control.cluster.id} logs", daemon=True)

    def start(self) -> None:
        """Start the thread, which ends when the cluster stops."""
        self._thread.start()

    def finish(self) -> None:
        """Upload all remaining logs. Call it when the cluster has stopped and none of its processes is running."""
        self._thread.join()
        with self._control.changed:
            remaining = self._remaining()
        for step in remaining:
            self._upload_one(step)

    def _run(self) -> None:
        try:
            while (step := self._next()) is not None:
                self._upload_one(step)
        except Exception:
            self._control.fail_internally()

    def _next(self) -> Step | None:
        """Wait until the logs of a step are due, and return the step; return None when the cluster stops."""
        control = self._control
        with control.changed:
            while not control.stopped:
                step = min(self._remaining(), key=lambda step: step.timeline["EndDateTime"], default=None)
                wait_seconds = None if step is None else self._seconds_until_due(step)
                if wait_seconds is not None and wait_seconds <= 0:
                    return step
                control.changed.wait(wait_seconds)
            return None

    def _seconds_until_due(self, step: Step) -> float:
        since_end: float = (now() - step.timeline["EndDateTime"]).total_seconds()
        return min(self._delay_seconds - since_end, threading.TIMEOUT_MAX)

    def _remaining(self) -> list[Step]:
        """Return the steps that were started and whose logs are not uploaded. Call it with `changed` held.

        A step that is still active counts only when its cluster ends: an earlier server was killed while it ran.
        """
        ending = self._control.end_reason is not None
        return [
            step
            for step in self._control.cluster.steps
            if "StartDateTime" in step.timeline and not step.logs_uploaded and (ending or not step.active)
        ]

    def _upload_one(self, step: Step) -> None:
        self._upload(step)
        with self._control.change():
            step.logs_uploaded = True
