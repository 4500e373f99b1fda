"""What the tables hold about a run besides its embeddings: its row, its rejects, its basis, and the runs before it."""

import heapq
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pyiceberg.catalog import Catalog
from pyiceberg.conversions import from_bytes
from pyiceberg.expressions import AlwaysTrue, BooleanExpression
from pyiceberg.table import FileScanTask, Table
from pyiceberg.types import LongType

from orchard.report.points import share
from orchard.report.snapshots import published_rows
from orchard.settings import Settings
from orchard.tables.catalog import TABLES, find_table
from orchard.tables.rows import ALL_ROWS, stream_file, stream_rows, where

# The small files of `runs` are read at the same time: each takes a few requests, and few bytes.
READERS = 16
END_OF_TIME = datetime.max.replace(tzinfo=UTC)
# Columns of `runs` that are maps.
MAPS = ("rejects", "ignored", "step_seconds", "snapshots", "labels")
COLUMNS = tuple(field.name for field in TABLES["runs"].fields)


@dataclass(frozen=True)
class RunFigures:
    """A published run in figures, as a point in time. A figure that its release did not measure is None.

    `run_id` is the name of the run's folder. `step_seconds` has the duration of the plan and of the three steps;
    `seconds` is the time from the plan to the publication, without the teardown. Costs are in US dollars.
    """

    run_id: str
    dataset: str
    published_at: datetime
    seconds: float | None
    step_seconds: dict[str, float]
    listed: int | None
    images: int | None
    new: int | None
    changed: int | None
    deleted: int | None
    duplicates: int | None
    inferences: int | None
    rejects: int | None  # the objects that are refused, for all reasons
    cost_usd: float | None
    estimated_usd: float | None
    explained_variance: float | None
    drift: float | None
    label_accuracy: float | None


@dataclass(frozen=True)
class Reject:
    """An object that a run refused: its path, label and size in bytes, and why. Texts are as in the table."""

    path: str
    label: str
    size: int | None
    reason: str
    message: str


@dataclass(frozen=True)
class Rejects:
    """The rejects of a run: some of them, ordered by reason and path, and how many there are of each reason."""

    shown: list[Reject]
    totals: dict[str, int]

    @property
    def total(self) -> int:
        """The number of all rejects of the run."""
        return sum(self.totals.values())


@dataclass(frozen=True)
class Variance:
    """The share of the variance that each component of a basis explains, the largest first.

    `images` is the number of images that the basis was fitted to, and `fitted_by` the run that fitted it.
    """

    pca_model: str
    ratios: list[float]
    images: int
    fitted_by: str


def runs_over_time(
    catalog: Catalog, settings: Settings, dataset_uri: str | None = None, *, limit: int = 400
) -> list[RunFigures]:
    """Return the last runs of a dataset, or of all datasets, in the order of their publication.

    Raises:
        WrongWarehouse: the table is of another deployment.
        OldLayout: the table has the columns of an earlier release.
    """
    chosen = ALL_ROWS if dataset_uri is None else where(dataset=dataset_uri)
    return [figures_of(row) for row in _last_rows(find_table(catalog, settings, "runs"), chosen, limit)]


def figures_of(row: dict[str, Any]) -> RunFigures:
    """Return the figures of a row of `runs`."""
    planned, published = row["planned_at"], row["published_at"]
    names = (
        *("run_id", "dataset", "published_at", "listed", "images", "new", "changed", "deleted", "duplicates"),
        *("inferences", "cost_usd", "estimated_usd", "explained_variance", "drift", "label_accuracy"),
    )
    return RunFigures(
        **{name: row[name] for name in names},
        seconds=None if None in (planned, published) else (published - planned).total_seconds(),
        step_seconds=row["step_seconds"] or {},
        rejects=None if row["rejects"] is None else sum(row["rejects"].values()),
    )


