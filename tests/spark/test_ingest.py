import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from _pytest.logging import LogCaptureHandler
from PIL import Image

import ingest
from local_aws.client import LocalAwsClient
from orchard_spark import images as decoder
from orchard_spark import objects, schemas
from orchard_spark.dataset import Listed, ObjectChanged, ObjectGone, UnreadableKey
from orchard_spark.rejects import RejectedObject
from tests.spark.files import encode

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

Read = Callable[[str], pa.Table]
MAX_PIXELS = 50_000


def spoil(images: Path) -> None:
    """Add four files that do not decode, and two files that are not images by name."""
    folder = images / "Kiwi"
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "page.jpg").write_bytes(b"<html></html>")
    (folder / "cut.jpeg").write_bytes((folder / "0_100.jpg").read_bytes()[:1500])
    (folder / "huge.PNG").write_bytes(encode(Image.new("L", (300, 300)), "PNG"))
    (folder / "._0_100.jpg").write_bytes(b"resource fork")
    (folder / "notes.txt").write_text("not an image")


@dataclass(frozen=True)
class Ingested:
    """A run over the 24 pictures and the files of `spoil`."""

    images: Path
    run_uri: str
    max_reject_ratio: float
    metrics: dict[str, Any]
    log: list[logging.LogRecord]

    @property
    def folder(self) -> Path:
        return Path(self.run_uri.removeprefix("file://"))


@pytest.fixture(scope="module")
def done(rendered: Path, tmp_path_factory: pytest.TempPathFactory) -> Ingested:
    """A run that accepts exactly the share of rejects that it has. No test may change it."""
    folder = tmp_path_factory.mktemp("ingested")
    images, run_uri = folder / "images", f"file://{folder}/run-1"
    shutil.copytree(rendered, images)
    spoil(images)
    handler, logger = LogCaptureHandler(), logging.getLogger("ingest")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    metrics = ingest.run(str(images), run_uri, limit := 4 / 28, max_pixels=MAX_PIXELS)
    logger.setLevel(level)
    logger.removeHandler(handler)
    return Ingested(images, run_uri, limit, metrics, handler.records)


@pytest.fixture
def spoiled(images: Path) -> Path:
    spoil(images)
    return images


def files_of(folder: Path) -> dict[str, bytes]:
    return {f"file://{path}": path.read_bytes() for path in folder.rglob("*_100.jpg") if not path.name.startswith(".")}


def test_every_listed_object_is_in_either_images_or_rejects(done: Ingested, read: Read) -> None:
    images, rejects, inventory = (read(f"{done.run_uri}/{name}") for name in ("images", "rejects", "inventory"))
    assert (done.metrics["rows_in"], done.metrics["rows_out"], done.metrics["rejects"]) == (28, 24, 4)
    both = images["path"].to_pylist() + rejects["path"].to_pylist()
    assert sorted(both) == sorted(inventory["path"].to_pylist())
    reasons = {
        path.rsplit("/", 1)[1]: reason
        for path, reason in zip(rejects["path"].to_pylist(), rejects["reason"].to_pylist(), strict=True)
    }
    assert reasons == {
        "empty.jpg": "empty",
        "page.jpg": "unknown_format",
        "cut.jpeg": "undecodable",
        "huge.PNG": "too_many_pixels",
    }
    assert rejects.schema.remove_metadata().equals(schemas.REJECTS)
    assert all(rejects["message"].to_pylist())


def test_images_have_the_original_bytes_and_their_description(done: Ingested, read: Read) -> None:
    table = read(f"{done.run_uri}/images")
    assert table.schema.remove_metadata().equals(schemas.IMAGES)
    rows = {row["path"]: row for row in table.to_pylist()}
    originals = files_of(done.images)
    assert {path: row["content"] for path, row in rows.items()} == originals
    for path, row in rows.items():
        assert row["sha256"] == hashlib.sha256(originals[path]).hexdigest()
        assert (row["format"], row["width"], row["height"]) == ("JPEG", 100, 100)
        assert row["label"] == Path(path).parent.name
        assert row["size"] == len(originals[path])


