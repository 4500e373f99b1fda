"""Decode images of unknown origin, and say in a fixed vocabulary what is wrong with those that do not decode."""

import io
import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from orchard_spark.objects import ObjectChanged, ObjectGone, UnreadableKey

# Nothing else: Pillow's EPS decoder starts Ghostscript, and some rare decoders take minutes over a crafted file.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
DEFAULT_MAX_PIXELS = 50_000_000

# Why an object is refused, by the code that stands in `rejects.reason`. Add codes, never rename one: people filter by
# them.
REASONS = {
    "unreadable_key": "the object's key cannot be named in a Hadoop path",
    "deleted": "the object was deleted after it was listed",
    "changed": "the object was overwritten after it was listed",
    "empty": "the object has no bytes",
    "unknown_format": "the bytes are not a JPEG, PNG, WebP or BMP image",
    "too_many_pixels": "the image has more pixels than max_pixels",
    "undecodable": "the image is of a known format, but broken or cut short",
}

# MPO is a JPEG with further pictures behind it, as phones write it; Pillow finds it through its JPEG plugin.
_EIGHT_BIT_SHIFT = {"I;16": 8, "I;16B": 8, "I;16L": 8, "I;16N": 8}

RgbPixels = npt.NDArray[np.uint8]


class RejectedImage(Exception):
    """An object that is not taken into the dataset."""

    def __init__(self, reason: str, message: str) -> None:
        assert reason in REASONS, reason
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class ImageInfo:
    """What an image is; width and height in pixels as stored, before its EXIF orientation is applied."""

    format: str
    width: int
    height: int


def rejection(fault: Exception) -> RejectedImage:
    """The rejection that stands for a fault met while an object was read.

    Raises:
        Exception: the fault itself when it is not a fault of the object.
    """
    match fault:
        case RejectedImage():
            return fault
        case UnreadableKey():
            return RejectedImage("unreadable_key", str(fault))
        case ObjectGone():
            return RejectedImage("deleted", str(fault))
        case ObjectChanged():
            return RejectedImage("changed", str(fault))
        case _:
            raise fault


def decode(content: bytes, max_pixels: int = DEFAULT_MAX_PIXELS) -> tuple[Image.Image, ImageInfo]:
    """The first frame as an upright RGB image, transparent parts on white.

    Raises:
        RejectedImage: the bytes are empty, of another format, too large, or broken.
    """
    if not content:
        raise RejectedImage("empty", "0 bytes")
    try:
        # Pillow warns between its own pixel limit and twice that; ours is checked below.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            info = ImageInfo(str(image.format), image.width, image.height)
            if image.width * image.height > max_pixels:
                raise RejectedImage("too_many_pixels", f"{image.width} x {image.height} pixels, over {max_pixels}")
            image.load()
            return _on_white(ImageOps.exif_transpose(image)), info
    except RejectedImage:
        raise
    except UnidentifiedImageError as error:
        raise RejectedImage("unknown_format", f"starts with {content[:16].hex(' ')}") from error
    except Image.DecompressionBombError as error:
        raise RejectedImage("too_many_pixels", str(error)) from error
    except Exception as error:  # Pillow's plugins raise OSError, ValueError, TypeError, SyntaxError, struct.error, ...
        raise RejectedImage("undecodable", f"{type(error).__name__}: {error}") from error


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode in _EIGHT_BIT_SHIFT:
        # Pillow's own conversion clips 16 bits at 255 instead of scaling.
        image = Image.fromarray((np.asarray(image) >> _EIGHT_BIT_SHIFT[image.mode]).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def to_model_input(image: Image.Image, size_px: int) -> RgbPixels:
    """The image as uint8 pixels [size_px, size_px, 3], resized as Keras's reference features were: Pillow's bicubic."""
    return np.asarray(image.resize((size_px, size_px), Image.Resampling.BICUBIC))
