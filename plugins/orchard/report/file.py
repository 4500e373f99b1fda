"""The report of a published run as one HTML file, which a browser opens without a server: `report.html`.

The file has the same sections as the live page. It holds everything that the live page asks the server for: Bokeh's
script, the points of a sample of the images, their neighbours, and a sheet of their thumbnails.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from pyiceberg.catalog import Catalog

from orchard.report import pages
from orchard.report.figures import read_figures
from orchard.report.happened import happened_at_publication
from orchard.report.map_data import base64_of, below, map_data, suspect_of
from orchard.report.points import Numbers, Points, load_points, nearest, sample_by_label
from orchard.report.run_folder import RunFolder, folder_beside, read_folder
from orchard.report.suspects import suspects
from orchard.report.thumbnails import Sprite, Thumbnail, ThumbnailError, sprite_sheet, thumbnail
from orchard.settings import Settings
from orchard.storage import split_uri

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

MOST_POINTS = 1500
COMPONENTS = 10
NEIGHBOURS = 8
PIXELS = 48
# The rest of the file, mostly Bokeh's script, has 1.6 MB, and base64 adds a third.
SPRITE_BYTES = 2_300_000
# As many connections as a client has by default.
READERS = 10
# A report is worth this time of a run, in seconds.
PATIENCE = 60


def write_report(
    s3: "S3Client", catalog: Catalog, settings: Settings, summary: Mapping[str, Any], cost_usd: float | None, link: str
) -> None:
    """Write `report.html` into the folder of a published run. A report that cannot be written never fails the run.

    Args:
        s3: a client.
        catalog: the catalog of the tables.
        settings: the settings of the deployment.
        summary: the content of the run's `summary.json`.
        cost_usd: what the run has cost until now, if that is known.
        link: the address of the run in Airflow's UI.
    """
    uri = summary["report_uri"]
    try:
        content = report_of(s3, catalog, settings, summary, cost_usd, link).encode()
        bucket, key = split_uri(uri)
        s3.put_object(Bucket=bucket, Key=key, Body=content, ContentType="text/html; charset=utf-8")
    except Exception:  # its parts raise errors of many libraries
        log.warning("report: %s is not written", uri, exc_info=True)
    else:
        log.info("report: wrote %s, %.1f MB", uri, len(content) / 1e6)


def report_of(
    s3: "S3Client", catalog: Catalog, settings: Settings, summary: Mapping[str, Any], cost_usd: float | None, link: str
) -> str:
    """Return the report of a published run as HTML. The arguments are those of `write_report`.

    Raises:
        PermanentError: the tables cannot be read.
        botocore.exceptions.ClientError: S3 refuses a request.
    """
    figures = read_figures(catalog, settings, summary)
    points = load_points(catalog, settings, figures.dataset_uri, str(summary["run_id"]))
    ratios = figures.variance.ratios if figures.variance else []
    run_uri, base = str(summary["run_uri"]), summary.get("base_run_id")
    folder = RunFolder(run_uri, summary, {} if cost_usd is None else {"usd": cost_usd})
    before = read_folder(s3, folder_beside(run_uri, base)) if base else None
    return pages.report_file(
        happened=happened_at_publication(folder, before, str(summary["run_id"])),
        figures=figures,
        map_data=file_data(s3, points, ratios) if points.paths else None,
        airflow_url=link,
    )


def file_data(s3: "S3Client", points: Points, ratios: Sequence[float]) -> dict[str, Any]:
    """Return what the map in the file needs: the points, their neighbours among each other, and their thumbnails."""
    shown = sample_by_label(points, MOST_POINTS)
    listed = suspects(points)
    # The images to look at are always in the file.
    shown = np.union1d(shown, np.array([suspect.index for suspect in listed], shown.dtype))
    few = subset(points, shown)
    numbers = np.full((len(shown), NEIGHBOURS), -1, np.int32)
    cosines = np.zeros((len(shown), NEIGHBOURS), np.float32)
    for index in range(len(shown)):
        for place, neighbour in enumerate(nearest(few, index, NEIGHBOURS)):
            numbers[index, place], cosines[index, place] = neighbour.index, neighbour.similarity
    paths = [below(points.dataset, path) for path in few.paths]
    sheet = thumbnails_of(s3, points.dataset, few.paths)
    places = {path: place for path, place in zip(paths, sheet.positions, strict=True) if place is not None}
    return {
        **map_data(points, shown, ratios, COMPONENTS),
        "suspects": [suspect_of(points, suspect) for suspect in listed],
        "neighbours": base64_of(numbers.ravel()),
        "similarities": base64_of(cosines.ravel()),
        "neighbours_each": NEIGHBOURS,
        "sprite": {"cell": sheet.cell, "width": sheet.width, "positions": places},
        "sheet": pages.data_url(sheet.content_type, sheet.content) if sheet.content else "",
    }


def subset(points: Points, indices: Numbers) -> Points:
    """Return some of the points."""
    return replace(
        points,
        paths=[points.paths[index] for index in indices],
        sha256=[points.sha256[index] for index in indices],
        label_codes=points.label_codes[indices],
        vectors=points.vectors[indices],
        lengths=points.lengths[indices],
    )


def thumbnails_of(s3: "S3Client", dataset_uri: str, paths: Sequence[str]) -> Sprite:
    """Return a sheet of the thumbnails of images. Those that cannot be read in time have none."""
    deadline = time.monotonic() + PATIENCE

    def read(path: str) -> Thumbnail | None:
        if time.monotonic() > deadline:
            return None
        try:
            return thumbnail(s3, dataset_uri, path, pixels=PIXELS)
        except ThumbnailError as error:
            log.debug("report: %s", error)
            return None

    with ThreadPoolExecutor(READERS) as pool:
        found = list(pool.map(read, paths))
    missing = sum(image is None for image in found)
    if missing:
        log.warning("report: %d of %d images have no thumbnail", missing, len(found))
    return sprite_sheet(found, PIXELS, max_bytes=SPRITE_BYTES)