def test_the_metrics_file_has_rows_time_and_versions(done: Ingested) -> None:
    written = json.loads((done.folder / "ingest.metrics.json").read_text())
    assert written == done.metrics
    assert (written["step"], written["run_id"]) == ("ingest", "run-1")
    assert written["images_per_second"] == pytest.approx(28 / written["seconds"], rel=0.02)
    assert written["versions"]["pyspark"] == "3.5.8"


def test_there_is_at_least_one_file_per_task_slot(done: Ingested) -> None:
    assert len(list((done.folder / "images").glob("part-*"))) == 2


def test_the_files_of_an_inventory_have_equal_size(run_uri: str, read: Read) -> None:
    names = [f"{number:02}" for number in range(11)]
    columns = {"path": names, "label": names, "etag": names, "size": [1] * 11, "modified": [0] * 11}
    columns |= {"reason": [None] * 11, "message": [None] * 11}
    inventory = pa.table(columns, schema=schemas.INVENTORY)
    written = ingest.write_inventory(inventory, f"{run_uri}/inventory", 3)
    assert [part.rows for part in written] == [4, 4, 3]
    assert sorted(read(f"{run_uri}/inventory")["path"].to_pylist()) == names


def test_too_many_rejects_fail_with_their_number_ratio_and_reasons(spoiled: Path, run_uri: str, read: Read) -> None:
    (spoiled / "Kiwi/empty2.jpg").write_bytes(b"")
    with pytest.raises(ingest.TooManyRejects) as error:
        ingest.run(str(spoiled), run_uri, max_reject_ratio=0.1, max_pixels=MAX_PIXELS)
    message = str(error.value)
    assert "5 of 29 objects were rejected: the ratio 0.172 exceeds max_reject_ratio 0.1" in message
    assert "Most common reasons: 2 empty (the object has no bytes); 1 too_many_pixels" in message
    assert f"{run_uri}/rejects" in message
    assert read(f"{run_uri}/rejects").num_rows == 5
    with pytest.raises(FileNotFoundError):  # so nothing lists the images
        objects.read(f"{run_uri}/ingest.metrics.json")


def test_a_share_of_rejects_equal_to_the_limit_is_accepted(done: Ingested) -> None:
    assert (done.metrics["rejects"], done.metrics["rows_in"], done.max_reject_ratio) == (4, 28, 4 / 28)


def test_a_prefix_without_images_fails_with_its_name(tmp_path: Path, run_uri: str) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ingest.NoImages, match=rf"no images below {tmp_path}: expected files ending in \.jpg, "):
        ingest.run(str(tmp_path), run_uri, max_reject_ratio=0.05, max_pixels=MAX_PIXELS)


def test_a_second_attempt_lists_other_files_and_changes_none_of_the_first(
    done: Ingested, run_uri: str, read: Read
) -> None:
    shutil.copytree(done.folder, run_uri.removeprefix("file://"))
    before = {file: file.read_bytes() for file in Path(run_uri.removeprefix("file://")).rglob("*.parquet")}
    ingest.run(str(done.images), run_uri, done.max_reject_ratio, max_pixels=MAX_PIXELS)
    assert (read(f"{run_uri}/images").num_rows, read(f"{run_uri}/rejects").num_rows) == (24, 4)
    assert {file: file.read_bytes() for file in before} == before


def test_a_second_attempt_first_deletes_the_completion_markers(done: Ingested, run_uri: str) -> None:
    folder = Path(run_uri.removeprefix("file://"))
    shutil.copytree(done.folder, folder)
    assert (folder / "ingest.metrics.json").exists()
    (folder / "summary.json").write_text("{}")
    with pytest.raises(ingest.NoImages):
        ingest.run(f"{done.images}/none", run_uri, max_reject_ratio=0, max_pixels=MAX_PIXELS)
    assert not (folder / "summary.json").exists()
    assert not (folder / "ingest.metrics.json").exists()


