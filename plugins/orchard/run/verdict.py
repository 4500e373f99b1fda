"""The final state of a run, from the states of its tasks."""

from collections.abc import Mapping

from orchard.errors import PermanentError
from orchard.run.hold import HOLD_TASK

# `verdict` itself checks that no cluster of the run is active, so that these may fail. A hold that ends early, for
# example because a user marks it as failed, does not change what the run has published.
NOT_JUDGED = (HOLD_TASK, "terminate_cluster", "cluster_gone", "verdict")


class RunFailed(PermanentError):
    """A task of the run has failed."""


class MarkedFailed(RunFailed):
    """A user marked the run failed while it was running."""


def check_verdict(states: Mapping[str, str | None]) -> None:
    """Fail if the run has failed. `states` are the states of its tasks.

    Airflow judges a run by its last task alone. When a user marks a run failed, Airflow fails the running tasks, skips
    the waiting ones, and runs the teardown. When a user marks it success, no task has failed.

    Raises:
        MarkedFailed: a task has failed, and the tasks after it were skipped.
        RunFailed: a task has failed, and the tasks after it could not run.
    """
    failed = [task_id for task_id, state in states.items() if state == "failed" and task_id not in NOT_JUDGED]
    blocked = [task_id for task_id, state in states.items() if state == "upstream_failed"]
    if failed and states["publish"] == "skipped":
        raise MarkedFailed(f"the run was marked failed while {', '.join(failed)} was running; nothing is published")
    if failed:
        raise RunFailed(f"the run has failed, because {', '.join(failed)} failed: see the logs")
    if blocked:
        raise RunFailed(f"the run has failed, because {', '.join(blocked)} did not run: clear with downstream")
