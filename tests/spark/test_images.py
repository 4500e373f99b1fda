import csv
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from orchard_spark import images, turns
from orchard_spark.images import decode, to_model_input
from orchard_spark.rejects import RejectedObject
from tests.spark import files

Encode = Callable[..., bytes]
RED = (200, 30, 40)


def middle(image: Image.Image) -> tuple[int, ...]:
    pixel = image.getpixel((image.width // 2, image.height // 2))
    assert isinstance(pixel, tuple)
    return pixel


@pytest.mark.parametrize("image_format", images.FORMATS)
def test_each_supported_format_decodes_to_rgb(encoded: Encode, image_format: str) -> None:
    image, info = decode(encoded(Image.new("RGB", (30, 20), RED), image_format))
    assert (info.format, info.width, info.height) == (image_format, 30, 20)
    assert image.mode == "RGB"
    np.testing.assert_allclose(middle(image), RED, atol=6)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("LA", (77, 255), (77, 77, 77)),
        ("RGBA", (*RED, 255), RED),
        ("I;16", 0x8000, (128, 128, 128)),
    ],
)
def test_each_mode_is_converted_to_rgb_without_changing_the_colour(
    encoded: Encode, mode: str, colour: int | tuple[int, ...], expected: tuple[int, ...]
) -> None:
    image, _ = decode(encoded(Image.new(mode, (9, 9), colour)))
    assert middle(image) == expected


def test_a_cmyk_jpeg_keeps_its_colour(encoded: Encode) -> None:
    image, _ = decode(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))
    red, green, blue = middle(image)
    assert red > 200
    assert max(green, blue) < 60


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_parts_become_white(encoded: Encode, mode: str) -> None:
    transparent = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image, _ = decode(encoded(transparent.convert(mode)))
    assert middle(image) == (255, 255, 255)


def test_the_transparent_colour_of_a_palette_becomes_white(encoded: Encode) -> None:
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([10, 20, 30] + [0] * 765)
    image, _ = decode(encoded(palette, transparency=0))
    assert middle(image) == (255, 255, 255)


def test_a_half_transparent_colour_is_blended_with_white(encoded: Encode) -> None:
    image, _ = decode(encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 128))))
    assert middle(image) == (127, 127, 127)


@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (39, 19)), (6, (19, 0)), (8, (0, 39))])
def test_exif_orientation_is_applied(encoded: Encode, orientation: int, corner: tuple[int, int]) -> None:
    stored = Image.new("RGB", (40, 20), "white")
    stored.putpixel((0, 0), (0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image, info = decode(encoded(stored, "PNG", exif=exif))
    assert image.getpixel(corner) == (0, 0, 0)
    assert (info.width, info.height) == (40, 20)


def test_an_animation_decodes_to_its_first_frame(encoded: Encode) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    image, _ = decode(encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True))
    assert middle(image) == (255, 0, 0)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"<html>404</html>", "unknown_format"),
        (b"GIF89a" + bytes(40), "unknown_format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "unknown_format"),
        (b"\xff\xd8", "unknown_format"),
    ],
)
def test_bytes_that_are_not_an_image_are_rejected_with_a_reason(content: bytes, reason: str) -> None:
    with pytest.raises(RejectedObject) as rejected:
        decode(content)
    assert rejected.value.reason == reason
    assert str(rejected.value)


@pytest.mark.parametrize("image_format", images.FORMATS)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_image_is_rejected(encoded: Encode, image_format: str, share: float) -> None:
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8))
    content = encoded(noise, image_format)
    with pytest.raises(RejectedObject) as rejected:
        decode(content[: int(len(content) * share)])
    assert rejected.value.reason in ("undecodable", "unknown_format")


def test_an_image_with_too_many_pixels_is_rejected_before_decoding(encoded: Encode) -> None:
    with pytest.raises(RejectedObject, match="40 x 30 pixels, over 1000") as rejected:
        decode(encoded(Image.new("RGB", (40, 30))), max_pixels=1000)
    assert rejected.value.reason == "too_many_pixels"