def rejects_of_run(catalog: Catalog, settings: Settings, dataset_uri: str, run_id: str, *, most: int = 200) -> Rejects:
    """Return at most `most` rejects of a run as it published them, and the total of each reason.

    Of many rejects, each reason has a share, and a few rejects at least. Within a reason, the first by path are chosen.

    Raises:
        RunNotPublished, SnapshotExpired: as `orchard.report.snapshots.published_rows`.
        MixedRuns: another program has written to the table.
    """
    rows = published_rows(catalog, settings, "rejects", dataset_uri, run_id)
    totals: Counter[str] = Counter()
    first: dict[str, list[Reject]] = defaultdict(list)
    for batch in rows.stream(["path", "label", "size", "reason", "message"]):
        of_reason: dict[str, list[Reject]] = defaultdict(list)
        for row in batch.to_pylist():
            texts = {name: row[name] or "" for name in ("path", "label", "reason", "message")}
            of_reason[texts["reason"]].append(Reject(**texts, size=row["size"]))
        for reason, found in of_reason.items():
            totals[reason] += len(found)
            first[reason] = heapq.nsmallest(most, [*first[reason], *found], key=lambda reject: reject.path)
    names = sorted(totals)
    quotas = share([totals[name] for name in names], most)
    shown = [reject for name, quota in zip(names, quotas, strict=True) for reject in first[name][:quota]]
    return Rejects(shown, {name: totals[name] for name in sorted(names, key=lambda name: (-totals[name], name))})


def explained_variance(catalog: Catalog, settings: Settings, dataset_uri: str, pca_model: str) -> Variance | None:
    """Return what each component of a basis explains. `pca_model` is in the row of a run. None without the basis.

    Raises:
        WrongWarehouse: the table is of another deployment.
        OldLayout: the table has the columns of an earlier release.
    """
    table = find_table(catalog, settings, "pca_models")
    columns = ["explained_variance_ratio_", "n_samples_", "run_id"]
    batches = [] if table is None else stream_rows(table, where(dataset=dataset_uri, pca_model=pca_model), columns)
    row = next((row for batch in batches for row in batch.to_pylist()), None)
    if row is None:
        return None
    return Variance(pca_model, row["explained_variance_ratio_"] or [], row["n_samples_"] or 0, row["run_id"] or "")


def _last_rows(table: Table | None, chosen: BooleanExpression, limit: int) -> list[dict[str, Any]]:
    """Return the last rows of `runs` that match a filter, the last one at the end."""
    if table is None or limit <= 0:
        return []
    runs = table

    def read(task: FileScanTask) -> list[dict[str, Any]]:
        return [row for batch in stream_file(runs, task, chosen) for row in batch.to_pylist()]

    with ThreadPoolExecutor(READERS) as pool:
        found = [row for rows in pool.map(read, _last_files(runs, chosen, limit)) for row in rows]
    # Another program may have added rows without these.
    found = [row for row in found if None not in (row["run_id"], row["dataset"], row["published_at"])]
    found.sort(key=lambda row: (row["published_at"], row["run_id"]))
    return [_with_all_columns(row) for row in found[-limit:]]


def _last_files(runs: Table, chosen: BooleanExpression, limit: int) -> list[FileScanTask]:
    """Return the files of `runs` that can have one of the last rows, by the statistics of published_at."""
    field = runs.schema().find_field("published_at").field_id
    most, least = _microseconds(END_OF_TIME), 0

    def bound(bounds: dict[int, bytes] | None, default: int) -> int:
        value = (bounds or {}).get(field)
        return default if value is None else int(from_bytes(LongType(), value))

    tasks = list(runs.scan(row_filter=chosen).plan_files())
    files = [
        (bound(task.file.lower_bounds, least), bound(task.file.upper_bounds, most), task.file.record_count, task)
        for task in tasks
    ]
    since, rows = least, 0
    # As many rows as wanted are later than the beginning of the file with which these are complete.
    for first, _, count, task in sorted(files, key=lambda file: -file[0]):
        is_whole = isinstance(task.residual, AlwaysTrue) and not task.delete_files
        rows += count if is_whole else 0
        if rows >= limit:
            since = first
            break
    return [task for _, last, _, task in files if last >= since]


def _microseconds(time: datetime) -> int:
    return int(time.timestamp() * 1_000_000)


def _with_all_columns(row: dict[str, Any]) -> dict[str, Any]:
    whole: dict[str, Any] = dict.fromkeys(COLUMNS) | row
    return whole | {name: None if whole[name] is None else dict(whole[name]) for name in MAPS}
