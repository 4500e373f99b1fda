import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks import listing, many_objects
from sandbox import aws

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@pytest.fixture(scope="module")
def many() -> Iterator["S3Client"]:
    with listing.serving() as url:
        yield aws.client("s3", url)


@pytest.mark.parametrize("prefix", ["2500/0/", "2500/10/"])
def test_the_pages_of_the_listing_contain_every_object_in_the_order_of_the_keys(many: "S3Client", prefix: str) -> None:
    pages = list(many.get_paginator("list_objects_v2").paginate(Bucket="b", Prefix=prefix))
    assert [len(page["Contents"]) for page in pages] == [1000, 1000, 500]
    keys = [item["Key"] for page in pages for item in page["Contents"]]
    assert keys == sorted(keys) == [many_objects.object_key(prefix, number) for number in range(2500)]


def test_a_listing_starts_after_any_string(many: "S3Client") -> None:
    page = many.list_objects_v2(Bucket="b", Prefix="2500/10/", StartAfter="2500/10/fruit-03/0000077~")
    assert page["Contents"][0]["Key"] == "2500/10/fruit-03/00000780.jpg"


def test_a_delimiter_shows_the_folders(many: "S3Client") -> None:
    page = many.list_objects_v2(Bucket="b", Prefix="2500/10/", Delimiter="/")
    assert [item["Prefix"] for item in page["CommonPrefixes"]] == [
        f"2500/10/fruit-{number:02}/" for number in range(10)
    ]


@pytest.mark.slow
def test_the_medians_of_the_rounds_are_printed_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(listing, "OBJECTS", 6_000)
    monkeypatch.setattr(listing, "MANY_OBJECTS", 7_000)
    monkeypatch.setattr(listing, "TARGET", tmp_path / "listing.json")
    listing.main(["--rounds", "1"])
    printed = json.loads(capsys.readouterr().out)
    written = json.loads((tmp_path / "listing.json").read_text())
    for layout in ("in_100_folders", "in_no_folder"):
        ours, theirs = (written["rounds"][0][layout][name]["seconds"] for name in ("list_images", "paginator"))
        assert theirs > 0.6
        assert printed[layout]["vs_paginator"] == round(theirs / ours, 1)
        assert 50 < printed["10_million"][layout]["peak_mb"] < 1_500


def test_the_paginators_seconds_are_scaled_to_all_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "PAGINATOR_PAGES", 2)
    with listing.serving() as url:
        seconds = listing.measure_paginator(url, 100_000, 0)["seconds"]
    assert 50 * 0.2 < seconds < 50 * 2
