"""Follow a run while it is running: tasks through the log of `dag.test`, clusters and steps through EMR's API."""

import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

if TYPE_CHECKING:
    from mypy_boto3_emr import EMRClient

POLL_SECONDS = 0.5
ENDED = ("TERMINATED", "TERMINATED_WITH_ERRORS")

_TASK_LINE = re.compile(r"\[DAG TEST\] (starting|end task) task_id=(\S+)")

PrintLine = Callable[[str], None]


@dataclass
class TaskTimes:
    """The first start and the last end of each task. A sensor may start many times."""

    print_line: PrintLine
    started: dict[str, float] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)

    def follow(self, lines: Iterable[str]) -> None:
        """Read the log of `dag.test` to its end, and print each task when it starts."""
        for line in lines:
            match = _TASK_LINE.search(line)
            if match is None:
                continue
            event, task_id = match.groups()
            if event == "end task":
                self.ended[task_id] = time.monotonic()
            elif task_id not in self.started:
                self.started[task_id] = time.monotonic()
                self.print_line(f"task {task_id}")

    def seconds(self) -> dict[str, float]:
        """Return the duration of each task in seconds."""
        return {task: round(self.ended.get(task, started) - started, 1) for task, started in self.started.items()}


def clusters(emr: "EMRClient") -> list[dict[str, Any]]:
    """Return all clusters, ended ones too. Each has its steps under `Steps`, oldest first."""
    found: list[dict[str, Any]] = []
    for page in emr.get_paginator("list_clusters").paginate():
        for cluster in page["Clusters"]:
            steps = [
                step
                for step_page in emr.get_paginator("list_steps").paginate(ClusterId=cluster["Id"])
                for step in step_page["Steps"]
            ]
            found.append({**cluster, "Steps": steps[::-1]})
    return found


class EmrWatcher:
    """Prints each change of state of a cluster or a step, from a thread that runs while the context is open.

    `on_step` is called with each step that EMR describes, every half second.
    """

    def __init__(
        self, emr: "EMRClient", print_line: PrintLine, on_step: Callable[[Mapping[str, Any]], None] = lambda _: None
    ) -> None:
        self._emr = emr
        self._print_line = print_line
        self._on_step = on_step
        self._states: dict[str, str] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="emr-watcher", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(POLL_SECONDS):
            self._poll()
        self._poll()

    def _poll(self) -> None:
        try:
            found = clusters(self._emr)
        except (BotoCoreError, ClientError):
            return  # the local AWS is shutting down
        for cluster in found:
            self._print_change(cluster["Id"], f"cluster {cluster['Id']}", cluster["Status"])
            for step in cluster["Steps"]:
                self._print_change(step["Id"], f"step {step['Name']}", step["Status"])
                self._on_step(step)

    def _print_change(self, key: str, name: str, status: dict[str, Any]) -> None:
        state = status["State"]
        if self._states.get(key) != state:
            self._states[key] = state
            message = status.get("StateChangeReason", {}).get("Message", "")
            self._print_line(f"  {name} {state}" + (f" ({message})" if message and state in ENDED else ""))
