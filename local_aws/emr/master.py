"""The Spark master of the steps: local mode, executors that the driver starts, or a standalone cluster."""

import re
from pathlib import Path

from local_aws.emr.standalone import Executors, Standalone

DEFAULT_MASTER = "local[*]"

_CHOICE = re.compile(
    r"local(\[(\*|[1-9]\d*)\])?|(?P<kind>local-cluster|standalone)\[(?P<size>[1-9]\d*,[1-9]\d*,[1-9]\d*)\]"
)


def checked_master(choice: str) -> str:
    """Return the choice of a Spark master if it is supported.

    Raises:
        ValueError: it is not supported.
    """
    _parse(choice)
    return choice


def _parse(choice: str) -> re.Match[str]:
    match = _CHOICE.fullmatch(choice)
    if match is None:
        raise ValueError(
            f"LOCAL_EMR_MASTER is {choice!r}: use local[N], local[*], local-cluster[EXECUTORS,CORES,MB] or "
            "standalone[EXECUTORS,CORES,MB], for example standalone[2,1,1024]"
        )
    return match


class Master:
    """The Spark master that all clusters of a server share."""

    def __init__(self, choice: str, folder: Path) -> None:
        """Configure a master without starting it; a standalone cluster uses the folder.

        Raises:
            ValueError: the choice is not supported.
        """
        match = _parse(choice)
        self._choice = choice
        self._executors = Executors(*(int(number) for number in match["size"].split(","))) if match["kind"] else None
        standalone = self._executors if match["kind"] == "standalone" else None
        self._standalone = Standalone(standalone, folder) if standalone else None

    def start(self) -> None:
        """Start the standalone cluster, if there is one, and wait until it is ready.

        Raises:
            StandaloneDidNotStart: it is not ready in time.
        """
        if self._standalone is not None:
            self._standalone.start()

    def stop(self) -> None:
        """Stop the standalone cluster, if there is one."""
        if self._standalone is not None:
            self._standalone.stop()

    def settings(self) -> dict[str, str]:
        """Return the Spark settings that give each step executors of the chosen number and size."""
        settings = {"spark.master": self._standalone.url if self._standalone else self._choice}
        if self._executors is not None:
            settings["spark.executor.memory"] = f"{self._executors.memory_mb}m"
        if self._standalone is not None:
            settings |= self._standalone.settings()
        return settings
