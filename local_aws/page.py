"""The web page at `/`: clusters with their steps, times and logs, and buckets. It reloads itself."""

from pathlib import Path
from urllib.parse import urlsplit
from wsgiref.types import WSGIEnvironment

from jinja2 import Environment
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from werkzeug.exceptions import NotFound
from werkzeug.security import safe_join
from werkzeug.wrappers import Request, Response

from local_aws.emr.model import Wire, now
from local_aws.emr.runner import bucket_exists
from local_aws.emr.service import Emr

LOGS_PREFIX = "/_local_aws/logs/"
RELOAD_SECONDS = 2
LOG_FILES = ("controller", "stdout", "stderr")

_TEMPLATE = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
    Path(__file__).with_suffix(".html").read_text()
)


def is_browser_request(environ: WSGIEnvironment) -> bool:
    """Return whether a browser requests the page or a log.

    S3 clients send `GET /` for ListBuckets, too, but sign it.
    """
    unsigned = "HTTP_AUTHORIZATION" not in environ and not environ.get("QUERY_STRING")
    path = environ["PATH_INFO"]
    return unsigned and environ["REQUEST_METHOD"] == "GET" and (path == "/" or path.startswith(LOGS_PREFIX))


def respond(request: Request, emr: Emr, data: Path) -> Response:
    """Return the page, or the log of a step or bootstrap action as text."""
    if request.path == "/":
        html = _TEMPLATE.render(clusters=_clusters(emr, data), buckets=_buckets(), reload_seconds=RELOAD_SECONDS)
        return Response(html, content_type="text/html; charset=utf-8")
    file = safe_join(str(data / "clusters"), request.path.removeprefix(LOGS_PREFIX))
    if file is None or "/var/log/" not in file or not Path(file).is_file():
        return NotFound(f"log {request.path} does not exist").get_response()
    return Response(Path(file).read_bytes(), content_type="text/plain; charset=utf-8")


def _seconds(timeline: Wire, start_key: str) -> str:
    start = timeline.get(start_key)
    return "" if start is None else f"{(timeline.get('EndDateTime', now()) - start).total_seconds():.1f}"


def _clusters(emr: Emr, data: Path) -> list[Wire]:
    """Return the clusters for the page, newest first."""
    rows = []
    for control in reversed(list(emr.controls.values())):
        with control.changed:
            cluster = control.cluster
            rows.append(
                {
                    "name": cluster.request["Name"],
                    "id": cluster.id,
                    "state": cluster.state,
                    "region": cluster.region,
                    "created": f"{cluster.timeline['CreationDateTime']:%H:%M:%S} UTC",
                    "seconds": _seconds(cluster.timeline, "CreationDateTime"),
                    "reason": cluster.reason.get("Message", ""),
                    "logs_note": _missing_logs_note(cluster.request.get("LogUri")),
                    "steps": [
                        {
                            "name": step.config["Name"],
                            "id": step.id,
                            "state": step.state,
                            "failure": step.failure.get("Message", ""),
                            "seconds": _seconds(step.timeline, "StartDateTime"),
                            "logs": _logs(data, f"{cluster.id}/var/log/hadoop/steps/{step.id}"),
                        }
                        for step in cluster.steps
                    ],
                }
            )
    return rows


def _missing_logs_note(log_uri: str | None) -> str:
    """Return why the logs of a cluster are not in S3; empty if they are."""
    if log_uri is None:
        return "The cluster has no LogUri: its logs are only on this page."
    exists = bucket_exists(urlsplit(log_uri).netloc)
    return "" if exists else f"The bucket of LogUri {log_uri} does not exist: the logs are only on this page."


def _logs(data: Path, folder: str) -> list[tuple[str, str]]:
    """Return the name and link of each log file that exists."""
    return [
        (name, f"{LOGS_PREFIX}{folder}/{name}") for name in LOG_FILES if (data / "clusters" / folder / name).is_file()
    ]


def _buckets() -> list[Wire]:
    """Return the buckets of all partitions for the page, sorted by name."""
    rows = []
    for backend in s3_backends[DEFAULT_ACCOUNT_ID].values():
        for bucket in list(backend.buckets.values()):
            sizes = [key.size for key in list(bucket.keys.values())]
            rows.append({"name": bucket.name, "objects": len(sizes), "megabytes": f"{sum(sizes) / 1e6:.1f}"})
    return sorted(rows, key=lambda bucket: str(bucket["name"]))
