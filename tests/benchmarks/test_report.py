from pathlib import Path
from typing import Any

import pytest

from benchmarks import report

MACHINE = {"load_before": [0.5, 0.4, 0.3]}


def scaled(one: float, two: float) -> dict[str, Any]:
    """A round of `scaling` in which the seconds of the steps are proportional to the images."""

    def step(images: int) -> dict[str, float]:
        return {"rows_in": images, "task_seconds": images / 100, "process": images / 100, "worker_peak_mb": 300}

    return {
        str(images): {
            "ingest": step(images),
            "features": step(images),
            "executors_1": {"seconds": one},
            "executors_2": {"seconds": two},
        }
        for images in (1000, 6000, 20000)
    }


def test_a_ratio_is_the_median_of_the_ratios_of_the_rounds() -> None:
    rounds = [
        {
            "our_fit": {"fit": ours, "rows": 9, "worker_peak_mb": 1, "peak_mb": 1},
            "bare_gram": {"fit": 2},
            "spark_ml_fit": {"fit": theirs},
        }
        for ours, theirs in ((1, 30), (2, 20), (4, 20))
    ]
    pca = report.summarise("pca", rounds, MACHINE)["pca"]
    assert pca["vs_spark_ml"] == 10
    assert pca["times_bare_gram"] == 1
    assert pca["rounds"] == rounds


def test_seconds_proportional_to_the_images_have_exponent_one() -> None:
    scaling = report.summarise("scaling", [scaled(19, 10)], MACHINE)["scaling"]
    assert scaling["cost_exponent"] == pytest.approx(1)
    assert scaling["speedup_2_executors"] == 1.9


def test_the_whole_run_includes_the_time_between_the_steps_if_both_are_measured() -> None:
    steps = {"whole_run": {"seconds": 40, "predecessor_seconds": 300}}
    tasks = {"orchestration": {"seconds_beside_steps_from_ready_to_published": 10}}
    assert report.with_airflow(steps) == steps
    assert report.with_airflow(steps | tasks)["whole_run"]["vs_predecessor_with_airflow"] == 6


def test_the_table_replaces_the_text_between_the_marks_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    monkeypatch.setattr(report, "PAGE", page)
    report.write_table(report.summarise("bootstrap", [{"seconds": 9.0, "mb": 318}], MACHINE))
    text = page.read_text()
    assert "| bootstrap | mb | 318 | 1 | 0.5 |" in text
    assert text.startswith(f"before\n{report.BEGIN}\n|")
    assert text.endswith(f"|\n{report.END}\nafter\n")
    assert "old" not in text
