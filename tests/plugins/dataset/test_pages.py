import gc
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ReadTimeoutError

from orchard.dataset.pages import page_requests, parse_page, rare_collections
from tests.plugins.dataset.stub_listing import XML, StubListing, page_body
from tests.spark.http_server import Answer, s3_that_answers

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

KEYS = ["p/a b/1.jpg", "p/ü+%&<>\"'.jpg", "p/tab\t.jpg", "p/🍏.jpg", "p/%41.jpg", "p/a+b.jpg"]
RESTORED = (
    "<RestoreStatus><IsRestoreInProgress>false</IsRestoreInProgress>"
    "<RestoreExpiryDate>2099-01-01T00:00:00.000Z</RestoreExpiryDate></RestoreStatus>"
)
RESTORING = "<RestoreStatus><IsRestoreInProgress>true</IsRestoreInProgress></RestoreStatus>"


def stub_client(url: str, attempts: int = 3, **settings: Any) -> "S3Client":
    """Return a client with temporary credentials."""
    config = Config(retries={"mode": "standard", "total_max_attempts": attempts}, **settings)
    session = boto3.Session("id", "secret", "token", region_name="eu-west-1")
    s3: S3Client = session.client("s3", endpoint_url=url, config=config)
    return s3


@pytest.fixture
def stub() -> Iterator[tuple[StubListing, "S3Client"]]:
    listing = StubListing(KEYS)
    with s3_that_answers(listing) as url:
        yield listing, stub_client(url)


def test_a_page_has_what_botocore_reads(stub: tuple[StubListing, "S3Client"]) -> None:
    listing, s3 = stub
    with page_requests(s3, "bucket", "p/") as request:
        page = request()
    expected = s3.list_objects_v2(Bucket="bucket", Prefix="p/")["Contents"]
    assert page.keys == [item["Key"] for item in expected] == sorted(KEYS)
    assert page.etags == [item["ETag"] for item in expected]
    assert page.sizes == [str(item["Size"]) for item in expected]
    assert page.storage_classes == ["STANDARD"] * len(KEYS)
    assert page.token is None
    assert listing.requests[0] == listing.requests[1]


def test_a_request_is_signed_with_all_its_headers(stub: tuple[StubListing, "S3Client"]) -> None:
    listing, s3 = stub
    with page_requests(s3, "bucket", "p/") as request:
        request(StartAfter="p/ü b+%")
    (headers,) = listing.headers
    assert listing.requests[0]["start-after"] == "p/ü b+%"
    assert headers["x-amz-optional-object-attributes"] == "RestoreStatus"
    assert headers["X-Amz-Security-Token"] == "token"
    assert "x-amz-optional-object-attributes;x-amz-security-token" in headers["Authorization"]


def test_the_folders_of_a_prefix_are_in_the_page_of_a_request_with_a_delimiter(
    stub: tuple[StubListing, "S3Client"],
) -> None:
    with page_requests(stub[1], "bucket", "p/") as request:
        page = request(Delimiter="/")
    assert page.folders == ["p/a b/"]
    assert page.keys == sorted({*KEYS} - {"p/a b/1.jpg"})


def test_other_requests_of_the_client_are_answered_as_usual(stub: tuple[StubListing, "S3Client"]) -> None:
    _, s3 = stub
    with page_requests(s3, "bucket", "p/"):
        assert len(s3.list_objects_v2(Bucket="bucket", Prefix="p/")["Contents"]) == len(KEYS)


def test_a_listing_leaves_the_client_as_it_was(stub: tuple[StubListing, "S3Client"]) -> None:
    def handlers() -> int:
        answers: list[Any] = s3.meta.events.emit("before-send.s3.ListObjectsV2", request=None)
        return len(answers)

    s3: Any = stub[1]
    before = handlers()
    with page_requests(s3, "bucket", "p/"):
        assert handlers() == before + 1
    assert handlers() == before


