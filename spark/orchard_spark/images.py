"""Decode images of unknown origin into RGB pixels. Imports no storage client: the bytes come from the caller.

Only pixels decide whether an image decodes. Metadata can turn it, and are ignored if they cannot be read.
"""

import io
import re
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from orchard_spark import containers
from orchard_spark.rejects import RejectedObject

# No other format: Pillow's EPS decoder starts Ghostscript, and some rare decoders take minutes on a crafted file.
# MPO, which phones write, is a JPEG followed by more pictures; Pillow opens it through its JPEG plugin.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
DEFAULT_MAX_PIXELS = 50_000_000
# Pixels are converted to RGB in strips of this many, so that a large image is held at most twice.
STRIP_PIXELS = 1024**2

# What decoding holds at once, per pixel: the pixels as stored and as RGB, of four bytes each, or what the decoder
# needs, six bytes of coefficients of a progressive JPEG, two canvases and a copy of a WebP.
_BYTES_PER_PIXEL = {"PNG": 8, "JPEG": 10, "WEBP": 16, "BMP": 8}
MOST_BYTES_PER_PIXEL = max(_BYTES_PER_PIXEL.values())
# A JPEG of fewer bytes has too few pixels to be large.
_SMALL_JPEG_BYTES = 32 * 1024

_EIGHT_BIT_SHIFT = {"I;16": 8, "I;16B": 8, "I;16L": 8, "I;16N": 8}
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')

RgbPixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ImageInfo:
    """The format of an image, and its width and height in pixels as stored, before EXIF orientation is applied."""

    format: str
    width: int
    height: int


def decoding_bytes(content: bytes) -> int:
    """Return about how many bytes of memory decoding an image takes at most; 0 if it is too small to matter."""
    kind = containers.format_of(content)
    size = containers.size_of(content)
    if kind == "JPEG" and len(content) >= _SMALL_JPEG_BYTES:
        size = _jpeg_size(content)
    return size.width * size.height * _BYTES_PER_PIXEL[kind] if kind and size else 0


def _jpeg_size(content: bytes) -> containers.Size:
    """Return the size of a JPEG. One that Pillow cannot open may decode without its metadata, and may be large."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return containers.Size(*_open(content).size)
    except Exception:
        return containers.Size(DEFAULT_MAX_PIXELS, 1)


def decode(content: bytes, max_pixels: int = DEFAULT_MAX_PIXELS) -> tuple[Image.Image, ImageInfo]:
    """Return the first frame as an upright RGB image, with transparent parts on white.

    Raises:
        RejectedObject: the bytes are empty, of another format, too large, or broken.
    """
    if not content:
        raise RejectedObject("empty", "0 bytes")
    if containers.format_of(content) is None:
        raise RejectedObject("unknown_format", f"starts with {content[:16].hex(' ')}")
    try:
        return _decode(containers.Pixels(content), max_pixels)
    except RejectedObject as rejected:
        pixels = containers.without_metadata(content)
        if rejected.reason != "undecodable" or pixels.content == content:
            raise
    # Outside the block: the error would keep the first attempt's pixels in memory.
    return _decode(pixels, max_pixels)


def _decode(pixels: containers.Pixels, max_pixels: int) -> tuple[Image.Image, ImageInfo]:
    try:
        # Pillow warns between its own pixel limit and twice that limit; max_pixels is checked below.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind, size = containers.format_of(pixels.content), containers.size_of(pixels.content)
            if kind == "WEBP" and size is not None:
                _check_pixels(*size, max_pixels)  # Pillow allocates the memory when it opens the file
            image = _open(pixels.content)
            info = ImageInfo(str(image.format), image.width, image.height)
            _check_pixels(image.width, image.height, max_pixels)
            image.load()
            # Pillow's WebP decoder holds two more copies of the pixels.
            vars(image).pop("_decoder", None)
            method = _TRANSPOSE.get(orientation({**image.info, **pixels.info}))
            rgb = _on_white(image, pixels.content)
            del image
            return rgb if method is None else rgb.transpose(method), info
    except RejectedObject:
        raise
    except UnidentifiedImageError as error:
        kind = containers.format_of(pixels.content)
        raise RejectedObject("undecodable", f"starts like a {kind}, but its header is broken") from error
    except Image.DecompressionBombError as error:
        raise RejectedObject("too_many_pixels", str(error)) from error
    except Exception as error:  # Pillow's plugins raise OSError, ValueError, TypeError, SyntaxError, struct.error, ...
        raise RejectedObject("undecodable", f"{type(error).__name__}: {error}") from error


def _open(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content), formats=FORMATS)


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise RejectedObject("too_many_pixels", f"{width} x {height} pixels, over {max_pixels}")


def orientation(info: Mapping[Any, Any]) -> int:
    """Return the orientation in an image's metadata, from 1 (upright) to 8; 1 if there is none that can be read."""
    for read in (_exif_orientation, _raw_profile_orientation, _xmp_orientation):
        with suppress(Exception):  # metadata never decide whether an image is taken
            value = int(read(info))
            if 1 <= value <= 8:
                return value
    return 1


