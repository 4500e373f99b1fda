"""The pages of the report, as an application that Airflow's API server serves under /orchard.

Every route names a DAG, and is guarded by the user's right to read the runs of that DAG. What it shows comes from data,
so that all of it is text: Jinja escapes it, and the browser runs no script but the report's own.
"""

import hashlib
import logging
import mimetypes
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Any

from airflow.api_fastapi.common.db.common import SessionDep
from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response, status
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse

from orchard.report import content, pages
from orchard.report.access import ExistingRun, has_reports, may_read_runs
from orchard.report.airflow_database import runs_of_dag
from orchard.report.pages import STATIC
from orchard.report.thumbnails import ThumbnailError
from orchard.report.unavailable import Unavailable

log = logging.getLogger(__name__)

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self' 'unsafe-inline'",  # Bokeh writes its styles into its elements
        "img-src 'self' data:",
        "connect-src 'self'",
        "font-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'self'",
    )
)
# In seconds. The address of a static file contains its version.
A_DAY = 86_400

app = FastAPI(
    title="Orchard's report",
    docs_url=None,
    redoc_url=None,
    openapi_url=None,
    dependencies=[Depends(may_read_runs), Depends(has_reports)],
)
RUN = "/dags/{dag_id}/runs/{run_id}"
DatasetUri = Annotated[str | None, Query(max_length=2048, description="the prefix of a dataset")]
ImagePath = Annotated[str, Query(max_length=1024, description="the path of an image below the dataset's prefix")]


@app.middleware("http")
async def protect(request: Request, call_next: Any) -> Response:
    """Add the headers that forbid foreign scripts and frames to every response, also of an error in the report."""
    response: Response
    try:
        response = await call_next(request)
    except Exception:
        log.exception("report: %s failed", request.url.path)
        detail = "An error in the report: see the log of the API server."
        response = JSONResponse({"detail": detail}, status.HTTP_500_INTERNAL_SERVER_ERROR)
    response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers.setdefault("Cache-Control", "no-store")
    return response


@app.exception_handler(Unavailable)
def unavailable(request: Request, error: Exception) -> Response:
    """Answer that the API server cannot read what a route shows: why, and what to grant."""
    assert isinstance(error, Unavailable)  # noqa: S101  # FastAPI calls this for no other class
    return explanation(request, {"detail": error.message, "remedy": error.remedy}, status.HTTP_503_SERVICE_UNAVAILABLE)


@app.exception_handler(HTTPException)
def refused(request: Request, error: Exception) -> Response:
    """Answer that a request is refused: as a page, if somebody has followed a link."""
    assert isinstance(error, HTTPException)  # noqa: S101  # FastAPI calls this for no other class
    return explanation(request, {"detail": error.detail}, error.status_code, error.headers)


def explanation(
    request: Request, text: Mapping[str, str], status_code: int, headers: Mapping[str, str] | None = None
) -> Response:
    """Return the reason of an error: as a page, if somebody has followed a link, else as JSON."""
    if "text/html" in request.headers.get("Accept", ""):
        return HTMLResponse(pages.message_page(str(text["detail"]), text.get("remedy", "")), status_code, headers)
    return JSONResponse(text, status_code, headers)


@app.exception_handler(ThumbnailError)
def no_thumbnail(_: Request, error: Exception) -> Response:
    """Answer that an image cannot be shown, and why."""
    return JSONResponse({"detail": str(error)}, status.HTTP_404_NOT_FOUND, {"Cache-Control": "private, max-age=60"})


# The functions are not coroutines, so that FastAPI runs each in a thread: the event loop never waits for AWS.
@app.get(f"{RUN}/", response_class=HTMLResponse)
def show_run(run: ExistingRun) -> str:
    """Show the report of a run."""
    return pages.run_page(run, content.what_happened(run, datetime.now(UTC)), versions())


