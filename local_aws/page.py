"""The page at `/`: clusters with their steps, times and logs, and the buckets. It renews itself."""

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from wsgiref.types import WSGIEnvironment

from jinja2 import Environment
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from werkzeug.exceptions import NotFound
from werkzeug.security import safe_join
from werkzeug.wrappers import Request, Response

from local_aws.emr.model import Wire, now
from local_aws.emr.service import Emr

LOGS_PREFIX = "/_local_aws/logs/"
RENEW_SECONDS = 2
LOG_FILES = ("controller", "stdout", "stderr")

_TEMPLATE = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
    Path(__file__).with_suffix(".html").read_text()
)


def is_for_a_person(environ: WSGIEnvironment) -> bool:
    """Whether a browser asks for the page or a log; a client of S3 signs its requests, also `GET /` for ListBuckets."""
    unsigned = "HTTP_AUTHORIZATION" not in environ and not environ.get("QUERY_STRING")
    path = environ["PATH_INFO"]
    return unsigned and environ["REQUEST_METHOD"] == "GET" and (path == "/" or path.startswith(LOGS_PREFIX))


def respond(request: Request, emr: Emr, data: Path) -> Response:
    """The page, or the log of a step or bootstrap action as text."""
    if request.path == "/":
        html = _TEMPLATE.render(clusters=_clusters(emr, data), buckets=_buckets(), renew_seconds=RENEW_SECONDS)
        return Response(html, content_type="text/html; charset=utf-8")
    file = safe_join(str(data / "clusters"), request.path.removeprefix(LOGS_PREFIX))
    if file is None or "/var/log/" not in file or not Path(file).is_file():
        return NotFound(f"there is no log {request.path}").get_response()
    return Response(Path(file).read_bytes(), content_type="text/plain; charset=utf-8")


def _seconds(timeline: Wire, begin: str, now: Any) -> str:
    began = timeline.get(begin)
    return "" if began is None else f"{(timeline.get('EndDateTime', now) - began).total_seconds():.1f}"


def _clusters(emr: Emr, data: Path) -> list[Wire]:
    """What the page shows of each cluster, newest first."""
    shown = []
    for life in reversed(list(emr.lives.values())):
        with life.changed:
            cluster = life.cluster
            shown.append(
                {
                    "name": cluster.request["Name"],
                    "id": cluster.id,
                    "state": cluster.state,
                    "region": cluster.region,
                    "created": f"{cluster.timeline['CreationDateTime']:%H:%M:%S} UTC",
                    "seconds": _seconds(cluster.timeline, "CreationDateTime", now()),
                    "reason": cluster.reason.get("Message", ""),
                    "no_logs": _why_no_logs(cluster.request.get("LogUri")),
                    "steps": [
                        {
                            "name": step.config["Name"],
                            "id": step.id,
                            "state": step.state,
                            "failure": step.failure.get("Message", ""),
                            "seconds": _seconds(step.timeline, "StartDateTime", now()),
                            "logs": _logs(data, f"{cluster.id}/var/log/hadoop/steps/{step.id}"),
                        }
                        for step in cluster.steps
                    ],
                }
            )
    return shown


def _why_no_logs(log_uri: str | None) -> str:
    """Why a cluster's logs are nowhere but on this page; nothing, if S3 has them."""
    if log_uri is None:
        return "No LogUri: the logs are only here."
    bucket = urlsplit(log_uri).netloc
    known = any(bucket in backend.buckets for backend in s3_backends[DEFAULT_ACCOUNT_ID].values())
    return "" if known else f"There is no bucket for LogUri {log_uri}: the logs are only here."


def _logs(data: Path, folder: str) -> list[tuple[str, str]]:
    """The logs that are there, by name, with the address of each."""
    return [
        (name, f"{LOGS_PREFIX}{folder}/{name}") for name in LOG_FILES if (data / "clusters" / folder / name).is_file()
    ]


def _buckets() -> list[Wire]:
    """The buckets of all partitions, as moto keeps them."""
    shown = []
    for backend in s3_backends[DEFAULT_ACCOUNT_ID].values():
        for bucket in list(backend.buckets.values()):
            sizes = [key.size for key in list(bucket.keys.values())]
            shown.append({"name": bucket.name, "objects": len(sizes), "megabytes": f"{sum(sizes) / 1e6:.1f}"})
    return sorted(shown, key=lambda bucket: str(bucket["name"]))
