"""A dataset is a folder of images on S3: its URI, its name, what lies in it."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchard.errors import WillNotHeal

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# The same as orchard_spark.objects.IMAGE_ENDINGS, which Airflow cannot import; a test compares them.
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class NoImages(WillNotHeal):
    """There is no image below a dataset's prefix."""

    def __init__(self, uri: str, other_objects: int) -> None:
        super().__init__(
            f"no image below {uri}: {other_objects} other objects are there. Give a prefix whose objects end in "
            f"{', '.join(IMAGE_ENDINGS)}, with a folder per label"
        )


@dataclass(frozen=True)
class Contents:
    """How many images a dataset has, and their size together."""

    images: int
    bytes: int


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and key of an S3 URI; a key may hold # and ?, which have a meaning in other URIs.

    >>> split_uri("s3://bucket/lot#3/")
    ('bucket', 'lot#3/')
    """
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def dataset_name(uri: str) -> str:
    """A dataset's name, fit for a folder's name.

    >>> dataset_name("s3://bucket/images/2026 autumn/")
    'images-2026-autumn'
    """
    bucket, prefix = split_uri(uri)
    return re.sub(r"[^0-9A-Za-z._]+", "-", prefix).strip("-.") or bucket


def is_image(key: str) -> bool:
    """Whether a key below the dataset's prefix names an image: an image's ending, and no hidden file or folder.

    >>> is_image("Kiwi/1.JPG"), is_image("Kiwi/._1.jpg"), is_image("Kiwi/notes.txt")
    (True, False, False)
    """
    return not any(part.startswith(".") for part in key.split("/")) and key.lower().endswith(IMAGE_ENDINGS)


def survey(s3: "S3Client", uri: str) -> Contents:
    """Count the images below a dataset's prefix.

    Raises:
        NoImages: there are none.
    """
    bucket, prefix = split_uri(uri)
    images = size = others = 0
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for item in page.get("Contents", []):
            if is_image(item["Key"].removeprefix(prefix)):
                images += 1
                size += item["Size"]
            else:
                others += 1
    if images == 0:
        raise NoImages(uri, others)
    return Contents(images, size)
