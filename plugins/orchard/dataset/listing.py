"""Count the images below a dataset's prefix, and the images that `ingest` will reject without reading them."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from orchard.errors import PermanentError, is_final
from orchard.storage import split_uri

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# The same as orchard_spark.dataset.IMAGE_ENDINGS, which Airflow cannot import. A test compares the two.
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
# An object of these storage classes can be read only after it is restored. The same as orchard_spark.dataset.ARCHIVES.
ARCHIVES = ("GLACIER", "DEEP_ARCHIVE")
REMEDIES: Mapping[str, str] = {
    "archived": "restore them, or copy them to another storage class",
    "too_many_bytes": "make them smaller, or set a larger max_bytes",
    "empty": "upload them again, or delete them",
    "unreadable_key": "rename them, so that no part of the key is empty, . or .., or has a control character",
}


class NoImages(PermanentError):
    """A dataset's prefix contains no image."""

    def __init__(self, uri: str, other_objects: int) -> None:
        super().__init__(
            f"no images below {uri} (other objects: {other_objects}). Use a prefix with one folder per label "
            f"and objects that end in {', '.join(IMAGE_ENDINGS)}"
        )


class CannotList(PermanentError):
    """S3 refuses to list a dataset, and would refuse it again."""

    def __init__(self, uri: str, error: Exception) -> None:
        super().__init__(f"dataset {uri} cannot be listed: {error}. Use the URI of a bucket that exists")


class TooManyRejects(PermanentError):
    """More images cannot be read than the run tolerates. The listing shows this before anything is read."""

    def __init__(self, uri: str, size: "DatasetSize", max_reject_ratio: float) -> None:
        rejects = sum(size.rejects.values())
        super().__init__(
            f"{rejects} of {size.images} images below {uri} cannot be read, a ratio of {rejects / size.images:.3f}, "
            f"over max_reject_ratio {max_reject_ratio:g}: {describe_rejects(size)}. Or set a higher max_reject_ratio"
        )


@dataclass(frozen=True)
class DatasetSize:
    """The number of images in a dataset, their total size in bytes, and how many `ingest` will reject, by reason."""

    images: int
    bytes: int
    rejects: Mapping[str, int] = field(default_factory=dict)

    @property
    def readable(self) -> int:
        """The number of images that the listing does not exclude."""
        return self.images - sum(self.rejects.values())


def is_image(key: str) -> bool:
    """Return whether a key, relative to the dataset's prefix, names an image.

    The key has the file extension of an image, and no part of it starts with a dot.

    >>> is_image("Kiwi/1.JPG"), is_image("Kiwi/._1.jpg"), is_image("Kiwi/notes.txt")
    (True, False, False)
    """
    return not any(part.startswith(".") for part in key.split("/")) and key.lower().endswith(IMAGE_ENDINGS)


def is_archived(item: Mapping[str, Any]) -> bool:
    """Return whether an object of a listing with RestoreStatus must be restored before it can be read.

    >>> is_archived({"StorageClass": "GLACIER"}), is_archived({"StorageClass": "GLACIER_IR"})
    (True, False)
    """
    restored = "RestoreExpiryDate" in item.get("RestoreStatus", {})
    return item.get("StorageClass") in ARCHIVES and not restored


def reject_reason(item: Mapping[str, Any], max_bytes: int) -> str:
    """Return why `ingest` will reject an image of a listing, or an empty string. The first of several reasons counts.

    >>> [reject_reason({"Key": "images/1.jpg", "Size": size}, max_bytes=9) for size in (0, 9, 10)]
    ['empty', '', 'too_many_bytes']
    """
    key = item["Key"]
    if is_archived(item):
        return "archived"
    if item["Size"] > max_bytes:
        return "too_many_bytes"
    if any(part in ("", ".", "..") for part in key.split("/")) or re.search(r"[\x00-\x1f\x7f]", key):
        return "unreadable_key"
    return "" if item["Size"] else "empty"


def measure_dataset(s3: "S3Client", uri: str, max_bytes: int) -> DatasetSize:
    """List a dataset's prefix and count its images. One of more than `max_bytes` counts as a reject.

    Raises:
        NoImages: the prefix contains no image.
        CannotList: the bucket does not exist.
    """
    bucket, prefix = split_uri(uri)
    images = image_bytes = others = 0
    rejects: Counter[str] = Counter()
    pages = s3.get_paginator("list_objects_v2").paginate(
        Bucket=bucket, Prefix=prefix, OptionalObjectAttributes=["RestoreStatus"]
    )
    try:
        for page in pages:
            for item in page.get("Contents", []):
                if is_image(item["Key"].removeprefix(prefix)):
                    images += 1
                    image_bytes += item["Size"]
                    rejects[reject_reason(item, max_bytes)] += 1
                else:
                    others += 1
    except ClientError as error:
        if is_final(error):
            raise CannotList(uri, error) from error
        raise
    if images == 0:
        raise NoImages(uri, others)
    del rejects[""]
    return DatasetSize(images, image_bytes, dict(rejects))


def describe_rejects(size: DatasetSize) -> str:
    """Return how many images `ingest` will reject for each reason, with the remedy.

    >>> describe_rejects(DatasetSize(9, 9, {"empty": 2}))
    '2 empty (upload them again, or delete them)'
    """
    most_common = sorted(size.rejects.items(), key=lambda item: (-item[1], item[0]))
    return "; ".join(f"{count} {reason} ({REMEDIES[reason]})" for reason, count in most_common)
