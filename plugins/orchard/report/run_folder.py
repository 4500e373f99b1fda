"""What the folder of a run on S3 holds: its summary, its cost, and the progress of its steps."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orchard.errors import PermanentError
from orchard.run.cost import COST
from orchard.run.progress import Progress, read_progress
from orchard.run.summary import SUMMARY
from orchard.storage import find_json

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# The report cannot be without these.
NEEDED = ("run_id", "dataset_uri", "pca_model")


class UnreadableSummary(PermanentError):
    """A `summary.json` has not the contents that the task `publish` writes."""

    def __init__(self, uri: str, fault: str) -> None:
        super().__init__(f"{uri} is not a summary of a run: {fault}. Clear publish to write it again")


@dataclass(frozen=True)
class RunFolder:
    """The contents of a run's folder. A file that does not exist is empty."""

    run_uri: str = ""
    summary: Mapping[str, Any] = field(default_factory=dict)
    cost: Mapping[str, Any] = field(default_factory=dict)
    progress: Progress | None = None


def read_folder(s3: "S3Client", run_uri: str, running_step: str = "") -> RunFolder:
    """Read the folder of a run, with the progress of a step that is running.

    Raises:
        UnreadableSummary: its summary has not the contents that the report needs.
        botocore.exceptions.ClientError: S3 refuses the request.
    """
    with ThreadPoolExecutor(2) as pool:
        summary, cost = pool.map(lambda name: _find(s3, f"{run_uri}/{name}"), (SUMMARY, COST))
    missing = [name for name in NEEDED if not isinstance(summary.get(name), str)] if summary else []
    if missing:
        raise UnreadableSummary(f"{run_uri}/{SUMMARY}", f"it has no {', '.join(missing)}")
    progress = read_progress(s3, run_uri, running_step) if running_step else None
    return RunFolder(run_uri, summary, cost, progress)


def folder_beside(run_uri: str, run_id: object) -> str:
    """Return the folder of another run of the same dataset.

    >>> folder_beside("s3://fruits/runs/images/20261127T020000-abc123", "20261126T020000-def456")
    's3://fruits/runs/images/20261126T020000-def456'
    """
    return f"{run_uri.rsplit('/', 1)[0]}/{run_id}"


def _find(s3: "S3Client", uri: str) -> Mapping[str, Any]:
    try:
        found: Any = find_json(s3, uri)
    except ValueError as error:
        raise UnreadableSummary(uri, f"it is not JSON: {error}") from error
    if not isinstance(found, Mapping | None):
        raise UnreadableSummary(uri, "it is not a JSON object")
    return found or {}
