"""The record that a step leaves in the run's folder when it fails: `<step>.error.json`.

On EMR the logs of a step are uploaded minutes after it has ended. The record is there when the step ends.
"""

import json
import logging
import re
import sys
import traceback
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from py4j.protocol import Py4JJavaError

from orchard_spark import objects

LAST_LINES = 50
LINE_CHARACTERS = 1000
MESSAGE_CHARACTERS = 4000
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

_AGAIN = "clear the step's add_step with downstream; if this persists, it is a bug in Orchard: please report it"
_MEMORY = "a node ran out of memory: trigger a run with an instance_type that has more memory"
_OTHER_URI = "trigger a run with another dataset_uri"
_PERMISSIONS = (
    "grant the nodes' role s3:GetObject and s3:ListBucket on the dataset, all on the run's folder, and kms:Decrypt on "
    "the key, then clear the step's add_step with downstream"
)
HINTS: Mapping[str, str] = {
    "AllForbidden": _PERMISSIONS,
    "BadUri": _OTHER_URI,
    "CannotFit": "trigger a run with another n_components, or with a dataset that has more images",
    "ExecutorLostFailure": _MEMORY,
    "FileNotFoundError": "a file that the run's plan lists is gone: clear `plan` with downstream",
    "LostRows": _AGAIN,
    "MemoryError": _MEMORY,
    "NoFeatures": "trigger a run with full_refresh",
    "NoInputFiles": "the run's scratch folder was deleted, as after a run is published: clear `plan` with downstream",
    "PermissionDeniedError": _PERMISSIONS,
    "TooManyRejects": "look at rejects/ in the run's scratch folder; fix the images, or trigger a run with a larger "
    "max_reject_ratio",
    "StepUnfinished": "clear the add_step of the earlier step with downstream",
    "UndecodableImage": _AGAIN,
    "WrongColumns": "the run's folder has files of another release: clear ingest.add_step with downstream",
    "WrongModel": "upload a release with `make release`, and set ORCHARD_RELEASE to its version",
}
# Parts of a message that say more than its type.
_HINTS_BY_TEXT = {
    "AccessDenied": _PERMISSIONS,
    "Container killed": _MEMORY,
    "exit code 137": _MEMORY,
    "NoSuchBucket": _OTHER_URI,
}

_TRACEBACK = "Traceback (most recent call last):\n"
_JAVA_FRAME = re.compile(r"^\s+(at |\.\.\. \d+ more)")
# "features.UndecodableImage: s3://…"; the message can have several lines.
_RAISED = re.compile(r"^(?P<type>[A-Za-z_][\w.]*)(?:: (?P<message>.*))?$", re.DOTALL)
_LOST_TASK = re.compile(r"most recent failure: (?:Lost task .*?\): )?(?P<type>\w+)?(?P<message>.*)")


@dataclass(frozen=True)
class Cause:
    """What ended a step: the name of the exception's class, without its module, and its message."""

    type: str
    message: str

    @property
    def hint(self) -> str:
        """What to do, or "" if there is no advice."""
        by_text = (hint for text, hint in _HINTS_BY_TEXT.items() if text in self.message)
        return HINTS.get(self.type) or next(by_text, "")


def cause_of(error: BaseException) -> Cause:
    """Return the cause of an error; if a task failed, the exception that its Python worker raised."""
    if isinstance(error, Py4JJavaError):
        return cause_of_job(str(error))
    return Cause(type(error).__name__, str(error))


def cause_of_job(answer: str) -> Cause:
    """Return the cause of a failed Spark job from the JVM's answer, which contains the traceback of the task."""
    # After the last "Traceback" are the frames, which are indented, then the exception, then the frames of the JVM.
    _, found, rest = answer.rpartition(_TRACEBACK)
    lines = [line for line in rest.splitlines() if not _JAVA_FRAME.match(line)] if found else []
    while lines and lines[0].startswith(" "):
        lines.pop(0)
    raised = _RAISED.match("\n".join(lines).partition("\n\n")[0].strip()) if lines else None
    if raised:
        return Cause(raised["type"].rsplit(".", 1)[-1], raised["message"] or "")
    if lost := _LOST_TASK.search(answer):
        return Cause(lost["type"] or "SparkException", f"{lost['type'] or ''}{lost['message']}".strip())
    first = next((line for line in answer.splitlines() if line.startswith(": ")), "").removeprefix(": ")
    raised = _RAISED.match(first)
    return Cause(raised["type"].rsplit(".", 1)[-1], raised["message"] or "") if raised else Cause("JavaError", answer)


class _LastLines(logging.Handler):
    """Keeps the last lines of the log."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: deque[str] = deque(maxlen=LAST_LINES)
        self.setFormatter(logging.Formatter(LOG_FORMAT))

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.extend(self.format(record).splitlines())


@contextmanager
def recorded(run_uri: str, step: str) -> Iterator[None]:
    """Log to stderr, and write `<step>.error.json` into the run's folder if the step fails."""
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, stream=sys.stderr)
    last = _LastLines()
    logging.getLogger().addHandler(last)
    try:
        yield
    except Exception as error:
        lines = [*last.lines, *traceback.format_exc().splitlines()]
        _write(run_uri, step, cause_of(error), [line for line in lines if not _JAVA_FRAME.match(line)])
        raise
    finally:
        logging.getLogger().removeHandler(last)


def _write(run_uri: str, step: str, cause: Cause, lines: list[str]) -> None:
    record = {
        "step": step,
        "type": cause.type,
        "message": cause.message[:MESSAGE_CHARACTERS],
        "hint": cause.hint,
        "last_lines": [line[:LINE_CHARACTERS] for line in lines[-LAST_LINES:]],
        "failed_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    try:
        objects.write(f"{run_uri.rstrip('/')}/{step}.error.json", json.dumps(record, indent=2).encode())
    except Exception:  # the step's own error matters more
        logging.getLogger(__name__).exception("%s: cannot write %s.error.json into %s", step, step, run_uri)
