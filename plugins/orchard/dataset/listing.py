"""Count the images below a dataset's prefix."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchard.errors import PermanentError
from orchard.storage import split_uri

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# The same as orchard_spark.dataset.IMAGE_ENDINGS, which Airflow cannot import. A test compares the two.
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class NoImages(PermanentError):
    """A dataset's prefix contains no image."""

    def __init__(self, uri: str, other_objects: int) -> None:
        super().__init__(
            f"no images below {uri} (other objects: {other_objects}). Use a prefix with one folder per label "
            f"and objects that end in {', '.join(IMAGE_ENDINGS)}"
        )


@dataclass(frozen=True)
class DatasetSize:
    """The number of images in a dataset and their total size in bytes."""

    images: int
    bytes: int


def is_image(key: str) -> bool:
    """Return whether a key, relative to the dataset's prefix, names an image.

    The key has the file extension of an image, and no part of it starts with a dot.

    >>> is_image("Kiwi/1.JPG"), is_image("Kiwi/._1.jpg"), is_image("Kiwi/notes.txt")
    (True, False, False)
    """
    return not any(part.startswith(".") for part in key.split("/")) and key.lower().endswith(IMAGE_ENDINGS)


def measure_dataset(s3: "S3Client", uri: str) -> DatasetSize:
    """List a dataset's prefix and count its images.

    Raises:
        NoImages: the prefix contains no image.
    """
    bucket, prefix = split_uri(uri)
    images = image_bytes = others = 0
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for item in page.get("Contents", []):
            if is_image(item["Key"].removeprefix(prefix)):
                images += 1
                image_bytes += item["Size"]
            else:
                others += 1
    if images == 0:
        raise NoImages(uri, others)
    return DatasetSize(images, image_bytes)
