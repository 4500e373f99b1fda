"""What Airflow knows of a run: the state of its tasks, and the XComs that the report shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from orchard.airflow.alerts import CAUSE, CONSEQUENCES
from orchard.airflow.costs import COST
from orchard.airflow.planning import SUMMARY
from orchard.run.hold import HOLD, HOLD_TASK, Hold
from orchard.run.states import FINISHED
from orchard.run.steps import STEPS

RETURN_VALUE = "return_value"
KEYS = (RETURN_VALUE, SUMMARY, COST, CAUSE, HOLD)


@dataclass(frozen=True)
class Task:
    """A task of a run."""

    task_id: str
    state: str | None
    start: datetime | None
    end: datetime | None


@dataclass(frozen=True)
class AirflowRun:
    """A run of a DAG. `xcoms` has the values of KEYS by task and key, `conf` the params that a user has set.

    Both are data: nothing of them is trusted.
    """

    dag_id: str
    run_id: str
    state: str
    run_after: datetime
    start: datetime | None
    end: datetime | None
    tasks: Sequence[Task]
    xcoms: Mapping[tuple[str, str], Any]
    conf: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_finished(self) -> bool:
        """Whether the run has ended."""
        return self.state in FINISHED

    @property
    def plan(self) -> Mapping[str, Any]:
        """The XCom of the task `plan`: see `orchard.run.plan.RunPlan`. Empty if there is none."""
        return _mapping(self.xcoms.get(("plan", RETURN_VALUE)))

    @property
    def changes(self) -> Mapping[str, Any]:
        """The counts of what has changed, from the task that planned last. Empty if there are none."""
        again = _mapping(self.xcoms.get(("wait_turn", SUMMARY)))
        return again or _mapping(self.xcoms.get(("plan", SUMMARY)))

    @property
    def cluster_ids(self) -> tuple[str, ...]:
        """The ids of the clusters that the run's tasks have returned, without repeats."""
        tasks = ("create_cluster", "cluster_ready")
        waits = [task.task_id for task in self.tasks if task.task_id.endswith(".wait_step")]
        found = [self.xcoms.get((task, RETURN_VALUE)) for task in (*tasks, *waits)]
        return tuple(dict.fromkeys(value for value in found if isinstance(value, str)))

    @property
    def running_step(self) -> str:
        """The name of the Spark step that is running, or empty."""
        active = [task.task_id for task in self.tasks if task.start and not task.end]
        return next((step for step in STEPS if f"{step}.wait_step" in active), "")

    @property
    def hold(self) -> Hold | None:
        """The hold of the run's cluster, if there was one. It may have ended."""
        return Hold.from_xcom(self.xcoms.get((HOLD_TASK, HOLD)))

    @property
    def is_held(self) -> bool:
        """Whether the run's cluster is held."""
        is_active = any(task.task_id == HOLD_TASK and task.start and not task.end for task in self.tasks)
        return is_active and self.hold is not None

    def first_failure(self) -> tuple[str, str] | None:
        """Return the task that failed first, and its cause as one line. Return None if none has failed."""
        latest = max((task.end for task in self.tasks if task.end), default=self.run_after)
        failed = [task for task in self.tasks if task.state == "failed"]
        causes = {task.task_id: self.xcoms.get((task.task_id, CAUSE)) for task in failed}
        # A user who marks the hold failed ends it early. That is no fault.
        failed = [task for task in failed if task.task_id != HOLD_TASK or causes[HOLD_TASK]]
        # As in the alert: a task that Airflow itself has failed has stored no cause.
        failed.sort(
            key=lambda task: (task.task_id in CONSEQUENCES, not causes[task.task_id], task.end or latest, task.task_id)
        )
        if not failed:
            return None
        task_id = failed[0].task_id
        cause = causes[task_id]
        return task_id, cause if isinstance(cause, str) else "its process ended without an exception: see its log"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
