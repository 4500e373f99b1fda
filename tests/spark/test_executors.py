"""The steps on executors in processes of their own, which run a task twice or die. Each file is written once."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pyarrow as pa
import pytest
from pyspark import SparkConf, SparkContext

import features
from local_aws.client import LocalAwsClient
from local_aws.emr.standalone import Executors, Standalone
from orchard.cluster.request import SPOT_DEFAULTS, ClusterSpec, spark_configurations
from orchard.settings import Settings
from orchard_spark import locations, objects, parts, step
from sandbox import pictures
from tests.conftest import ROOT
from tests.spark.ingested import (
    RunFolders,
    image_info,
    inventory_of,
    write_features,
    write_featurised,
    write_ingested,
    write_plan,
)

NUMBERS = pa.schema([("number", pa.int64())])
SLOW_SECONDS = 4
AWS_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")


@contextmanager
def spark_settings(**settings: str) -> Iterator[None]:
    """Settings of each Spark context that is created meanwhile."""
    SparkContext._ensure_initialized()
    system: Any = SparkContext._jvm.java.lang.System  # type: ignore[union-attr]
    before = {name: system.getProperty(name) for name in settings}
    for name, value in settings.items():
        system.setProperty(name, value)
    yield
    for name, value in before.items():
        if value is None:
            system.clearProperty(name)
        else:
            system.setProperty(name, value)


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[list[Any]]:
    """The two worker processes of a standalone cluster, which the steps of the test use; one task slot each."""
    cluster = Standalone(Executors(2, 1, 1024), tmp_path / "spark")
    cluster.start()
    settings = {
        "spark.master": cluster.url,
        "spark.executor.memory": "512m",
        "spark.executorEnv.PYTHONPATH": f"{ROOT}/spark:{ROOT}",
        **{f"spark.executorEnv.{name}": os.environ[name] for name in AWS_VARIABLES},
        **cluster.settings(),
    }
    with spark_settings(**settings):
        yield cluster._processes[1:]
    cluster.stop()


def files_in(uri: str) -> set[str]:
    return {f"file://{file}" for file in Path(uri.removeprefix("file://")).glob("*.parquet")}


def sum_of_numbers(written: list[parts.Part]) -> int:
    return sum(sum(batch["number"].to_pylist()) for part in written for batch in parts.read(part, ["number"], 100))


def write_numbers(folder: str, tasks: int) -> list[parts.Part]:
    """Write one file for each task, with the task's number as its only row."""
    return [parts.write_table(folder, pa.table({"number": [number]}, schema=NUMBERS)) for number in range(tasks)]


@pytest.mark.slow
def test_of_two_attempts_at_the_same_time_only_the_winners_file_is_listed(workers: list[Any], tmp_path: Path) -> None:
    speculation = {
        "spark.speculation": "true",
        "spark.speculation.interval": "100ms",
        "spark.speculation.multiplier": "1.1",
        "spark.speculation.quantile": "0.5",
        "spark.speculation.minTaskRuntime": "100ms",
        "spark.task.reaper.enabled": "false",  # an attempt that has lost runs to its end
    }
    inputs, output, slow = write_numbers(f"file://{tmp_path}/in", 6), f"file://{tmp_path}/out", tmp_path / "slow"

    def copy(part: parts.Part) -> Iterator[pa.RecordBatch]:
        for batch in parts.read(part, ["number"], 100):
            if batch["number"][0].as_py() == 0 and not slow.exists():
                slow.touch()  # the first attempt of the first task
                end = time.monotonic() + SLOW_SECONDS
                while time.monotonic() < end:  # Spark interrupts a thread that sleeps
                    pass
            yield batch

    with spark_settings(**speculation), step.spark_context("test") as context:
        usage = parts.task_usage(context)
        written = parts.write_dataset(context, inputs, copy, output, NUMBERS, usage)
        time.sleep(SLOW_SECONDS)  # the loser may write its file, too
    assert len(written) == 6
    assert sum_of_numbers(written) == 15
    assert {part.uri for part in written} <= files_in(output)


