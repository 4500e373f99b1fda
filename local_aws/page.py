"""The web pages: clusters with their steps, times and logs, buckets and their objects. They only read.

All text comes from steps and objects. None of it may act in the browser, because it could run commands on this machine.
"""

import gzip
import mimetypes
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlencode, urlsplit
from wsgiref.types import WSGIEnvironment

from jinja2 import Environment
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import FakeBucket, FakeKey, s3_backends
from werkzeug.exceptions import NotFound
from werkzeug.security import safe_join
from werkzeug.wrappers import Request, Response

from local_aws.emr.model import Wire, now
from local_aws.emr.runner import bucket_exists
from local_aws.emr.service import Emr

LOGS_PREFIX = "/_local_aws/logs/"
CLUSTERS_PREFIX = "/_local_aws/clusters/"
S3_PATH = "/_local_aws/s3"
RELOAD_SECONDS = 2
LOG_FILES = ("controller", "stdout", "stderr")
MOST_ENTRIES = 1000
# What a browser shows of an object. Everything else is downloaded.
_TEXT: Final = (".txt", ".log", ".json", ".csv", ".md", ".py", ".sh", ".xml", ".yaml", ".yml", ".svg", "")
_IMAGES: Final = ("image/jpeg", "image/png", "image/webp", "image/bmp")
_INERT: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
}
# The scripts of a document run, but in an origin of its own, and it loads and sends nothing.
_ISOLATED: Final = {
    "Content-Security-Policy": "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'unsafe-inline'; img-src data: blob:; font-src data:",
    "X-Content-Type-Options": "nosniff",
}

_FOLDER = Path(__file__).parent
_PAGES = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
_TEMPLATE = _PAGES.from_string((_FOLDER / "page.html").read_text())
_OBJECTS_TEMPLATE = _PAGES.from_string((_FOLDER / "objects.html").read_text())


def is_browser_request(environ: WSGIEnvironment) -> bool:
    """Return whether a browser requests a page or a log.

    S3 clients send `GET /` for ListBuckets, too, but sign it.
    """
    path = environ["PATH_INFO"]
    if "HTTP_AUTHORIZATION" in environ or environ["REQUEST_METHOD"] != "GET":
        return False
    if path == "/":
        return not environ.get("QUERY_STRING")
    is_cluster = path.startswith(CLUSTERS_PREFIX) and "/" not in path.removeprefix(CLUSTERS_PREFIX)
    return path == S3_PATH or path.startswith(LOGS_PREFIX) or is_cluster


def respond(request: Request, emr: Emr, data: Path) -> Response:
    """Return the page of all clusters or of one, the log of a command as text, or objects of S3."""
    path = request.path
    if path == "/":
        return _page(_TEMPLATE.render(clusters=_clusters(emr, data), buckets=_buckets(), reload_seconds=RELOAD_SECONDS))
    if path == S3_PATH:
        return _objects(request.args.get("bucket", ""), request.args.get("prefix", ""), request.args.get("key"))
    if path.startswith(CLUSTERS_PREFIX):
        cluster_id = path.removeprefix(CLUSTERS_PREFIX)
        if cluster_id not in emr.controls:
            return _not_found(f"cluster {cluster_id} does not exist")
        return _page(_TEMPLATE.render(clusters=_clusters(emr, data, cluster_id), reload_seconds=RELOAD_SECONDS))
    file = safe_join(str(data / "clusters"), path.removeprefix(LOGS_PREFIX))
    if file is None or "/var/log/" not in file or not Path(file).is_file():
        return _not_found(f"log {path} does not exist")
    return _text(Path(file).read_bytes())


def _page(html: str) -> Response:
    return Response(html, content_type="text/html; charset=utf-8")


def _text(content: bytes) -> Response:
    return Response(content, content_type="text/plain; charset=utf-8", headers=_INERT)


def _not_found(text: str) -> Response:
    response = NotFound(text).get_response()
    response.headers.update(_INERT)
    return response


def _seconds(timeline: Wire, start_key: str) -> str:
    start = timeline.get(start_key)
    return "" if start is None else f"{(timeline.get('EndDateTime', now()) - start).total_seconds():.1f}"