@pytest.mark.parametrize(
    ("before", "during"),
    [((700, 10, 10), (10_000, 10, 10)), ((50_000, 5, 5), (50_000, 5, 5)), ((0, 10, 10), (0, 10, 10))],
)
def test_garbage_is_collected_less_often_only_during_a_listing(
    before: tuple[int, int, int], during: tuple[int, int, int]
) -> None:
    usual = gc.get_threshold()
    try:
        gc.set_threshold(*before)
        with rare_collections():
            assert gc.get_threshold() == during
        assert gc.get_threshold() == before
    finally:
        gc.set_threshold(*usual)


def test_two_listings_share_a_client(stub: tuple[StubListing, "S3Client"]) -> None:
    _, s3 = stub
    with page_requests(s3, "bucket", "p/") as first:
        with page_requests(s3, "bucket", "p/a b/") as second:
            assert (len(first().keys), len(second().keys)) == (len(KEYS), 1)
        assert len(first().keys) == len(KEYS)


@pytest.mark.parametrize("url", [True, False])
def test_keys_are_decoded_only_if_they_are_encoded(url: bool) -> None:
    page = parse_page(page_body(KEYS, [], "", url=url))
    assert page is not None
    assert page.keys == KEYS


@pytest.mark.parametrize(("status", "restored"), [("", False), (RESTORING, False), (RESTORED, True)])
def test_a_restored_object_is_known_as_such(status: str, restored: bool) -> None:
    first, between, second = page_body(["p/1.jpg", "p/2.jpg"], [], "", url=True).partition(b"</Contents><Contents>")
    page = parse_page(first + between + second.replace(b"</Contents>", f"{status}</Contents>".encode()))
    assert page is not None
    assert page.restored == ({1} if restored else set())


def test_a_page_of_a_store_without_the_namespace_of_s3_is_read() -> None:
    body = page_body(["p/1.jpg"], [], "", url=True).replace(b' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"', b"")
    page = parse_page(body)
    assert page is not None
    assert page.keys == ["p/1.jpg"]


def failing_first(answers: list[Answer]) -> Iterator[Answer]:
    yield from answers
    while True:
        yield 200, XML, page_body(["p/1.jpg"], [], "", url=True)


def error_body(code: str) -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>not now</Message></Error>".encode()


@pytest.mark.parametrize(
    "answer",
    [
        (503, XML, error_body("SlowDown")),
        (500, XML, error_body("InternalError")),
        (200, XML, error_body("InternalError")),
        (200, XML, page_body(["p/1.jpg", "p/2.jpg"], [], "", url=True)[:-40]),
        (200, XML, b"<html>not S3</html><"),
    ],
    ids=["throttled", "failed", "failed after 200", "incomplete", "no XML"],
)
def test_a_failed_or_incomplete_page_is_requested_again(answer: Answer) -> None:
    answers = failing_first([answer])
    with s3_that_answers(lambda *_: next(answers)) as url, page_requests(stub_client(url), "bucket", "p/") as request:
        assert request().keys == ["p/1.jpg"]


def test_the_error_of_a_page_that_fails_every_time_is_botocores() -> None:
    with (
        s3_that_answers(lambda *_: (503, XML, error_body("SlowDown"))) as url,
        page_requests(stub_client(url, attempts=2), "bucket", "p/") as request,
        pytest.raises(ClientError, match="SlowDown"),
    ):
        request()


def test_a_page_that_does_not_come_is_a_timeout() -> None:
    stub = StubListing(KEYS, delay_seconds=1)
    with (
        s3_that_answers(stub) as url,
        page_requests(stub_client(url, attempts=1, read_timeout=0.2), "bucket", "p/") as request,
        pytest.raises(ReadTimeoutError),
    ):
        request()


def test_a_client_that_asks_no_server_is_an_error(stub: tuple[StubListing, "S3Client"]) -> None:
    _, s3 = stub

    def respond(**_: object) -> tuple[object, Mapping[str, object]]:
        return type("Response", (), {"status_code": 200}), {"Contents": []}

    s3.meta.events.register_first("before-call.s3.ListObjectsV2", respond)  # type: ignore[arg-type]
    with (
        page_requests(s3, "bucket", "p/") as request,
        pytest.raises(RuntimeError, match="bucket/p/ was answered without"),
    ):
        request()