@pytest.mark.slow
def test_a_task_whose_upload_is_lost_writes_another_file(
    workers: list[Any], steps_bucket: str, aws_url: str, tmp_path: Path
) -> None:
    inputs, output = write_numbers(f"file://{tmp_path}/in", 2), f"s3://{steps_bucket}/out"
    failed = tmp_path / "failed"

    def copy(part: parts.Part) -> Iterator[pa.RecordBatch]:
        yield from parts.read(part, ["number"], 100)

    def write(part: parts.Part) -> parts.Part | None:
        with parts.Writer(output, NUMBERS) as writer:
            for batch in copy(part):
                writer.write(batch)
        if not failed.exists():
            failed.touch()
            raise OSError("the answer to the upload is lost")
        return writer.part

    with spark_settings(**{"spark.executorEnv.AWS_ENDPOINT_URL": aws_url}), step.spark_context("test") as context:
        written = parts.map_tasks(context, write, inputs, parts.task_usage(context)).collect()
    assert sum_of_numbers([part for part in written if part]) == 1
    listed = objects_below(output)
    assert len(listed) == 3
    assert {part.uri for part in written if part} <= listed


def objects_below(uri: str) -> set[str]:
    root, prefix = objects.split(uri)
    return {f"{root}/{item['path']}" for page in obstore.list(objects.store(root), prefix) for item in page}


def write_losing_answer(table: pa.Table, uri: str, faults: LocalAwsClient, call: int) -> tuple[parts.Part | None, bool]:
    """Write a table while the answer to the n-th call is lost. Return the file, and whether there was such a call."""
    rule = faults.lose_answer("s3", [call])
    try:
        written = parts.write_table(uri, table)
    except Exception:  # Spark would run the task again
        written = None
    (lost,) = [fault for fault in faults.faults() if fault["id"] == rule]
    faults.remove(rule)
    return written, bool(lost["struck"])


@pytest.mark.parametrize("megabytes", [0.01, 24], ids=["one-request", "in-parts"])
def test_an_upload_whose_answer_is_lost_fails_or_has_written_the_whole_file(
    steps_bucket: str, aws_url: str, megabytes: float
) -> None:
    numbers = np.random.default_rng(1).integers(0, 2**62, int(megabytes * 1e6 / 8))
    table, uri = pa.table({"number": numbers}, schema=NUMBERS), f"s3://{steps_bucket}/out"
    attempts = [write_losing_answer(table, uri, LocalAwsClient(aws_url), call) for call in range(1, 9)]
    assert attempts[0][1]
    assert not attempts[-1][1]
    written = [part for part, _ in attempts if part is not None]
    assert len({part.uri for part in written}) == len(written) > 0
    for part in written:
        assert sum(batch.num_rows for batch in parts.read(part, ["number"], 10**6)) == part.rows == len(numbers)
        assert len(objects.read(part.uri)) == part.bytes


def executors_below(worker: Any) -> list[int]:
    """Return the pids of the executors that a worker has started."""
    group = os.getpgid(worker._popen.pid)
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            is_executor = b"CoarseGrainedExecutorBackend" in (folder / "cmdline").read_bytes()
            if is_executor and os.getpgid(int(folder.name)) == group:
                found.append(int(folder.name))
        except OSError:  # it has ended
            continue
    return found


def killing(worker: Any, is_reached: Callable[[], bool]) -> threading.Thread:
    """Kill a worker with its executor when a condition is true, from a thread."""

    def wait_and_kill() -> None:
        while not is_reached():
            time.sleep(0.02)
        worker.send(signal.SIGKILL)

    thread = threading.Thread(target=wait_and_kill, daemon=True)
    thread.start()
    return thread


def check_once(table: pa.Table, expected: int) -> None:
    assert table.num_rows == expected
    assert len(set(table["path"].to_pylist())) == expected


@pytest.mark.slow
def test_ingest_survives_a_worker(workers: list[Any], images: Path, folders: RunFolders) -> None:
    pictures.write_dataset(images, per_class=30)
    write_plan(folders, inventory_of(images), files=8)
    thread = killing(workers[0], lambda: bool(files_in(f"{folders.scratch_uri}/images")))
    metrics = folders.ingest()
    thread.join()
    assert metrics["rows_out"] == 360
    check_once(folders.read("images"), 360)


@pytest.mark.slow
def test_features_survive_a_worker(
    workers: list[Any], rendered: Path, folders: RunFolders, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "FILE_ROWS", 3)  # so that there are eight tasks
    write_ingested(folders, rendered)
    thread = killing(workers[0], lambda: bool(files_in(f"{folders.warehouse_uri}/features/data")))
    metrics = folders.featurise(model_file)
    thread.join()
    assert metrics["rows_out"] == 24
    assert len(set(folders.read("features")["sha256"].to_pylist())) == folders.read("features").num_rows == 24
    check_once(folders.read("new_images"), 24)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, SPOT_DEFAULTS], ids=["by-default", "with-spot"])
