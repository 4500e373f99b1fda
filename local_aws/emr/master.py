"""Where Spark runs what a step asks for: in its driver, in processes that the driver starts, or on workers of ours."""

import re
from pathlib import Path

from local_aws.emr.standalone import Executors, Standalone

DEFAULT_MASTER = "local[*]"

_CHOICE = re.compile(
    r"local(\[(\*|[1-9]\d*)\])?|(?P<kind>local-cluster|standalone)\[(?P<size>[1-9]\d*,[1-9]\d*,[1-9]\d*)\]"
)


def checked_master(choice: str) -> str:
    """A choice of the Spark master that this server can offer.

    Raises:
        ValueError: it is another one.
    """
    _parsed(choice)
    return choice


def _parsed(choice: str) -> re.Match[str]:
    match = _CHOICE.fullmatch(choice)
    if match is None:
        raise ValueError(
            f"LOCAL_EMR_MASTER is {choice!r}: give local[N], local[*], local-cluster[EXECUTORS,CORES,MB] or "
            "standalone[EXECUTORS,CORES,MB], for example standalone[2,1,1024]"
        )
    return match


class Master:
    """The Spark master of all clusters of a server."""

    def __init__(self, choice: str, folder: Path) -> None:
        """Choose, but start nothing; a standalone cluster will have this folder.

        Raises:
            ValueError: there is no such choice.
        """
        match = _parsed(choice)
        self._choice = choice
        self._executors = Executors(*(int(number) for number in match["size"].split(","))) if match["kind"] else None
        standalone = self._executors if match["kind"] == "standalone" else None
        self._standalone = Standalone(standalone, folder) if standalone else None

    def start(self) -> None:
        """Start a standalone cluster, if that is the choice, and wait until it takes steps.

        Raises:
            StandaloneDidNotStart: it does not.
        """
        if self._standalone is not None:
            self._standalone.start()

    def stop(self) -> None:
        """End the standalone cluster, if there is one."""
        if self._standalone is not None:
            self._standalone.stop()

    def settings(self) -> dict[str, str]:
        """What spark-defaults must say, so that each step has executors of the chosen number and size."""
        settings = {"spark.master": self._standalone.url if self._standalone else self._choice}
        if self._executors is not None:
            settings["spark.executor.memory"] = f"{self._executors.memory_mb}m"
        if self._standalone is not None:
            settings |= self._standalone.settings()
        return settings
