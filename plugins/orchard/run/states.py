"""The state of a run, as Airflow reports it."""

from collections.abc import Callable

# Returns the state of a run, given its dag_id and its run_id, or None if Airflow has no such run. Raises an error if
# Airflow does not respond.
StateOfRun = Callable[[str, str], str | None]

FINISHED = ("success", "failed")


def has_ended(state: str | None) -> bool:
    """Return whether a run has finished, or does not exist any more (None).

    >>> has_ended("failed"), has_ended(None), has_ended("running")
    (True, True, False)
    """
    return state is None or state in FINISHED
