"""Save and restore the state of moto: S3 objects as pickles, everything else as a log of requests to replay."""

import io
import logging
import re
import secrets
import threading
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, Final
from urllib.parse import parse_qs
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment
from xml.etree import ElementTree

from moto.core import DEFAULT_ACCOUNT_ID
from moto.core.config import default_user_config
from moto.iam.models import iam_backends
from moto.moto_api._internal import mock_random
from moto.s3.models import FakeBucket, s3_backends

from local_aws import glue
from local_aws.signature import service_of
from local_aws.simulation import SIMULATE, simulate
from local_aws.state import StateFolder

log = logging.getLogger(__name__)

OBJECTS: Final = "objects"
REQUESTS: Final = "requests"
# The first word of operations that change nothing.
_READ_ONLY = re.compile(r"(Assume|BatchGet|Check|Decode|Describe|Get|Head|List|Query|Scan|Search|Select|Simulate)")
_LOCKS: Final = 64


def operation_of(environ: WSGIEnvironment, body: bytes) -> str | None:
    """Return the operation of a request in the JSON or query protocol; None for REST requests.

    >>> operation_of({"HTTP_X_AMZ_TARGET": "AWSGlue.GetTable"}, b"")
    'GetTable'
    >>> operation_of({"CONTENT_TYPE": "application/x-www-form-urlencoded"}, b"Action=CreateRole&RoleName=a")
    'CreateRole'
    """
    if target := environ.get("HTTP_X_AMZ_TARGET"):
        return str(target).rpartition(".")[2]
    if environ.get("CONTENT_TYPE", "").startswith("application/x-www-form-urlencoded"):
        return "".join(parse_qs(body.decode(errors="replace")).get("Action", [])) or None
    return None


def bucket_and_key(environ: WSGIEnvironment) -> tuple[str, str]:
    """Return the bucket and key of an S3 request; the bucket is in the path, or before `.localhost` in the host name.

    >>> bucket_and_key({"HTTP_HOST": "127.0.0.1:5000", "PATH_INFO": "/fruits/a/1.jpg"})
    ('fruits', 'a/1.jpg')
    >>> bucket_and_key({"HTTP_HOST": "fruits.localhost:5000", "PATH_INFO": "/a/1.jpg"})
    ('fruits', 'a/1.jpg')
    """
    # WSGI passes the bytes of the path as Latin-1.
    path = environ["PATH_INFO"].encode("latin-1").decode(errors="replace").removeprefix("/")
    host = environ.get("HTTP_HOST", "").partition(":")[0]
    if host.endswith(".localhost"):
        return host.removesuffix(".localhost"), path
    bucket, _, key = path.partition("/")
    return bucket, key


def is_conditional(environ: WSGIEnvironment) -> bool:
    """Return whether a request is to be carried out only if the object exists, or does not, or has not changed.

    >>> is_conditional({"HTTP_IF_NONE_MATCH": "*"}), is_conditional({})
    (True, False)
    """
    return "HTTP_IF_NONE_MATCH" in environ or "HTTP_IF_MATCH" in environ


