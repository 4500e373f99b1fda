"""The progress of a running step, which its driver writes into the run's folder every five seconds.

The content is untrusted: a program in the run's folder may have written anything.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from orchard.run.sentence import duration
from orchard.storage import split_uri

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# A step writes about 400 bytes.
MOST_BYTES = 16 * 1024
# A step writes every five seconds.
OLD = timedelta(minutes=1)
# No number in a progress file comes near it. Larger ones cannot be shown, or are not a number of seconds.
LARGEST = 1e15

_WORD = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_PLAN_ID = re.compile(r"[0-9A-Za-z-]{1,64}")


@dataclass(frozen=True)
class Progress:
    """What a step has done so far. A value that the step does not know yet is None.

    While the step runs, `done` and `total` are the images of its current phase, `images_per_second` is the average rate
    of the phase, and `seconds_left` is an estimate for the phase. When the step is done, they are those of the step.
    `phase` is None if the step has only one phase. `seconds` is the time since the start of the step. `worker_peak_mb`
    is the highest peak memory of a Python worker process.
    """

    step: str
    updated_at: datetime
    is_done: bool = False
    plan_id: str | None = None
    phase: str | None = None
    done: int | None = None
    total: int | None = None
    images_per_second: float | None = None
    seconds: float | None = None
    seconds_left: float | None = None
    worker_peak_mb: float | None = None


def progress_uri(run_uri: str, step: str) -> str:
    """Return the URI of the progress file of a step."""
    return f"{run_uri.rstrip('/')}/{step}.progress.json"


def read_progress(s3: "S3Client", run_uri: str, step: str) -> Progress | None:
    """Return the progress of a step. Return None if there is no progress file, or if its content is not a progress.

    Raises:
        botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError: S3 refuses the request, or does not answer.
    """
    bucket, key = split_uri(progress_uri(run_uri, step))
    try:
        body = s3.get_object(Bucket=bucket, Key=key)["Body"]
    except s3.exceptions.NoSuchKey:
        return None
    return parse_progress(body.read(MOST_BYTES + 1), step)


def parse_progress(content: bytes, step: str) -> Progress | None:
    """Return the progress of a step from the bytes of its file. Return None if they are not its progress.

    A value of a wrong type, or one that cannot be, is left out.
    """
    if len(content) > MOST_BYTES:
        return None
    try:
        found: Any = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.get("step") != step:
        return None
    updated_at = _time(found.get("updated_at"))
    if updated_at is None:
        return None
    done, total = _count(found, "done"), _count(found, "total")
    if total is None or done is None or done > total:
        done = total = None
    return Progress(
        step=step,
        updated_at=updated_at,
        is_done=found.get("is_done") is True,
        plan_id=_text(found, "plan_id", _PLAN_ID),
        phase=_text(found, "phase", _WORD),
        done=done,
        total=total,
        images_per_second=_number(found, "images_per_second"),
        seconds=_number(found, "seconds"),
        seconds_left=_number(found, "seconds_left"),
        worker_peak_mb=_number(found, "worker_peak_mb"),
    )


def _time(value: object) -> datetime | None:
    """Return a time with a time zone from its ISO form."""
    if not isinstance(value, str):
        return None
    try:
        found = datetime.fromisoformat(value)
    except ValueError:
        return None
    # Dates near the first and the last year cannot be converted to other time zones.
    return found if found.tzinfo is not None and 1970 < found.year < 9999 else None


def _text(found: Mapping[str, Any], key: str, pattern: re.Pattern[str]) -> str | None:
    value = found.get(key)
    return value if isinstance(value, str) and pattern.fullmatch(value) else None


def _number(found: Mapping[str, Any], key: str) -> float | None:
    value = found.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= LARGEST else None  # also without NaN


def _count(found: Mapping[str, Any], key: str) -> int | None:
    value = found.get(key)
    return value if isinstance(value, int) and _number(found, key) is not None else None


def sentence(progress: Progress, now: datetime) -> str:
    """Return the progress of a step as one line for a person.

    Args:
        progress: the progress.
        now: the present time, with a time zone. The line says so if the progress has not been updated for a minute.

    >>> from datetime import UTC
    >>> now = datetime(2026, 11, 27, 2, tzinfo=UTC)
    >>> step = Progress(
    ...     "features", now, done=12300, total=22688, images_per_second=75.2, seconds_left=138, worker_peak_mb=410
    ... )
    >>> sentence(step, now)
    'features: 12,300 of 22,688 images, 75 images/s, about 2 min left, 410 MB per worker'
    >>> sentence(step, now + timedelta(minutes=3))
    'features: 12,300 of 22,688 images, 75 images/s, 410 MB per worker, last update 3 min ago'
    """
    age = now - progress.updated_at
    is_old = age > OLD and not progress.is_done
    facts = [_images(progress)]
    if progress.images_per_second:
        facts.append(f"{_rate(progress.images_per_second)} images/s")
    if progress.seconds_left and not progress.is_done and not is_old:
        facts.append(f"about {duration(progress.seconds_left / 60)} left")
    if progress.worker_peak_mb:
        facts.append(f"{progress.worker_peak_mb:,.0f} MB per worker")
    if is_old:
        facts.append(f"last update {duration(age / timedelta(minutes=1))} ago")
    phase = f" ({progress.phase})" if progress.phase and not progress.is_done else ""
    return f"{progress.step}{phase}: {', '.join(facts)}"


def _images(progress: Progress) -> str:
    """Return how many images are done, or how long the step has run."""
    after = f" {duration(progress.seconds / 60)}" if progress.seconds is not None else ""
    if progress.is_done:
        images = f", {progress.total:,} images" if progress.total is not None else ""
        return f"done{images}{after and f' in{after}'}"
    if progress.total is not None:
        return f"{progress.done:,} of {progress.total:,} images"
    return f"running{after and f' for{after}'}"


def _rate(images_per_second: float) -> str:
    return f"{images_per_second:,.0f}" if images_per_second >= 10 else f"{images_per_second:.1f}"
