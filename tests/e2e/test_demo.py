"""`python -m demo` as users run it: a run that succeeds, a run with a failing step, and an interrupted run."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sandbox import aws, pictures
from sandbox.folders import ROOT
from sandbox.processes import wait_until
from tests.e2e.processes import left_running

# A local cluster is ready at once, and costs less than estimated. The estimate is for a cluster of EMR.
MOST_ESTIMATES = 2 if aws.is_like_emr() else 1
TASKS = {
    *(
        "plan",
        "preflight",
        "wait_turn",
        "create_cluster",
        "cluster_ready",
        "publish",
        "hold_cluster",
        "terminate_cluster",
        "cluster_gone",
        "verdict",
    ),
    *(f"{step}.{task}" for step in ("ingest", "features", "pca") for task in ("add_step", "wait_step")),
}


@dataclass(frozen=True)
class Finished:
    """A demo that has finished."""

    folder: Path
    code: int
    output: str

    @property
    def summary(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "summary.json").read_text())
        return content


def start(folder: Path, data: Path, **params: Any) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "demo", "--data", str(data), "--folder", str(folder)]
    return subprocess.Popen(
        [*command, "--params", json.dumps(params)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images of twelve classes, and a broken one."""
    folder = tmp_path_factory.mktemp("data") / "my images"
    pictures.write_dataset(folder, per_class=2)
    (folder / "Kiwi/broken.jpg").write_bytes((folder / "Kiwi/0_100.jpg").read_bytes()[:1500])
    return folder


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Finished]]:
    """Two demos in parallel: one with the defaults, one whose ingest step tolerates no broken image.

    The path of the first one's folder needs quotes.
    """
    parts = {"success": 'a b $c/"é"', "failure": "demo"}
    folders = {name: tmp_path_factory.mktemp(name) / part for name, part in parts.items()}
    runs = {
        "success": start(folders["success"], data),
        "failure": start(folders["failure"], data, max_reject_ratio=0),
    }
    try:
        outputs = {name: run.communicate()[0] for name, run in runs.items()}
        yield {name: Finished(folders[name], run.returncode, outputs[name]) for name, run in runs.items()}
    finally:
        for run in runs.values():
            run.terminate()  # no effect on a process that has exited


@pytest.fixture(scope="module")
def success(finished: dict[str, Finished]) -> Finished:
    return finished["success"]


@pytest.fixture(scope="module")
def failure(finished: dict[str, Finished]) -> Finished:
    return finished["failure"]


def test_the_run_succeeds_and_every_image_is_accounted_for(success: Finished) -> None:
    assert success.code == 0, success.output
    summary = success.summary
    assert summary["run_state"] == "success"
    assert (summary["images_listed"], summary["images_ingested"], summary["images_rejected"]) == (25, 24, 1)
    assert (summary["features_rows"], summary["embeddings_rows"]) == (24, 24)
    assert 1 <= summary["n_components"] < 24
    assert 0.95 <= summary["explained_variance"] <= 1
    assert 0 <= summary["label_accuracy"] <= 1
    assert 0 < summary["cost_usd"] < MOST_ESTIMATES * summary["estimated_usd"]
    assert summary["model"].startswith("mobilenetv2-1.0-224-imagenet-")


def test_its_only_cluster_is_terminated(success: Finished) -> None:
    assert (success.summary["clusters_created"], success.summary["clusters_alive"]) == (1, 0)
    assert list(success.summary["clusters"].values()) == ["TERMINATED"]


def test_every_task_succeeds_and_its_duration_is_recorded(success: Finished) -> None:
    assert success.summary["tasks"] == dict.fromkeys(TASKS, "success")
    assert success.summary["seconds"].keys() == TASKS
    assert success.summary["seconds"]["features.wait_step"] > 1


def test_the_steps_run_on_the_python_that_the_bootstrap_action_installs(success: Finished) -> None:
    metrics = json.loads((success.folder / "run/features.metrics.json").read_text())
    (cluster_id,) = success.summary["clusters"]
    assert metrics["executable"].endswith(f"/clusters/{cluster_id}/opt/orchard/venv/bin/python")


