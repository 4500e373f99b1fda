"""What the routes of the report show, read from S3 and the tables, and kept within bounds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from threading import Condition
from typing import Any

from cachetools import LRUCache, TTLCache, cached

from orchard.report import aws
from orchard.report.airflow_run import AirflowRun
from orchard.report.figures import Figures, read_figures
from orchard.report.happened import Happened, happened
from orchard.report.history import History
from orchard.report.map_data import base64_of, map_data, neighbour_of, suspect_of
from orchard.report.points import Numbers, Points, load_points, nearest, sample_by_label
from orchard.report.run_folder import RunFolder, folder_beside, read_folder
from orchard.report.run_rows import runs_over_time
from orchard.report.spark_ui import SparkUiError, is_cluster_of_run, spark_ui_url
from orchard.report.suspects import Suspect, suspects
from orchard.report.thumbnails import Missing, Thumbnail, thumbnail
from orchard.report.unavailable import Unavailable
from orchard.run.names import run_id_of, run_name

# How many runs the page over time shows.
MOST_RUNS = 1000
NEIGHBOURS = 12
# In seconds.
FOLDER_IS_FRESH, THUMBNAIL_IS_FRESH = 2, 600
# The points of a run are at most 100,000 vectors: see `load_points`. With 128 components, they take 75 MB.
POINTS_BYTES, THUMBNAIL_BYTES = 400_000_000, 32_000_000
# Of as many runs, the parts that are computed from the points are kept.
MOST_LOADED = 3
PIXELS = 132
CLEAR_PUBLISH = "Clear publish to write the summary again."


class NotPublished(Unavailable):
    """A run has not been published, so that no table shows it."""


@dataclass(frozen=True)
class Published:
    """A published run. `version` changes when the run is published again."""

    dataset_uri: str
    run_uri: str
    version: str

    @property
    def run_id(self) -> str:
        """The value of the column `run_id`."""
        return run_id_of(self.run_uri)


def what_happened(run: AirflowRun, now: datetime) -> Happened | Unavailable:
    """Return what happened in a run. Without access to S3, return why: Airflow's own part is in its other pages."""
    try:
        folder = folder_of(run)
        base = folder.summary.get("base_run_id")
        return happened(run, folder, _folder(folder_beside(folder.run_uri, base)) if base else None, now)
    except Unavailable as error:
        return error


def folder_of(run: AirflowRun) -> RunFolder:
    """Return what the folder of a run holds. A run that has not been planned has none."""
    run_uri = run.plan.get("run_uri")
    with aws.reading():
        runs = f"{aws.settings().bucket_uri}/runs/"
    if not isinstance(run_uri, str) or not run_uri.startswith(runs):
        return RunFolder()
    return _folder(run_uri, run.running_step)


@cached(TTLCache(256, FOLDER_IS_FRESH), condition=Condition())
def _folder(run_uri: str, running_step: str = "") -> RunFolder:
    with aws.reading():
        return read_folder(aws.client("s3"), run_uri, running_step)


def published(run: AirflowRun) -> Published:
    """Return a run as it was published.

    Raises:
        NotPublished: it was not.
        Unavailable: the summary in its folder is of another dataset.
    """
    folder = folder_of(run)
    if not folder.summary:
        unchanged = run.changes.get("nothing_to_do")
        why = "nothing has changed since the last run" if unchanged else f"its state is {run.state}"
        raise NotPublished(f"this run has published no images: {why}.", "See the report of another run.")
    # The summary is a file, which a step could have written. Airflow's database says which dataset the run may show.
    dataset_uri = str(run.plan.get("dataset_uri"))
    if folder.summary["dataset_uri"] != dataset_uri:
        raise Unavailable(f"{folder.run_uri} has the summary of another dataset than {dataset_uri}.", CLEAR_PUBLISH)
    tables = folder.summary.get("tables") or {}
    version = (tables.get("embeddings") or {}).get("snapshot_id", "")
    return Published(dataset_uri, folder.run_uri, str(version))


def points_of(run: AirflowRun) -> Points:
    """Return the embeddings of a run.

    Raises:
        NotPublished: the run was not published.
        Unavailable: the tables cannot be read.
    """
    return _points(published(run))


@cached(LRUCache(POINTS_BYTES, getsizeof=lambda found: found.nbytes), condition=Condition())
def _points(run: Published) -> Points:
    with aws.reading():
        return load_points(aws.tables(), aws.settings(), run.dataset_uri, run.run_id)


