"""Follow a run while it is running: tasks through the log of `dag.test`, clusters and steps through EMR's API."""

import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

if TYPE_CHECKING:
    from mypy_boto3_emr import EMRClient

POLL_SECONDS = 0.5
# EMR allows ListClusters and ListSteps once in 2 seconds. All clients of the account share this, and the run needs it,
# too.
THROTTLED_POLL_SECONDS = 4
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


def cluster_summaries(emr: "EMRClient") -> list[Any]:
    """Return the ClusterSummary of each cluster, ended ones too."""
    return [cluster for page in emr.get_paginator("list_clusters").paginate() for cluster in page["Clusters"]]


def clusters(emr: "EMRClient", without: Collection[str] = ()) -> list[dict[str, Any]]:
    """Return all clusters, ended ones too, except those with the given ids.

    Each has its steps under `Steps`, oldest first.
    """
    found: list[dict[str, Any]] = []
    for cluster in cluster_summaries(emr):
        if cluster["Id"] in without:
            continue
        pages = emr.get_paginator("list_steps").paginate(ClusterId=cluster["Id"])
        found.append({**cluster, "Steps": [step for page in pages for step in page["Steps"]][::-1]})
    return found


class EmrWatcher:
    """Prints each change of state of a cluster or a step, from a thread that runs while the context is open.

    Args:
        emr: a client that does not retry, so that the watcher leaves the requests that EMR allows to the run.
        print_line: prints a line about a change.
        on_step: is called with each step that EMR describes, every half second, or less often if EMR throttles.
        without: the ids of clusters that are not watched.
    """

    def __init__(
        self,
        emr: "EMRClient",
        print_line: PrintLine,
        on_step: Callable[[Mapping[str, Any]], None] = lambda _: None,
        without: Collection[str] = (),
    ) -> None:
        self._emr = emr
        self._print_line = print_line
        self._on_step = on_step
        self._without = without
        self._states: dict[str, str] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="emr-watcher", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        poll_seconds = POLL_SECONDS
        while not self._stopped.wait(poll_seconds):
            try:
                self.show(clusters(self._emr, self._without))
            except ClientError as error:
                if error.response["Error"]["Code"] == "ThrottlingException":
                    poll_seconds = THROTTLED_POLL_SECONDS
            except BotoCoreError:
                pass  # the local AWS is shutting down

    def show(self, found: Iterable[Mapping[str, Any]]) -> None:
        """Print what has changed since the last time. Call it from one thread at a time."""
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
