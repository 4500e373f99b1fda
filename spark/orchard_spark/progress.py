"""The progress of a running step: one line in its log, and `<step>.progress.json` in the run's folder.

Tasks count the images that they have processed. Spark sends the accumulators of a Python task only when the task ends
(https://spark.apache.org/docs/3.5.8/rdd-programming-guide.html#accumulators), and the tasks of a step often all end at
the same time. So each task also sends its count to the driver every two seconds, in a datagram. Datagrams may be lost:
the network may drop them, and the driver may not be able to receive any. The counts then rise when tasks end.

Each count is that of a task, not of an attempt, and only rises. So an image counts once, however often Spark runs its
task. Nothing here fails a step, or delays it by more than a few seconds.
"""

import json
import logging
import secrets
import socket
import struct
import threading
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, TypeVar

from pyspark import Accumulator, SparkContext, TaskContext
from pyspark.accumulators import AccumulatorParam

from orchard_spark import objects, parts

WRITE_SECONDS = 5
LOG_SECONDS = 10
SEND_SECONDS = 2
# After the end of a step, its socket is closed within this time.
RECEIVE_SECONDS = 0.5
# How long a step waits at its end for the write in progress and the last one, of at most five seconds each. A thread
# that is still in obstore when Python exits could end the process with an error.
LAST_WRITE_SECONDS = 12

log = logging.getLogger(__name__)

Batch = TypeVar("Batch", bound=Sized)
# The images that a task has processed, and the peak memory of its worker process in bytes.
Count = tuple[int, int]
Address = tuple[str, int]
Counts = Accumulator[dict[int, Count]]

# The token of the step, the number of the phase, the number of the task, and its Count.
_DATAGRAM = struct.Struct("!16sIIQQ")


class _TaskCounts(AccumulatorParam[dict[int, Count]]):
    """Adds up counts per task: the highest of all attempts counts."""

    def zero(self, value: dict[int, Count]) -> dict[int, Count]:  # noqa: ARG002  # PySpark's signature
        return {}

    def addInPlace(self, value1: dict[int, Count], value2: dict[int, Count]) -> dict[int, Count]:  # noqa: N802  # PySpark's name
        for task, (images, peak_bytes) in value2.items():
            known_images, known_peak_bytes = value1.get(task, (0, 0))
            value1[task] = max(images, known_images), max(peak_bytes, known_peak_bytes)
        return value1