class MotoState:
    """Wraps moto's application, and saves each change before the response is sent."""

    def __init__(self, folder: StateFolder, moto: WSGIApplication) -> None:
        self._folder = folder
        self._moto = moto
        self._requests = threading.Lock()
        self._objects = [threading.Lock() for _ in range(_LOCKS)]
        self._conditions = [threading.Lock() for _ in range(_LOCKS)]

    def restore(self) -> None:
        """Load the saved state into moto.

        Raises:
            UnusableState: the state cannot be read.
        """
        _load_managed_policies()
        requests = objects = 0
        for seed, environ, body in self._folder.read_appended(REQUESTS):
            self._replay(seed, environ, body)
            requests += 1
        for bucket_name, key, versions, tags in self._folder.read(OBJECTS):
            for backend, bucket in _find_bucket(bucket_name):
                bucket.keys.setlist(key, versions)
                backend.tagger.tags |= tags
            objects += 1
        if requests or objects:
            log.info("restored %d objects and %d other changes", objects, requests)

    def answer(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Respond to a request with moto, and save what it changes."""
        if service_of(environ) in (None, "s3"):
            return self._answer_s3(environ, start_response)
        body = read_body(environ)
        operation = operation_of(environ, body)
        if operation == SIMULATE:
            return simulate(body)(environ, start_response)
        if _READ_ONLY.match(operation) if operation else environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return self._moto(environ, start_response)
        return self._answer_change(environ, body, start_response)

    def _answer_s3(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in ("GET", "HEAD", "OPTIONS"):
            return self._moto(environ, start_response)
        bucket, key = bucket_and_key(environ)
        if key and is_conditional(environ):
            read_body(environ)  # a slow client must not hold up others
            # moto checks the condition and writes in two steps: between them, no other request may do the same.
            with self._conditions[zlib.crc32(f"{bucket}/{key}".encode()) % _LOCKS]:
                return self._answer_write(bucket, key, environ, start_response)
        if key:
            return self._answer_write(bucket, key, environ, start_response)
        body = read_body(environ)
        if environ["REQUEST_METHOD"] == "POST":
            answer = self._moto(environ, start_response)
            for name in _parse_keys(body):
                self._save_object(bucket, name)
            return answer
        return self._answer_change(environ, body, start_response)

    def _answer_write(
        self, bucket: str, key: str, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        answer = self._moto(environ, start_response)
        self._save_object(bucket, key)
        return answer

    def _answer_change(self, environ: WSGIEnvironment, body: bytes, start_response: StartResponse) -> Iterable[bytes]:
        """Respond to a request with moto, and log it with a random seed, so that a replay creates the same ids."""
        status = ""

        def note_status(line: str, *arguments: Any) -> Any:
            nonlocal status
            status = line
            return start_response(line, *arguments)

        seed = secrets.randbits(64)
        saved = {key: value for key, value in environ.items() if isinstance(value, str)}
        with self._requests:
            if (rejection := glue.reject_outdated_update(environ, body)) is not None:
                return rejection(environ, start_response)
            mock_random.seed(seed)
            answer = self._moto(environ, note_status)
            if status < "3":
                self._folder.append(REQUESTS, (seed, saved, body))
        return answer

    def _replay(self, seed: int, environ: dict[str, Any], body: bytes) -> None:
        statuses: list[str] = []
        replayed = {
            **environ,
            "wsgi.input": io.BytesIO(body),
            "wsgi.errors": io.StringIO(),
            "wsgi.url_scheme": "http",
            "wsgi.version": (1, 0),
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }

        def note_status(line: str, *_: Any) -> Any:
            statuses.append(line)
            return lambda _: None

        mock_random.seed(seed)
        text = b"".join(self._moto(replayed, note_status))
        if statuses[-1] >= "3":
            # This happens, for example, if another server in this process already has the bucket.
            operation = operation_of(environ, body) or f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"
            log.warning(
                "cannot restore %s: moto responded %s %s", operation, statuses[-1], text.decode(errors="replace")
            )

    def _save_object(self, bucket_name: str, key: str) -> None:
        name = f"{bucket_name}/{key}"
        # Two threads may have changed the object: the last one saves its latest state.
        with self._objects[zlib.crc32(name.encode()) % _LOCKS]:
            for backend, bucket in _find_bucket(bucket_name):
                versions = bucket.keys.getlist(key)
                if versions is None:
                    break
                arns = [version.arn for version in versions if hasattr(version, "arn")]
                tags = {arn: backend.tagger.tags[arn] for arn in arns if arn in backend.tagger.tags}
                self._folder.write(OBJECTS, name, (bucket_name, key, versions, tags))
                return
            self._folder.remove(OBJECTS, name)


def _load_managed_policies() -> None:
    """Load the AWS managed policies, which `aws emr create-default-roles` attaches. This takes 0.1 s and 15 MB.

    Otherwise moto would load them when IAM is first used. It draws random numbers for them, which would change the
    random numbers of a request.
    """
    default_user_config["iam"]["load_aws_managed_policies"] = True
    iam_backends[DEFAULT_ACCOUNT_ID]["aws"]


def _find_bucket(bucket_name: str) -> Iterator[tuple[Any, FakeBucket]]:
    """Yield the bucket with its backend, if it exists."""
    for backend in s3_backends[DEFAULT_ACCOUNT_ID].values():
        if bucket_name in backend.buckets:
            yield backend, backend.buckets[bucket_name]


def read_body(environ: WSGIEnvironment) -> bytes:
    """Read the body of a request so that it can be read again."""
    size = -1 if environ.get("wsgi.input_terminated") else int(environ.get("CONTENT_LENGTH") or 0)
    body: bytes = environ["wsgi.input"].read(size)
    environ["wsgi.input"] = io.BytesIO(body)
    return body


def _parse_keys(body: bytes) -> list[str]:
    """Return the keys in a DeleteObjects request."""
    try:
        return [key.text or "" for key in ElementTree.fromstring(body).iter() if key.tag.endswith("Key")]  # noqa: S314
    except ElementTree.ParseError:
        return []