@pytest.mark.parametrize("value", ["-0.1", "1.5", "much"])
def test_a_max_reject_ratio_outside_0_to_1_is_refused(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        ingest.main(["--input-uri", "x", "--run-uri", "y", f"--max-reject-ratio={value}"])
    assert "--max-reject-ratio" in capsys.readouterr().err


def test_batches_are_limited_in_rows_and_in_bytes() -> None:
    row = dict.fromkeys(ingest.OUTCOMES.names) | {"path": "p", "content": bytes(3 * 1024**2)}
    assert [batch.num_rows for batch in ingest.in_batches([row] * 7)] == [3, 3, 1]
    small = row | {"content": b"x"}
    assert [batch.num_rows for batch in ingest.in_batches([small] * 130)] == [64, 64, 2]


LISTED = Listed("s3://b/Kiwi/1.jpg", "e", 5, datetime(2026, 11, 22, tzinfo=UTC))


@pytest.mark.parametrize(
    ("error", "reason"),
    [(UnreadableKey("k"), "unreadable_key"), (ObjectGone("g"), "deleted"), (ObjectChanged("c"), "changed")],
)
def test_an_object_that_cannot_be_read_is_rejected_with_a_reason(error: RejectedObject, reason: str) -> None:
    row = ingest.verify(LISTED, error, MAX_PIXELS)
    assert (row["path"], row["reason"], row["message"]) == (LISTED.path, reason, str(error))


def test_an_error_that_does_not_concern_the_object_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(content: bytes, max_pixels: int) -> None:
        raise PermissionError("no access")

    monkeypatch.setattr(decoder, "decode", fail)
    with pytest.raises(PermissionError):
        ingest.verify(LISTED, b"content", MAX_PIXELS)


def test_a_large_image_is_a_batch_of_its_own() -> None:
    row = dict.fromkeys(ingest.OUTCOMES.names) | {"path": "p", "content": b"x"}
    large = row | {"content": bytes(20 * 1024**2)}
    assert [batch.num_rows for batch in ingest.in_batches([row, row, large, row, large, large])] == [2, 1, 1, 1, 1]


def test_an_object_over_max_bytes_is_a_reject(images: Path, run_uri: str, read: Read) -> None:
    (images / "Kiwi/backup.jpg").write_bytes(b"x")
    with (images / "Kiwi/backup.jpg").open("r+b") as file:
        file.truncate(3 * 1024**3)  # a sparse file: reading it would take its size in memory
    metrics = ingest.run(str(images), run_uri, max_reject_ratio=0.05, max_pixels=MAX_PIXELS)
    assert metrics["reject_reasons"] == {"too_many_bytes": 1}
    (row,) = read(f"{run_uri}/rejects").to_pylist()
    assert (row["size"], row["message"]) == (3 * 1024**3, f"{3 * 1024**3} bytes, over {64 * 1024**2}")


def test_the_option_max_bytes_is_the_limit(images: Path, run_uri: str, read: Read) -> None:
    arguments = ["--input-uri", str(images), "--run-uri", run_uri, "--max-reject-ratio", "1", "--max-bytes", "10"]
    ingest.main(arguments)
    assert set(read(f"{run_uri}/rejects")["reason"].to_pylist()) == {"too_many_bytes"}
    assert read(f"{run_uri}/images").num_rows == 0


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--max-bytes", "0", "0 is not positive: use a whole number from 1"),
        ("--max-bytes", "-5", "-5 is not positive: use a whole number from 1"),
        ("--max-bytes", str(1024**3 + 1), "1073741825 is too large: use at most 1073741824"),
        ("--max-bytes", "64M", "invalid object_bytes value: '64M'"),
        ("--max-pixels", "0", "0 is not positive: use a whole number from 1"),
        ("--max-pixels", "1.5", "invalid positive value: '1.5'"),
    ],
)
def test_a_limit_that_is_no_limit_is_refused(
    option: str, value: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        ingest.main(["--input-uri", "images", "--run-uri", "run", f"{option}={value}"])
    assert f"argument {option}: {message}" in capsys.readouterr().err


def test_ignored_objects_are_in_the_metrics_and_a_warning_when_they_are_more_than_the_images(
    images: Path, run_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(25):
        (images / f"Kiwi/{number}.HEIC").write_bytes(b"x")
    with caplog.at_level(logging.INFO, "ingest"):
        metrics = ingest.run(str(images), run_uri, max_reject_ratio=0, max_pixels=MAX_PIXELS)
    assert metrics["ignored"] == {".heic": 25}
    (record,) = [record for record in caplog.records if "ignored" in record.message and record.levelname != "INFO"]
    assert (record.levelname, record.message) == ("WARNING", "ingest: 25 objects are ignored, 24 are images: 25 .heic")


def test_few_ignored_objects_are_no_warning(done: Ingested) -> None:
    (record,) = [record for record in done.log if "are ignored" in record.message]
    assert (record.levelname, record.message.split(": ", 2)[2]) == ("INFO", "1 .txt, 1 hidden")


def test_a_prefix_without_images_fails_with_what_is_there(tmp_path: Path, run_uri: str) -> None:
    for name in ("a.heic", "b.HEIC", "c.gif"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ingest.NoImages, match=r"Ignored: 2 \.heic, 1 \.gif"):
        ingest.run(str(tmp_path), run_uri, max_reject_ratio=0.05, max_pixels=MAX_PIXELS)


def test_archived_objects_are_rejects_and_the_others_are_images(
    s3: "S3Client", step_bucket: str, run_uri: str, images: Path, read: Read
) -> None:
    content = (images / "Kiwi/0_100.jpg").read_bytes()
    for number in range(4):
        s3.put_object(Bucket=step_bucket, Key=f"in/k/{number}.jpg", Body=content)
    s3.put_object(Bucket=step_bucket, Key="in/k/cold.jpg", Body=content, StorageClass="DEEP_ARCHIVE")
    metrics = ingest.run(f"s3://{step_bucket}/in/", run_uri, max_reject_ratio=0.5, max_pixels=MAX_PIXELS)
    assert (metrics["rows_out"], metrics["reject_reasons"]) == (4, {"archived": 1})
    (row,) = read(f"{run_uri}/rejects").to_pylist()
    assert "restore-object" in row["message"]


def test_a_dataset_of_archived_objects_fails_with_what_to_do(s3: "S3Client", step_bucket: str, run_uri: str) -> None:
    for number in range(3):
        s3.put_object(Bucket=step_bucket, Key=f"in/k/{number}.jpg", Body=b"x", StorageClass="GLACIER")
    with pytest.raises(ingest.TooManyRejects, match=r"3 archived \(the object is in an archive .*: restore it"):
        ingest.run(f"s3://{step_bucket}/in/", run_uri, max_reject_ratio=0.05, max_pixels=MAX_PIXELS)


@pytest.fixture
def faults(aws_url: str) -> Iterator[LocalAwsClient]:
    client = LocalAwsClient(aws_url)
    yield client
    client.clear()


@pytest.mark.parametrize("max_reject_ratio", [0.05, 1])
def test_a_dataset_that_is_denied_as_a_whole_fails_with_the_permissions_that_it_needs(
    s3: "S3Client", step_bucket: str, run_uri: str, faults: LocalAwsClient, max_reject_ratio: float
) -> None:
    for number in range(3):
        s3.put_object(Bucket=step_bucket, Key=f"in/k/{number}.jpg", Body=b"x")
    faults.fail("s3", "AccessDenied", range(2, 100))  # all but the listing
    message = f"access to all 3 objects below s3://{step_bucket}/in/ is denied: give"
    with pytest.raises(ingest.AllForbidden, match=message):
        ingest.run(f"s3://{step_bucket}/in/", run_uri, max_reject_ratio=max_reject_ratio, max_pixels=MAX_PIXELS)


def test_a_single_denied_object_is_a_reject(
    s3: "S3Client", step_bucket: str, run_uri: str, images: Path, faults: LocalAwsClient, read: Read
) -> None:
    content = (images / "Kiwi/0_100.jpg").read_bytes()
    for number in range(3):
        s3.put_object(Bucket=step_bucket, Key=f"in/k/{number}.jpg", Body=content)
    faults.fail("s3", "AccessDenied", [3])
    metrics = ingest.run(f"s3://{step_bucket}/in/", run_uri, max_reject_ratio=0.5, max_pixels=MAX_PIXELS)
    assert (metrics["rows_out"], metrics["reject_reasons"]) == (2, {"forbidden": 1})
    assert "AccessDenied" in read(f"{run_uri}/rejects")["message"][0].as_py()
