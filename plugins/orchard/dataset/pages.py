"""Request the pages of ListObjectsV2, and read them with a faster XML parser than botocore's.

botocore computes 50 to 80 ms for a page of 1,000 objects, which would limit all threads of a process together to 20
pages per second. Here it is 6 ms. Everything else stays botocore's: endpoint, signature, retries, redirects, errors.
"""

import gc
import io
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus

from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from urllib3 import HTTPResponse

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

ROOT = "ListBucketResult"
NO_OBJECTS = f"<{ROOT}/>".encode()
OBJECTS_BETWEEN_COLLECTIONS = 10_000


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page of a listing: one column per field, in the order of the keys. `folders` are its common prefixes.

    `restored` has the positions of the objects that are restored from an archive. `token` continues the listing.
    """

    keys: Sequence[str]
    etags: Sequence[str]
    sizes: Sequence[str]
    modified: Sequence[str]
    storage_classes: Sequence[str]
    restored: frozenset[int]
    folders: Sequence[str]
    token: str | None


Request = Callable[..., Page]


def parse_page(body: bytes) -> Page | None:
    """Return the page in a response of ListObjectsV2, or None if the response is an error or incomplete."""
    try:
        root = ElementTree.fromstring(body)  # noqa: S314  # expat limits the expansion of entities
    except ElementTree.ParseError:
        return None
    if not root.tag.endswith(ROOT):
        return None
    namespace = root.tag.removesuffix(ROOT)
    decode = unquote_plus if root.findtext(f"{namespace}EncodingType") == "url" else str
    items = root.findall(f"{namespace}Contents")

    def column(field: str, default: str = "") -> list[str]:
        return [item.findtext(f"{namespace}{field}", default) for item in items]

    restored: list[int] = []
    if b"<RestoreExpiryDate>" in body:
        expiry = f"{namespace}RestoreStatus/{namespace}RestoreExpiryDate"
        restored = [position for position, item in enumerate(items) if item.find(expiry) is not None]
    truncated = root.findtext(f"{namespace}IsTruncated") == "true"
    return Page(
        keys=[decode(key) for key in column("Key")],
        etags=column("ETag"),
        sizes=column("Size"),
        modified=column("LastModified"),
        storage_classes=column("StorageClass", "STANDARD"),
        restored=frozenset(restored),
        folders=[decode(found.text or "") for found in root.iterfind(f"{namespace}CommonPrefixes/{namespace}Prefix")],
        token=root.findtext(f"{namespace}NextContinuationToken") if truncated else None,
    )


@contextmanager
def rare_collections() -> Iterator[None]:
    """Let Python look for garbage less often while the context is open.

    A page is read into 9,000 objects, and Python would look through those of all threads after each 700. That took 40 %
    of the time of a listing. The objects are freed without it.
    """
    before = gc.get_threshold()
    gc.set_threshold(max(OBJECTS_BETWEEN_COLLECTIONS, before[0]) if before[0] else 0, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def connections(s3: "S3Client") -> int:
    """Return how many requests a client makes at the same time without opening a new connection for each."""
    config: Any = s3.meta.config
    return int(config.max_pool_connections)


@contextmanager
def page_requests(s3: "S3Client", bucket: str, prefix: str) -> Iterator[Request]:
    """Provide a function that requests a page of a listing, for several threads.

    Its arguments are further arguments of ListObjectsV2. It raises botocore's errors.
    """
    client: Any = s3
    calls = threading.local()

    def send(request: AWSPreparedRequest, **_: Any) -> AWSResponse | None:
        if not getattr(calls, "ours", False):
            return None  # another thread uses the client, too
        response: AWSResponse = client._endpoint.http_session.send(request)
        calls.page = parse_page(response.content) if response.status_code == 200 else None
        if calls.page is None:
            return response
        headers: Any = response.headers
        empty = HTTPResponse(io.BytesIO(NO_OBJECTS), preload_content=False)
        return AWSResponse(response.url, response.status_code, headers, empty)

    def request(**arguments: str) -> Page:
        calls.ours = True
        calls.page = None
        try:
            client.list_objects_v2(
                Bucket=bucket, Prefix=prefix, OptionalObjectAttributes=["RestoreStatus"], **arguments
            )
            if calls.page is None:
                raise RuntimeError(f"ListObjectsV2 of {bucket}/{prefix} was answered without a request to S3")
            page: Page = calls.page
            return page
        finally:
            calls.ours, calls.page = False, None

    event = "before-send.s3.ListObjectsV2"
    client.meta.events.register_first(event, send)
    try:
        yield request
    finally:
        client.meta.events.unregister(event, send)
