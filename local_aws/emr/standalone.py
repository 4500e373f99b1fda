"""Run a Spark standalone cluster on this machine: a master and its workers, each a process."""

import logging
import re
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from local_aws.emr.daemon import HOST, start_daemon
from local_aws.emr.process import Process, last_lines

log = logging.getLogger(__name__)

START_SECONDS = 60.0
POLL_SECONDS = 0.05
WATCH_SECONDS = 1.0
# The highest StepConcurrencyLevel of EMR.
STEPS_AT_ONCE = 256

_MASTER = re.compile(r"Starting Spark master at (spark://\S+)")
_REGISTERED = re.compile(r"Successfully registered with master")


class StandaloneDidNotStart(Exception):
    """The master or a worker ended, or was not ready in time."""

    def __init__(self, logs: Path, seconds: float) -> None:
        self.logs = logs
        super().__init__(
            f"Spark's standalone {logs.name} has not started after {seconds:.0f} s; its logs in {logs} end with: "
            f"{last_lines(logs)}"
        )


@dataclass(frozen=True)
class Executors:
    """The number of executors per step, and their size."""

    count: int
    cores: int
    memory_mb: int


class Standalone:
    """A master, and one worker for each executor of a step."""

    def __init__(self, executors: Executors, folder: Path) -> None:
        """Configure a cluster without starting it; its logs and work folders are below the folder."""
        self.url = ""
        self._executors = executors
        self._folder = folder
        self._processes: list[Process] = []
        self._stopped = threading.Event()

    def settings(self) -> dict[str, str]:
        """Return the Spark settings that give a step exactly one executor on each worker."""
        return {
            "spark.executor.cores": str(self._executors.cores),
            "spark.cores.max": str(self._executors.count * self._executors.cores),
        }

    def start(self) -> None:
        """Start all processes and wait until the workers are registered.

        Raises:
            StandaloneDidNotStart: a process ended, or was not ready in time; all processes are stopped again.
        """
        started = time.monotonic()
        try:
            master = self._launch("master", "master.Master")
            self.url = _wait_for_line(master, _MASTER, started)[1]
            # Cores and memory only limit what Spark schedules. Each worker offers enough for all steps: otherwise a
            # long step would take all executors, and the steps of other clusters would wait for it.
            cores = self._executors.cores * STEPS_AT_ONCE
            memory_mb = self._executors.memory_mb * STEPS_AT_ONCE
            size = ("--cores", str(cores), "--memory", f"{memory_mb}m", "--work-dir", str(self._folder / "work"))
            numbers = range(1, self._executors.count + 1)
            workers = [self._launch(f"worker-{number}", "worker.Worker", *size, self.url) for number in numbers]
            for worker in workers:
                _wait_for_line(worker, _REGISTERED, started)
        except BaseException:
            self.stop()
            raise
        log.info("Spark %s with %s after %.1f s", self.url, self._executors, time.monotonic() - started)
        threading.Thread(target=self._watch, args=(self._processes[:],), name="standalone", daemon=True).start()

    def stop(self) -> None:
        """Stop all processes."""
        self._stopped.set()
        for process in self._processes:
            process.send(signal.SIGTERM)  # to all, before waiting for the first
        for process in self._processes:
            process.kill()
        self._processes.clear()

    def _watch(self, running: list[Process]) -> None:
        """Log a warning when a process ends unexpectedly, because steps then wait for its executors forever."""
        while not self._stopped.wait(WATCH_SECONDS):
            for process in [process for process in running if process.code is not None]:
                running.remove(process)
                log.warning(
                    "Spark's standalone %s has ended with exit code %s; its log is %s. Restart local_aws.",
                    process.logs.name,
                    process.code,
                    process.logs / "stderr",
                )

    def _launch(self, name: str, program: str, *arguments: str) -> Process:
        listen = ["--host", HOST, "--port", "0", "--webui-port", "0"]
        options = {"SPARK_DAEMON_JAVA_OPTS": "-Dspark.ui.killEnabled=false"}  # the web UIs cannot be disabled
        process = start_daemon(self._folder, self._folder / name, program, *listen, *arguments, environment=options)
        self._processes.append(process)
        return process


def _wait_for_line(process: Process, line: re.Pattern[str], started: float) -> re.Match[str]:
    """Wait until the process logs this line, and return the match.

    Raises:
        StandaloneDidNotStart: the process ended, or did not log the line in time.
    """
    stderr = process.logs / "stderr"
    while (match := line.search(stderr.read_text(errors="replace"))) is None:
        waited = time.monotonic() - started
        if process.wait(POLL_SECONDS) is not None or waited > START_SECONDS:
            raise StandaloneDidNotStart(process.logs, waited)
    return match
