"""Spark's history servers, which stand for EMR's persistent application UI.

Each shows the event logs of one cluster. It starts when somebody asks for the UI of the cluster, because each takes
210 MB of memory. It stops with the local AWS.
"""

import json
import logging
import re
import signal
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import quote

from local_aws.emr.daemon import HOST, start_daemon
from local_aws.emr.process import Process, last_lines

log = logging.getLogger(__name__)

# Below the root of a node. On EMR, the event logs are in the folder of this name in HDFS.
EVENT_LOGS: Final = "var/log/spark/apps"
_FOLDER: Final = "var/log/spark/history-server"
# When another one starts, the server stops that was asked for least recently.
MOST_SERVERS: Final = 2
HEAP: Final = "256m"
# A server lists an application when it has read its event log. It never lists one whose log is damaged.
LISTING_SECONDS = 5.0
REQUEST_SECONDS: Final = 2.0
UPDATE_SECONDS: Final = 2
RUNNING_SUFFIX: Final = ".inprogress"

_PORT = re.compile(r"Bound HistoryServer to \S+, and started at http://\S+:(\d+)")


@dataclass
class _Server:
    """A running history server, and the event logs that it shows."""

    process: Process
    event_logs: Path
    port: int = 0
    bound: float = 0.0
    asked: float = field(default_factory=time.monotonic)

    def is_ready(self) -> bool:
        """Return whether the server responds, and lists the applications of the cluster."""
        if not self.port:
            match = _PORT.search((self.process.logs / "stderr").read_text(errors="replace"))
            if match is None:
                return False
            self.port, self.bound = int(match[1]), time.monotonic()
        if time.monotonic() - self.bound > LISTING_SECONDS:
            return True
        url = f"http://{HOST}:{self.port}/api/v1/applications"
        with urllib.request.urlopen(url, timeout=REQUEST_SECONDS) as response:
            return len(json.load(response)) >= len(event_logs(self.event_logs))

    def page(self, application_id: str | None) -> str:
        """Return the URL of the list of applications, or of one application."""
        url = f"http://{HOST}:{self.port}/"
        if application_id:
            return f"{url}history/{quote(application_id, safe='')}/jobs/"
        files = event_logs(self.event_logs)
        # By default, the list does not show applications that have not ended.
        all_running = files and all(file.name.endswith(RUNNING_SUFFIX) for file in files)
        return f"{url}?showIncomplete=true" if all_running else url


def event_logs(folder: Path) -> list[Path]:
    """Return the event logs in a folder, one per application."""
    # Spark writes the checksum of a file to a hidden file.
    return [file for file in folder.iterdir() if not file.name.startswith(".")]


class HistoryServers:
    """The history servers of clusters, by the id of the cluster."""

    def __init__(self, node_folder: Callable[[str], Path]) -> None:
        self._node_folder = node_folder
        self._servers: dict[str, _Server] = {}
        self._lock = threading.Lock()

    def start(self, cluster_id: str) -> None:
        """Start the server of a cluster, unless it is running. This does not wait until it is ready."""
        with self._lock:
            server = self._servers.get(cluster_id)
            if server is not None and server.process.code is None:
                server.asked = time.monotonic()
                return
            self._servers.pop(cluster_id, None)
            others = sorted(self._servers.items(), key=lambda item: item[1].asked)
            for other, _ in others[: max(0, len(others) - MOST_SERVERS + 1)]:
                log.info("cluster %s: its history server stops, because another one starts", other)
                self._servers.pop(other).process.kill()
            self._servers[cluster_id] = self._launch(cluster_id)

    def url(self, cluster_id: str, application_id: str | None = None) -> str | None:
        """Return the URL of a cluster's applications, or of one of them. Return None if the server is not ready."""
        with self._lock:
            server = self._servers.get(cluster_id)
            if server is None or server.process.code is not None:
                return None
            server.asked = time.monotonic()
            try:
                is_ready = server.is_ready()
            except (OSError, ValueError):  # it does not respond yet
                return None
            return server.page(application_id) if is_ready else None

    def failure(self, cluster_id: str) -> str:
        """Return why the server of a cluster has ended. Return an empty string if it is running or was not started."""
        with self._lock:
            server = self._servers.get(cluster_id)
            if server is None or server.process.code is None:
                return ""
            logs = server.process.logs
            return f"Spark's history server has ended; its logs in {logs} end with: {last_lines(logs)}"

    def stop(self) -> None:
        """Stop all servers."""
        with self._lock:
            for server in self._servers.values():
                server.process.send(signal.SIGTERM)  # to all, before waiting for the first
            for server in self._servers.values():
                server.process.kill()
            self._servers.clear()

    def _launch(self, cluster_id: str) -> _Server:
        root = self._node_folder(cluster_id)
        folder, logs = root / _FOLDER, root / EVENT_LOGS
        logs.mkdir(parents=True, exist_ok=True)  # an earlier version of local_aws may have made the node
        options = {
            "spark.history.fs.logDirectory": logs.as_uri(),
            "spark.history.fs.update.interval": f"{UPDATE_SECONDS}s",
            "spark.history.fs.numReplayThreads": "1",
            "spark.history.retainedApplications": "3",  # in memory
            "spark.history.ui.port": "0",
        }
        environment = {
            "SPARK_DAEMON_MEMORY": HEAP,
            "SPARK_DAEMON_JAVA_OPTS": "-XX:+UseSerialGC -XX:TieredStopAtLevel=1",
            "SPARK_HISTORY_OPTS": " ".join(f"-D{key}={value}" for key, value in options.items()),
            "SPARK_PUBLIC_DNS": HOST,
        }
        log.info("cluster %s: its history server starts", cluster_id)
        process = start_daemon(folder, folder / "log", "history.HistoryServer", environment=environment)
        return _Server(process, logs)
