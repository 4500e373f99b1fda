import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from orchard_spark import images
from orchard_spark.images import decode, to_model_input
from orchard_spark.rejects import RejectedObject

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
    assert loaded == "['orchard_spark', 'orchard_spark.images', 'orchard_spark.rejects']\n"
