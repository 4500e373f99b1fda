import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orchard_spark import containers, images
from orchard_spark.rejects import RejectedObject
from tests.spark import files

PHOTO = files.photo()
PNG = files.encode(PHOTO, "PNG")
JPEG = files.encode(PHOTO, "JPEG", quality=95)
WEBP = files.encode(PHOTO, "WEBP", lossless=True)
VP8L = WEBP[12:]
EXIF_6 = b"Exif\0\0" + files.ORIENTATION_6
XMP_6 = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
XMP_SEGMENT = b"http://ns.adobe.com/xap/1.0/\0"
# A density of 72 and an entry of a type that Pillow reads, but cannot write: signed rational, without its value.
UNWRITABLE = (
    b"Exif\0\0II*\0\x08\0\0\0\x02\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\x1a\x01\x0a\0\x01\0\0\0\x26\0\0\0"
    b"\0\0\0\0\xff\xff\xff\xff\0\0\0\0"
)
BIG_TEXT = b"Comment\0" + b"x" * 5_000_000
BIG_COMPRESSED = zlib.compress(b"x" * 5_000_000)


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(images.decode(content)[0])


def plain(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


ODD_PNGS = {
    "a text chunk of 5 MB": files.png_with(PNG, files.chunk(b"tEXt", BIG_TEXT)),
    "a compressed text chunk that expands to 5 MB": files.png_with(
        PNG, files.chunk(b"zTXt", b"Comment\0\0" + BIG_COMPRESSED)
    ),
    "an international text that expands to 5 MB": files.png_with(
        PNG, files.chunk(b"iTXt", b"Comment\0\1\0\0\0" + BIG_COMPRESSED)
    ),
    "such a text after the pixels": files.png_with(PNG, after=files.chunk(b"zTXt", b"Comment\0\0" + BIG_COMPRESSED)),
    "100 texts of 1 MB": files.png_with(
        PNG, *[files.chunk(b"zTXt", b"%d\0\0" % number + zlib.compress(b"x" * 1_000_000)) for number in range(100)]
    ),
    "a text with an unknown compression": files.png_with(PNG, files.chunk(b"zTXt", b"Comment\0\7abc")),
    "a text that does not decompress": files.png_with(PNG, files.chunk(b"zTXt", b"Comment\0\0abc")),
    "a colour profile with an unknown compression": files.png_with(PNG, files.chunk(b"iCCP", b"sRGB\0\7abc")),
    "a colour profile that expands to 5 MB": files.png_with(PNG, files.chunk(b"iCCP", b"sRGB\0\0" + BIG_COMPRESSED)),
    "a colour profile without a name": files.png_with(PNG, files.chunk(b"iCCP", b"")),
    "a broken EXIF block": files.png_with(PNG, files.chunk(b"eXIf", b"no TIFF at all")),
    "a raw profile that is not hexadecimal": files.png_with(
        PNG, files.chunk(b"tEXt", b"Raw profile type exif\0\nexif\n   9\nzz\n")
    ),
    "broken XMP": files.png_with(PNG, files.chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0\xff\xfe<tiff:Orientation>x")),
    "a density that is cut short": files.png_with(PNG, files.chunk(b"pHYs", b"\0\0")),
    "gamma, chromaticity and intent that are cut short": files.png_with(
        PNG, files.chunk(b"gAMA", b"\0"), files.chunk(b"cHRM", b"\0"), files.chunk(b"sRGB", b"")
    ),
    **{
        f"a wrong checksum of {name.decode()}": files.png_with(PNG, files.chunk(name, body, checksum=1))
        for name, body in {
            b"tEXt": b"Comment\0hello",
            b"gAMA": b"\0\0\xb1\x8f",
            b"pHYs": b"\0\0\x0b\x13\0\0\x0b\x13\1",
            b"eXIf": b"II*\0\x08\0\0\0\0\0\0\0\0\0",
            b"tIME": b"\x07\xea\x0b\x1a\0\0\0",
            b"iCCP": b"sRGB\0\0" + zlib.compress(b"profile"),
            b"vpAg": b"a private chunk",
        }.items()
    },
    "a wrong checksum after the pixels": files.png_with(PNG, after=files.chunk(b"tEXt", b"Comment\0bye", checksum=1)),
    "a chunk after the pixels that is cut short": PNG[:-12] + files.chunk(b"tEXt", b"Comment\0bye")[:-9],
    "frames of an animation in the wrong order": files.png_with(
        PNG, files.chunk(b"acTL", struct.pack(">II", 1, 0)), files.chunk(b"fcTL", struct.pack(">I", 9) + bytes(22))
    ),
    "an animation that is cut short": files.png_with(PNG, files.chunk(b"acTL", b"\0"), files.chunk(b"fcTL", b"\0")),
    "no end": PNG[:-12],
    "bytes after the end": PNG + b"\xff\xd8\xffpreview" * 99,
}

MPF_BAD = b"MPF\0II*\0\x08\0\0\0\x03\0" + b"\x01\xb0\x04\0\x01\0\0\0\x09\0\0\0" + b"\xff" * 24
ODD_JPEGS = {
    "an EXIF block that is XMP": [(0xE1, b"Exif\0\0" + XMP_SEGMENT + b"<x/>")],
    "a tag that Pillow cannot write": [(0xE1, UNWRITABLE)],
    "an empty EXIF block": [(0xE1, b"Exif\0\0")],
    "an EXIF block of zeros": [(0xE1, b"Exif\0\0" + bytes(40))],
    "an EXIF block whose directory points to itself": [(0xE1, b"Exif\0\0II*\0\x08\0\0\0\0\0\x08\0\0\0")],
    "an EXIF block whose directory is beyond its end": [(0xE1, b"Exif\0\0II*\0\xff\xff\xff\x7f")],
    "an orientation that is text": [(0xE1, b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\x01\x02\0\x04\0\0\0six\0\0\0\0\0")],
    "an orientation of 9": [(0xE1, (b"Exif\0\0" + files.ORIENTATION_6).replace(b"\x06\0\0\0\0", b"\x09\0\0\0\0"))],
    "several EXIF blocks": [(0xE1, b"Exif\0\0junk"), (0xE1, b"Exif\0\0junk")],
    "XMP that is not text": [(0xE1, XMP_SEGMENT + b'\xff\xfe\0tiff:Orientation="x"')],
    "an IPTC block that is cut short": [(0xED, b"Photoshop 3.0\x008BIM\4\4")],
    "an IPTC block with a wrong length": [(0xED, b"Photoshop 3.0\x008BIM\4\4\0\0\xff\xff\xff\xff")],
    "an IPTC resolution that is cut short": [(0xED, b"Photoshop 3.0\x008BIM\3\xed\0\0\0\0\0\2\0\0")],
    "a colour profile that is cut short": [(0xE2, b"ICC_PROFILE\0")],
    "a colour profile with parts missing": [(0xE2, b"ICC_PROFILE\0\7\x09part")],
    "a JFIF segment that is cut short": [(0xE0, b"JFIF")],
    "an Adobe segment that is cut short": [(0xEE, b"Adobe")],
    "a broken index of previews": [(0xE2, b"MPF\0junk")],
    "an index of nine previews that do not exist": [(0xE2, MPF_BAD)],
    "a comment of 64 KiB": [(0xFE, b"\xff" * 65_533)],
    "an empty comment": [(0xFE, b"")],
    "FlashPix that is cut short": [(0xE2, b"FPXR\0")],
}

ODD_WEBPS = {
    "a broken EXIF chunk": files.webp(VP8L, files.riff_chunk(b"EXIF", b"no TIFF at all")),
    "an EXIF chunk that is cut short": files.webp(VP8L, files.riff_chunk(b"EXIF", b"abc", length=999)),
    "metadata that the header does not announce": files.webp(
        files.riff_chunk(b"VP8X", b"\0\0\0\0" + b"\x3b\0\0\x27\0\0"),
        VP8L,
        files.riff_chunk(b"EXIF", b"?"),
        files.riff_chunk(b"XMP ", b"?"),
        files.riff_chunk(b"ICCP", b"?"),
    ),
    "announced metadata that are missing": files.webp(
        files.riff_chunk(b"VP8X", b"\x2c\0\0\0" + b"\x3b\0\0\x27\0\0"), VP8L
    ),
    "a length that is too large": files.webp(VP8L, length=99_999),
    "an unknown chunk in between": files.webp(
        files.riff_chunk(b"VP8X", b"\0\0\0\0" + b"\x3b\0\0\x27\0\0"), files.riff_chunk(b"ABCD", b"?"), VP8L
    ),
}


@pytest.mark.parametrize("odd", ODD_PNGS.values(), ids=ODD_PNGS.keys())
def test_no_ancillary_chunk_of_a_png_decides_whether_it_is_an_image(odd: bytes) -> None:
    np.testing.assert_array_equal(pixels(odd), np.asarray(PHOTO))


@pytest.mark.parametrize("segments", ODD_JPEGS.values(), ids=ODD_JPEGS.keys())
def test_no_metadata_of_a_jpeg_decide_whether_it_is_an_image(segments: list[tuple[int, bytes]]) -> None:
    found = pixels(files.jpeg_with(JPEG, *segments))
    turned = segments == ODD_JPEGS["a tag that Pillow cannot write"]
    np.testing.assert_array_equal(found, np.rot90(plain(JPEG), -1) if turned else plain(JPEG))


@pytest.mark.parametrize("odd", ODD_WEBPS.values(), ids=ODD_WEBPS.keys())
def test_no_metadata_of_a_webp_decide_whether_it_is_an_image(odd: bytes) -> None:
    np.testing.assert_array_equal(pixels(odd), np.asarray(PHOTO))


BROKEN_TEXT = files.chunk(b"zTXt", b"Comment\0\7abc")
RAW_PROFILE = b"Raw profile type exif\0\nexif\n%8d\n%s\n" % (len(EXIF_6), EXIF_6.hex().encode())
TURNED = {
    "PNG, eXIf": files.png_with(PNG, files.chunk(b"eXIf", files.ORIENTATION_6)),
    "PNG, a raw profile": files.png_with(PNG, files.chunk(b"tEXt", RAW_PROFILE)),
    "PNG, XMP": files.png_with(PNG, files.chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP_6)),
    "PNG, eXIf beside a broken text": files.png_with(PNG, BROKEN_TEXT, files.chunk(b"eXIf", files.ORIENTATION_6)),
    "PNG, eXIf with a wrong checksum": files.png_with(PNG, files.chunk(b"eXIf", files.ORIENTATION_6, checksum=1)),
    "PNG, a raw profile beside a broken text": files.png_with(PNG, BROKEN_TEXT, files.chunk(b"tEXt", RAW_PROFILE)),
    "PNG, a compressed raw profile beside a broken text": files.png_with(
        PNG, BROKEN_TEXT, files.chunk(b"zTXt", RAW_PROFILE[:22] + b"\0" + zlib.compress(RAW_PROFILE[22:]))
    ),
    "PNG, compressed XMP beside a broken text": files.png_with(
        PNG, BROKEN_TEXT, files.chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP_6))
    ),
    "WebP, EXIF": files.webp(
        files.riff_chunk(b"VP8X", b"\x08\0\0\0" + b"\x3b\0\0\x27\0\0"), VP8L, files.riff_chunk(b"EXIF", EXIF_6)
    ),
    "WebP, EXIF and a wrong length": files.webp(VP8L, files.riff_chunk(b"EXIF", EXIF_6), length=99_999),
    "WebP, XMP and a wrong length": files.webp(VP8L, files.riff_chunk(b"XMP ", XMP_6), length=99_999),
}
BROKEN_IPTC = (0xED, b"Photoshop 3.0\x008BIM\4\4")
TURNED_JPEGS = {
    "EXIF": [(0xE1, EXIF_6)],
    "XMP": [(0xE1, XMP_SEGMENT + XMP_6)],
    "XMP beside broken EXIF": [(0xE1, b"Exif\0\0junk"), (0xE1, XMP_SEGMENT + XMP_6)],
    "EXIF beside broken IPTC": [BROKEN_IPTC, (0xE1, EXIF_6)],
    "EXIF in two segments beside broken IPTC": [BROKEN_IPTC, (0xE1, EXIF_6[:20]), (0xE1, b"Exif\0\0" + EXIF_6[20:])],
    "XMP beside broken IPTC": [BROKEN_IPTC, (0xE1, XMP_SEGMENT + XMP_6)],
}


@pytest.mark.parametrize("content", TURNED.values(), ids=TURNED.keys())
def test_the_orientation_is_applied_wherever_it_can_be_read(content: bytes) -> None:
    np.testing.assert_array_equal(pixels(content), np.rot90(np.asarray(PHOTO), -1))


@pytest.mark.parametrize("segments", TURNED_JPEGS.values(), ids=TURNED_JPEGS.keys())
def test_the_orientation_of_a_jpeg_is_applied_wherever_it_can_be_read(segments: list[tuple[int, bytes]]) -> None:
    np.testing.assert_array_equal(pixels(files.jpeg_with(JPEG, *segments)), np.rot90(plain(JPEG), -1))


@pytest.mark.parametrize("adobe", [b"Adobe\0d\0\0\0\0\0", b"Adobe\0d\0\0\0\0\1"])
def test_the_colours_of_a_jpeg_do_not_depend_on_broken_metadata(adobe: bytes) -> None:
    image = PHOTO.convert("CMYK") if adobe.endswith(b"\0") else PHOTO
    content = files.encode(image, "JPEG")
    content = content[:2] + content[20:] if content[2:4] == b"\xff\xe0" else content  # no JFIF: Adobe decides
    content = files.jpeg_with(content, (0xEE, adobe))
    np.testing.assert_array_equal(pixels(files.jpeg_with(content, BROKEN_IPTC)), plain(content))


@pytest.mark.parametrize("end", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP"])
def test_broken_pixels_beside_broken_metadata_are_undecodable(name: str, end: float) -> None:
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8))
    content = files.encode(noise, name)
    content = content[: int(len(content) * end)]
    odd = {
        "PNG": files.png_with(content + bytes(12), BROKEN_TEXT),
        "JPEG": files.jpeg_with(content, BROKEN_IPTC),
        "WEBP": files.webp(content[12:], files.riff_chunk(b"EXIF", b"?"), length=99),
    }[name]
    with pytest.raises(RejectedObject) as rejected:
        images.decode(odd)
    assert rejected.value.reason == "undecodable"


