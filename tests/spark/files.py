"""Build image files piece by piece, as no writer would."""

import io
import struct
import zlib
from collections.abc import Iterable

import numpy as np
from PIL import Image

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
ORIENTATION_6 = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"


def photo(width: int = 60, height: int = 40) -> Image.Image:
    """Return a picture whose corners differ: red at the top left, blue at the bottom right."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([255 - 255 * x // width, 0 * x + 60, 255 * y // height], axis=2)
    return Image.fromarray(pixels.astype(np.uint8))


def encode(image: Image.Image, image_format: str, **options: object) -> bytes:
    """Return an image as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def chunk(name: bytes, body: bytes, checksum: int | None = None) -> bytes:
    """Return a chunk of a PNG, with its own checksum or another one."""
    own = zlib.crc32(name + body)
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", own if checksum is None else checksum)


def png_with(content: bytes, *before: bytes, after: bytes = b"") -> bytes:
    """Return a PNG with chunks after its header, and chunks before its end."""
    header = len(PNG_SIGNATURE) + 25
    return content[:header] + b"".join(before) + content[header:-12] + after + content[-12:]


def png(width: int, height: int, depth: int, colour_type: int, rows: Iterable[bytes], *chunks: bytes) -> bytes:
    """Return a PNG of unfiltered rows of samples."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return PNG_SIGNATURE + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def jpeg_with(content: bytes, *segments: tuple[int, bytes]) -> bytes:
    """Return a JPEG with segments, each a marker and a body, before its own."""
    added = b"".join(bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body for marker, body in segments)
    return content[:2] + added + content[2:]


def riff_chunk(name: bytes, body: bytes, length: int | None = None) -> bytes:
    """Return a chunk of a WebP, with its own length or another one."""
    return name + struct.pack("<I", len(body) if length is None else length) + body + b"\0" * (len(body) % 2)


def webp(*chunks: bytes, length: int | None = None) -> bytes:
    """Return a WebP of chunks, with its own length or another one."""
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body) if length is None else length) + body
