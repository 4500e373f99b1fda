"""Decode images of unknown origin into RGB pixels. This module uses no storage client: the caller passes the bytes."""

import io
import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from orchard_spark.rejects import RejectedObject

# No other format: Pillow's EPS decoder starts Ghostscript, and some rare decoders take minutes on a crafted file.
# MPO, which phones write, is a JPEG followed by more pictures; Pillow opens it through its JPEG plugin.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
DEFAULT_MAX_PIXELS = 50_000_000

_EIGHT_BIT_SHIFT = {"I;16": 8, "I;16B": 8, "I;16L": 8, "I;16N": 8}

RgbPixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ImageInfo:
    """The format of an image, and its width and height in pixels as stored, before EXIF orientation is applied."""

    format: str
    width: int
    height: int


def decode(content: bytes, max_pixels: int = DEFAULT_MAX_PIXELS) -> tuple[Image.Image, ImageInfo]:
    """Return the first frame as an upright RGB image, with transparent parts on white.

    Raises:
        RejectedObject: the bytes are empty, of another format, too large, or broken.
    """
    if not content:
        raise RejectedObject("empty", "0 bytes")
    try:
        # Pillow warns between its own pixel limit and twice that limit; max_pixels is checked below.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            info = ImageInfo(str(image.format), image.width, image.height)
            if image.width * image.height > max_pixels:
                raise RejectedObject("too_many_pixels", f"{image.width} x {image.height} pixels, over {max_pixels}")
            image.load()
            return _on_white(ImageOps.exif_transpose(image)), info
    except RejectedObject:
        raise
    except UnidentifiedImageError as error:
        raise RejectedObject("unknown_format", f"starts with {content[:16].hex(' ')}") from error
    except Image.DecompressionBombError as error:
        raise RejectedObject("too_many_pixels", str(error)) from error
    except Exception as error:  # Pillow's plugins raise OSError, ValueError, TypeError, SyntaxError, struct.error, ...
        raise RejectedObject("undecodable", f"{type(error).__name__}: {error}") from error


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode in _EIGHT_BIT_SHIFT:
        # Pillow's own conversion clips 16-bit values at 255 instead of scaling them.
        image = Image.fromarray((np.asarray(image) >> _EIGHT_BIT_SHIFT[image.mode]).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def to_model_input(image: Image.Image, size_px: int) -> RgbPixels:
    """Return the image as uint8 pixels [size_px, size_px, 3].

    Resized with Pillow's bicubic filter, as the Keras reference features were.
    """
    return np.asarray(image.resize((size_px, size_px), Image.Resampling.BICUBIC))
