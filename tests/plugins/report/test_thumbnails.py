import io
import uuid
from typing import TYPE_CHECKING

import boto3
import numpy as np
import pytest
from botocore.config import Config
from botocore.response import StreamingBody
from PIL import Image

from orchard.report import thumbnails
from orchard.report.thumbnails import (
    AccessDenied,
    Missing,
    NotDecodable,
    Refused,
    Thumbnail,
    ThumbnailError,
    TooLarge,
    Unreachable,
    sprite_sheet,
    thumbnail,
)
from tests.conftest import new_bucket
from tests.plugins.answers import failing
from tests.plugins.dataset_uris import ACCEPTED
from tests.spark import files

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PHOTO = files.encode(files.photo(), "JPEG")


@pytest.fixture(scope="module")
def bucket(s3: "S3Client") -> str:
    """A bucket for all tests. Each has its own dataset."""
    return new_bucket(s3)


@pytest.fixture
def dataset(bucket: str) -> str:
    return f"s3://{bucket}/{uuid.uuid4().hex}/images/"


def put(s3: "S3Client", uri: str, content: bytes = PHOTO) -> str:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    s3.put_object(Bucket=bucket, Key=key, Body=content)
    return uri


def opened(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


def test_a_thumbnail_is_a_small_picture_of_the_object(s3: "S3Client", dataset: str) -> None:
    path = put(s3, f"{dataset}Kiwi/1.jpg", files.encode(files.photo(600, 400), "JPEG"))
    found = thumbnail(s3, dataset, path)
    image = opened(found.content)
    assert (image.format, image.size, found.content_type) == ("WEBP", (96, 64), "image/webp")
    expected = np.asarray(files.photo(96, 64)).astype(int)
    assert np.abs(np.asarray(image.convert("RGB")).astype(int) - expected).mean() < 8
    assert opened(thumbnail(s3, dataset, path, pixels=48).content).size == (48, 32)
    assert opened(thumbnail(s3, dataset, path, pixels=0).content).size == (1, 1)
    assert opened(thumbnail(s3, dataset, path, pixels=10**9).content).size == (600, 400)


def test_the_etag_changes_with_the_object_and_the_size(s3: "S3Client", dataset: str) -> None:
    path = put(s3, f"{dataset}1.jpg")
    etag = thumbnail(s3, dataset, path).etag
    assert etag == thumbnail(s3, dataset, path).etag != thumbnail(s3, dataset, path, pixels=48).etag
    put(s3, path, files.encode(files.photo(61, 40), "JPEG"))
    assert thumbnail(s3, dataset, path).etag != etag


@pytest.mark.parametrize("prefix", ACCEPTED)
def test_the_key_of_an_object_is_the_text_of_its_path(s3: "S3Client", bucket: str, prefix: str) -> None:
    dataset = f"s3://{bucket}/{prefix}"
    for name in ("a b/#1?x=%2e%2e&y=+.jpg", "'\"<img src=x onerror=alert(1)>.jpg", "..1.jpg"):
        path = put(s3, dataset + name)
        assert thumbnail(s3, dataset, path).content


def test_nothing_outside_the_dataset_is_read(s3: "S3Client", bucket: str, dataset: str) -> None:
    parent = dataset.removesuffix("images/")
    put(s3, f"{parent}other/1.jpg")
    put(s3, f"{parent}1.jpg")
    put(s3, f"{dataset}1.jpg")
    for path in (
        f"{parent}other/1.jpg",
        f"{parent}1.jpg",
        f"{dataset}../other/1.jpg",
        f"{dataset}a/../../other/1.jpg",
        f"{dataset}./1.jpg",
        f"{dataset}/1.jpg",
        f"{dataset}..",
        f"{dataset}1.jpg\n",
        f"{dataset}\x00",
        dataset,
        dataset.removesuffix("/"),
        "",
        "1.jpg",
        "/etc/passwd",
        "file:///etc/passwd",
        dataset.replace("s3://", "https://") + "1.jpg",
        dataset.replace(bucket, f"{bucket}-2") + "1.jpg",
    ):
        with pytest.raises(Refused):
            thumbnail(s3, dataset, path)


def test_an_object_of_too_many_bytes_or_pixels_is_refused_before_it_is_read_or_decoded(
    s3: "S3Client", dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(s3, f"{dataset}1.jpg")
    with pytest.raises(TooLarge, match=r"images/1\.jpg has 60 x 40 pixels, over 2399"):
        thumbnail(s3, dataset, path, max_pixels=2399)
    assert thumbnail(s3, dataset, path, max_pixels=2400, max_bytes=len(PHOTO)).content

    def read(*_: object) -> bytes:
        raise AssertionError("read")

    monkeypatch.setattr(StreamingBody, "read", read)
    with pytest.raises(TooLarge, match=rf"images/1\.jpg has {len(PHOTO)} bytes, over {len(PHOTO) - 1}"):
        thumbnail(s3, dataset, path, max_bytes=len(PHOTO) - 1)


@pytest.mark.parametrize("content", [b"", b"<svg onload=alert(1)>", PHOTO[:300]])
def test_an_object_that_is_no_image_is_refused(s3: "S3Client", dataset: str, content: bytes) -> None:
    path = put(s3, f"{dataset}<b>.jpg", content)
    with pytest.raises(NotDecodable, match=r"images/<b>\.jpg cannot be decoded"):
        thumbnail(s3, dataset, path)


def test_an_object_that_is_gone_is_missing(s3: "S3Client", dataset: str) -> None:
    with pytest.raises(Missing, match="does not exist any more"):
        thumbnail(s3, dataset, f"{dataset}1.jpg")
    with pytest.raises(Missing):
        thumbnail(s3, "s3://orchard-no-such-bucket/images/", "s3://orchard-no-such-bucket/images/1.jpg")


@pytest.mark.parametrize(
    ("code", "status", "expected", "message"),
    [
        ("AccessDenied", 403, AccessDenied, "Allow the API server s3:GetObject"),
        ("ExpiredToken", 401, AccessDenied, "ExpiredToken"),
        ("InvalidObjectState", 403, Missing, "is archived: restore it"),
        ("NoSuchKey", 404, Missing, "does not exist"),
        ("SlowDown", 503, Unreachable, "SlowDown"),
        ("InternalError", 500, Unreachable, "InternalError"),
    ],
)
def test_each_refusal_of_s3_has_an_error_of_its_own(
    s3: "S3Client", dataset: str, code: str, status: int, expected: type[ThumbnailError], message: str
) -> None:
    with failing(s3, "GetObject", code, status), pytest.raises(expected, match=message):
        thumbnail(s3, dataset, f"{dataset}1.jpg")


def test_without_a_connection_or_credentials_there_is_no_thumbnail(
    dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = Config(retries={"total_max_attempts": 1}, connect_timeout=1)
    lost = boto3.client("s3", endpoint_url="http://127.0.0.1:9", config=once, region_name="eu-west-1")
    with pytest.raises(Unreachable):
        thumbnail(lost, dataset, f"{dataset}1.jpg")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    anonymous = boto3.Session().client("s3", endpoint_url="http://127.0.0.1:9", config=once, region_name="eu-west-1")
    with pytest.raises(AccessDenied, match="Give the API server credentials"):
        thumbnail(anonymous, dataset, f"{dataset}1.jpg")


def colours(count: int, side: int = 48) -> list[Thumbnail]:
    """Thumbnails of one colour each."""
    generator = np.random.default_rng(7)
    images = [Image.new("RGB", (side, side // 2), tuple(generator.integers(0, 256, 3).tolist())) for _ in range(count)]
    return [Thumbnail(files.encode(image, "WEBP", quality=95), "image/webp", '"x"') for image in images]


def noise(count: int, side: int = 48) -> list[Thumbnail]:
    generator = np.random.default_rng(7)
    images = [Image.fromarray(generator.integers(0, 256, (side, side, 3), np.uint8)) for _ in range(count)]
    return [Thumbnail(files.encode(image, "WEBP"), "image/webp", '"x"') for image in images]


def test_a_sheet_has_each_thumbnail_in_its_cell() -> None:
    pictures = colours(11)
    broken = Thumbnail(b"nonsense", "image/webp", '"x"')
    sheet = sprite_sheet([*pictures[:3], None, broken, *pictures[3:]])
    assert (sheet.columns, sheet.cell, sheet.width, sheet.height) == (4, 48, 192, 144)
    assert [sheet.positions[3], sheet.positions[4]] == [None, None]
    places = [place for place in sheet.positions if place is not None]
    assert places == [(number % 4 * 48, number // 4 * 48) for number in range(11)]
    image = opened(sheet.content)
    assert (image.format, image.size) == ("WEBP", (192, 144))
    pixels = np.asarray(image.convert("RGBA")).astype(int)
    for picture, (left, top) in zip(pictures, places, strict=True):
        expected = np.asarray(opened(picture.content).convert("RGB")).astype(int)[12, 24]
        np.testing.assert_allclose(pixels[top + 24, left + 24, :3], expected, atol=12)
        assert pixels[top + 24, left + 24, 3] == 255
        assert pixels[top + 2, left + 24, 3] == 0


def test_a_sheet_without_thumbnails_is_empty() -> None:
    for pictures in ([], [None, None]):
        sheet = sprite_sheet(pictures)
        assert (sheet.content, sheet.columns, sheet.positions) == (b"", 0, pictures)


def test_a_sheet_is_at_most_as_large_as_asked_for() -> None:
    pictures = noise(100)
    sizes = []
    for max_bytes in (150_000, 60_000, 15_000, 2_000, 100):
        sheet = sprite_sheet(pictures, max_bytes=max_bytes)
        assert len(sheet.content) <= max_bytes
        sizes.append((sheet.cell, sum(place is not None for place in sheet.positions)))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == (48, 100)
    assert sizes[-2][0] == 16
    assert 0 < sizes[-2][1] < 100


def test_a_sheet_of_more_than_the_format_holds_is_made_of_smaller_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thumbnails, "LONGEST_WEBP", 300)
    sheet = sprite_sheet(colours(100))
    assert (sheet.cell, sheet.width, sheet.height) == (27, 270, 270)
    assert None not in sheet.positions
