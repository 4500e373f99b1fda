"""Follow a run while it happens: the tasks by the lines that `dag.test` logs, clusters and steps by asking EMR."""

import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

if TYPE_CHECKING:
    from mypy_boto3_emr import EMRClient

POLL_SECONDS = 0.5
OVER = ("TERMINATED", "TERMINATED_WITH_ERRORS")

_TASK_LINE = re.compile(r"\[DAG TEST\] (starting|end task) task_id=(\S+)")

Say = Callable[[str], None]


@dataclass
class TaskTimes:
    """When each task began first and ended last, as a sensor may begin many times."""

    say: Say
    began: dict[str, float] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)

    def follow(self, lines: Iterable[str]) -> None:
        """Read the log of `dag.test` to its end."""
        for line in lines:
            found = _TASK_LINE.search(line)
            if found is None:
                continue
            event, task_id = found.groups()
            if event == "end task":
                self.ended[task_id] = time.monotonic()
            elif task_id not in self.began:
                self.began[task_id] = time.monotonic()
                self.say(f"task {task_id}")

    def seconds(self) -> dict[str, float]:
        """The time of each task."""
        return {task: round(self.ended.get(task, began) - began, 1) for task, began in self.began.items()}


def clusters(emr: "EMRClient") -> list[dict[str, Any]]:
    """All clusters that were ever created, each with its steps under `Steps`, oldest step first."""
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
    """Says each change of state of a cluster or step; a context manager around a thread."""

    def __init__(self, emr: "EMRClient", say: Say) -> None:
        self._emr = emr
        self._say = say
        self._states: dict[str, str] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="emr-watcher", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(POLL_SECONDS):
            self._look()
        self._look()

    def _look(self) -> None:
        try:
            found = clusters(self._emr)
        except (BotoCoreError, ClientError):
            return  # the local AWS is on its way down
        for cluster in found:
            self._note(cluster["Id"], f"cluster {cluster['Id']}", cluster["Status"])
            for step in cluster["Steps"]:
                self._note(step["Id"], f"step {step['Name']}", step["Status"])

    def _note(self, key: str, name: str, status: dict[str, Any]) -> None:
        state = status["State"]
        if self._states.get(key) != state:
            self._states[key] = state
            message = status.get("StateChangeReason", {}).get("Message", "")
            self._say(f"  {name} {state}" + (f" ({message})" if message and state in OVER else ""))
