import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

import ingest
from local_aws.client import LocalAwsClient
from orchard_spark import images as decoder
from orchard_spark import objects, schemas, step
from orchard_spark.read_ahead import Listed, ObjectChanged, ObjectGone, UnreadableKey
from orchard_spark.rejects import RejectedObject
from tests.spark.files import encode
from tests.spark.ingested import DATASET, RunFolders, inventory_of, listed, write_plan

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

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
    folders: RunFolders
    max_reject_ratio: float
    metrics: dict[str, Any]


@pytest.fixture(scope="module")
def done(rendered: Path, tmp_path_factory: pytest.TempPathFactory) -> Ingested:
    """A run that accepts exactly the share of rejects that it has. No test may change it."""
    folder = tmp_path_factory.mktemp("ingested")
    images, folders = folder / "images", RunFolders.below(f"file://{folder}")
    shutil.copytree(rendered, images)
    spoil(images)
    write_plan(folders, inventory_of(images))
    return Ingested(images, folders, limit := 4 / 28, folders.ingest(limit))


@pytest.fixture
def spoiled(images: Path) -> Path:
    spoil(images)
    return images


def files_of(folder: Path) -> dict[str, bytes]:
    return {f"file://{path}": path.read_bytes() for path in folder.rglob("*_100.jpg") if not path.name.startswith(".")}


def test_every_object_of_the_inventory_is_in_either_images_or_rejects(done: Ingested) -> None:
    images, rejects, inventory = (done.folders.read(name) for name in ("images", "rejects", "inventory"))
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


def test_images_have_the_original_bytes_and_their_description(done: Ingested) -> None:
    table = done.folders.read("images")
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
    written = json.loads(objects.read(f"{done.folders.run_uri}/ingest.metrics.json"))
    assert written == done.metrics
    assert (written["step"], written["run_id"]) == ("ingest", "run-1")
    assert written["images_per_second"] == pytest.approx(28 / written["seconds"], rel=0.02)
    assert written["versions"]["pyspark"] == "3.5.8"


def test_each_file_of_the_inventory_is_a_task_with_its_own_files(done: Ingested) -> None:
    assert done.metrics["tasks"] == len(done.folders.parts("inventory")) == len(done.folders.parts("images")) == 2
    places = {part.uri.rsplit("/", 1)[0] for name in ("images", "rejects") for part in done.folders.parts(name)}
    assert places == {f"{done.folders.scratch_uri}/images", f"{done.folders.scratch_uri}/rejects"}


def test_too_many_rejects_fail_with_their_number_ratio_and_reasons(spoiled: Path, folders: RunFolders) -> None:
    (spoiled / "Kiwi/empty2.jpg").write_bytes(b"")
    write_plan(folders, inventory_of(spoiled))
    with pytest.raises(ingest.TooManyRejects) as error:
        folders.ingest(0.1)
    message = str(error.value)
    assert "5 of 29 objects were rejected: the ratio 0.172 exceeds max_reject_ratio 0.1" in message
    assert "Most common reasons: 2 empty (the object has no bytes); 1 too_many_pixels" in message
    assert f"{folders.scratch_uri}/rejects" in message
    with pytest.raises(FileNotFoundError):  # so nothing lists the images
        objects.read(f"{folders.run_uri}/ingest.metrics.json")


def test_the_ratio_counts_the_images_and_rejects_that_the_dataset_has_already(
    spoiled: Path, folders: RunFolders
) -> None:
    new = [row for row in inventory_of(spoiled) if row["path"].endswith("empty.jpg")]
    write_plan(folders, new, listed=100, rejects_kept=2, kept_reject_reasons={"undecodable": 2})
    assert folders.ingest(0.03)["reject_reasons"] == {"empty": 1}
    with pytest.raises(ingest.TooManyRejects, match=r"3 of 100 .* 0.02\. Most common reasons: 2 undecodable .*1 empty"):
        folders.ingest(0.02)


def test_old_rejects_alone_do_not_fail_a_run(images: Path, folders: RunFolders) -> None:
    write_plan(folders, inventory_of(images), listed=100, rejects_kept=50, kept_reject_reasons={"undecodable": 50})
    assert folders.ingest(0)["rejects"] == 0


def test_a_run_without_new_objects_ingests_nothing(folders: RunFolders) -> None:
    write_plan(folders, listed=100)
    metrics = folders.ingest()
    assert (metrics["rows_in"], metrics["rows_out"], metrics["rejects"], metrics["tasks"]) == (0, 0, 0, 0)
    assert (folders.parts("images"), folders.parts("rejects")) == ([], [])


def test_a_run_that_is_not_planned_is_refused(folders: RunFolders) -> None:
    with pytest.raises(step.StepUnfinished, match=r"plan\.metrics\.json does not exist"):
        folders.ingest()


def test_a_share_of_rejects_equal_to_the_limit_is_accepted(done: Ingested) -> None:
    assert (done.metrics["rejects"], done.metrics["rows_in"], done.max_reject_ratio) == (4, 28, 4 / 28)


def test_a_second_attempt_lists_other_files_and_changes_none_of_the_first(images: Path, folders: RunFolders) -> None:
    write_plan(folders, inventory_of(images))
    folders.ingest()
    before = {part.uri: objects.read(part.uri) for part in folders.parts("images")}
    folders.ingest()
    assert before.keys().isdisjoint(part.uri for part in folders.parts("images"))
    assert folders.read("images").num_rows == 24
    assert {uri: objects.read(uri) for uri in before} == before