def test_a_decompression_bomb_is_rejected_for_too_many_pixels(encoded: Encode) -> None:
    small = encoded(Image.new("1", (8, 8)), "BMP")
    bomb = small[:18] + (60_000).to_bytes(4, "little") * 2 + small[26:]
    with pytest.raises(RejectedObject) as rejected:
        decode(bomb)
    assert rejected.value.reason == "too_many_pixels"


@pytest.mark.parametrize("error", [ValueError, TypeError, SyntaxError, NotImplementedError, OSError, IndexError])
def test_any_error_from_pillow_rejects_the_image(
    encoded: Encode, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = encoded(Image.new("RGB", (4, 4)), "BMP")

    def fail(_: object) -> None:
        raise error("plugin gave up")

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(RejectedObject, match=f"{error.__name__}: plugin gave up") as rejected:
        decode(content)
    assert rejected.value.reason == "undecodable"


def test_the_model_input_is_resized_to_a_square_with_a_bicubic_filter() -> None:
    image = Image.fromarray(np.random.default_rng(2).integers(0, 256, (100, 80, 3), np.uint8))
    expected = np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(to_model_input(image, 224), expected)


def test_odd_images_decode_exactly_where_pillow_decodes_them(shared_data: Path) -> None:
    with (shared_data / "odd-images/listing.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 50
    disagree = []
    for row in rows:
        content = (shared_data / "odd-images" / row["file"]).read_bytes()
        # If reading the EXIF data failed, the listing has the outcome of a second load, which Pillow accepts.
        loads = row["pillow_13_outcome"] == "ok" and not row["exif_orientation"].startswith("ERR")
        expected = loads and row["format"] in (*images.FORMATS, "MPO")
        try:
            decode(content)
            outcome = "ok"
        except RejectedObject as rejected:
            outcome = rejected.reason
        if (outcome == "ok") != expected:
            disagree.append((row["file"], row["format"], row["pillow_13_outcome"], outcome))
    assert disagree == []


def test_importing_images_loads_no_storage_client_and_no_spark() -> None:
    program = (
        "import sys; import orchard_spark.images; print(sorted(name for name in sys.modules "
        "if name.split('.')[0] in ('boto3', 'botocore', 'obstore', 'pyarrow', 'pyspark', 'orchard_spark')))"
    )
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert loaded == "['orchard_spark', 'orchard_spark.containers', 'orchard_spark.images', 'orchard_spark.rejects']\n"


def samples(depth: int, values: list[int]) -> bytes:
    """Pack samples of a depth into a row of a PNG."""
    bits = "".join(f"{value:0{depth}b}" for value in values)
    return int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")


def interlaced(content: bytes) -> bytes:
    """Return a PNG of one pixel per row and column, for which the first pass holds everything, as interlaced."""
    header = content[16:28] + b"\1"
    return content[:8] + files.chunk(b"IHDR", header) + content[33:]


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_the_transparent_grey_of_a_png_becomes_white_at_every_depth(depth: int) -> None:
    top = 2**depth - 1
    other, key = 0, max(1, top // 2)
    content = files.png(2, 1, depth, 0, [samples(depth, [other, key])], files.chunk(b"tRNS", key.to_bytes(2, "big")))
    image, _ = decode(content)
    assert [image.getpixel((0, 0)), image.getpixel((1, 0))] == [(0, 0, 0), (255, 255, 255)]


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_grey_beside_the_transparent_one_keeps_its_value_at_every_depth(depth: int) -> None:
    top = 2**depth - 1
    content = files.png(2, 1, depth, 0, [samples(depth, [0, top])], files.chunk(b"tRNS", bytes(2)))
    image, _ = decode(content)
    assert [image.getpixel((0, 0)), image.getpixel((1, 0))] == [(255, 255, 255), (255, 255, 255)]
    opaque = files.png(2, 1, depth, 0, [samples(depth, [0, top])], files.chunk(b"tRNS", top.to_bytes(2, "big")))
    assert decode(opaque)[0].getpixel((0, 0)) == (0, 0, 0)


def test_bits_of_the_transparent_grey_beyond_the_depth_do_not_count() -> None:
    image, _ = decode(files.png(2, 1, 2, 0, [samples(2, [1, 2])], files.chunk(b"tRNS", b"\xff\xfd")))
    assert [image.getpixel((0, 0)), image.getpixel((1, 0))] == [(255, 255, 255), (170, 170, 170)]


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("order", [lambda content: content, interlaced])
def test_only_the_transparent_colour_of_a_png_becomes_white(depth: int, order: Callable[[bytes], bytes]) -> None:
    bytes_each = depth // 8
    key, near = (100, 150, 200), (100, 150, 201)
    shift = depth - 8
    key_chunk = files.chunk(b"tRNS", b"".join((value << shift | 3 * (depth == 16)).to_bytes(2, "big") for value in key))

    def one_pixel(colour: tuple[int, ...], low: int) -> tuple[int, ...]:
        row = b"".join((value << shift | low * (depth == 16)).to_bytes(bytes_each, "big") for value in colour)
        pixel = decode(order(files.png(1, 1, depth, 2, [row], key_chunk)))[0].getpixel((0, 0))
        assert isinstance(pixel, tuple)
        return pixel

    assert one_pixel(key, 3) == (255, 255, 255)
    assert one_pixel(near, 3) == near
    if depth == 16:
        assert one_pixel(key, 4) == key


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize(("colour_type", "colour"), [(4, [60]), (6, [60, 70, 80])])
def test_the_alpha_of_a_png_is_blended_with_white_at_every_depth(
    depth: int, colour_type: int, colour: list[int]
) -> None:
    scale = 1 if depth == 8 else 257
    rows = [
        b"".join((value * scale).to_bytes(depth // 8, "big") for value in [*colour, alpha]) for alpha in (0, 51, 255)
    ]
    image, _ = decode(files.png(1, 3, depth, colour_type, rows))
    rgb = np.array(colour * (3 // len(colour)))
    found = np.asarray(image)[:, 0, :].astype(int)
    np.testing.assert_allclose(found, np.stack([np.full(3, 255), 255 - (255 - rgb) * 0.2, rgb]), atol=1)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_the_alpha_of_a_palette_is_blended_with_white_at_every_depth(depth: int) -> None:
    palette = files.chunk(b"PLTE", bytes([0, 0, 0, 90, 60, 30]))
    for alpha, expected in ((b"\xff\x00", 255), (b"\xff\x33", 222), (b"\xff", 90), (b"\xff\xff", 90)):
        image, _ = decode(files.png(2, 1, depth, 3, [samples(depth, [0, 1])], palette, files.chunk(b"tRNS", alpha)))
        assert np.asarray(image)[0, :, 0].tolist() == [0, pytest.approx(expected, abs=1)]


@pytest.mark.parametrize(
    ("colour_type", "body", "checksum"),
    [
        (0, b"\0", None),
        (2, b"\0\0", None),
        (6, b"\0\0", None),
        (3, b"\xff" * 300, None),
        (0, bytes(2), 1),
        (2, bytes(6), 1),
    ],
)
def test_a_transparency_that_is_malformed_does_not_decide_about_the_image(
    colour_type: int, body: bytes, checksum: int | None
) -> None:
    row = {0: b"\x50", 2: b"\x50\x60\x70", 3: b"\1", 6: b"\x50\x60\x70\xff"}[colour_type]
    palette = files.chunk(b"PLTE", bytes([0, 0, 0, 0x50, 0x60, 0x70]))
    content = files.png(1, 1, 8, colour_type, [row], palette, files.chunk(b"tRNS", body, checksum))
    assert decode(content)[0].getpixel((0, 0)) in ((0x50, 0x60, 0x70), (0x50, 0x50, 0x50))


@pytest.mark.parametrize("lossless", [True, False])
def test_transparent_parts_of_a_webp_become_white(encoded: Encode, lossless: bool) -> None:
    image, _ = decode(encoded(Image.new("RGBA", (16, 16), (0, 0, 0, 51)), "WEBP", lossless=lossless, exact=True))
    np.testing.assert_allclose(middle(image), (204, 204, 204), atol=4)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGBA", "P", "I;16"])
def test_an_image_of_many_strips_equals_one_of_a_single_strip(
    encoded: Encode, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (50, 30, 4), np.uint8)
    if mode == "I;16":
        image = Image.fromarray(noise[:, :, :2].copy().view(np.uint16)[:, :, 0])
    else:
        image = Image.fromarray(noise).convert(mode)
    options = {"transparency": 7} if mode in ("L", "P") else {}
    content = encoded(image, "PNG", **options)
    whole = np.asarray(decode(content)[0])
    monkeypatch.setattr(images, "STRIP_PIXELS", 100)
    np.testing.assert_array_equal(np.asarray(decode(content)[0]), whole)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_every_exif_orientation_is_applied_as_pillow_applies_it(image_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = files.encode(files.photo(), image_format, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    np.testing.assert_array_equal(np.asarray(decode(content)[0]), np.asarray(expected))


@pytest.mark.parametrize(
    "start",
    [
        b"\x89PNG\r\n\x1a\n",
        b"\x89PNG\n",
        b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR",
        b"\xff\xd8\xff",
        b"\xff\xd8\xff\xe0\0\x10JFIF",
        b"RIFF\x10\0\0\0WEBP",
        b"RIFF\x10\0\0\0WEBPVP8 ",
        b"BM",
    ],
)
@pytest.mark.parametrize("rest", [b"", b"nonsense" * 20, bytes(100)])
def test_a_known_signature_with_broken_contents_is_undecodable(start: bytes, rest: bytes) -> None:
    with pytest.raises(RejectedObject) as rejected:
        decode(start + rest)
    assert rejected.value.reason == "undecodable"
    assert "0x" not in str(rejected.value)


@pytest.mark.parametrize("change", [(24, 7), (25, 9), (27, 9), (16, 0xFF), (30, 1)])
def test_a_png_with_a_broken_header_is_rejected_but_not_as_an_unknown_format(change: tuple[int, int]) -> None:
    content = bytearray(files.encode(files.photo(), "PNG"))
    content[change[0]] = change[1]
    with pytest.raises(RejectedObject) as rejected:
        decode(bytes(content))
    assert rejected.value.reason in ("undecodable", "too_many_pixels")


def test_a_webp_with_too_many_pixels_is_rejected_before_its_memory_is_allocated() -> None:
    header = files.riff_chunk(b"VP8X", b"\x10\0\0\0" + b"\xff\x2f\0" * 2)
    with pytest.raises(RejectedObject, match="12288 x 12288 pixels, over 50000000") as rejected:
        decode(files.webp(header, files.riff_chunk(b"VP8L", bytes(20))))
    assert rejected.value.reason == "too_many_pixels"


def test_a_large_transparent_image_is_held_at_most_twice(tmp_path: Path) -> None:
    side = 3000
    (tmp_path / "large.png").write_bytes(files.encode(Image.new("RGBA", (side, side), (9, 9, 9, 99)), "PNG"))
    program = (
        "import re, sys, pathlib; from orchard_spark import images\n"
        "def peak():\n"
        "    return int(re.search(r'VmHWM:\\s+(\\d+)', pathlib.Path('/proc/self/status').read_text())[1]) * 1024\n"
        "images.decode(pathlib.Path('small.png').read_bytes()); before = peak()\n"
        "images.decode(pathlib.Path('large.png').read_bytes()); print(peak() - before)"
    )
    (tmp_path / "small.png").write_bytes(files.encode(Image.new("RGBA", (9, 9)), "PNG"))
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert int(run.stdout) < 2.6 * 4 * side * side


@pytest.mark.parametrize(("image_format", "bytes_per_pixel"), [("PNG", 8), ("JPEG", 10), ("WEBP", 16), ("BMP", 8)])
def test_the_memory_that_decoding_takes_is_known_beforehand(image_format: str, bytes_per_pixel: int) -> None:
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (300, 400, 3), np.uint8))
    content = files.encode(noise, image_format)
    assert images.decoding_bytes(content) == 300 * 400 * bytes_per_pixel
    assert images.decoding_bytes(content[:11]) == 0


def test_a_jpeg_whose_size_is_unknown_counts_as_large() -> None:
    content = b"\xff\xd8\xff\xed\0\x14Photoshop 3.0\x008BIM" + bytes(40_000)
    assert images.decoding_bytes(content) > turns.LARGE_BYTES
