from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from orchard.run.scratch import delete_scratch
from orchard.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# The objects of a test are as old as the test, so its present is in the future.
LATER = datetime.now(UTC) + timedelta(days=30)


def named(days_before: float) -> str:
    """Return the name of a run of some days before LATER."""
    return f"{LATER - timedelta(days=days_before):%Y%m%dT%H%M%S}-0a1b2c"


def settings(bucket: str, days: int) -> Settings:
    return Settings(bucket=bucket, release="1", keep_scratch_days=days)


def write_folder(s3: "S3Client", bucket: str, name: str, *, published: bool = True, objects: int = 2) -> str:
    """Write the scratch folder of a run, and return its URI."""
    for number in range(objects):
        s3.put_object(Bucket=bucket, Key=f"scratch/images/{name}/inventory/part-{number}", Body=b"1")
    if published:
        s3.put_object(Bucket=bucket, Key=f"runs/images/{name}/summary.json", Body=b"{}")
    return f"s3://{bucket}/scratch/images/{name}"


def folders(s3: "S3Client", bucket: str) -> set[str]:
    """Return the URIs of the scratch folders."""
    listed = s3.list_objects_v2(Bucket=bucket, Prefix="scratch/").get("Contents", [])
    return {f"s3://{bucket}/{item['Key'].rsplit('/', 2)[0]}" for item in listed}


def test_the_folder_of_a_published_run_is_deleted_with_all_its_objects(s3: "S3Client", bucket: str) -> None:
    own = write_folder(s3, bucket, named(0), objects=3)
    longer = write_folder(s3, bucket, f"{named(0)}d", published=False)
    s3.put_object(Bucket=bucket, Key="scratch/images-2/20261101T020000-0a1b2c/part", Body=b"1")
    assert delete_scratch(s3, settings(bucket, 0), own, now=LATER) == [own]
    assert folders(s3, bucket) == {longer, f"s3://{bucket}/scratch/images-2"}
    assert delete_scratch(s3, settings(bucket, 0), own, now=LATER) == []


def test_more_objects_than_one_request_can_name_are_deleted(
    s3: "S3Client", bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchard.storage.MOST_DELETED", 2)
    own = write_folder(s3, bucket, named(0), objects=5)
    delete_scratch(s3, settings(bucket, 0), own, now=LATER)
    assert folders(s3, bucket) == set()


def test_folders_of_published_runs_are_kept_for_the_days_of_the_setting(s3: "S3Client", bucket: str) -> None:
    own, young, old = (write_folder(s3, bucket, named(days)) for days in (0, 2.9, 3.1))
    assert delete_scratch(s3, settings(bucket, 3), own, now=LATER) == [old]
    assert folders(s3, bucket) == {own, young}


@pytest.mark.parametrize(("keep_days", "limit"), [(0, 7), (3, 7), (9, 9)])
def test_folders_of_runs_that_failed_or_wait_are_kept_for_at_least_seven_days(
    s3: "S3Client", bucket: str, keep_days: int, limit: int
) -> None:
    own = write_folder(s3, bucket, named(0))
    young, old = (write_folder(s3, bucket, named(limit + days), published=False) for days in (-0.1, 0.1))
    deleted = delete_scratch(s3, settings(bucket, keep_days), own, now=LATER)
    assert (old in deleted, young in deleted) == (True, False)


def test_an_old_run_that_was_cleared_and_has_just_written_its_folder_keeps_it(s3: "S3Client", bucket: str) -> None:
    now = datetime.now(UTC)
    own = write_folder(s3, bucket, f"{now:%Y%m%dT%H%M%S}-0a1b2c")
    cleared = write_folder(s3, bucket, "20260101T020000-0a1b2c", published=False)
    assert delete_scratch(s3, settings(bucket, 0), own, now=now) == [own]
    assert folders(s3, bucket) == {cleared}


def test_a_folder_that_is_not_of_a_run_is_kept(s3: "S3Client", bucket: str) -> None:
    own, other = write_folder(s3, bucket, named(0)), write_folder(s3, bucket, "notes")
    delete_scratch(s3, settings(bucket, 0), own, now=LATER)
    assert folders(s3, bucket) == {other}


@pytest.mark.parametrize("answer", ["an error", "an error for one object"])
def test_a_deletion_that_fails_is_logged_and_does_not_fail_the_run(
    s3: "S3Client", bucket: str, answer: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own = write_folder(s3, bucket, named(0))

    def refuse(**request: Any) -> dict[str, Any]:
        if answer == "an error":
            raise s3.exceptions.ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "DeleteObjects")
        return {"Errors": [{"Key": request["Delete"]["Objects"][0]["Key"], "Code": "AccessDenied", "Message": "no"}]}

    monkeypatch.setattr(s3, "delete_objects", refuse)
    assert delete_scratch(s3, settings(bucket, 0), own, now=LATER) == []
    assert f"scratch folders below s3://{bucket}/scratch/images are not all deleted" in caplog.text
