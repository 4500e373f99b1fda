from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from orchard.report import image_files
from orchard.report.image_files import FORMATS, TooManyPixels, Undecodable, small_picture
from orchard_spark import images
from orchard_spark.rejects import RejectedObject
from tests.spark import files
from tests.spark.files import ORIENTATION_6

EXIF = b"Exif\0\0" + ORIENTATION_6


def expected(content: bytes, side: int) -> np.ndarray:
    """The picture that the steps' decoder leads to."""
    image, _ = images.decode(content)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.asarray(image).astype(int)


def found(content: bytes, side: int) -> np.ndarray:
    image = small_picture(content, side, images.DEFAULT_MAX_PIXELS)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def with_orientation(number: int, image_format: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = number
    return files.encode(files.photo(), image_format, exif=exif)


def grey(depth: int, key: int, *values: int) -> bytes:
    """Return a PNG of one row of grey samples, one of which is transparent."""
    bits = "".join(f"{value:0{depth}b}" for value in values)
    row = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    return files.png(len(values), 1, depth, 0, [row], files.chunk(b"tRNS", key.to_bytes(2, "big")))


def rgb(depth: int, key: tuple[int, int, int], *colours: tuple[int, int, int]) -> bytes:
    row = b"".join(value.to_bytes(depth // 8, "big") for colour in colours for value in colour)
    chunk = files.chunk(b"tRNS", b"".join(value.to_bytes(2, "big") for value in key))
    return files.png(len(colours), 1, depth, 2, [row], chunk)


ALL = {
    **{name: files.encode(files.photo(), name) for name in FORMATS},
    **{f"{mode} PNG": files.encode(files.photo().convert(mode), "PNG") for mode in ("1", "L", "LA", "P", "RGBA")},
    "CMYK": files.encode(files.photo().convert("CMYK"), "JPEG"),
    "progressive": files.encode(files.photo(), "JPEG", progressive=True),
    "16 bits": files.encode(Image.fromarray(np.array([[0, 0x8000, 0xFFFF]], np.uint16)), "PNG"),
    "transparent": files.encode(Image.new("RGBA", (16, 16), (0, 0, 0, 51)), "PNG"),
    "transparent WebP": files.encode(Image.new("RGBA", (16, 16), (0, 0, 0, 51)), "WEBP", exact=True),
    "palette": files.encode(files.photo().convert("P"), "PNG", transparency=7),
    **{f"transparent grey of {depth} bits": grey(depth, 1, 0, 1, 1) for depth in (1, 2, 4, 8, 16)},
    "bits beyond the depth": grey(2, 0xFFFD, 1, 2, 3),
    "transparent colour": rgb(8, (100, 150, 200), (100, 150, 200), (100, 150, 201)),
    "transparent colour of 16 bits": rgb(16, (100, 150, 200), (100, 150, 200), (0x6400, 0x9600, 0xC800)),
    **{f"orientation {n} {name}": with_orientation(n, name) for n in range(1, 9) for name in ("JPEG", "PNG", "WEBP")},
    "orientation in XMP": files.jpeg_with(
        files.encode(files.photo(), "JPEG"),
        (0xE1, b"http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation=\"6\"/>"),
    ),
    "broken EXIF, orientation in XMP": files.jpeg_with(
        files.encode(files.photo(), "JPEG"),
        (0xE1, b"Exif\0\0nonsense"),
        (0xE1, b"http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation=\"3\"/>"),
    ),
    "orientation in a raw profile": files.png_with(
        files.encode(files.photo(), "PNG"),
        files.chunk(b"tEXt", b"Raw profile type exif\0\nexif\n      32\n" + EXIF.hex().encode() + b"\n"),
    ),
    "short Adobe segment": files.jpeg_with(files.encode(files.photo(), "JPEG"), (0xEE, b"Adobe\0")),
    "broken Photoshop segment": files.jpeg_with(
        files.encode(files.photo(), "JPEG"), (0xE1, EXIF), (0xED, b"Photoshop 3.0\x008BIM\x04\x04\x00\x00\xff")
    ),
    "broken chunk": files.png_with(
        files.encode(files.photo(), "PNG"), files.chunk(b"iCCP", b"x", 1), files.chunk(b"eXIf", ORIENTATION_6)
    ),
    "broken transparency": files.png_with(files.encode(files.photo(), "PNG"), files.chunk(b"tRNS", bytes(6), 1)),
    "broken text": files.png_with(files.encode(files.photo(), "PNG"), files.chunk(b"iTXt", b"\xff")),
}  # fmt: skip


def test_the_formats_are_those_of_the_steps() -> None:
    assert FORMATS == images.FORMATS
    assert {format_of for content in ALL.values() if (format_of := image_files.format_of(content))} == set(FORMATS)


@pytest.mark.parametrize("name", ALL)
def test_a_picture_has_the_colours_that_the_steps_read(name: str) -> None:
    wanted = expected(ALL[name], 1000)
    picture = found(ALL[name], 1000)
    assert picture.shape == wanted.shape
    np.testing.assert_allclose(picture, wanted, atol=2)


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize(("width", "height"), [(2000, 1500), (30, 1500), (1500, 3)])
def test_a_large_image_becomes_a_small_picture_of_the_same_shape(image_format: str, width: int, height: int) -> None:
    content = files.encode(files.photo(width, height), image_format)
    wanted, picture = expected(content, 48), found(content, 48)
    assert picture.shape == wanted.shape
    assert max(picture.shape) == 48
    np.testing.assert_allclose(picture, wanted, atol=16)
    assert np.abs(picture - wanted).mean() < 6


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "I;16"])
def test_a_large_image_of_each_mode_becomes_a_small_picture(mode: str) -> None:
    image = files.photo(1200, 900)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    content = files.encode(image, "PNG", **({"transparency": 7} if mode in ("L", "P") else {}))
    assert np.abs(found(content, 48) - expected(content, 48)).mean() < 12


def test_an_image_with_too_many_pixels_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(_: object) -> None:
        raise AssertionError("decoded")

    contents = [files.encode(files.photo(60, 40), image_format) for image_format in FORMATS]
    monkeypatch.setattr(ImageFile.ImageFile, "load", decode)
    for content in contents:
        with pytest.raises(TooManyPixels, match="60 x 40 pixels, over 2399"):
            small_picture(content, 48, 2399)


def test_a_webp_with_too_many_pixels_is_refused_before_its_memory_is_allocated() -> None:
    header = files.riff_chunk(b"VP8X", b"\x10\0\0\0" + b"\xff\x2f\0" * 2)
    with pytest.raises(TooManyPixels, match="12288 x 12288 pixels, over 50000000"):
        small_picture(files.webp(header, files.riff_chunk(b"VP8L", bytes(20))), 48, 50_000_000)


def test_a_large_image_is_decoded_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    load, is_alone = ImageFile.ImageFile.load, []

    def observed(image: ImageFile.ImageFile) -> object:
        is_alone.append(image_files._one_large_image.locked())
        return load(image)

    contents = [files.encode(files.photo(width, 40), "PNG") for width in (60, 50)]
    monkeypatch.setattr(image_files, "LARGE_PIXELS", 2399)
    monkeypatch.setattr(ImageFile.ImageFile, "load", observed)
    small_picture(contents[0], 48, 50_000)
    assert is_alone[0]
    assert not image_files._one_large_image.locked()
    is_alone.clear()
    small_picture(contents[1], 48, 50_000)
    assert is_alone
    assert not any(is_alone)


@pytest.mark.parametrize(
    "content",
    [b"", b"GIF89a" + bytes(40), b"%!PS-Adobe-3.0 EPSF-3.0\n", b"<svg onload=alert(1)>", b"\xff\xd8\xff", b"BM" * 50],
)
def test_other_formats_and_broken_images_are_refused(content: bytes) -> None:
    with pytest.raises(Undecodable) as caught:
        small_picture(content, 48, 50_000_000)
    assert "0x" not in str(caught.value)


@pytest.mark.parametrize("end", [0, 1, 2, 8, 12, 20, 30, 60, 200, 400])
@pytest.mark.parametrize("image_format", FORMATS)
def test_an_image_that_is_cut_short_is_refused_where_the_steps_refuse_it(image_format: str, end: int) -> None:
    content = files.encode(files.photo(), image_format)[:end]
    outcome = True
    try:
        images.decode(content)
    except RejectedObject:
        outcome = False
    if outcome:
        found(content, 48)
    else:
        with pytest.raises((Undecodable, TooManyPixels)):
            small_picture(content, 48, 50_000_000)


def test_odd_images_are_shown_exactly_where_the_steps_read_them(shared_data: Path) -> None:
    paths = [*(shared_data / "odd-images").iterdir(), *(shared_data / "odd-metadata").iterdir()]
    assert len(paths) > 50
    disagree = []
    for path in paths:
        content, outcomes = path.read_bytes(), []
        for decode in (lambda each: images.decode(each), lambda each: small_picture(each, 96, 50_000_000)):
            try:
                decode(content)
                outcomes.append(True)
            except (RejectedObject, Undecodable, TooManyPixels):
                outcomes.append(False)
        if outcomes[0] != outcomes[1]:
            disagree.append((path.name, *outcomes))
        elif outcomes[0] and np.abs(found(content, 96) - expected(content, 96)).mean() > 16:
            disagree.append((path.name, "other colours"))
    assert disagree == []
