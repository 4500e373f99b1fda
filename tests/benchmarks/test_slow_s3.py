import os
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from botocore.exceptions import ClientError

from benchmarks import slow_s3
from sandbox import aws, processes

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

COUNT = slow_s3.PAGE + 5


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator["S3Client"]:
    folder = tmp_path_factory.mktemp("slow-s3")
    (folder / "bucket/Kiwi").mkdir(parents=True)
    for number in range(COUNT):
        (folder / f"bucket/Kiwi/{number:04} ü.jpg").write_bytes(b"%d" % number)
    port = processes.free_port()
    command = [sys.executable, "-m", "benchmarks.slow_s3", str(folder / "bucket"), str(port)]
    with processes.running(command, folder / "log", os.environ) as process:
        processes.wait_for_port(port, process, folder / "log")
        yield aws.client("s3", f"http://127.0.0.1:{port}")


def test_the_pages_of_the_listing_contain_every_object(slow: "S3Client") -> None:
    pages = list(slow.get_paginator("list_objects_v2").paginate(Bucket="b", Prefix="Kiwi/"))
    assert [len(page["Contents"]) for page in pages] == [slow_s3.PAGE, 5]
    assert pages[0]["Contents"][7]["Key"] == "Kiwi/0007 ü.jpg"


def test_a_listing_starts_after_a_key(slow: "S3Client") -> None:
    (listed,) = slow.list_objects_v2(Bucket="b", Prefix="Kiwi/", StartAfter=f"Kiwi/{COUNT - 2:04} ü.jpg")["Contents"]
    assert listed["Key"] == f"Kiwi/{COUNT - 1:04} ü.jpg"


def test_an_object_arrives_after_50_ms_with_the_etag_of_the_listing(slow: "S3Client") -> None:
    started = time.monotonic()
    response = slow.get_object(Bucket="b", Key="Kiwi/0007 ü.jpg")
    assert response["Body"].read() == b"7"
    assert time.monotonic() - started >= slow_s3.DELAY_SECONDS
    (listed,) = slow.list_objects_v2(Bucket="b", Prefix="Kiwi/0007")["Contents"]
    assert listed["ETag"] == response["ETag"]


def test_a_missing_object_is_an_error(slow: "S3Client") -> None:
    with pytest.raises(ClientError, match="404"):
        slow.get_object(Bucket="b", Key="Kiwi/none.jpg")
