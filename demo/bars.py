"""Show the progress of each step of a run: as a bar on a terminal, as lines elsewhere.

A step writes its progress into the run's folder every five seconds.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from botocore.exceptions import BotoCoreError, ClientError
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

from demo.watch import PrintLine

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# Without a terminal, a step has at most a line in this time.
LINE_SECONDS = 5
RUN_URI_OPTION = "--run-uri"


@dataclass(frozen=True)
class Shown:
    """What the progress bar of a step shows. `total` is None if the number of images is unknown."""

    name: str
    done: int
    total: int | None
    text: str


class StepBars:
    """A bar for each step that runs. Without a terminal, a line every five seconds at most, if it has changed."""

    def __init__(self, s3: "S3Client", print_line: PrintLine, console: Console | None = None) -> None:
        self._s3 = s3
        self._print_line = print_line
        console = console or Console()
        is_terminal = console.is_terminal and not console.is_dumb_terminal
        # Brackets in what a file contains are no markup.
        name, text = (TextColumn(value, markup=False) for value in ("{task.description}", "{task.fields[text]}"))
        self._bars = Bars(name, BarColumn(), text, console=console) if is_terminal else None
        self._tasks: dict[str, TaskID] = {}
        self._running: set[str] = set()
        self._lines: dict[str, tuple[float, str]] = {}

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def update(self, step: Mapping[str, Any]) -> None:
        """Show the progress of a step, which EMR's API describes, while it runs, and once more when it has ended."""
        state = step["Status"]["State"]
        if state == "RUNNING":
            self._running.add(step["Id"])
        elif step["Id"] in self._running:
            self._running.remove(step["Id"])
        else:
            return
        found = self._read(step)
        if found is None:
            return
        shown = describe(found)
        if self._bars is not None:
            self._draw(self._bars, step["Id"], shown, state)
        else:
            self._print(step["Id"], shown, is_last=state != "RUNNING")

    def _read(self, step: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the content of the step's progress file, None if there is none."""
        arguments = list(step.get("Config", {}).get("Args", []))
        if RUN_URI_OPTION not in arguments[:-1]:
            return None
        run_uri = arguments[arguments.index(RUN_URI_OPTION) + 1]
        bucket, _, prefix = run_uri.removeprefix("s3://").partition("/")
        try:
            answer = self._s3.get_object(Bucket=bucket, Key=f"{prefix}/{step['Name']}.progress.json")
            content = json.loads(answer["Body"].read())
        except (BotoCoreError, ClientError, ValueError):
            return None  # not written yet, or the local AWS is shutting down
        return content if isinstance(content, dict) and content.get("step") == step["Name"] else None

    def _draw(self, bars: Bars, step_id: str, shown: Shown, state: str) -> None:
        if step_id not in self._tasks:
            self._tasks[step_id] = bars.add_task(shown.name, text="")
        total, done = shown.total, shown.done
        # Rich draws a bar without a total as a moving one, and one with a total of 0 as an empty one.
        if not total and (total == 0 or state != "RUNNING"):
            total, done = 1, int(total == 0 or state == "COMPLETED")
        text = shown.text if state in ("RUNNING", "COMPLETED") else f"{state}, {shown.text}"
        bars.update(self._tasks[step_id], description=shown.name, total=total, completed=done, text=text)

    def _print(self, step_id: str, shown: Shown, *, is_last: bool) -> None:
        printed, line = self._lines.get(step_id, (float("-inf"), ""))
        text = f"  step {shown.name}: {shown.text}"
        if text != line and (is_last or time.monotonic() - printed >= LINE_SECONDS):
            self._lines[step_id] = time.monotonic(), text
            self._print_line(text)


def describe(content: Mapping[str, Any]) -> Shown:
    """Return what is shown of a progress. Values of a wrong type are left out.

    >>> describe({"step": "features", "phase": "infer", "done": 5, "total": 24, "images_per_second": 71.3})
    Shown(name='features (infer)', done=5, total=24, text='5 of 24 images, 71 images/s')
    """
    done, total = (content.get(key) if type(content.get(key)) is int else None for key in ("done", "total"))
    rate, left, peak_mb = (
        content.get(key) if type(content.get(key)) in (int, float) else None
        for key in ("images_per_second", "seconds_left", "worker_peak_mb")
    )
    phase = content.get("phase")
    name = content["step"] + (f" ({phase})" if isinstance(phase, str) and phase.isidentifier() else "")
    facts = [
        *([f"{done:,} of {total:,} images"] if done is not None and total is not None else []),
        *([f"{rate:,.0f} images/s"] if rate else []),
        *([f"about {left:,.0f} s left"] if left else []),
        *([f"{peak_mb:,.0f} MB per worker"] if peak_mb else []),
    ]
    return Shown(name, done or 0, total, ", ".join(facts) or "running")
