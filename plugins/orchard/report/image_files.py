"""Decode images of unknown origin into small RGB pictures: the same formats and colours as the Spark steps read.

The steps' decoder, `orchard_spark.images`, cannot be imported here. It decodes every pixel; this one only as many as a
small picture needs.
"""

import io
import re
import struct
import threading
import zlib
from collections.abc import Iterator, Mapping
from contextlib import nullcontext, suppress
from typing import Any

import numpy as np
from PIL import ExifTags, Image

# The formats that Orchard reads. A test compares them with orchard_spark.images.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
# Images of more pixels are decoded one at a time. A decoder holds up to 16 bytes per pixel.
LARGE_PIXELS = 8_000_000
# A picture is made from about this many pixels in each direction for each of its own.
OVERSAMPLING = 8

_one_large_image = threading.Lock()
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_EXIF = b"Exif\0\0"
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EIGHT_BIT_SHIFT = {"I;16": 8, "I;16B": 8, "I;16L": 8, "I;16N": 8}


class Undecodable(Exception):
    """The bytes are not an image of a format that Orchard reads, or the image is broken."""


class TooManyPixels(Exception):
    """The image has more pixels than allowed."""


def small_picture(content: bytes, side: int, max_pixels: int) -> Image.Image:
    """Return the first frame as an upright RGB image with transparent parts on white, at most `side` pixels long.

    An image that is smaller stays as it is. The number of pixels is checked before they are decoded.

    Raises:
        Undecodable: the bytes are no image of FORMATS, or it is broken.
        TooManyPixels: the image has more than `max_pixels` pixels.
    """
    if format_of(content) is None:
        raise Undecodable(f"no image of the formats {', '.join(FORMATS)}: it starts with {content[:8].hex(' ')!r}")
    try:
        return _small_picture(content, side, max_pixels, {})
    except Undecodable:
        pixels, info = without_metadata(content)
        if pixels == content:
            raise
    return _small_picture(pixels, side, max_pixels, info)


def format_of(content: bytes) -> str | None:
    r"""Return the format that the first bytes announce, or None if Orchard does not read it.

    >>> format_of(b"\x89PNG\r\n"), format_of(b"RIFF\0\0\0\0WEBPVP8 "), format_of(b"GIF89a")
    ('PNG', 'WEBP', None)
    """
    if content.startswith(_PNG_SIGNATURE[:4]):
        return "PNG"
    if content.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return "WEBP"
    return "BMP" if content.startswith(b"BM") else None