def test_a_second_attempt_first_deletes_the_completion_markers(images: Path, folders: RunFolders) -> None:
    write_plan(folders, inventory_of(images))
    folders.ingest()
    objects.write(f"{folders.run_uri}/summary.json", b"{}")
    objects.delete(f"{folders.run_uri}/plan.metrics.json")
    with pytest.raises(step.StepUnfinished):
        folders.ingest()
    for name in ("summary.json", "ingest.metrics.json"):
        with pytest.raises(FileNotFoundError):
            objects.read(f"{folders.run_uri}/{name}")


@pytest.mark.parametrize("value", ["-0.1", "1.5", "much"])
def test_a_max_reject_ratio_outside_0_to_1_is_refused(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        ingest.main(["--run-uri", "x", "--scratch-uri", "y", f"--max-reject-ratio={value}"])
    assert "--max-reject-ratio" in capsys.readouterr().err


def test_batches_are_limited_in_rows_and_in_bytes() -> None:
    row = dict.fromkeys(ingest.OUTCOMES.names) | {"path": "p", "content": bytes(3 * 1024**2)}
    assert [batch.num_rows for batch in ingest.in_batches([row] * 7)] == [3, 3, 1]
    small = row | {"content": b"x"}
    assert [batch.num_rows for batch in ingest.in_batches([small] * 130)] == [64, 64, 2]


LISTED = Listed("s3://b/Kiwi/1.jpg", "Kiwi", "e", 5, datetime(2026, 11, 22, tzinfo=UTC))


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


def test_an_object_that_the_listing_rejects_is_a_reject_with_the_reason_of_the_listing(
    images: Path, folders: RunFolders
) -> None:
    (images / "Kiwi/backup.jpg").write_bytes(b"x")
    with (images / "Kiwi/backup.jpg").open("r+b") as file:
        file.truncate(3 * 1024**3)  # a sparse file: reading it would take its size in memory
    large = listed(images / "Kiwi/backup.jpg", reason="too_many_bytes", message="too large")
    write_plan(folders, [large, listed(images / "Kiwi/0_100.jpg")])
    assert folders.ingest(1)["reject_reasons"] == {"too_many_bytes": 1}
    (row,) = folders.read("rejects").to_pylist()
    assert (row["size"], row["message"]) == (3 * 1024**3, "too large")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--max-pixels", "-5", "-5 is not positive: use a whole number from 1"),
        ("--max-pixels", "0", "0 is not positive: use a whole number from 1"),
        ("--max-pixels", "1.5", "invalid positive value: '1.5'"),
    ],
)
def test_a_limit_that_is_no_limit_is_refused(
    option: str, value: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        ingest.main(["--run-uri", "x", "--scratch-uri", "y", f"{option}={value}"])
    assert f"argument {option}: {message}" in capsys.readouterr().err


def test_the_program_takes_its_folders_and_limits_from_the_command_line(images: Path, folders: RunFolders) -> None:
    write_plan(folders, inventory_of(images))
    options = ["--run-uri", f"{folders.run_uri}/", "--scratch-uri", folders.scratch_uri, "--max-reject-ratio", "1"]
    ingest.main([*options, "--max-pixels", "9999"])
    assert set(folders.read("rejects")["reason"].to_pylist()) == {"too_many_pixels"}
    assert folders.read("images").num_rows == 0


def put_images(s3: "S3Client", bucket: str, content: bytes, count: int = 3) -> list[dict[str, Any]]:
    """Put an image several times into a bucket, and return it as the plan lists it."""
    rows = []
    for number in range(count):
        etag = s3.put_object(Bucket=bucket, Key=f"in/k/{number}.jpg", Body=content)["ETag"].strip('"')
        modified = datetime(2026, 11, 22, tzinfo=UTC)
        rows.append(asdict(Listed(f"s3://{bucket}/in/k/{number}.jpg", "k", etag, len(content), modified)))
    return rows


@pytest.fixture
def faults(aws_url: str) -> Iterator[LocalAwsClient]:
    client = LocalAwsClient(aws_url)
    yield client
    client.clear()


@pytest.mark.parametrize("max_reject_ratio", [0.05, 1])
def test_a_dataset_that_is_denied_as_a_whole_fails_with_the_permissions_that_it_needs(
    s3: "S3Client", step_bucket: str, folders: RunFolders, faults: LocalAwsClient, max_reject_ratio: float
) -> None:
    write_plan(folders, put_images(s3, step_bucket, b"x"))
    faults.fail("s3", "AccessDenied")
    message = f"access to all 3 objects below {DATASET} is denied: give"
    with pytest.raises(ingest.AllForbidden, match=message):
        folders.ingest(max_reject_ratio)


def test_a_single_denied_object_is_a_reject(
    s3: "S3Client", step_bucket: str, folders: RunFolders, images: Path, faults: LocalAwsClient
) -> None:
    write_plan(folders, put_images(s3, step_bucket, (images / "Kiwi/0_100.jpg").read_bytes()))
    faults.fail("s3", "AccessDenied", [2])
    metrics = folders.ingest(0.5)
    assert (metrics["rows_out"], metrics["reject_reasons"]) == (2, {"forbidden": 1})
    assert "AccessDenied" in folders.read("rejects")["message"][0].as_py()


def test_new_objects_that_are_all_denied_are_rejects_if_the_dataset_has_others(
    s3: "S3Client", step_bucket: str, folders: RunFolders, faults: LocalAwsClient
) -> None:
    write_plan(folders, put_images(s3, step_bucket, b"x"), listed=100)
    faults.fail("s3", "AccessDenied")
    assert folders.ingest(0.05)["reject_reasons"] == {"forbidden": 3}
