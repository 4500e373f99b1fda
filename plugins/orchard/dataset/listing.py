"""List the images below a dataset's prefix in parallel, page by page, and say which of them `ingest` cannot read."""

from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
from botocore.config import Config
from botocore.exceptions import ClientError, ParamValidationError

from orchard.dataset.keys import (
    IMAGE_ENDINGS,
    count_ignored,
    is_archived,
    is_image,
    label,
    most_common_endings,
    reject_message,
    reject_reason,
)
from orchard.dataset.pages import Page, Request, connections, page_requests, rare_collections
from orchard.dataset.ranges import KeyRange, KeyRanges, NotInOrder
from orchard.errors import PermanentError, is_final
from orchard.storage import split_uri

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

WORKERS = 16
# For the client that lists: a connection per worker, no long wait for a page that does not come, and enough retries for
# a bucket that throttles.
CLIENT_CONFIG = Config(
    max_pool_connections=WORKERS,
    connect_timeout=10,
    read_timeout=20,
    retries={"mode": "standard", "total_max_attempts": 10},
)
# The images of a listing. `path` is the full URI, `label` the name of the parent folder. An image with a `reason` is
# rejected without being read.
LISTED = pa.schema(
    [
        ("path", pa.string()),
        ("label", pa.string()),
        ("etag", pa.string()),
        ("size", pa.int64()),
        ("modified", pa.timestamp("us", tz="UTC")),
        ("storage_class", pa.string()),
        ("reason", pa.string()),
        ("message", pa.string()),
    ]
)

REMEDIES: Mapping[str, str] = {
    "archived": "restore them, or copy them to another storage class",
    "too_many_bytes": "make them smaller, or set a larger max_bytes",
    "empty": "upload them again, or delete them",
    "unreadable_key": "rename them, so that no part of the key is empty, . or .., or has a control character",
}


class NoImages(PermanentError):
    """A dataset's prefix contains no image. `ignored` counts its other objects by their ending."""

    def __init__(self, uri: str, ignored: Mapping[str, int]) -> None:
        others = ", ".join(f"{count} {ending}" for ending, count in ignored.items()) or "none"
        super().__init__(
            f"no images below {uri} (other objects: {others}). Use a prefix with one folder per label "
            f"and objects that end in {', '.join(IMAGE_ENDINGS)}"
        )
        self.uri = uri
        self.ignored = ignored


class CannotList(PermanentError):
    """S3 refuses to list a dataset, and would refuse it again."""

    def __init__(self, uri: str, error: Exception) -> None:
        super().__init__(f"dataset {uri} cannot be listed: {error}. Use the URI of a bucket that exists")


class UnorderedBucket(PermanentError):
    """S3 does not list the objects in the order of their keys. Directory buckets are an example."""

    def __init__(self, uri: str, error: NotInOrder) -> None:
        super().__init__(f"dataset {uri} cannot be listed in parallel: {error}. Copy it to a general purpose bucket")


@dataclass(frozen=True)
class Listing:
    """The number of images below a prefix and their total size in bytes.

    `reasons` counts, by reason, the images that `ingest` rejects regardless of their content. `ignored` counts, by
    ending, the objects that are not images.
    """

    images: int
    bytes: int
    reasons: Mapping[str, int]
    ignored: Mapping[str, int]


