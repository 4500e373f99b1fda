"""S3's conditional writes: of the requests that arrive at the same time, one succeeds."""

import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from botocore.exceptions import ClientError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

WRITERS = 8
ROUNDS = 15


@pytest.fixture(autouse=True)
def _switch_often() -> Iterator[None]:
    """Let the threads of the server interrupt each other between any two steps, not only every 5 ms."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def race(write: Callable[[int], object]) -> list[str]:
    """Return the outcome of each of several writes that start together: "" or an error code."""
    start = threading.Barrier(WRITERS)

    def outcome(number: int) -> str:
        start.wait()
        try:
            write(number)
        except ClientError as error:
            return str(error.response["Error"]["Code"])
        return ""

    with ThreadPoolExecutor(WRITERS) as pool:
        return list(pool.map(outcome, range(WRITERS)))


def test_one_of_many_writers_creates_an_object_that_must_not_exist(s3: "S3Client", bucket: str) -> None:
    for _ in range(ROUNDS):
        key = uuid.uuid4().hex
        outcomes = race(lambda number: s3.put_object(Bucket=bucket, Key=key, Body=b"%d" % number, IfNoneMatch="*"))  # noqa: B023
        assert sorted(outcomes) == ["", *["PreconditionFailed"] * (WRITERS - 1)]
        assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == b"%d" % outcomes.index("")


def test_one_of_many_writers_replaces_an_object_that_must_not_have_changed(s3: "S3Client", bucket: str) -> None:
    for _ in range(ROUNDS):
        key = uuid.uuid4().hex
        etag = s3.put_object(Bucket=bucket, Key=key, Body=b"old")["ETag"]
        outcomes = race(lambda number: s3.put_object(Bucket=bucket, Key=key, Body=b"%d" % number, IfMatch=etag))  # noqa: B023
        assert sorted(outcomes) == ["", *["PreconditionFailed"] * (WRITERS - 1)]


@pytest.mark.parametrize("first", ["delete", "replace"])
def test_an_object_is_either_deleted_or_replaced(s3: "S3Client", bucket: str, first: str) -> None:
    for _ in range(ROUNDS):
        key = uuid.uuid4().hex
        etag = s3.put_object(Bucket=bucket, Key=key, Body=b"old")["ETag"]

        def write(number: int) -> object:
            if (number % 2 == 0) == (first == "delete"):
                return s3.delete_object(Bucket=bucket, Key=key, IfMatch=etag)  # noqa: B023
            return s3.put_object(Bucket=bucket, Key=key, Body=b"%d" % number, IfMatch=etag)  # noqa: B023

        outcomes = race(write)
        replaced = "Contents" in s3.list_objects_v2(Bucket=bucket, Prefix=key)
        winners = [number for number, outcome in enumerate(outcomes) if outcome == ""]
        if replaced:
            (winner,) = winners
            assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == b"%d" % winner
        else:
            assert all((number % 2 == 0) == (first == "delete") for number in winners)
