import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from infra import release, release_list
from infra.release_list import Planned, Stored
from local_aws.client import LocalAwsClient
from orchard.settings import Settings
from tests.plugins.plans import plan, put_images

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

List = Callable[[str], str]


@pytest.fixture
def listed(aws_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> List:
    """Runs the command on the local AWS, and returns what it prints."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws_url)
    monkeypatch.delenv("ORCHARD_RELEASE", raising=False)

    def run(bucket: str) -> str:
        assert release_list.main(["--bucket", bucket]) == 0
        return capsys.readouterr().out

    return run


def upload(s3: "S3Client", bucket: str, parts: Path, content: bytes = b"1") -> str:
    (parts / "wheels/numpy.whl").write_bytes(content)
    return release.upload(s3, bucket, release.collect(parts))


def row(output: str, version: str) -> str:
    (line,) = re.findall(rf"^{version} .*(?:\n +not usable: .*)?", output, flags=re.MULTILINE)
    return str(line)


def to_delete(output: str) -> set[str]:
    return set(re.findall(r"^ +aws s3 rm --recursive s3://[^/]+/releases/(.*)/$", output, flags=re.MULTILINE))


def put_plan(s3: "S3Client", bucket: str, run: str, **content: Any) -> str:
    s3.put_object(Bucket=bucket, Key=f"runs/images/{run}/plan.metrics.json", Body=json.dumps(content).encode())
    return f"s3://{bucket}/runs/images/{run}"


def test_releases_that_no_run_was_planned_with_are_unused(
    s3: "S3Client", bucket: str, parts: Path, listed: List
) -> None:
    used, unused = (upload(s3, bucket, parts, content) for content in (b"1", b"22"))
    put_images(s3, bucket, count=3)
    run = plan(s3, Settings(bucket=bucket, release=used))
    output = listed(bucket)
    time = r"\d{4}-\d\d-\d\d \d\d:\d\d"
    assert re.fullmatch(rf"{used}  {time} +8 +\d\.\d  1 run, the last at {time}: {run['run_uri']}", row(output, used))
    assert row(output, unused).endswith("  nothing")
    assert re.search(r"Unused: 1 of 2 releases, 0\.\d MB\. Before you delete one, check that no Airflow", output)
    assert to_delete(output) == {unused}
    assert s3.head_object(Bucket=bucket, Key=f"releases/{unused}/manifest.json"), "nothing is deleted"


def at(hour: int) -> datetime:
    return datetime(2026, 11, 22, hour, tzinfo=UTC)


def test_the_last_of_several_runs_is_named() -> None:
    stored = [Stored("0123456789ab", at(1), 1, 1, "m", "")]
    runs = [Planned(f"s3://b/runs/d/{hour}", at(hour), "0123456789ab", "m") for hour in (3, 2)]
    text = release_list.report("b", release_list.uses(stored, runs, ""), "")
    assert "  2 runs, the last at 2026-11-22 03:00: s3://b/runs/d/3\n" in text


def test_the_configured_release_is_not_unused(
    s3: "S3Client", bucket: str, parts: Path, listed: List, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = upload(s3, bucket, parts)
    assert to_delete(listed(bucket)) == {version}
    monkeypatch.setenv("ORCHARD_RELEASE", version)
    output = listed(bucket)
    assert row(output, version).endswith("  ORCHARD_RELEASE")
    assert to_delete(output) == set()
    assert "No release is unused." in output
    monkeypatch.setenv("ORCHARD_RELEASE", "ffffffffffff")
    assert f"ORCHARD_RELEASE is ffffffffffff, which is not in s3://{bucket}." in listed(bucket)


def test_the_run_of_an_earlier_orchard_may_have_used_each_release_of_its_model(
    s3: "S3Client", bucket: str, parts: Path, listed: List
) -> None:
    same = upload(s3, bucket, parts)
    (parts / "model/mobilenet.tflite").rename(parts / "model/another.tflite")
    other = upload(s3, bucket, parts)
    run = put_plan(s3, bucket, "20261122T020000-aaaaaa", step="plan", model="mobilenet", decoder="1")
    output = listed(bucket)
    assert re.search(rf"  possibly 1 run, the last at .*: {run}$", row(output, same))
    assert to_delete(output) == {other}


def test_a_run_cannot_have_used_a_release_that_was_uploaded_later() -> None:
    releases = [Stored(f"r{hour}", at(hour), 1, 1, "m", "") for hour in (3, 1)]
    runs = [Planned("s3://b/runs/d/2", at(2), "", "m")]
    assert [use.is_unused for use in release_list.uses(releases, runs, "")] == [True, False]


def test_a_plan_that_cannot_be_read_makes_no_release_unused(
    s3: "S3Client", bucket: str, parts: Path, listed: List
) -> None:
    version = upload(s3, bucket, parts)
    s3.put_object(Bucket=bucket, Key="runs/images/1/plan.metrics.json", Body=b"{")
    output = listed(bucket)
    assert "possibly 1 run" in row(output, version)
    assert to_delete(output) == set()


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        ("delete manifest.json", "no manifest.json: the upload was interrupted, or is not finished"),
        ("cut manifest.json", "manifest.json is damaged"),
        ("delete wheels/numpy.whl", "1 of its 8 files missing or of another size"),
        ("cut wheels/numpy.whl", "1 of its 8 files missing or of another size"),
        ("rename", "manifest.json was changed, or is that of another release"),
    ],
)
def test_a_release_that_is_not_complete_is_marked(
    s3: "S3Client", bucket: str, parts: Path, listed: List, damage: str, fault: str
) -> None:
    version = upload(s3, bucket, parts, b"wheel")
    action, _, path = damage.partition(" ")
    if action == "delete":
        s3.delete_object(Bucket=bucket, Key=f"releases/{version}/{path}")
    elif action == "cut":
        s3.put_object(Bucket=bucket, Key=f"releases/{version}/{path}", Body=b"{")
    else:
        manifest = s3.get_object(Bucket=bucket, Key=f"releases/{version}/manifest.json")["Body"].read()
        version = "0123456789ab"
        s3.put_object(Bucket=bucket, Key=f"releases/{version}/manifest.json", Body=manifest)
    assert row(listed(bucket), version).endswith(f"\n{'':12}  not usable: {fault}")


def test_a_complete_release_is_not_marked(s3: "S3Client", bucket: str, parts: Path, listed: List) -> None:
    upload(s3, bucket, parts)
    assert "not usable" not in listed(bucket)


def test_a_folder_whose_name_a_shell_would_read_is_quoted(s3: "S3Client", bucket: str, listed: List) -> None:
    s3.put_object(Bucket=bucket, Key="releases/a b;reboot/x", Body=b"1")
    s3.put_object(Bucket=bucket, Key="releases/note.txt", Body=b"1")
    output = listed(bucket)
    assert f"    aws s3 rm --recursive 's3://{bucket}/releases/a b;reboot/'\n" in output
    assert "note.txt" not in output


def test_an_empty_bucket_has_no_releases(bucket: str, listed: List) -> None:
    assert listed(bucket) == f"s3://{bucket} has no releases. Upload one with `make release BUCKET={bucket}`\n"


def test_a_bucket_that_does_not_exist_is_reported(
    listed: List, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    assert release_list.main(["--bucket", "no-such-bucket"]) == 1
    assert "failed: bucket 'no-such-bucket' does not exist. Create it, or correct the name" in caplog.text
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("calls", [[1], [2], [3]], ids=["list releases", "read manifest", "list runs"])
def test_denied_access_is_reported(
    s3: "S3Client",
    bucket: str,
    parts: Path,
    aws_url: str,
    listed: List,
    caplog: pytest.LogCaptureFixture,
    calls: list[int],
) -> None:
    upload(s3, bucket, parts)
    local = LocalAwsClient(aws_url)
    rule = local.fail("s3", "AccessDenied", calls)
    try:
        assert release_list.main(["--bucket", bucket]) == 1
    finally:
        local.remove(rule)
    permissions = "s3:ListBucket, and s3:GetObject below releases/ and runs/"
    assert f"AWS denies access to bucket '{bucket}'. Use credentials that allow {permissions}" in caplog.text


def test_an_aws_that_does_not_answer_is_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    assert release_list.main(["--bucket", "fruits-data"]) == 1
    assert "failed: S3 cannot be reached. Check the network, AWS_REGION and AWS_ENDPOINT_URL" in caplog.text