def list_images(s3: "S3Client", uri: str, max_bytes: int, write: Callable[[pa.RecordBatch], None]) -> Listing:
    """List a dataset's prefix, and pass its images to `write` in batches of LISTED of at most 1,000 rows.

    `write` is called in this thread. The batches have no order: they are pages of several parts of the prefix. At most
    16 requests are made at a time, or as many as the client has connections: see CLIENT_CONFIG.

    Args:
        s3: a client.
        uri: see `orchard.dataset.uri`.
        max_bytes: the size of the largest object that `ingest` reads. A larger one has a reason and a message.
        write: takes a batch. While it does, the next pages are requested.

    Raises:
        NoImages: the prefix contains no image.
        CannotList: the bucket does not exist, or S3 refuses the request itself.
        UnorderedBucket: the keys are not listed in their order.
        ClientError, BotoCoreError: another error, after the client's retries.
    """
    bucket, prefix = split_uri(uri)
    images = image_bytes = 0
    reasons: Counter[str] = Counter()
    ignored: Counter[str] = Counter()
    with (
        rare_collections(),
        page_requests(s3, bucket, prefix) as request,
        closing(_pages(request, uri, connections(s3))) as pages,
    ):
        for page, count in pages:
            found = [position for position in range(count) if is_image(page.keys[position][len(prefix) :])]
            if len(found) < count:
                count_ignored(ignored, (key[len(prefix) :] for key in page.keys[:count]))
            if found:
                batch = _batch(page, found, bucket, max_bytes, reasons)
                images += batch.num_rows
                image_bytes += pc.sum(batch["size"]).as_py()
                write(batch)
    endings = most_common_endings(ignored)
    if images == 0:
        raise NoImages(uri, endings)
    return Listing(images, image_bytes, dict(reasons), endings)


def _pages(request: Request, uri: str, connections: int) -> Generator[tuple[Page, int]]:
    """List a prefix with several threads. Yield each page, and how many of its keys count, from the first one.

    Its other keys are in other pages, too.

    Raises:
        CannotList, UnorderedBucket: see `list_images`.
    """
    _, prefix = split_uri(uri)
    workers = min(WORKERS, connections)
    ranges = KeyRanges(prefix)
    # The request for the folders has no range.
    running: dict[Future[Page], KeyRange | None] = {}
    pool = ThreadPoolExecutor(workers, "list")

    def list_next(part: KeyRange) -> None:
        start = {"ContinuationToken": part.token} if part.token else {"StartAfter": part.after} if part.after else {}
        running[pool.submit(request, **start)] = part

    try:
        list_next(ranges.whole)
        asked_for_folders = False
        while running:
            pages = []
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                part, page = running.pop(future), future.result()
                if part is None:
                    ranges.add_folders(page.folders)
                    continue
                pages.append((page, ranges.advance(part, page.keys, page.token)))
                if part.token:
                    list_next(part)
                if page.token and not asked_for_folders:
                    running[pool.submit(request, Delimiter="/")] = None
                    asked_for_folders = True
            while len(running) < workers and (half := ranges.split()):
                list_next(half)
            yield from pages
    except (ClientError, ParamValidationError) as error:
        if is_final(error):
            raise CannotList(uri, error) from error
        raise
    except NotInOrder as error:
        raise UnorderedBucket(uri, error) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _batch(page: Page, images: Sequence[int], bucket: str, max_bytes: int, reasons: Counter[str]) -> pa.RecordBatch:
    """Return the images at these positions of a page as a batch of LISTED. Count why `ingest` will reject some."""
    paths = [f"s3://{bucket}/{page.keys[position]}" for position in images]
    sizes = [int(page.sizes[position]) for position in images]
    messages: dict[int, tuple[str, str]] = {}
    for row, (position, size) in enumerate(zip(images, sizes, strict=True)):
        storage_class = page.storage_classes[position]
        archived = is_archived(storage_class, restored=position in page.restored)
        if reason := reject_reason(page.keys[position], size, max_bytes, archived=archived):
            reasons[reason] += 1
            if message := reject_message(reason, paths[row], size, max_bytes, storage_class):
                messages[row] = (reason, message)
    rejects = [messages.get(row, (None, None)) for row in range(len(paths))]
    columns = [
        pa.array(paths),
        pa.array([label(path) for path in paths]),
        pc.utf8_trim(pa.array([page.etags[position] for position in images]), '"'),
        pa.array(sizes, pa.int64()),
        pa.array([page.modified[position] for position in images]).cast(LISTED.field("modified").type),
        pa.array([page.storage_classes[position] for position in images]),
        pa.array([reason for reason, _ in rejects], pa.string()),
        pa.array([message for _, message in rejects], pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=LISTED)
