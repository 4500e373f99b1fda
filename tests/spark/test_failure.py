import json
import logging
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from py4j.protocol import Py4JJavaError
from pyspark import SparkContext

import features
import ingest
from orchard_spark import failure, locations, mobilenet, moments, objects, parts, schemas, step
from orchard_spark.failure import Cause, cause_of, cause_of_job
from tests.spark.ingested import (
    RunFolders,
    inventory_of,
    write_featurised,
    write_metrics,
    write_plan,
    write_tables,
)


def read_record(run_uri: str, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(objects.read(f"{run_uri}/{name}.error.json"))
    return content


def test_a_step_that_fails_leaves_a_record_and_raises(
    images: Path, folders: RunFolders, caplog: pytest.LogCaptureFixture
) -> None:
    (images / "Kiwi/broken.jpg").write_bytes(b"<html>")
    write_plan(folders, inventory_of(images))
    with caplog.at_level(logging.INFO), pytest.raises(ingest.TooManyRejects) as error:
        folders.ingest()
    record = read_record(folders.run_uri, "ingest")
    assert list(record) == ["step", "type", "message", "hint", "last_lines", "failed_at"]
    assert (record["step"], record["type"], record["message"]) == ("ingest", "TooManyRejects", str(error.value))
    assert "larger max_reject_ratio" in record["hint"]
    assert record["last_lines"][-1].startswith("ingest.TooManyRejects: 1 of 25 objects were rejected")
    assert any("INFO ingest: ingest: 25 new and changed objects" in line for line in record["last_lines"])
    assert datetime.now(UTC) - datetime.fromisoformat(record["failed_at"]) < timedelta(minutes=5)
    assert not Path(f"{folders.run_uri}/ingest.metrics.json".removeprefix("file://")).exists()


def test_the_next_attempt_deletes_the_record_first(images: Path, folders: RunFolders) -> None:
    with pytest.raises(step.StepUnfinished):
        folders.ingest()
    assert read_record(folders.run_uri, "ingest")["type"] == "StepUnfinished"
    write_plan(folders, inventory_of(images))
    folders.ingest()
    with pytest.raises(FileNotFoundError):
        read_record(folders.run_uri, "ingest")


def test_a_step_whose_input_was_deleted_with_the_scratch_folder_says_what_to_do(
    images: Path, folders: RunFolders
) -> None:
    write_plan(folders, inventory_of(images))
    shutil.rmtree(folders.scratch_uri.removeprefix("file://"))
    with pytest.raises(
        step.NoInputFiles, match=r"inventory/part-.*\.parquet does not exist, but the run's metrics list"
    ):
        folders.ingest()
    assert "clear `plan` with downstream" in read_record(folders.run_uri, "ingest")["hint"]


def test_a_failed_task_is_recorded_as_the_exception_of_its_worker(ingested: RunFolders, model_file: Path) -> None:
    rows = ingested.read("images").to_pylist()
    rows[3]["content"] = b"\xff\xd8\xff broken"
    table = pa.Table.from_pylist(rows, schema=schemas.IMAGES)
    written = write_tables(f"{ingested.scratch_uri}/images", [table])
    write_metrics(ingested, "ingest", {"files": {"images": written, "rejects": []}})
    with pytest.raises(Py4JJavaError):
        ingested.featurise(model_file)
    record = read_record(ingested.run_uri, "features")
    assert (record["type"], record["message"].split(": ")[0]) == ("UndecodableImage", rows[3]["path"])
    assert "undecodable" in record["message"]
    assert not any(line.startswith("\tat ") for line in record["last_lines"])
    assert len(record["last_lines"]) <= 50


def test_pca_leaves_a_record_too(folders: RunFolders) -> None:
    write_plan(folders)
    write_featurised(folders)
    with pytest.raises(moments.CannotFit):
        folders.reduce(2)
    record = read_record(folders.run_uri, "pca")
    assert (record["type"], record["message"]) == (
        "CannotFit",
        "the dataset has no readable image: see the rejects of the run",
    )
    assert "n_components" in record["hint"]


def test_an_answer_of_spark_without_a_traceback_is_recorded_with_its_first_line() -> None:
    answer = (
        "An error occurred while calling o1.foo.\n: java.io.IOException: No space left on device\n\tat java.x(Y.java:1)"
    )
    assert cause_of_job(answer) == Cause("IOException", "No space left on device")
    assert cause_of_job("Connection refused") == Cause("JavaError", "Connection refused")


def fails(_: int) -> int:
    raise ValueError("first line\nsecond line") from KeyError("why")


def runs_out_of_memory(_: int) -> int:
    raise MemoryError


@pytest.mark.parametrize(
    ("function", "cause"),
    [(fails, Cause("ValueError", "first line\nsecond line")), (runs_out_of_memory, Cause("MemoryError", ""))],
)
def test_the_cause_of_a_failed_task_is_its_last_exception(
    context: SparkContext, function: Callable[[int], int], cause: Cause
) -> None:
    with pytest.raises(Py4JJavaError) as error:
        parts.map_tasks(context, function, [1], parts.task_usage(context)).collect()
    assert cause_of(error.value) == cause


def test_a_lost_executor_is_recorded_with_its_reason_and_what_to_do() -> None:
    answer = (
        "An error occurred while calling z:org.apache.spark.api.python.PythonRDD.collectAndServe.\n"
        ": org.apache.spark.SparkException: Job aborted due to stage failure: Task 0 in stage 0.0 failed 4 times, most "
        "recent failure: Lost task 0.3 in stage 0.0 (TID 6) (ip-10-0-0-1.ec2.internal executor 2): ExecutorLostFailure "
        "(executor 2 exited caused by one of the running tasks) Reason: Container killed by YARN for exceeding memory\n"
        "Driver stacktrace:\n\tat org.apache.spark.scheduler.DAGScheduler.failJobAndIndependentStages(x.scala:1)"
    )
    cause = cause_of_job(answer)
    assert cause.type == "ExecutorLostFailure"
    assert "Container killed by YARN for exceeding memory" in cause.message
    assert "more memory" in cause.hint


@pytest.mark.parametrize(
    "error",
    [
        ingest.TooManyRejects({"empty": 1}, 1, 0, "r"),
        step.StepUnfinished("m"),
        step.NoInputFiles("u"),
        locations.NoFeatures("m"),
        ingest.AllForbidden("u", 1, "r"),
        moments.CannotFit("x"),
        step.LostRows("x"),
        schemas.WrongColumns("x"),
        features.UndecodableImage("x"),
        mobilenet.WrongModel("x"),
        objects.BadUri("u"),
        MemoryError(),
        RuntimeError("<Code>AccessDenied</Code>"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_error_of_the_steps_has_a_hint(error: Exception) -> None:
    assert cause_of(error).hint


def test_an_unknown_error_has_no_hint() -> None:
    assert cause_of(RuntimeError("x")) == Cause("RuntimeError", "x")
    assert cause_of(RuntimeError("x")).hint == ""


def test_a_record_that_cannot_be_written_does_not_hide_the_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ZeroDivisionError), failure.recorded(f"file://{tmp_path}/file", "ingest"):
        raise ZeroDivisionError
    assert "cannot write ingest.error.json" in caplog.text


def test_long_lines_and_messages_are_cut(tmp_path: Path) -> None:
    def fail() -> None:
        for number in range(200):
            logging.getLogger("noise").warning("%d %s", number, "x" * 5000)
        raise ValueError("y" * 100_000)

    with pytest.raises(ValueError, match="y"), failure.recorded(f"file://{tmp_path}", "ingest"):
        fail()
    record = read_record(f"file://{tmp_path}", "ingest")
    assert len(json.dumps(record)) < 70_000
    assert len(record["last_lines"]) == 50
