import os
from pathlib import Path
from typing import Any

import pytest

from demo.__main__ import main, table

SUCCESS: dict[str, Any] = {
    "run_state": "success",
    "images_listed": 25,
    "images_ingested": 24,
    "images_rejected": 1,
    "n_components": 17,
    "explained_variance": 0.9512,
    "label_accuracy": 0.875,
    "label_sample": 24,
    "warnings": ["the drift is 0.3"],
    "estimated_usd": 0.0742,
    "cost_usd": 0.0087,
    "step_seconds": {"ingest": 2.0, "features": 4.0, "pca": 3.0},
    "step_images_per_second": {"ingest": 12.5, "features": 6.0, "pca": 8.0},
    "database": "orchard",
    "tables": {"rejects": {"rows": 1, "snapshot_id": "71"}, "embeddings": {"rows": 24, "snapshot_id": "72"}},
    "clusters": {"j-1": "TERMINATED"},
    "tasks": {"plan": "success"},
    "failed_steps": {},
}


def test_the_table_of_a_successful_run_shows_counts_times_variance_tables_and_the_clusters_final_state() -> None:
    lines = [line.split(maxsplit=1) for line in table(SUCCESS).splitlines()]
    assert lines == [
        ["run", "success"],
        ["images", "24 of 25"],
        ["rejects", "1"],
        ["ingest", "2.0 s, 12 images/s, including Spark's start"],
        ["features", "4.0 s, 6 images/s, including Spark's start"],
        ["pca", "3.0 s, 8 images/s, including Spark's start"],
        ["n_components", "17, 95.1% of the variance kept"],
        ["label", "accuracy      87.5% of 24 images, by the nearest neighbour"],
        ["warning", "the drift is 0.3"],
        ["orchard.rejects", "1 rows, snapshot 71"],
        ["orchard.embeddings", "24 rows, snapshot 72"],
        ["cost", "0.0087 USD at the prices of eu-west-1, estimated 0.0742"],
        ["cluster", "j-1 TERMINATED"],
    ]


def test_the_table_of_a_failed_run_shows_the_task_the_step_and_the_error() -> None:
    failed = {
        **dict.fromkeys(SUCCESS),
        "run_state": "failed",
        "clusters": {"j-1": "TERMINATED"},
        "tasks": {"plan": "success", "pca.wait_step": "failed"},
        "failed_steps": {"pca": "Traceback\n  File\nCannotFit: n_components is 5000"},
    }
    text = table(failed)
    assert "images" not in text
    assert "task failed      pca.wait_step" in text
    assert "step pca failed  CannotFit: n_components is 5000" in text


def test_the_table_shows_the_reasons_of_rejects_and_the_endings_of_ignored_objects() -> None:
    odd = {
        **SUCCESS,
        "images_rejected": 3,
        "reject_reasons": {"empty": 1, "archived": 2},
        "ignored": {".heic": 3, ".gif": 1},
    }
    lines = table(odd).splitlines()
    assert "  rejects             3: 2 archived, 1 empty" in lines
    assert "  ignored             4: 3 .heic, 1 .gif" in lines


def test_the_table_says_when_more_objects_are_ignored_than_are_images() -> None:
    text = table({**SUCCESS, "ignored": {".heic": 26}})
    assert "ignored             26: 26 .heic, more than the images" in text


def test_a_demo_with_a_file_name_that_is_not_utf8_fails_with_the_name(
    tmp_path: Path, parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data/Kiwi"
    data.mkdir(parents=True)
    Path(os.fsdecode(os.fsencode(data) + b"/caf\xe9.jpg")).write_bytes(b"x")
    arguments = ["--data", str(data.parent), "--folder", str(tmp_path / "demo"), "--build-dir", str(parts)]
    assert main(arguments) == 1
    assert (
        r"failed: the names of 1 files are not UTF-8, as keys on S3 must be: Kiwi/caf\xe9.jpg"
        in capsys.readouterr().out
    )


def test_figures_that_a_run_does_not_have_are_left_out() -> None:
    text = table({**SUCCESS, **dict.fromkeys(("label_accuracy", "label_sample", "warnings", "cost_usd"))})
    assert "label accuracy" not in text
    assert "warning" not in text
    assert "USD" not in text
