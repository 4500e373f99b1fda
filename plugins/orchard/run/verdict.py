"""The final state of a run that a user marked failed."""

from collections.abc import Mapping

from orchard.errors import PermanentError


class MarkedFailed(PermanentError):
    """A user marked the run failed while it was running."""


def check_verdict(states: Mapping[str, str | None]) -> None:
    """Fail a run that was marked failed, which Airflow would report as a success. `states` are the states of its tasks.

    When a user marks a run failed, Airflow fails the running tasks, skips the waiting ones, and runs the teardown. All
    leaves of the graph are then skipped or successful, so the run counts as a success. If a task itself fails, the
    leaves are `upstream_failed`, and the run fails without this check.

    Raises:
        MarkedFailed: a task has failed, and the tasks after it were skipped.
    """
    failed = [task_id for task_id, state in states.items() if state == "failed"]
    if failed and states["publish"] == "skipped":
        raise MarkedFailed(f"the run was marked failed while {', '.join(failed)} was running; nothing is published")
