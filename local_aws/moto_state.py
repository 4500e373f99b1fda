"""What moto holds, kept on disk: each object of S3's as it is, and of all else the requests that changed something."""

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
from local_aws.state import StateFolder

log = logging.getLogger(__name__)

OBJECTS: Final = "objects"
REQUESTS: Final = "requests"
# How operations begin that change nothing.
_READING = re.compile(r"(Assume|BatchGet|Check|Decode|Describe|Get|Head|List|Query|Scan|Search|Select|Simulate)")
_LOCKS: Final = 64


def operation_of(environ: WSGIEnvironment, body: bytes) -> str | None:
    """The operation of a request of the JSON or the query protocol; None of REST, where only the method tells.

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
    """What a request to S3 is about; the bucket is in the path, or before `.localhost` in the host.

    >>> bucket_and_key({"HTTP_HOST": "127.0.0.1:5000", "PATH_INFO": "/fruits/a/1.jpg"})
    ('fruits', 'a/1.jpg')
    >>> bucket_and_key({"HTTP_HOST": "fruits.localhost:5000", "PATH_INFO": "/a/1.jpg"})
    ('fruits', 'a/1.jpg')
    """
    # WSGI gives the path's bytes as Latin-1.
    path = environ["PATH_INFO"].encode("latin-1").decode(errors="replace").removeprefix("/")
    host = environ.get("HTTP_HOST", "").partition(":")[0]
    if host.endswith(".localhost"):
        return host.removesuffix(".localhost"), path
    bucket, _, key = path.partition("/")
    return bucket, key


class MotoState:
    """Stands before moto's application: what changes it is on disk before the answer is given."""

    def __init__(self, folder: StateFolder, moto: WSGIApplication) -> None:
        self._folder = folder
        self._moto = moto
        self._requests = threading.Lock()
        self._objects = [threading.Lock() for _ in range(_LOCKS)]

    def restore(self) -> None:
        """Fill moto with what the folder holds.

        Raises:
            UnusableState: the folder cannot be read.
        """
        _load_managed_policies()
        requests = objects = 0
        for seed, environ, body in self._folder.read_appended(REQUESTS):
            self._replay(seed, environ, body)
            requests += 1
        for bucket_name, key, versions, tags in self._folder.read(OBJECTS):
            for backend, bucket in _find(bucket_name):
                bucket.keys.setlist(key, versions)
                backend.tagger.tags |= tags
            objects += 1
        if requests or objects:
            log.info("restored %d objects and %d other changes", objects, requests)

    def answer(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Have moto answer, and keep what it changes."""
        if service_of(environ) in (None, "s3"):
            return self._answer_s3(environ, start_response)
        body = _take_body(environ)
        operation = operation_of(environ, body)
        if _READING.match(operation) if operation else environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return self._moto(environ, start_response)
        return self._answer_change(environ, body, start_response)

    def _answer_s3(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in ("GET", "HEAD", "OPTIONS"):
            return self._moto(environ, start_response)
        bucket, key = bucket_and_key(environ)
        if key:
            answer = self._moto(environ, start_response)
            self._keep_object(bucket, key)
            return answer
        body = _take_body(environ)
        if environ["REQUEST_METHOD"] == "POST":
            answer = self._moto(environ, start_response)
            for name in _named_keys(body):
                self._keep_object(bucket, name)
            return answer
        return self._answer_change(environ, body, start_response)

    def _answer_change(self, environ: WSGIEnvironment, body: bytes, start_response: StartResponse) -> Iterable[bytes]:
        """Have moto change something, in a way that it can be made to repeat: its ids come from its random numbers."""
        status = ""

        def note_status(line: str, *arguments: Any) -> Any:
            nonlocal status
            status = line
            return start_response(line, *arguments)

        seed = secrets.randbits(64)
        asked = {key: value for key, value in environ.items() if isinstance(value, str)}
        with self._requests:
            if (refused := glue.refusal(environ, body)) is not None:
                return refused(environ, start_response)
            mock_random.seed(seed)
            answer = self._moto(environ, note_status)
            if status < "3":
                self._folder.append(REQUESTS, (seed, asked, body))
        return answer

    def _replay(self, seed: int, environ: dict[str, Any], body: bytes) -> None:
        said: list[str] = []
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
            said.append(line)
            return lambda _: None

        mock_random.seed(seed)
        text = b"".join(self._moto(replayed, note_status))
        if said[-1] >= "3":
            # As when another server of this process has the bucket already.
            asked = operation_of(environ, body) or f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"
            log.warning("%s, done once, is refused now: %s %s", asked, said[-1], text.decode(errors="replace"))

    def _keep_object(self, bucket_name: str, key: str) -> None:
        name = f"{bucket_name}/{key}"
        # Two threads may have changed the object: whoever comes last finds what is there now.
        with self._objects[zlib.crc32(name.encode()) % _LOCKS]:
            for backend, bucket in _find(bucket_name):
                versions = bucket.keys.getlist(key)
                if versions is None:
                    break
                arns = [version.arn for version in versions if hasattr(version, "arn")]
                tags = {arn: backend.tagger.tags[arn] for arn in arns if arn in backend.tagger.tags}
                self._folder.write(OBJECTS, name, (bucket_name, key, versions, tags))
                return
            self._folder.remove(OBJECTS, name)


def _load_managed_policies() -> None:
    """Have AWS's own policies, which `aws emr create-default-roles` attaches: 0.1 s, and 15 MB.

    moto takes them when IAM is first used, and with them random numbers: the requests must not have these.
    """
    default_user_config["iam"]["load_aws_managed_policies"] = True
    iam_backends[DEFAULT_ACCOUNT_ID]["aws"]


def _find(bucket_name: str) -> Iterator[tuple[Any, FakeBucket]]:
    """A bucket and what holds it, if it is there."""
    for backend in s3_backends[DEFAULT_ACCOUNT_ID].values():
        if bucket_name in backend.buckets:
            yield backend, backend.buckets[bucket_name]


def _take_body(environ: WSGIEnvironment) -> bytes:
    """The body of a request, which can then be read once more."""
    size = -1 if environ.get("wsgi.input_terminated") else int(environ.get("CONTENT_LENGTH") or 0)
    body: bytes = environ["wsgi.input"].read(size)
    environ["wsgi.input"] = io.BytesIO(body)
    return body


def _named_keys(body: bytes) -> list[str]:
    """The keys in a DeleteObjects request."""
    try:
        return [key.text or "" for key in ElementTree.fromstring(body).iter() if key.tag.endswith("Key")]  # noqa: S314
    except ElementTree.ParseError:
        return []