@app.get(f"{RUN}/happened", response_class=HTMLResponse)
def show_what_happened(run: ExistingRun) -> str:
    """Show the first section of the report again, while the run is active."""
    return pages.happened_section(run, content.what_happened(run, datetime.now(UTC)))


@app.get(f"{RUN}/figures", response_class=HTMLResponse)
def show_figures(run: ExistingRun) -> str:
    """Show the section with the figures of a published run."""
    return pages.figures_section(content.figures_of(run))


@app.get(f"{RUN}/map")
def read_map(run: ExistingRun) -> dict[str, Any]:
    """Return the points of the map: paths, labels, and the first two components."""
    return content.map_of(run)


@app.get(f"{RUN}/coordinates")
def read_coordinates(run: ExistingRun, component: Annotated[int, Query(ge=0)]) -> dict[str, str]:
    """Return one component of all points of the map, as the base64 of little-endian 32-bit floats."""
    try:
        return {"values": content.coordinates_of(run, component)}
    except IndexError as error:
        raise HTTPException(status.HTTP_404_NOT_FOUND, f"component {component}: {error}") from error


@app.get(f"{RUN}/neighbours")
def read_neighbours(run: ExistingRun, path: ImagePath) -> dict[str, Any]:
    """Return the nearest neighbours of an image."""
    return content.neighbours_of(run, path)


@app.get(f"{RUN}/suspects")
def read_suspects(run: ExistingRun) -> dict[str, Any]:
    """Return the images that somebody should look at."""
    return content.suspects_of(run)


@app.get(f"{RUN}/thumbnail")
def show_thumbnail(run: ExistingRun, path: ImagePath, request: Request) -> Response:
    """Show a small version of an image that the run's tables hold."""
    found = content.thumbnail_of(run, path)
    return cacheable(request, found.content, found.content_type, found.etag)


@app.get(f"{RUN}/spark-ui/{{cluster_id}}")
def open_spark_ui(run: ExistingRun, cluster_id: str) -> Response:
    """Lead to the Spark UI of a cluster of the run. EMR makes its address for this click."""
    address = content.spark_ui_of(run, cluster_id)
    if address is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND, f"run {run.run_id} has no cluster {cluster_id}")
    return RedirectResponse(address, status.HTTP_303_SEE_OTHER)


@app.get("/dags/{dag_id}/", response_class=HTMLResponse)
def show_all_runs(dag_id: str) -> str:
    """Show the page with all runs over time."""
    return pages.history_page(dag_id, versions())


@app.get("/dags/{dag_id}/history", response_class=HTMLResponse)
def show_history(dag_id: str, session: SessionDep, dataset: DatasetUri = None) -> str:
    """Show the plots of the published runs of a dataset. Each point leads to its run."""
    return pages.history_section(dag_id, content.history_of(runs_of_dag(session, dag_id, content.MOST_RUNS), dataset))


@app.get("/dags/{dag_id}/static/{name}")
def show_static(name: str, request: Request) -> Response:
    """Show a script or a style sheet of the report, or Bokeh's script."""
    if name not in STATIC:
        raise HTTPException(
            status.HTTP_404_NOT_FOUND, f"the report has no file {name}: see {', '.join(sorted(STATIC))}"
        )
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return cacheable(request, STATIC[name].read_bytes(), kind, f'"{versions()[name]}"')


def cacheable(request: Request, content: bytes, content_type: str, etag: str) -> Response:
    """Return a response that the browser of the user may keep for a day."""
    headers = {"ETag": etag, "Cache-Control": f"private, max-age={A_DAY}"}
    known = [text.strip().removeprefix("W/") for text in request.headers.get("If-None-Match", "").split(",")]
    if etag in known:
        return Response(status_code=status.HTTP_304_NOT_MODIFIED, headers=headers)
    return Response(content, media_type=content_type, headers=headers)


@cache
def versions() -> dict[str, str]:
    """Return the version of each static file: the start of its hash."""
    return {name: hashlib.sha256(file.read_bytes()).hexdigest()[:12] for name, file in STATIC.items()}
