import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchard.run.progress import MOST_BYTES, Progress, parse_progress, progress_uri, read_progress, sentence

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

NOW = datetime(2026, 11, 27, 2, 0, tzinfo=UTC)
CONTENT: dict[str, Any] = {
    "step": "features",
    "plan_id": "0f1e2d",
    "phase": "infer",
    "done": 12300,
    "total": 22688,
    "images_per_second": 75.2,
    "seconds": 164.0,
    "seconds_left": 138.1,
    "worker_peak_mb": 410.3,
    "updated_at": NOW.isoformat(),
    "is_done": False,
}
RUNNING = Progress("features", NOW, False, "0f1e2d", "infer", 12300, 22688, 75.2, 164.0, 138.1, 410.3)


def parse(**changes: Any) -> Progress | None:
    return parse_progress(json.dumps({**CONTENT, **changes}).encode(), "features")


def test_the_content_of_a_step_is_its_progress() -> None:
    assert parse() == RUNNING


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"step": "features", "updated_at": "2026-1',
        b"null",
        b"[]",
        b'"features"',
        b"\xff\xfe\x00",
        b"[" * 10_000,
        b'{"done": ' + b"9" * 10_000 + b"}",
        json.dumps({**CONTENT, "step": "pca"}).encode(),
        json.dumps({**CONTENT, "step": ["features"]}).encode(),
        json.dumps({**CONTENT, "note": "x" * MOST_BYTES}).encode(),
        *(
            json.dumps({**CONTENT, "updated_at": value}).encode()
            for value in (None, 0, "yesterday", "2026-11-27T02:00:00", "9999-12-31T23:59:59-23:59", "0001-01-01T00:00Z")
        ),
    ],
    ids=range(17),
)
def test_content_that_is_not_the_progress_of_the_step_is_none(content: bytes) -> None:
    assert parse_progress(content, "features") is None


@pytest.mark.parametrize(
    "value",
    [None, True, "7", [7], {"a": 7}, -1, float("nan"), float("inf"), float("-inf"), 10**400, 1e300],
    ids=str,
)
@pytest.mark.parametrize("key", ["images_per_second", "seconds", "seconds_left", "worker_peak_mb"])
def test_a_number_that_is_none_is_left_out(key: str, value: object) -> None:
    found = parse(**{key: value})
    assert found is not None
    assert getattr(found, key) is None
    assert (found.done, found.total) == (12300, 22688)


@pytest.mark.parametrize(
    "changes", [{"done": 22689}, {"done": 1.5}, {"total": None}, {"total": "many"}, {"done": True}]
)
def test_counts_that_do_not_fit_each_other_are_left_out(changes: dict[str, object]) -> None:
    found = parse(**changes)
    assert found is not None
    assert (found.done, found.total) == (None, None)


@pytest.mark.parametrize("text", ["<img src=x>", "infer\n", "", "a" * 65, "in fer", 7, "\ud800", "\u202einfer"])
def test_a_phase_or_a_plan_that_is_not_a_word_is_left_out(text: object) -> None:
    found = parse(phase=text, plan_id=text)
    assert found is not None
    assert (found.phase, found.plan_id) == (None, None)


def test_only_true_means_done() -> None:
    for value in (1, "true", None, [True]):
        found = parse(is_done=value)
        assert found is not None
        assert not found.is_done


VALUE = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
@given(st.dictionaries(st.sampled_from(list(CONTENT)), VALUE | st.lists(VALUE)), st.integers(-(10**9), 10**9))
def test_no_content_breaks_the_reader_or_the_line(changes: dict[str, Any], seconds: int) -> None:
    found = parse(**{"step": "features", "updated_at": CONTENT["updated_at"], **changes})
    if found is not None:
        line = sentence(found, NOW + timedelta(seconds=seconds))
        assert line.startswith("features")
        assert line.isprintable()
        assert len(line) < 250


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary())
def test_no_bytes_break_the_reader(content: bytes) -> None:
    assert parse_progress(content, "features") is None


def test_the_line_of_a_phase_names_it() -> None:
    assert sentence(RUNNING, NOW) == (
        "features (infer): 12,300 of 22,688 images, 75 images/s, about 2 min left, 410 MB per worker"
    )


@pytest.mark.parametrize(
    ("progress", "line"),
    [
        (Progress("pca", NOW), "pca: running"),
        (Progress("pca", NOW, phase="locate", seconds=12), "pca (locate): running for 12 s"),
        (Progress("ingest", NOW, done=0, total=0, seconds=3), "ingest: 0 of 0 images"),
        (
            Progress("ingest", NOW, done=3, total=9, images_per_second=0.25, seconds_left=24),
            "ingest: 3 of 9 images, 0.2 images/s, about 24 s left",
        ),
        (
            Progress("ingest", NOW, True, None, None, 22688, 22688, 75.2, 302, 0, 410),
            "ingest: done, 22,688 images in 5 min, 75 images/s, 410 MB per worker",
        ),
        (Progress("ingest", NOW, True), "ingest: done"),
    ],
)
def test_the_line_has_what_is_known(progress: Progress, line: str) -> None:
    assert sentence(progress, NOW) == line


def test_the_line_says_that_the_progress_is_old_and_gives_no_estimate() -> None:
    old = sentence(RUNNING, NOW + timedelta(minutes=3))
    assert old == "features (infer): 12,300 of 22,688 images, 75 images/s, 410 MB per worker, last update 3 min ago"
    assert "last update" not in sentence(RUNNING, NOW + timedelta(seconds=59))
    assert "last update" not in sentence(RUNNING, NOW - timedelta(minutes=5)), "the clock of the node is fast"
    assert "last update" not in sentence(Progress("features", NOW, True), NOW + timedelta(days=3))


def test_a_progress_is_read_from_the_folder_of_the_run(s3: "S3Client", bucket: str) -> None:
    run_uri = f"s3://{bucket}/runs/images/1"
    assert progress_uri(run_uri + "/", "features") == f"{run_uri}/features.progress.json"
    assert read_progress(s3, run_uri, "features") is None
    s3.put_object(Bucket=bucket, Key="runs/images/1/features.progress.json", Body=json.dumps(CONTENT).encode())
    assert read_progress(s3, run_uri, "features") == RUNNING
    assert read_progress(s3, run_uri, "pca") is None
    s3.put_object(Bucket=bucket, Key="runs/images/1/features.progress.json", Body=b"x" * 10**6)
    assert read_progress(s3, run_uri, "features") is None


def test_a_refused_request_raises(s3: "S3Client") -> None:
    with pytest.raises(ClientError, match="NoSuchBucket"):
        read_progress(s3, "s3://no-such-bucket-of-orchard/runs/images/1", "features")