def _clusters(emr: Emr, data: Path, cluster_id: str | None = None) -> list[Wire]:
    """Return the clusters for the page, newest first, or only one of them."""
    rows = []
    for control in reversed(list(emr.controls.values())):
        with control.changed:
            cluster = control.cluster
            if cluster_id not in (None, cluster.id):
                continue
            rows.append(
                {
                    "name": cluster.request["Name"],
                    "id": cluster.id,
                    "href": f"{CLUSTERS_PREFIX}{cluster.id}",
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


def _all_buckets() -> Iterator[FakeBucket]:
    """Yield the buckets of all partitions."""
    for backend in s3_backends[DEFAULT_ACCOUNT_ID].values():
        yield from list(backend.buckets.values())


def _buckets() -> list[Wire]:
    """Return the buckets for the page, sorted by name."""
    rows = []
    for bucket in _all_buckets():
        # In a versioned bucket, a delete marker takes the place of a deleted object.
        sizes = [key.size for key in list(bucket.keys.values()) if isinstance(key, FakeKey)]
        rows.append(
            {
                "name": bucket.name,
                "href": _link(bucket=bucket.name),
                "objects": len(sizes),
                "megabytes": f"{sum(sizes) / 1e6:.1f}",
            }
        )
    return sorted(rows, key=lambda bucket: str(bucket["name"]))


def _link(**query: str) -> str:
    """Return the link to a folder of S3, or to an object.

    A query and not a path, because browsers change paths that contain `..` or `//`, which keys may contain.

    >>> _link(bucket="b", key="a b/../&c")
    '/_local_aws/s3?bucket=b&key=a+b%2F..%2F%26c'
    """
    return f"{S3_PATH}?{urlencode(query)}"


def _objects(bucket_name: str, prefix: str, key: str | None) -> Response:
    """Return the page of a folder of S3, or an object."""
    found = next((bucket for bucket in _all_buckets() if bucket.name == bucket_name), None)
    if found is None:
        return _not_found(f"bucket {bucket_name} does not exist")
    objects = {name: item for name, item in list(found.keys.items()) if isinstance(item, FakeKey)}
    if key is not None:
        return _object(objects[key]) if key in objects else _not_found(f"s3://{bucket_name}/{key} does not exist")
    below = sorted(name for name in objects if name.startswith(prefix))
    names = {
        prefix + name[len(prefix) :].partition("/")[0] + "/" * ("/" in name[len(prefix) :]): name for name in below
    }
    entries = [_entry(bucket_name, prefix, name, objects) for name in list(names)[:MOST_ENTRIES]]
    parts = prefix.split("/")[:-1]
    parents = [("/".join(parts[:number]) + "/", part) for number, part in enumerate(parts, start=1)]
    html = _OBJECTS_TEMPLATE.render(
        bucket=bucket_name,
        bucket_href=_link(bucket=bucket_name),
        prefix=prefix,
        parents=[(part, _link(bucket=bucket_name, prefix=parent)) for parent, part in parents],
        entries=entries,
        hidden=len(names) - len(entries),
    )
    response = _page(html)
    response.headers.update(_INERT)
    return response


def _entry(bucket_name: str, prefix: str, name: str, objects: dict[str, FakeKey]) -> Wire:
    """Return a row of the page of a folder. A name that is not an object ends in a slash, and is a folder."""
    if name not in objects:
        return {"name": name[len(prefix) :], "href": _link(bucket=bucket_name, prefix=name), "size": "", "modified": ""}
    item = objects[name]
    return {
        "name": name[len(prefix) :] or name,
        "href": _link(bucket=bucket_name, key=name),
        "size": f"{item.size:,}",
        "modified": f"{item.last_modified:%Y-%m-%d %H:%M:%S} UTC",
    }


def _object(item: FakeKey) -> Response:
    """Return an object: text, images and HTML for the browser to show, everything else to download.

    The type comes from the name, because the writer of an object chooses its Content-Type.
    """
    path = Path(item.name)
    content = item.value
    if path.suffix == ".gz":
        try:
            content, path = gzip.decompress(content), path.with_suffix("")
        except (OSError, EOFError, zlib.error):  # it is not what its name says, or incomplete
            path = Path("damaged.bin")
    if path.suffix.lower() in _TEXT:
        return _text(content)
    kind, _ = mimetypes.guess_type(path.name)
    if kind == "text/html":
        return Response(content, content_type="text/html; charset=utf-8", headers=_ISOLATED)
    if kind in _IMAGES:
        return Response(content, content_type=kind, headers=_INERT)
    return Response(
        content,
        content_type="application/octet-stream",
        headers={**_INERT, "Content-Disposition": "attachment"},
    )
