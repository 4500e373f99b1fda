"""Thumbnails of a dataset's images: one as a response, or many in one picture."""

import io
import math
import re
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError
from PIL import Image

from orchard.dataset.keys import is_unreadable
from orchard.report.image_files import TooManyPixels, Undecodable, small_picture
from orchard.run.params import DEFAULT_MAX_BYTES, DEFAULT_MAX_PIXELS
from orchard.storage import split_uri

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CONTENT_TYPE = "image/webp"
QUALITY = 80
# Changes with the pictures that this module makes of the same object.
VERSION = 1
MOST_PIXELS = 1024
# A WebP has at most 16,383 pixels in each direction: https://developers.google.com/speed/webp/faq
LONGEST_WEBP = 16_383
# How a sheet gets smaller until it fits: in this order.
SHEET_QUALITIES = (80, 65, 50, 35, 20)
LEAST_CELL = 16


class ThumbnailError(Exception):
    """An object has no thumbnail. The message says why, as plain text that contains its path."""


class Refused(ThumbnailError):
    """The path is not below the dataset, or clients of object stores would read another object."""


class Missing(ThumbnailError):
    """The object has been deleted or archived since the run."""


class TooLarge(ThumbnailError):
    """The object has more bytes or pixels than allowed."""


class NotDecodable(ThumbnailError):
    """The object is no image that Orchard reads."""


class AccessDenied(ThumbnailError):
    """The API server may not read the object."""


class Unreachable(ThumbnailError):
    """S3 has not responded, or has responded with an error that may be temporary."""


@dataclass(frozen=True)
class Thumbnail:
    """A small picture: the bytes of a response, its Content-Type, and its ETag with the quotation marks."""

    content: bytes
    content_type: str
    etag: str


def thumbnail(
    s3: "S3Client",
    dataset_uri: str,
    path: str,
    *,
    pixels: int = 96,
    max_bytes: int = DEFAULT_MAX_BYTES,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Thumbnail:
    """Read an object of a dataset, and make a picture of it whose longer side has at most `pixels` pixels.

    Nothing but the exact object is read, and nothing of it if it has more than `max_bytes`. `path` is its URI as in the
    tables. Whether the tables hold it is not checked here.

    Raises:
        ThumbnailError: one of its subclasses. Nothing else is raised for what is wrong with the object or with S3.
    """
    bucket, key = _place(dataset_uri, path)
    side = max(1, min(pixels, MOST_PIXELS))
    suffix = f"-{side}-{VERSION}"
    try:
        answer = s3.get_object(Bucket=bucket, Key=key)
        with closing(answer["Body"]) as body:
            if answer["ContentLength"] > max_bytes:
                raise TooLarge(f"{path} has {answer['ContentLength']} bytes, over {max_bytes}")
            content = body.read()
    except ClientError as error:
        raise _refusal(error, path) from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise AccessDenied(f"{path} cannot be read: {error}. Give the API server credentials for S3") from error
    except BotoCoreError as error:
        raise Unreachable(f"{path} cannot be read: {error}") from error
    etag = re.sub(r"[^0-9A-Za-z-]", "", answer["ETag"])[:100]
    return Thumbnail(_encode(_picture(content, path, side, max_pixels), QUALITY), CONTENT_TYPE, f'"{etag}{suffix}"')


def _place(dataset_uri: str, path: str) -> tuple[str, str]:
    """Return the bucket and the key of an object of a dataset.

    Raises:
        Refused: it is not below the dataset, or a client would remove parts of the key.
    """
    if not path.startswith(dataset_uri) or path == dataset_uri:
        raise Refused(f"{path} is no object of {dataset_uri}")
    bucket, key = split_uri(path)
    if is_unreadable(key):
        raise Refused(f"{path} has a part that is empty, . or .., or a control character")
    return bucket, key


def _refusal(error: ClientError, path: str) -> ThumbnailError:
    code = error.response["Error"]["Code"]
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code == "InvalidObjectState":
        return Missing(f"{path} is archived: restore it with `aws s3api restore-object`")
    if status == 404:
        return Missing(f"{path} does not exist any more")
    if status in (401, 403):
        return AccessDenied(f"{path} cannot be read: {code}. Allow the API server s3:GetObject for the dataset")
    return Unreachable(f"{path} cannot be read: {code}")


def _picture(content: bytes, path: str, side: int, max_pixels: int) -> Image.Image:
    try:
        return small_picture(content, side, max_pixels)
    except TooManyPixels as error:
        raise TooLarge(f"{path} has {error}") from error
    except Undecodable as error:
        raise NotDecodable(f"{path} cannot be decoded: {error}") from error


def _encode(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality, method=4)
    return buffer.getvalue()


@dataclass(frozen=True)
class Sprite:
    """Many thumbnails in one picture, in cells of the same size, row by row.

    `positions` has the left and the top of the cell of each thumbnail in pixels, or None if it is not in the picture.
    The parts of a cell beside its thumbnail are transparent.
    """

    content: bytes
    content_type: str
    columns: int
    cell: int  # the width and height of a cell in pixels
    width: int
    height: int
    positions: list[tuple[int, int] | None]


def sprite_sheet(thumbnails: Sequence[Thumbnail | None], pixels: int = 48, *, max_bytes: int = 1_500_000) -> Sprite:
    """Put thumbnails into one picture of at most `max_bytes`, in cells of at most `pixels` pixels.

    If it has more bytes, its quality is lowered, then the size of its cells; at last, thumbnails at the end are left
    out. None, and a thumbnail that cannot be decoded, has no cell.
    """
    images: dict[int, Image.Image] = {}
    for number, found in enumerate(thumbnails):
        if found is not None:
            try:
                images[number] = small_picture(found.content, pixels, MOST_PIXELS**2)
            except (Undecodable, TooManyPixels):
                continue
    numbers, cell = list(images), pixels
    while numbers:
        columns = math.ceil(math.sqrt(len(numbers)))
        sheet = _sheet([images[number] for number in numbers], columns, cell)
        for quality in SHEET_QUALITIES if max(sheet.size) <= LONGEST_WEBP else ():
            content = _encode(sheet, quality)
            if len(content) <= max_bytes:
                places: list[tuple[int, int] | None] = [None] * len(thumbnails)
                for place, number in enumerate(numbers):
                    places[number] = (place % columns * cell, place // columns * cell)
                return Sprite(content, CONTENT_TYPE, columns, cell, *sheet.size, places)
        if cell > LEAST_CELL:
            cell = max(LEAST_CELL, cell * 3 // 4)
        else:
            numbers = numbers[: len(numbers) // 2]
    return Sprite(b"", CONTENT_TYPE, 0, cell, 0, 0, [None] * len(thumbnails))


def _sheet(images: Sequence[Image.Image], columns: int, cell: int) -> Image.Image:
    sheet = Image.new("RGBA", (columns * cell, -(-len(images) // columns) * cell))
    for place, image in enumerate(images):
        small = image.copy()
        small.thumbnail((cell, cell), Image.Resampling.LANCZOS)
        left, top = place % columns * cell, place // columns * cell
        sheet.paste(small, (left + (cell - small.width) // 2, top + (cell - small.height) // 2))
    return sheet
