"""The progress of a step, with a real Spark, tasks that run again, and writes that fail."""

import json
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pyspark import SparkConf, SparkContext

from orchard_spark import objects, parts, progress, step
from orchard_spark.progress import Phase, Reporter
from tests.spark.ingested import RunFolders, inventory_of, write_plan

ROWS = [3, 4, 5]
LONG = 30


@pytest.fixture
def retrying() -> Iterator[SparkContext]:
    """A context that runs a failed task again, as on a cluster."""
    with SparkContext(conf=SparkConf().setMaster("local[2,3]").setAppName("retrying")) as context:
        yield context


@pytest.fixture
def run_uri(tmp_path: Path) -> str:
    return f"file://{tmp_path}/run"


def read(run_uri: str, name: str = "test") -> dict[str, Any]:
    content: dict[str, Any] = json.loads(objects.read(f"{run_uri}/{name}.progress.json"))
    return content


def wait_until(is_true: Callable[[], object]) -> None:
    deadline = time.monotonic() + LONG
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def run_tasks(context: SparkContext, phase: Phase, *, in_batches_of: int = 2, fail_once: Path | None = None) -> None:
    """Count ROWS in tasks. The first attempt of each task fails at its end, if it is told to."""

    def count(item: tuple[int, int]) -> int:
        number, rows = item
        batches = [[0] * in_batches_of] * (rows // in_batches_of) + [[0] * (rows % in_batches_of)]
        counted = sum(len(batch) for batch in phase.counted(batches))
        if fail_once is not None:
            marker = fail_once / f"failed-{number}"
            if not marker.exists():
                marker.touch()
                raise OSError("the first attempt fails")
        return counted

    usage = parts.task_usage(context)
    assert parts.map_tasks(context, count, list(enumerate(ROWS)), usage).collect() == ROWS


def test_the_file_of_a_step_that_has_ended_says_so(run_uri: str, context: SparkContext) -> None:
    with progress.reported(context, run_uri, "test") as reporter:
        reporter.plan_id = "1a2b"
        wait_until(lambda: objects.exists(f"{run_uri}/test.progress.json"))
        assert (read(run_uri)["done"], read(run_uri)["total"], read(run_uri)["is_done"]) == (None, None, False)
        run_tasks(context, reporter.phase("count", ROWS))
        running = reporter.content()
    assert list(running) == list(read(run_uri))
    assert (running["phase"], running["done"], running["total"]) == ("count", 12, 12)
    assert running["seconds_left"] == 0
    ended = read(run_uri)
    assert (ended["step"], ended["plan_id"], ended["phase"]) == ("test", "1a2b", None)
    assert (ended["done"], ended["total"], ended["seconds_left"], ended["is_done"]) == (12, 12, 0, True)
    assert ended["seconds"] > 0
    assert ended["images_per_second"] == pytest.approx(12 / ended["seconds"], rel=0.5)
    assert ended["worker_peak_mb"] > 10
    assert datetime.now(UTC) - datetime.fromisoformat(ended["updated_at"]) < timedelta(minutes=1)


def test_counts_rise_while_a_task_runs(
    run_uri: str, context: SparkContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "WRITE_SECONDS", 0.2)
    go_on = tmp_path / "go-on"

    def batches() -> Iterator[list[int]]:
        yield [0] * 5
        while not go_on.exists():
            time.sleep(0.05)
        yield [0] * 5

    with progress.reported(context, run_uri, "test") as reporter:
        phase = reporter.phase("count", [10])
        found: list[int] = []

        def watch() -> None:
            try:
                wait_until(lambda: reporter.content()["done"] == 5)
                wait_until(lambda: read(run_uri)["done"] == 5)
                found.append(read(run_uri)["done"])
            finally:
                go_on.touch()

        watcher = threading.Thread(target=watch)
        watcher.start()
        parts.map_tasks(
            context, lambda _: sum(map(len, phase.counted(batches()))), [0], parts.task_usage(context)
        ).collect()
        watcher.join()
        assert found == [5]
        assert reporter.content()["done"] == 10


@pytest.mark.parametrize("receives", [True, False])
def test_images_of_a_task_that_runs_again_count_once(
    run_uri: str, retrying: SparkContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, receives: bool
) -> None:
    if not receives:
        monkeypatch.setattr(progress, "_open_socket", lambda _: (None, None))
    with progress.reported(retrying, run_uri, "test") as reporter:
        run_tasks(retrying, reporter.phase("count", ROWS), fail_once=tmp_path)
        assert reporter.content()["done"] == sum(ROWS)
    assert len(list(tmp_path.glob("failed-*"))) == len(ROWS)


def test_counts_never_exceed_the_size_of_a_task_and_never_fall(run_uri: str, context: SparkContext) -> None:
    reporter = Reporter(context, run_uri, "test")
    reporter.phase("count", [10, 20])

    def send(task: int, images: int, phase: int = 1, token: bytes | None = None) -> int:
        datagram = progress._DATAGRAM.pack(token or reporter._token, phase, task, images, 10**6)
        reporter._accept(datagram)
        done = reporter.content()["done"]
        assert isinstance(done, int)
        return done

    assert send(0, 4) == 4
    assert send(1, 5) == 9
    assert send(0, 1) == 9, "another attempt starts again"
    assert send(0, 2**63) == 15
    assert send(2, 7) == 15, "there is no such task"
    assert send(1, 20, token=b"x" * 16) == 15, "another program"
    reporter._accept(b"short")
    reporter._accept(b"x" * 1000)
    reporter.phase("next", [10])
    assert send(0, 3) == 0, "a task of the phase before"
    assert send(0, 3, phase=2) == 3
    reporter.phase("uncounted")
    assert (reporter.content()["done"], reporter.content()["total"]) == (None, None)
    content = reporter.content(is_done=True)
    assert (content["done"], content["total"]) == (30, 30)


def test_foreign_datagrams_do_not_end_the_receiver(run_uri: str, context: SparkContext) -> None:
    with progress.reported(context, run_uri, "test") as reporter:
        reporter.phase("count", [10])
        assert reporter._address is not None
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for datagram in (b"", b"x", b"x" * 5000, bytes(progress._DATAGRAM.size)):
                sender.sendto(datagram, reporter._address)
            sender.sendto(progress._DATAGRAM.pack(reporter._token, 1, 0, 6, 0), reporter._address)
        wait_until(lambda: reporter.content()["done"] == 6)


def test_a_step_with_no_images_has_a_total_of_zero(folders: RunFolders) -> None:
    write_plan(folders, [], listed=0)
    folders.ingest()
    content = read(folders.run_uri, "ingest")
    assert (content["done"], content["total"], content["is_done"]) == (0, 0, True)
    assert content["images_per_second"] is None


def test_a_step_counts_all_of_its_images_and_replaces_the_file_of_an_earlier_attempt(
    images: Path, folders: RunFolders
) -> None:
    write_plan(folders, inventory_of(images), plan_id="1a2b")
    objects.write(f"{folders.run_uri}/ingest.progress.json", b"of an earlier attempt")
    folders.ingest()
    content = read(folders.run_uri, "ingest")
    assert (content["done"], content["total"], content["plan_id"]) == (24, 24, "1a2b")


def test_each_phase_of_the_steps_counts_all_of_its_images(
    ingested: RunFolders, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[tuple[object, ...]] = []

    def noting(method: Callable[..., Any]) -> Callable[..., Any]:
        def note(reporter: Reporter, *arguments: Any, **options: Any) -> Any:
            if reporter._phase is not None:
                content = reporter.content()
                ends.append((content["step"], content["phase"], content["done"], content["total"]))
            return method(reporter, *arguments, **options)

        return note

    monkeypatch.setattr(Reporter, "phase", noting(Reporter.phase))
    monkeypatch.setattr(Reporter, "end", noting(Reporter.end))
    ingested.featurise(model_file)
    ingested.reduce(5)
    assert ends == [
        ("features", "search", None, None),
        ("features", "infer", 24, 24),
        ("features", "describe", 24, 24),
        ("pca", "locate", None, None),
        ("pca", "fit", 24, 24),
        ("pca", "embed", 24, 24),
        ("pca", "finish", None, None),
    ]
    assert [read(ingested.run_uri, name)["done"] for name in ("features", "pca")] == [24, 24]


def test_a_failed_step_is_not_done(folders: RunFolders) -> None:
    with pytest.raises(step.StepUnfinished):
        folders.ingest()
    assert read(folders.run_uri, "ingest")["is_done"] is False


def test_an_earlier_file_is_deleted_at_the_start(run_uri: str) -> None:
    objects.write(f"{run_uri}/test.progress.json", b"{}")
    step.delete_completion_markers(run_uri, "test")
    assert not objects.exists(f"{run_uri}/test.progress.json")


def test_a_step_that_cannot_write_its_progress_goes_on_and_warns_once(
    context: SparkContext, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "WRITE_SECONDS", 0.05)
    (tmp_path / "file").write_text("not a folder")
    with caplog.at_level(logging.INFO), progress.reported(context, f"file://{tmp_path}/file", "test") as reporter:
        run_tasks(context, reporter.phase("count", ROWS))
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "test: cannot write file://" in warnings[0]
    assert "the step continues without it" in warnings[0]


def test_a_write_that_hangs_delays_the_end_of_a_step_for_a_limited_time(
    run_uri: str, context: SparkContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LAST_WRITE_SECONDS", 0.3)
    monkeypatch.setattr(objects, "write_once", lambda *_: time.sleep(3))
    started = time.monotonic()
    with progress.reported(context, run_uri, "test"):
        pass
    assert time.monotonic() - started < 2


def test_an_s3_that_does_not_answer_is_asked_once_for_a_few_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(objects, "ONCE_TIMEOUT", "1s")
        objects.store.cache_clear()
        started = time.monotonic()
        with pytest.raises(Exception, match=r"timed out|timeout|error sending request"):
            objects.write_once("s3://bucket/key", b"x")
        assert time.monotonic() - started < 4
    objects.store.cache_clear()


def test_the_log_has_a_line_with_the_numbers(
    run_uri: str, context: SparkContext, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LOG_SECONDS", 0)
    with caplog.at_level(logging.INFO), progress.reported(context, run_uri, "test") as reporter:
        run_tasks(context, reporter.phase("count", ROWS))
        reporter._wake.set()
        wait_until(lambda: "test (count): 12 of 12 images" in caplog.text)
    line = next(record.message for record in caplog.records if "12 of 12 images" in record.message)
    assert re.fullmatch(r"test \(count\): 12 of 12 images, [0-9.]+ images/s, [0-9]+ MB per worker", line)


def test_the_line_in_the_log_has_the_time_left_and_the_tasks() -> None:
    unknown = ("phase", "done", "total", "images_per_second", "seconds_left", "worker_peak_mb")
    content = {"step": "test", **dict.fromkeys(unknown)}
    assert progress._describe(content, 0, 0, 0) == "test: running"
    content |= {"phase": "infer", "done": 5, "total": 24, "images_per_second": 7.4, "seconds_left": 2.6}
    assert progress._describe(content, 1, 2, 4) == (
        "test (infer): 5 of 24 images, 7.4 images/s, 3 s left, 1 of 4 tasks done, 2 active"
    )
