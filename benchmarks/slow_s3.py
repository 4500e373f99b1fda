"""Serve the files of a folder as an S3 bucket that responds to each GET of an object after 50 ms.

It holds the files in memory. It implements only the part of S3's API that reading needs.
"""

import argparse
import asyncio
import hashlib
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from typing import cast
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

DELAY_SECONDS = 0.05
PAGE = 1000
MODIFIED = 1_700_000_000
EXAMPLE = """\
example:
  python -m benchmarks.slow_s3 build/bench/bucket 5001
"""


class SlowS3:
    """The objects of a folder. Every bucket name is accepted."""

    def __init__(self, folder: Path) -> None:
        files = (path for path in sorted(folder.rglob("*")) if path.is_file())
        self.objects = {str(path.relative_to(folder)): path.read_bytes() for path in files}
        self.etags = {key: hashlib.md5(content).hexdigest() for key, content in self.objects.items()}  # noqa: S324
        self.keys = sorted(self.objects)

    def listing(self, query: dict[str, list[str]]) -> bytes:
        """Return one page of ListObjectsV2."""
        prefix, start = query.get("prefix", [""])[0], query.get("start-after", [""])[0]
        after = query.get("continuation-token", [start])[0]
        delimiter = query.get("delimiter", [""])[0]
        found = [key for key in self.keys if key.startswith(prefix)]
        if delimiter:
            folders = sorted(
                {prefix + key[len(prefix) :].split("/")[0] + "/" for key in found if "/" in key[len(prefix) :]}
            )
            found = [key for key in found if "/" not in key[len(prefix) :]]
        else:
            folders = []
        remaining = [key for key in found if key > after]
        page = remaining[: min(PAGE, int(query.get("max-keys", ["1000"])[0]))]
        truncated = len(remaining) > len(page)
        items = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>&quot;{self.etags[key]}&quot;</ETag><Size>{len(self.objects[key])}</Size></Contents>"
            for key in page
        )
        prefixes = "".join(f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in folders)
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if truncated else ""
        return (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>b</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(page)}</KeyCount>"
            f"<IsTruncated>{str(truncated).lower()}</IsTruncated>{token}{items}{prefixes}</ListBucketResult>"
        ).encode()

    def response(self, method: str, target: str) -> bytes:
        """Return the response to a request."""
        url = urlsplit(target)
        _, _, key = unquote(url.path).lstrip("/").partition("/")
        if key:
            found, body = key in self.objects, self.objects.get(key, b"")
            headers = [f'ETag: "{self.etags[key]}"'] if found else []
        else:
            found, body = True, self.listing(parse_qs(url.query))
            headers = ["Content-Type: application/xml"]
        head = [
            f"HTTP/1.1 {'200 OK' if found else '404 Not Found'}",
            f"Content-Length: {len(body)}",
            f"Last-Modified: {formatdate(MODIFIED, usegmt=True)}",
            "Accept-Ranges: bytes",
            *headers,
        ]
        return "\r\n".join([*head, "", ""]).encode() + (b"" if method == "HEAD" else body)

    def delay(self, method: str, target: str) -> float:
        """Return after how many seconds a request is answered."""
        return DELAY_SECONDS if method == "GET" and "?" not in target else 0


Response = Callable[[str, str], bytes]
Delay = Callable[[str, str], float]


class Connection(asyncio.Protocol):
    """A connection with one request after the other. It does less work per request than asyncio's streams.

    `response` and `delay` get the method and the target of a request.
    """

    def __init__(self, response: Response, delay: Delay) -> None:
        self._response, self._delay = response, delay
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        while b"\r\n\r\n" in self._received:
            head, _, self._received = self._received.partition(b"\r\n\r\n")
            method, target, _ = head.decode().split(" ", 2)
            asyncio.get_running_loop().call_later(self._delay(method, target), self._send, method, target)

    def _send(self, method: str, target: str) -> None:
        if not self._transport.is_closing():
            self._transport.write(self._response(method, target))


async def serve(response: Response, delay: Delay, port: int) -> None:
    """Serve on a port of this machine until the process is terminated. See Connection for the functions."""
    server = await asyncio.get_running_loop().create_server(lambda: Connection(response, delay), "127.0.0.1", port)
    await server.serve_forever()


def main(argv: list[str] | None = None) -> None:
    """Serve a folder."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.slow_s3",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="folder to serve; the paths of its files are the keys")
    parser.add_argument("port", type=int, help="port on 127.0.0.1")
    arguments = parser.parse_args(argv)
    s3 = SlowS3(arguments.folder)
    asyncio.run(serve(s3.response, s3.delay, arguments.port))


if __name__ == "__main__":
    main()
