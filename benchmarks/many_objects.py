"""Serve the listing of a bucket with millions of objects, each page after 100 ms.

The objects below the prefix `COUNT/FOLDERS/` are generated: COUNT objects, in FOLDERS folders, or in none if FOLDERS is
0. The server implements only ListObjectsV2.
"""

import argparse
import asyncio
from bisect import bisect_right
from urllib.parse import parse_qs, urlsplit

from benchmarks.slow_s3 import serve

DELAY_SECONDS = 0.1
PAGE = 1000
HEAD = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    "<Name>b</Name><MaxKeys>1000</MaxKeys><EncodingType>url</EncodingType>"
)
EXAMPLE = """\
example:
  python -m benchmarks.many_objects 5001
"""


def object_key(prefix: str, number: int) -> str:
    """Return the key of an object. The keys are in the order of the numbers.

    >>> object_key("1000000/100/", 12_345), object_key("1000000/0/", 12_345)
    ('1000000/100/fruit-01/00012345.jpg', '1000000/0/00012345.jpg')
    """
    count, folders = (int(part) for part in prefix.split("/")[:2])
    folder = f"fruit-{number * folders // count:02}/" if folders else ""
    return f"{prefix}{folder}{number:08}.jpg"


def listing(query: dict[str, list[str]]) -> bytes:
    """Return a page of a listing as S3 does."""
    prefix = query["prefix"][0]
    count, folders = (int(part) for part in prefix.split("/")[:2])
    after = query.get("continuation-token", query.get("start-after", [""]))[0]
    if "delimiter" in query and folders:
        names = "".join(
            f"<CommonPrefixes><Prefix>{prefix}fruit-{number:02}/</Prefix></CommonPrefixes>" for number in range(folders)
        )
        return (
            f"{HEAD}<KeyCount>{folders}</KeyCount><IsTruncated>false</IsTruncated>{names}</ListBucketResult>".encode()
        )
    first = bisect_right(range(count), after, key=lambda number: object_key(prefix, number))
    end = min(count, first + PAGE)
    items = "".join(
        f"<Contents><Key>{object_key(prefix, number)}</Key><LastModified>2026-11-22T02:00:00.000Z</LastModified>"
        f"<ETag>&quot;{number:032x}&quot;</ETag><ChecksumAlgorithm>CRC64NVME</ChecksumAlgorithm>"
        f"<ChecksumType>FULL_OBJECT</ChecksumType><Size>{5_000 + number % 1_000}</Size>"
        "<StorageClass>STANDARD</StorageClass></Contents>"
        for number in range(first, end)
    )
    truncated = end < count
    token = f"<NextContinuationToken>{object_key(prefix, end - 1)}</NextContinuationToken>" if truncated else ""
    return (
        f"{HEAD}<KeyCount>{end - first}</KeyCount><IsTruncated>{str(truncated).lower()}</IsTruncated>{token}{items}"
        "</ListBucketResult>"
    ).encode()


def response(_: str, target: str) -> bytes:
    """Return the response to a request."""
    body = listing(parse_qs(urlsplit(target).query))
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def main(argv: list[str] | None = None) -> None:
    """Serve the listing."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.many_objects",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("port", type=int, help="port on 127.0.0.1")
    asyncio.run(serve(response, lambda *_: DELAY_SECONDS, parser.parse_args(argv).port))


if __name__ == "__main__":
    main()