def _exif_orientation(info: Mapping[Any, Any]) -> Any:
    exif = Image.Exif()
    exif.load(info["exif"])
    return exif[ExifTags.Base.Orientation]


def _raw_profile_orientation(info: Mapping[Any, Any]) -> Any:
    """The EXIF data as ImageMagick writes them into a PNG: three lines, then hexadecimal digits."""
    return _exif_orientation({"exif": bytes.fromhex("".join(info["Raw profile type exif"].split("\n")[3:]))})


def _xmp_orientation(info: Mapping[Any, Any]) -> Any:
    xmp = info.get("XML:com.adobe.xmp") or info["xmp"]
    match = _XMP_ORIENTATION.search(xmp.encode() if isinstance(xmp, str) else xmp)
    return match[1] if match else 1


def _on_white(image: Image.Image, content: bytes) -> Image.Image:
    """Return the pixels as RGB. A large image is converted in strips: Pillow would hold it up to five times."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    key, low = _transparent_colour(image, content), _low_bytes(image, content)
    rows = max(1, STRIP_PIXELS // image.width)
    rgb = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        rgb.paste(_strip_on_white(image.crop(box), key, low.crop(box) if low else None), box)
    return rgb


def _transparent_colour(image: Image.Image, content: bytes) -> Any:
    """Return what a PNG says to be transparent, in the range of the image's samples, or None.

    Pillow scales samples of 2 and 4 bits to 8, but not this colour. Bits beyond the depth do not count.
    """
    key = image.info.get("transparency")
    if key is None or image.mode not in ("L", "RGB") or image.format != "PNG":
        return key
    depth = containers.png_bit_depth(content)
    if depth == 16:
        return key
    scale, mask = 255 // (2**depth - 1), 2**depth - 1
    return (key & mask) * scale if isinstance(key, int) else tuple(sample & mask for sample in key)


def _low_bytes(image: Image.Image, content: bytes) -> Image.Image | None:
    """Return the lower halves of a 16-bit PNG's samples if one of its colours is transparent: Pillow drops them."""
    if image.mode != "RGB" or "transparency" not in image.info or containers.png_bit_depth(content) != 16:
        return None
    low: Any = _open(content)
    # The other byte order.
    low.tile = [low.tile[0]._replace(args="RGB;16L")]
    low.load()
    return low  # type: ignore[no-any-return]


def _strip_on_white(strip: Image.Image, key: Any, low: Image.Image | None) -> Image.Image:
    if strip.mode in _EIGHT_BIT_SHIFT:
        # Pillow's own conversion clips 16-bit values at 255 instead of scaling them.
        samples = np.asarray(strip)
        grey = (samples >> _EIGHT_BIT_SHIFT[strip.mode]).astype(np.uint8)
        if key is not None:
            grey[samples == key] = 255
        return Image.fromarray(grey).convert("RGB")
    if low is not None:
        pixels = np.array(strip)
        high_key, low_key = np.divmod(key, 256)
        pixels[(pixels == high_key).all(axis=2) & (np.asarray(low) == low_key).all(axis=2)] = 255
        return Image.fromarray(pixels)
    if strip.has_transparency_data:
        if key is not None:
            strip.info["transparency"] = key
        rgba = strip.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return strip.convert("RGB")


def to_model_input(image: Image.Image, size_px: int) -> RgbPixels:
    """Return the image as uint8 pixels [size_px, size_px, 3].

    Resized with Pillow's bicubic filter, as the Keras reference features were.
    """
    return np.asarray(image.resize((size_px, size_px), Image.Resampling.BICUBIC))
