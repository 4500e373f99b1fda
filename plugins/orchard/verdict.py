"""What to call a run that somebody has marked."""

from collections.abc import Mapping

from orchard.errors import WillNotHeal


class MarkedFailed(WillNotHeal):
    """The run was marked failed while it worked."""


def check_verdict(states: Mapping[str, str | None]) -> None:
    """Fail where Airflow would call a run a success that was marked failed; `states` are those of its tasks.

    Airflow then fails the task that runs and skips those that wait, but for the teardown. With that the leaves of the
    graph are skipped or successful, and so is the run. Where a task has failed by itself, the leaves have, too.

    Raises:
        MarkedFailed: a task has failed, and the work after it was skipped.
    """
    failed = [task_id for task_id, state in states.items() if state == "failed"]
    if failed and states["publish"] == "skipped":
        raise MarkedFailed(f"the run was marked failed while {', '.join(failed)} ran; nothing of it is published")