@pytest.mark.parametrize("content", [PNG, JPEG, WEBP, files.encode(PHOTO, "BMP"), b"", b"\xff\xd8\xff", b"\x89PNG"])
def test_a_file_without_metadata_keeps_its_pixels(content: bytes) -> None:
    without = containers.without_metadata(content).content
    assert len(without) <= max(len(content), 8)
    if len(content) > 8:
        np.testing.assert_array_equal(plain(without), plain(content))


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("lossless", [True, False])
def test_the_size_of_a_webp_is_read_from_its_header(mode: str, lossless: bool) -> None:
    image = Image.new(mode, (123, 45), (1, 2, 3, 4)[: len(mode)])
    assert containers.size_of(files.encode(image, "WEBP", lossless=lossless)) == (123, 45)


def test_the_photographs_of_a_bug_report_are_taken(shared_data: Path) -> None:
    photographs = sorted((shared_data / "odd-metadata").glob("*.jpg"))
    assert len(photographs) == 2
    for path in photographs:
        image, info = images.decode(path.read_bytes())
        assert (image.mode, info.format) == ("RGB", "JPEG")


@pytest.mark.parametrize("image_format", ["PNG", "BMP"])
@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_the_size_of_a_png_and_a_bmp_is_read_from_its_header(image_format: str, mode: str) -> None:
    assert containers.size_of(files.encode(Image.new(mode, (123, 45)), image_format)) == (123, 45)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"BM", b"RIFF....WEBP", b"\xff\xd8\xff", b"GIF89a"])
def test_a_header_that_is_cut_short_has_no_size(content: bytes) -> None:
    assert containers.size_of(content) is None
