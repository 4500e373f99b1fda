import io
import json
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from demo import bars
from demo.bars import Shown, StepBars, describe

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@pytest.fixture
def write(s3: "S3Client", bucket: str) -> Any:
    """Writes a progress file of the step `features`."""

    def write(content: "dict[str, Any] | bytes") -> None:
        body = content if isinstance(content, bytes) else json.dumps({"step": "features", **content}).encode()
        s3.put_object(Bucket=bucket, Key="runs/images/1/features.progress.json", Body=body)

    return write


def step(bucket: str, state: str, name: str = "features") -> dict[str, Any]:
    arguments = ["spark-submit", "features.py", "--run-uri", f"s3://{bucket}/runs/images/1", "--more", "x"]
    return {"Id": f"s-{name}", "Name": name, "Status": {"State": state}, "Config": {"Args": arguments}}


def test_a_terminal_shows_a_bar_per_step_with_its_numbers(s3: "S3Client", bucket: str, write: Any) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    printed: list[str] = []
    with StepBars(s3, printed.append, console) as shown:
        shown.update(step(bucket, "PENDING"))
        shown.update(step(bucket, "RUNNING"))
        write({"phase": "search", "done": None, "total": None})
        shown.update(step(bucket, "RUNNING"))
        write({"phase": "[red]infer", "done": 5, "total": 24, "images_per_second": 7.4, "worker_peak_mb": 410.2})
        shown.update(step(bucket, "RUNNING"))
        assert [(task.completed, task.total) for task in shown._bars.tasks] == [(5, 24)]  # type: ignore[union-attr]
        shown._bars.refresh()  # type: ignore[union-attr]
        assert "5 of 24 images, 7 images/s, 410 MB per worker" in screen.getvalue()
        write({"done": 24, "total": 24, "is_done": True})
        shown.update(step(bucket, "COMPLETED"))
        write({"done": 1, "total": 24})
        shown.update(step(bucket, "COMPLETED"))  # of an ended step, nothing changes
        (task,) = shown._bars.tasks  # type: ignore[union-attr]
        assert (task.description, task.completed, task.total) == ("features", 24, 24)
    assert printed == []
    assert screen.getvalue().rstrip("\n\x1b[?25h").endswith("24 of 24 images")


@pytest.mark.parametrize(("total", "ended"), [(0, "COMPLETED"), (None, "COMPLETED"), (None, "FAILED")])
def test_a_step_without_images_has_a_full_bar_when_it_is_completed(
    s3: "S3Client", bucket: str, write: Any, total: int | None, ended: str
) -> None:
    write({"done": total, "total": total})
    with StepBars(s3, print, Console(file=io.StringIO(), force_terminal=True)) as shown:
        shown.update(step(bucket, "RUNNING"))
        shown.update(step(bucket, ended))
        (task,) = shown._bars.tasks  # type: ignore[union-attr]
    assert task.total == 1
    assert task.finished == (ended == "COMPLETED")
    assert task.fields["text"].startswith("FAILED") == (ended == "FAILED")


def test_without_a_terminal_there_is_a_line_every_few_seconds_if_it_has_changed(
    s3: "S3Client", bucket: str, write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed: list[str] = []
    with StepBars(s3, printed.append, Console(file=io.StringIO())) as shown:
        for done in (5, 6):
            write({"done": done, "total": 24})
            shown.update(step(bucket, "RUNNING"))
        assert printed == ["  step features: 5 of 24 images"]
        monkeypatch.setattr(bars, "LINE_SECONDS", 0)
        for _ in range(2):
            shown.update(step(bucket, "RUNNING"))
        assert printed[1:] == ["  step features: 6 of 24 images"]
        monkeypatch.setattr(bars, "LINE_SECONDS", 1000)
        write({"done": 24, "total": 24})
        shown.update(step(bucket, "COMPLETED"))
        assert printed[2:] == ["  step features: 24 of 24 images"], "the last line comes at once"


@pytest.mark.parametrize("content", [b"", b'{"step": "fea', b"[]", b'{"step": "pca"}', b"\xff"])
def test_a_file_that_is_not_a_progress_shows_nothing(s3: "S3Client", bucket: str, write: Any, content: bytes) -> None:
    write(content)
    printed: list[str] = []
    with StepBars(s3, printed.append, Console(file=io.StringIO())) as shown:
        shown.update(step(bucket, "RUNNING"))
        shown.update({**step(bucket, "RUNNING"), "Id": "s-2", "Config": {"Args": ["--run-uri"]}})
        shown.update({**step("no-such-bucket-of-the-demo", "RUNNING"), "Id": "s-3"})
    assert printed == []


def test_values_of_a_wrong_type_are_left_out() -> None:
    wrong = {"phase": 7, "done": "5", "total": True, "images_per_second": [1], "seconds_left": None}
    assert describe({"step": "pca", **wrong}) == Shown("pca", 0, None, "running")


def test_brackets_in_a_name_are_shown_as_they_are(s3: "S3Client", bucket: str) -> None:
    name, screen = "[red]step", io.StringIO()
    s3.put_object(Bucket=bucket, Key=f"runs/images/1/{name}.progress.json", Body=json.dumps({"step": name}).encode())
    with StepBars(s3, print, Console(file=screen, force_terminal=True, width=120)) as shown:
        shown.update(step(bucket, "RUNNING", name))
    assert name in screen.getvalue()