def test_a_task_may_lose_five_executors_only_with_the_settings_for_spot(
    workers: list[Any], tmp_path: Path, settings: dict[str, str]
) -> None:
    def lose_executor(number: int) -> int:
        if len(list(tmp_path.glob("attempt-*"))) < 5:
            (tmp_path / f"attempt-{time.monotonic_ns()}").touch()
            daemon = os.getppid()
            os.kill(int(Path(f"/proc/{daemon}/stat").read_text().rpartition(")")[2].split()[1]), signal.SIGKILL)
            time.sleep(60)
        return number

    with spark_settings(**settings), step.spark_context("test") as context:
        job = context.parallelize([7], 1).map(lose_executor)
        if settings:
            assert job.collect() == [7]
        else:
            with pytest.raises(Exception, match=r"failed 4 times, most recent failure: .*ExecutorLostFailure"):
                job.collect()


def test_with_the_dynamic_allocation_of_emr_lost_executors_have_no_limit() -> None:
    spec = ClusterSpec(name="orchard", instance_type="m5.xlarge", core_instances=1, task_instances=3, tags={})
    (defaults,) = (
        item["Properties"]
        for item in spark_configurations(spec, Settings(bucket="fruits-data", release="1"))
        if item["Classification"] == "spark-defaults"
    )
    SparkContext._ensure_initialized()
    conf = SparkConf(loadDefaults=False)
    for name, value in {**defaults, "spark.dynamicAllocation.enabled": "true", "spark.master": "yarn"}.items():
        conf.set(name, value)
    jvm: Any = SparkContext._jvm
    # What Spark's application master uses, too.
    assert jvm.org.apache.spark.deploy.ExecutorFailureTracker.maxNumExecutorFailures(conf._jconf) == 2**31 - 1


def vectors_of(folders: RunFolders) -> dict[str, bytes]:
    """Return the features by content. Each content has one row."""
    table = folders.read("features")
    found = {row["sha256"]: np.array(row["features"], np.float32).tobytes() for row in table.to_pylist()}
    assert len(found) == table.num_rows
    return found


@pytest.mark.slow
def test_features_are_the_same_although_executors_are_taken_away_twice(
    workers: list[Any], rendered: Path, tmp_path: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "FILE_ROWS", 3)  # so that there are eight tasks
    calm, interrupted = (RunFolders.below(f"file://{tmp_path}/{name}") for name in ("calm", "interrupted"))
    for folders in (calm, interrupted):
        write_ingested(folders, rendered)
    calm.featurise(model_file)
    killed: list[int] = []

    def take_away() -> None:
        # A worker starts another executor when its own ends, as on an instance that replaces an interrupted one.
        for worker, files, number in zip(workers, (1, 4), (signal.SIGTERM, signal.SIGKILL), strict=True):
            while len(files_in(f"{interrupted.warehouse_uri}/features/data")) < files:
                time.sleep(0.02)
            for pid in executors_below(worker):
                os.kill(pid, number)
                killed.append(pid)

    thread = threading.Thread(target=take_away, daemon=True)
    thread.start()
    metrics = interrupted.featurise(model_file)
    thread.join()
    assert len(set(killed)) >= 2
    assert metrics["rows_out"] == 24
    assert vectors_of(interrupted) == vectors_of(calm)
    check_once(interrupted.read("new_images"), 24)


@pytest.mark.slow
def test_pca_survives_a_worker(workers: list[Any], folders: RunFolders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locations, "GROUP_ROWS", 4000)  # so that there are eight tasks
    rng = np.random.default_rng(1)
    written = [write_features(folders, list(rng.random((4000, 1280), np.float32)), first=4000 * n) for n in range(8)]
    write_plan(folders)
    write_featurised(folders, [image_info(number) for number in range(32_000)], written)
    thread = killing(workers[0], lambda: bool(files_in(f"{folders.warehouse_uri}/embeddings/data")))
    metrics = folders.reduce(3)
    thread.join()
    assert metrics["rows_out"] == 32_000
    check_once(folders.read("embeddings"), 32_000)