@cached(LRUCache(MOST_LOADED), condition=Condition())
def _shown(run: Published) -> Numbers:
    """Return the indices of the points that the map shows."""
    return sample_by_label(_points(run))


def map_of(run: AirflowRun) -> dict[str, Any]:
    """Return what the browser needs to draw the map of a run."""
    found = published(run)
    variance = figures_of(run).variance
    return map_data(_points(found), _shown(found), variance.ratios if variance else [])


def coordinates_of(run: AirflowRun, component: int) -> str:
    """Return one component of the points that the map shows, as base64 of little-endian 32-bit floats.

    Raises:
        IndexError: the vectors have fewer components.
    """
    found = published(run)
    return base64_of(_points(found).vectors[_shown(found), component])


def neighbours_of(run: AirflowRun, path: str) -> dict[str, Any]:
    """Return the nearest neighbours of an image, and among how many images they were searched.

    Raises:
        Missing: the run's tables have no image with this path.
    """
    points = points_of(run)
    index = points.indices.get(points.dataset + path)
    if index is None:
        raise Missing(f"the run has no image {path}")
    found = [neighbour_of(points, neighbour) for neighbour in nearest(points, index, NEIGHBOURS)]
    return {"path": path, "searched": len(points.paths), "total": points.total, "neighbours": found}


@cached(LRUCache(MOST_LOADED), condition=Condition())
def _suspects(run: Published) -> Sequence[Suspect]:
    return suspects(_points(run))


def suspects_of(run: AirflowRun) -> dict[str, Any]:
    """Return the images that somebody should look at, with the reason."""
    found = published(run)
    points = _points(found)
    return {"suspects": [suspect_of(points, suspect) for suspect in _suspects(found)]}


def thumbnail_of(run: AirflowRun, path: str) -> Thumbnail:
    """Return a small version of an image of a run. `path` is below the dataset.

    Raises:
        ThumbnailError: the run's tables do not hold the path, or the object cannot be shown.
    """
    found = published(run)
    # The page shows no picture of rejects that it does not list.
    uri = found.dataset_uri + path
    if uri not in _points(found).indices and uri not in (reject.path for reject in figures_of(run).rejects.shown):
        raise Missing(f"the tables of the run have no image {path}")
    return _thumbnail(found, uri)


@cached(
    TTLCache(THUMBNAIL_BYTES, THUMBNAIL_IS_FRESH, getsizeof=lambda found: len(found.content)), condition=Condition()
)
def _thumbnail(run: Published, uri: str) -> Thumbnail:
    with aws.reading():
        return thumbnail(aws.client("s3"), run.dataset_uri, uri, pixels=PIXELS)


def figures_of(run: AirflowRun) -> Figures:
    """Return the figures of a published run."""
    return _figures(published(run), folder_of(run).summary)


@cached(LRUCache(64), key=lambda run, _: run, condition=Condition())
def _figures(_: Published, summary: Mapping[str, Any]) -> Figures:
    with aws.reading():
        return read_figures(aws.tables(), aws.settings(), summary)


def history_of(runs: Sequence[tuple[str, datetime]], dataset: str | None) -> History:
    """Return the published runs of a dataset: by default of the nightly run's, if it has any.

    Args:
        runs: the run_id and the due time of the DAG's runs that Airflow knows.
        dataset: the prefix of the dataset.
    """
    with aws.reading():
        settings = aws.settings()
        found = runs_over_time(aws.tables(), settings, limit=MOST_RUNS)
    datasets = sorted({row.dataset for row in found})
    chosen = dataset or (settings.dataset_uri if settings.dataset_uri in datasets else next(iter(datasets), ""))
    known = {run_name(run_after, run_id, settings.deployment): run_id for run_id, run_after in runs}
    return History(datasets, chosen, [row for row in found if row.dataset == chosen], known)


def spark_ui_of(run: AirflowRun, cluster_id: str) -> str | None:
    """Return the address of the Spark UI of a cluster, which EMR makes for this request. None if it is not the run's.

    Raises:
        Unavailable: EMR does not open it: why, and what to do.
    """
    with aws.reading():
        emr, settings = aws.client("emr"), aws.settings()
    try:
        is_of_run = is_cluster_of_run(emr, settings, run.dag_id, run.run_id, cluster_id)
        return spark_ui_url(emr, cluster_id) if is_of_run else None
    except SparkUiError as error:
        raise Unavailable(str(error), "") from error