def _small_picture(content: bytes, side: int, max_pixels: int, info: Mapping[str, bytes]) -> Image.Image:
    try:
        _check_pixels(*_webp_size(content), max_pixels)  # Pillow allocates the memory when it opens the file
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        _check_pixels(*image.size, max_pixels)
        with _one_large_image if image.width * image.height > LARGE_PIXELS else nullcontext():
            image.draft(None, (2 * side, 2 * side))  # a JPEG decodes to an eighth of its size
            image.load()
            method = _TRANSPOSE.get(orientation({**image.info, **info}))
            key = _transparent_colour(image, content)
            fewer = max(image.size) // (OVERSAMPLING * side)
            if fewer > 1:
                size = (max(1, image.width // fewer), max(1, image.height // fewer))
                # Of all filters only this one keeps palettes, transparent colours and 16 bits.
                image = image.resize(size, Image.Resampling.NEAREST)  # type: ignore[assignment]
        rgb = _on_white(image, key)
        rgb.thumbnail((side, side), Image.Resampling.LANCZOS)
        return rgb if method is None else rgb.transpose(method)
    except TooManyPixels:
        raise
    except Image.DecompressionBombError as error:
        raise TooManyPixels(str(error)) from error
    except Exception as error:  # Pillow's plugins raise OSError, ValueError, TypeError, SyntaxError, struct.error, ...
        # Pillow's message has the address of the buffer.
        text = "its header is broken" if "cannot identify" in str(error) else f"{type(error).__name__}: {error}"
        raise Undecodable(text) from error


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise TooManyPixels(f"{width} x {height} pixels, over {max_pixels}")


def orientation(info: Mapping[Any, Any]) -> int:
    """Return the orientation in an image's metadata, from 1 (upright) to 8; 1 if there is none that can be read."""
    for read in (_exif_orientation, _raw_profile_orientation, _xmp_orientation):
        with suppress(Exception):  # metadata never decide whether an image is shown
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


def _transparent_colour(image: Image.Image, content: bytes) -> Any:
    """Return what a PNG says to be transparent, in the range of the image's samples, or None.

    Pillow scales samples of 2 and 4 bits to 8, and cuts those of RGB with 16 bits, but not this colour. Bits beyond the
    depth do not count.
    """
    key = image.info.get("transparency")
    if key is None or image.mode not in ("L", "RGB") or image.format != "PNG":
        return key
    depth = content[24]
    if depth == 16:
        return tuple(sample >> 8 for sample in key)
    scale, mask = 255 // (2**depth - 1), 2**depth - 1
    return (key & mask) * scale if isinstance(key, int) else tuple(sample & mask for sample in key)


def _on_white(image: Image.Image, key: Any) -> Image.Image:
    if image.mode in _EIGHT_BIT_SHIFT:
        # Pillow's own conversion clips 16-bit values at 255 instead of scaling them.
        samples = np.asarray(image)
        grey = (samples >> _EIGHT_BIT_SHIFT[image.mode]).astype(np.uint8)
        if key is not None:
            grey[samples == key] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        if key is not None:
            image.info["transparency"] = key
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _webp_size(content: bytes) -> tuple[int, int]:
    """Return the width and height in the header of a WebP; 0 without one, and for other files.

    https://developers.google.com/speed/webp/docs/riff_container
    """
    kind, body = content[12:16], content[20:30]
    if format_of(content) != "WEBP" or len(body) < 10:
        return 0, 0
    if kind == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF


def without_metadata(content: bytes) -> tuple[bytes, dict[str, bytes]]:
    """Return a JPEG or PNG without what does not change a pixel, and the metadata that can have an orientation.

    Broken metadata make Pillow fail, and the steps read such an image all the same.
    """
    strip = {"JPEG": _plain_jpeg, "PNG": _plain_png}.get(format_of(content) or "")
    return strip(content) if strip else (content, {})


def _plain_jpeg(content: bytes) -> tuple[bytes, dict[str, bytes]]:
    """Drop the application segments and comments before the first scan, except those that give the colour space."""
    kept, info, position = [content[:2]], {}, 2
    while content[position : position + 1] == b"\xff" and position + 4 <= len(content):
        marker = content[position + 1]
        if marker in (0xFF, 0x01) or 0xD0 <= marker <= 0xD9:  # a fill byte, or a marker without a segment
            position += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(content[position + 2 : position + 4], "big")
        segment, body = content[position : position + 2 + length], content[position + 4 : position + 2 + length]
        if marker == 0xDA or length < 2:
            break
        is_metadata = 0xE0 <= marker <= 0xEF or marker == 0xFE
        has_colours = (marker == 0xE0 and body.startswith(b"JFIF\0") and len(body) >= 14) or (
            marker == 0xEE and body.startswith(b"Adobe") and len(body) >= 12
        )
        if not is_metadata or has_colours:
            kept.append(segment)
        elif body.startswith(_EXIF):
            info["exif"] = body
        elif body.startswith(_XMP):
            info["xmp"] = body[len(_XMP) :]
        position += 2 + length
    return b"".join([*kept, content[position:]]), info


def _plain_png(content: bytes) -> tuple[bytes, dict[str, bytes]]:
    """Keep the critical chunks and the transparency, the latter with the checksum it should have."""
    kept, info = [_PNG_SIGNATURE], {}
    for name, body, whole in _png_chunks(content):
        if not name[:1].islower():
            kept.append(whole)
        elif name == b"tRNS" and body:
            kept.append(struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)))
        elif name == b"eXIf":
            info["exif"] = _EXIF + body
    return b"".join(kept), info


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Yield name, body and all bytes of each chunk."""
    position, name = len(_PNG_SIGNATURE), b""
    while position + 8 <= len(content) and name != b"IEND":
        length, name = int.from_bytes(content[position : position + 4], "big"), content[position + 4 : position + 8]
        end = position + 12 + length
        yield name, content[position + 8 : end - 4], content[position:end]
        position = end
