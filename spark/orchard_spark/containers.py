"""The file formats of images as containers: what they start with, how large the image is, and what is not pixels.

Metadata are everything that does not change a pixel: EXIF, XMP, IPTC, colour profiles, comments, texts, previews.
"""

import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
EXIF_HEADER = b"Exif\0\0"
# More text than this is no description of an orientation.
MAX_TEXT_BYTES = 1024**2

_JPEG_XMP = b"http://ns.adobe.com/xap/1.0/\0"
# Decoders skip bytes between segments, and any number of 0xFF before a marker.
_JPEG_MARKER = re.compile(rb"\xff+[^\xff]", re.DOTALL)
_JPEG_START_OF_SCAN, _JPEG_COMMENT = 0xDA, 0xFE
# Markers without a length: TEM, RST0 to RST7, SOI, EOI.
_JPEG_ALONE = frozenset([0x01, *range(0xD0, 0xDA)])
_JPEG_METADATA = frozenset([*range(0xE0, 0xF0), _JPEG_COMMENT])
# The decoder derives the colour space from these two. Shorter ones say nothing, and make Pillow fail.
_JPEG_COLOUR = {0xE0: (b"JFIF\0", 14), 0xEE: (b"Adobe", 12)}

_WEBP_PIXELS = frozenset([b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF"])
_WEBP_ALPHA_AND_ANIMATION = 0x12

# The samples of a PNG's single transparent colour, by colour type: grey and RGB. A palette has one alpha per entry.
_PNG_GREY, _PNG_RGB, _PNG_PALETTE = 0, 2, 3
_PNG_KEY_BYTES = {_PNG_GREY: 2, _PNG_RGB: 6}


@dataclass(frozen=True)
class Pixels:
    """An image file without its metadata; `info` has what Pillow would have found about the orientation."""

    content: bytes
    info: Mapping[str, bytes | str] = field(default_factory=dict)


class Size(NamedTuple):
    """The width and height of an image in pixels."""

    width: int
    height: int


def format_of(content: bytes) -> str | None:
    r"""Return the format that the first bytes announce, or None if it is not one that Orchard reads.

    >>> format_of(b"\x89PNG\r\n"), format_of(b"RIFF\0\0\0\0WEBPVP8 "), format_of(b"GIF89a")
    ('PNG', 'WEBP', None)
    """
    if content.startswith(PNG_SIGNATURE[:4]):
        return "PNG"
    if content.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return "WEBP"
    return "BMP" if content.startswith(b"BM") else None


def size_of(content: bytes) -> Size | None:
    """Return the size that the header of a PNG, WebP or BMP announces, without decoding; None for other files."""
    read = {"PNG": _png_size, "WEBP": _webp_size, "BMP": _bmp_size}.get(format_of(content) or "")
    return read(content) if read else None


def _png_size(content: bytes) -> Size | None:
    return Size(*struct.unpack(">II", content[16:24])) if content[12:16] == b"IHDR" and len(content) >= 24 else None


def _bmp_size(content: bytes) -> Size | None:
    if len(content) < 26:
        return None
    if content[14:18] == b"\x0c\0\0\0":
        return Size(*struct.unpack("<HH", content[18:22]))
    width, height = struct.unpack("<Ii", content[18:26])
    return Size(width, abs(height))  # rows from the top to the bottom have a negative height


def _webp_size(content: bytes) -> Size | None:
    kind, body = content[12:16], content[20:30]
    if kind == b"VP8X" and len(body) == 10:
        return Size(1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little"))
    if kind == b"VP8L" and len(body) >= 5 and body[0] == 0x2F:
        bits = int.from_bytes(body[1:5], "little")
        return Size((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if kind == b"VP8 " and len(body) == 10 and body[3:6] == b"\x9d\x01\x2a":
        return Size(int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF)
    return None


def png_bit_depth(content: bytes) -> int:
    """Return the bits per sample of a PNG."""
    return content[24]


def without_metadata(content: bytes) -> Pixels:
    """Return the file with only what decides about its pixels.

    A broken structure is kept as it is, so that decoding fails there and not because of what was left out.
    """
    strip = {"PNG": _png, "JPEG": _jpeg, "WEBP": _webp}.get(format_of(content) or "")
    return strip(content) if strip else Pixels(content)


def _png(content: bytes) -> Pixels:
    """Keep the critical chunks and the transparency, the latter with the checksum it should have."""
    info: dict[str, bytes | str] = {}
    kept, colour_type = [PNG_SIGNATURE], -1
    for name, body, whole in _png_chunks(content):
        if name == b"IHDR" and len(body) >= 10:
            colour_type = body[9]
        ancillary = bool(name[:1].islower())
        if not ancillary:
            kept.append(whole)
        elif name == b"tRNS":
            kept += _png_transparency(body, colour_type)
        else:
            with suppress(Exception):  # metadata never decide
                info.update(_png_orientation(name, body))
    return Pixels(b"".join(kept), info)


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Yield name, body and all bytes of each chunk. The last one may be cut short. Nothing after IEND is a chunk."""
    position, name = len(PNG_SIGNATURE), b""
    while position + 8 <= len(content) and name != b"IEND":
        length, name = int.from_bytes(content[position : position + 4], "big"), content[position + 4 : position + 8]
        end = position + 12 + length
        yield name, content[position + 8 : end - 4], content[position:end]
        position = end


def _png_transparency(body: bytes, colour_type: int) -> list[bytes]:
    if colour_type == _PNG_PALETTE:
        body = body[:256]
    elif colour_type not in _PNG_KEY_BYTES or len(body) < _PNG_KEY_BYTES[colour_type]:
        return []
    named = b"tRNS" + body
    return [struct.pack(">I", len(body)), named, struct.pack(">I", zlib.crc32(named))]


def _png_orientation(name: bytes, body: bytes) -> dict[str, bytes | str]:
    if name == b"eXIf":
        return {"exif": EXIF_HEADER + body}
    if name == b"tEXt":
        key, text = body.split(b"\0", 1)
    elif name == b"zTXt":
        key, text = body.split(b"\0", 1)
        text = _inflate(text[1:])
    elif name == b"iTXt":
        key, rest = body.split(b"\0", 1)
        _, _, text = rest[2:].split(b"\0", 2)
        text = _inflate(text) if rest[0] else text
    else:
        return {}
    if key == b"XML:com.adobe.xmp":
        return {"xmp": text}
    return {"Raw profile type exif": text.decode("latin-1")} if key == b"Raw profile type exif" else {}


def _inflate(compressed: bytes) -> bytes:
    return zlib.decompressobj().decompress(compressed, MAX_TEXT_BYTES)


def _jpeg(content: bytes) -> Pixels:
    """Drop the application segments and comments before the first scan, except those that give the colour space."""
    info: dict[str, bytes] = {}
    kept, position = [content[:2]], 2
    while True:
        found = _JPEG_MARKER.search(content, position)
        if found is None:
            return Pixels(b"".join([*kept, content[position:]]), info)
        start, marker = found.end() - 2, content[found.end() - 1]
        if marker == 0 or marker in _JPEG_ALONE:
            position = start + 2
            continue
        length = int.from_bytes(content[start + 2 : start + 4], "big")
        if marker == _JPEG_START_OF_SCAN or length < 2 or start + 2 + length > len(content):
            return Pixels(b"".join([*kept, content[start:]]), info)
        position = start + 2 + length
        body = content[start + 4 : position]
        if marker not in _JPEG_METADATA or _says_colour_space(marker, body):
            kept.append(content[start:position])
        elif marker == 0xE1 and body.startswith(EXIF_HEADER):
            info["exif"] = info["exif"] + body[len(EXIF_HEADER) :] if "exif" in info else body
        elif marker == 0xE1 and body.startswith(_JPEG_XMP):
            info["xmp"] = body[len(_JPEG_XMP) :]


def _says_colour_space(marker: int, body: bytes) -> bool:
    start, least = _JPEG_COLOUR.get(marker, (b"", len(body) + 1))
    return body.startswith(start) and len(body) >= least


def _webp(content: bytes) -> Pixels:
    """Keep the chunks with pixels, and correct the total length, which includes the metadata."""
    info: dict[str, bytes] = {}
    kept, position = [], 12
    while position + 8 <= len(content):
        name, length = content[position : position + 4], int.from_bytes(content[position + 4 : position + 8], "little")
        body = content[position + 8 : position + 8 + length]
        position += 8 + length + length % 2
        if name == b"VP8X" and body:
            kept.append(_webp_chunk(name, length, bytes([body[0] & _WEBP_ALPHA_AND_ANIMATION]) + body[1:]))
        elif name in _WEBP_PIXELS:
            kept.append(_webp_chunk(name, length, body))
        elif name == b"EXIF":
            info["exif"] = body
        elif name == b"XMP ":
            info["xmp"] = body
    chunks = b"".join(kept)
    return Pixels(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks, info)


def _webp_chunk(name: bytes, length: int, body: bytes) -> bytes:
    """Return a chunk. One that is cut short keeps its length, so that it fails to decode."""
    padding = b"\0" if length % 2 and len(body) == length else b""
    return name + struct.pack("<I", length) + body + padding