def test_pyarrow_reads_the_embeddings_as_the_readme_describes(success: Finished) -> None:
    table = pq.read_table(success.folder / "run/embeddings")
    assert table.num_rows == 24
    assert set(table["label"].to_pylist()) == set(pictures.CLASSES)
    assert {len(vector) for vector in table["vector"].to_pylist()} == {success.summary["n_components"]}
    rejects = pq.read_table(success.folder / "run/rejects").to_pylist()
    assert [(row["path"].rsplit("/", 1)[1], row["reason"]) for row in rejects] == [("broken.jpg", "undecodable")]


def test_the_run_is_published_in_the_tables(success: Finished) -> None:
    tables = success.summary["tables"]
    assert {name: table["rows"] for name, table in tables.items()} == {
        "features": 24,
        "images": 24,
        "rejects": 1,
        "embeddings": 24,
        "pca_models": 1,
        "runs": 1,
    }
    for name, table in tables.items():
        assert f"orchard.{name}" in success.output
        assert f"snapshot {table['snapshot_id']}" in success.output


def test_the_output_shows_the_progress_and_a_table_at_the_end(success: Finished) -> None:
    for text in ("task plan", "BOOTSTRAPPING", "step ingest RUNNING", "step pca COMPLETED", "TERMINATED"):
        assert text in success.output
    for step, images in (("ingest", 25), ("features", 24), ("pca", 24)):
        assert f"step {step}: {images} of {images} images" in success.output
    assert re.search(r"^  images +24 of 25$", success.output, re.MULTILINE)


def test_one_line_says_what_the_run_will_do_and_what_it_has_done(success: Finished) -> None:
    log = (success.folder / "airflow.log").read_text()
    assert re.search(r"\] plan: 25 images, all new; 1 worker, about \d+ min, about \$0\.\d\d ", log)
    published = json.loads((success.folder / "run/summary.json").read_text())
    assert re.fullmatch(r"25 images, all new, 1 rejected, \d+ (s|min), \$0\.\d+", published["sentence"])
    assert f"] publish: {published['sentence']} " in log


def test_a_failing_step_fails_the_run_and_the_cluster_is_still_terminated(failure: Finished) -> None:
    assert failure.code == 1, failure.output
    summary = failure.summary
    assert summary["run_state"] == "failed"
    assert summary["tasks"]["ingest.wait_step"] == "failed"
    assert summary["tasks"]["features.add_step"] == "upstream_failed"
    assert summary["tasks"]["publish"] == "upstream_failed"
    assert summary["tasks"]["terminate_cluster"] == summary["tasks"]["cluster_gone"] == "success"
    assert (summary["clusters_created"], summary["clusters_alive"]) == (1, 0)


def test_the_reason_of_a_failing_step_is_in_the_table_and_in_the_task_log(failure: Finished) -> None:
    reason = "1 of 25 objects were rejected: the ratio 0.040 exceeds max_reject_ratio 0"
    assert reason in failure.summary["failed_steps"]["ingest"]
    assert reason in failure.output
    assert reason in (failure.folder / "airflow.log").read_text()


def test_a_failed_run_publishes_nothing(failure: Finished) -> None:
    assert not (failure.folder / "run").exists()
    assert failure.summary["embeddings_rows"] is None


def test_no_process_is_left_running(success: Finished, failure: Finished) -> None:
    assert left_running(success.folder) == {}
    assert left_running(failure.folder) == {}


@pytest.mark.slow
def test_ctrl_c_during_a_step_leaves_no_process_running(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    demo = start(folder, data)
    assert demo.stdout is not None
    for line in demo.stdout:
        if "step ingest RUNNING" in line:
            break
    wait_until(
        lambda: any("java" in command for command in left_running(folder).values()),
        "Spark's start",
        timeout_seconds=20,
    )
    demo.send_signal(signal.SIGINT)
    rest = demo.stdout.read()
    assert demo.wait(30) == 130
    assert "SIGINT: all processes are stopped" in rest
    assert left_running(folder) == {}