class Phase:
    """One pass of a step over its images. Spark sends it to the tasks, which count their images with it.

    The number of a task is that of its partition.
    """

    def __init__(self, number: int, counts: Counts, address: Address | None, token: bytes) -> None:
        self._number = number
        self._counts = counts
        self._address = address
        self._token = token
        # In a task: each attempt unpickles a phase of its own.
        self._images = 0
        self._sent = 0.0

    def counted(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield batches of images, in a task, and count the images of each when the next one is wanted."""
        for batch in batches:
            yield batch
            self.add(len(batch))

    def add(self, images: int) -> None:
        """Count images that a task has processed. Outside of a task, do nothing."""
        task = TaskContext.get()
        if task is None:
            return
        self._images += images
        count = self._images, parts.peak_bytes()
        self._counts.add({task.partitionId(): count})
        if self._address is not None and time.monotonic() - self._sent >= SEND_SECONDS:
            self._sent = time.monotonic()
            _send(self._address, _DATAGRAM.pack(self._token, self._number, task.partitionId(), *count))


def _send(address: Address, datagram: bytes) -> None:
    """Send a datagram, which never waits. If that is not possible, do nothing."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.sendto(datagram, address)


class _Running:
    """The driver's side of a phase: what its tasks have processed of `sizes`, the images of each task."""

    def __init__(self, number: int, name: str | None, sizes: Sequence[int] | None, counts: Counts) -> None:
        self.number = number
        self.name = name
        self.sizes = sizes
        self.started = time.monotonic()
        self._ended = counts
        self._received: dict[int, Count] = {}

    @property
    def total(self) -> int | None:
        """The number of images, None if the phase does not count them."""
        return None if self.sizes is None else sum(self.sizes)

    @property
    def done(self) -> int | None:
        """The number of images that are processed, None if the phase does not count them."""
        if self.sizes is None:
            return None
        # Copies, because other threads add to both.
        received: dict[int, Count] = dict(self._received)
        ended: dict[int, Count] = dict(self._ended.value)
        nothing = (0, 0)
        return sum(
            min(size, max(received.get(task, nothing)[0], ended.get(task, nothing)[0]))
            for task, size in enumerate(self.sizes)
        )

    @property
    def peak_bytes(self) -> int:
        """The highest peak memory of a worker process."""
        counts = [*dict(self._received).values(), *dict(self._ended.value).values()]
        return max((peak_bytes for _, peak_bytes in counts), default=0)

    def receive(self, task: int, count: Count) -> None:
        """Note the count of a task that still runs."""
        self._ended.accum_param.addInPlace(self._received, {task: count})


class Reporter:
    """Collects the progress of a step, logs it, and writes it into the run's folder, from a thread of its own."""

    def __init__(self, context: SparkContext, run_uri: str, step: str) -> None:
        self.plan_id: str | None = None
        self._context = context
        self._uri = f"{run_uri.rstrip('/')}/{step}.progress.json"
        self._step = step
        self._started = time.monotonic()
        self._logged = self._started
        self._token = secrets.token_bytes(16)
        self._phase: _Running | None = None
        self._phases = 0
        self._images = 0
        self._peak_bytes = 0
        self._cannot_write = False
        self._wake, self._ended = threading.Event(), threading.Event()
        self._socket: socket.socket | None
        self._address: Address | None
        self._socket, self._address = _open_socket(context)
        self._is_done = False
        self._reporter = threading.Thread(target=self._report, name="progress", daemon=True)

    def phase(self, name: str | None, sizes: Sequence[int] | None = None) -> Phase:
        """Start the next phase of the step, and return what its tasks count with.

        Args:
            name: a short word for what the step is doing. None if the step has only one phase.
            sizes: the number of images of each task, in the order of the tasks. None if the phase does not count them.
        """
        if self._phase is not None:
            self._peak_bytes = max(self._peak_bytes, self._phase.peak_bytes)
        self._phases += 1
        counts: Counts = self._context.accumulator({}, _TaskCounts())
        self._phase = _Running(self._phases, name, None if sizes is None else list(map(int, sizes)), counts)
        self._images = max(self._images, self._phase.total or 0)
        self._wake.set()
        return Phase(self._phases, counts, self._address, self._token)

    def content(self, *, is_done: bool = False) -> dict[str, object]:
        """Return what the progress file contains.

        While a step runs, the numbers of images, their rate and the time left are those of its current phase. When it
        is done, they are those of the step.
        """
        now = time.monotonic()
        phase = self._phase
        done, total, seconds = (phase.done, phase.total, now - phase.started) if phase else (None, None, 0.0)
        peak_bytes = max(self._peak_bytes, phase.peak_bytes if phase else 0)
        if is_done:
            done, total, seconds = self._images, self._images, now - self._started
        rate = done / seconds if done and seconds > 0 else None
        left = (total - done) / rate if rate and done is not None and total is not None else None
        return {
            "step": self._step,
            "plan_id": self.plan_id,
            "phase": phase.name if phase and not is_done else None,
            "done": done,
            "total": total,
            "images_per_second": round(rate, 2) if rate else None,
            "seconds": round(now - self._started, 1),
            "seconds_left": 0.0 if is_done else round(left, 1) if left is not None else None,
            "worker_peak_mb": round(peak_bytes / 1e6, 1) if peak_bytes else None,
            "updated_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "is_done": is_done,
        }

    def start(self) -> None:
        """Start the threads."""
        self._reporter.start()
        if self._socket is not None:
            threading.Thread(target=self._receive, args=(self._socket,), name="progress-receiver", daemon=True).start()

    def end(self, *, is_done: bool) -> None:
        """Write for the last time, and end the threads. This takes twelve seconds at most, if S3 does not respond."""
        self._is_done = is_done
        self._ended.set()
        self._wake.set()
        self._reporter.join(LAST_WRITE_SECONDS)  # the other thread has nothing more to do

    def _report(self) -> None:
        while True:
            self._wake.clear()
            ended = self._ended.is_set()
            try:
                content = self.content(is_done=ended and self._is_done)
                if not ended and time.monotonic() - self._logged >= LOG_SECONDS:
                    self._logged = time.monotonic()
                    log.info("%s", _describe(content, *self._tasks()))
                self._write(content)
            except Exception:  # a step must not depend on its progress
                log.warning("%s: cannot report the progress", self._step, exc_info=True)
            if ended:
                return
            self._wake.wait(WRITE_SECONDS)

    def _write(self, content: dict[str, object]) -> None:
        try:
            objects.write_once(self._uri, json.dumps(content, indent=2).encode())
        except Exception as error:
            if not self._cannot_write:
                log.warning("%s: cannot write %s; the step continues without it: %s", self._step, self._uri, error)
            self._cannot_write = True

    def _tasks(self) -> tuple[int, int, int]:
        """Return the numbers of ended, running and all tasks of the stages that run."""
        tracker = self._context.statusTracker()
        found = [tracker.getStageInfo(stage_id) for stage_id in tracker.getActiveStageIds()]
        stages = [stage for stage in found if stage is not None]
        return (
            sum(stage.numCompletedTasks for stage in stages),
            sum(stage.numActiveTasks for stage in stages),
            sum(stage.numTasks for stage in stages),
        )

    def _receive(self, receiver: socket.socket) -> None:
        with receiver:
            while not self._ended.is_set():
                with suppress(TimeoutError):
                    self._accept(receiver.recv(_DATAGRAM.size + 1))

    def _accept(self, datagram: bytes) -> None:
        """Note the count in a datagram, if a task of the current phase has sent it."""
        if len(datagram) != _DATAGRAM.size:
            return
        token, number, task, images, peak_bytes = _DATAGRAM.unpack(datagram)
        phase = self._phase
        if phase and secrets.compare_digest(token, self._token) and number == phase.number:
            phase.receive(task, (images, peak_bytes))


def _open_socket(context: SparkContext) -> tuple[socket.socket, Address] | tuple[None, None]:
    """Return a socket, and its address for the executors, which is on the host at which they reach the driver."""
    settings = context.getConf()
    host = settings.get("spark.driver.host", "localhost")
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        receiver.bind((settings.get("spark.driver.bindAddress", host), 0))
        receiver.settimeout(RECEIVE_SECONDS)
        return receiver, (socket.gethostbyname(str(host)), receiver.getsockname()[1])
    except OSError as error:
        receiver.close()
        log.info("counts of running tasks cannot be received at %s, only those of ended tasks: %s", host, error)
        return None, None


def _describe(content: dict[str, Any], ended: int, active: int, tasks: int) -> str:
    """Return the progress as a line of the log."""
    name = content["step"] + (f" ({content['phase']})" if content["phase"] else "")
    facts = []
    if content["total"] is not None:
        facts.append(f"{content['done']} of {content['total']} images")
    if content["images_per_second"] is not None:
        facts.append(f"{content['images_per_second']:.1f} images/s")
    if content["seconds_left"]:
        facts.append(f"{content['seconds_left']:.0f} s left")
    if content["worker_peak_mb"] is not None:
        facts.append(f"{content['worker_peak_mb']:.0f} MB per worker")
    if tasks:
        facts.append(f"{ended} of {tasks} tasks done, {active} active")
    return f"{name}: {', '.join(facts) or 'running'}"


@contextmanager
def reported(context: SparkContext, run_uri: str, step: str) -> Iterator[Reporter]:
    """Provide the reporter of a step. At the end, the file says whether the step is done."""
    reporter = Reporter(context, run_uri, step)
    reporter.start()
    is_done = False
    try:
        yield reporter
        is_done = True
    finally:
        reporter.end(is_done=is_done)
