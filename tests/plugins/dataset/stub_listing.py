"""Answers ListObjectsV2 as S3 does, over keys in memory, of which moto would need minutes to create as many."""

import threading
import time
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from urllib.parse import parse_qs, quote, urlsplit
from xml.sax.saxutils import escape

from tests.spark.http_server import Answer

XML = {"Content-Type": "application/xml"}
MODIFIED = "2026-11-22T02:00:00.250Z"


class StubListing:
    """A bucket with these keys. It records the requests, and how many it answered at the same time."""

    def __init__(self, keys: Sequence[str], page_size: int = 1000, delay_seconds: float = 0) -> None:
        self._keys = sorted(set(keys), key=str.encode)
        self._page_size, self._delay_seconds = page_size, delay_seconds
        self._lock = threading.Lock()
        self._running = 0
        self.most_at_once = 0
        self.requests: list[dict[str, str]] = []
        self.headers: list[Mapping[str, str]] = []

    def __call__(self, path: str, headers: Mapping[str, str]) -> Answer:
        query = {name: values[0] for name, values in parse_qs(urlsplit(path).query).items()}
        with self._lock:
            self.requests.append(query)
            self.headers.append(headers)
            self._running += 1
            self.most_at_once = max(self.most_at_once, self._running)
        time.sleep(self._delay_seconds)
        body = self._page(query)
        with self._lock:
            self._running -= 1
        return 200, XML, body

    def _page(self, query: Mapping[str, str]) -> bytes:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        token = query.get("continuation-token")
        after = bytes.fromhex(token).decode() if token else query.get("start-after", "")
        found: dict[str, bool] = {}  # an object, or a folder
        truncated = False
        for key in self._keys[bisect_right(self._keys, after) if after else 0 :]:
            if not key.startswith(prefix):
                continue
            name, slash, _ = key[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            entry = prefix + name + slash if slash else key
            if entry not in found and len(found) == self._page_size:
                truncated = True
                break
            found[entry] = bool(slash)
        objects = [entry for entry, is_folder in found.items() if not is_folder]
        folders = [entry for entry, is_folder in found.items() if is_folder]
        next_token = list(found)[-1].encode().hex() if truncated else ""
        return page_body(objects, folders, next_token, url=query.get("encoding-type") == "url")


def page_body(objects: Sequence[str], folders: Sequence[str], token: str, *, url: bool) -> bytes:
    """Return the body of a response. The object at position n has n + 1 bytes and the ETag n."""

    def text(name: str) -> str:
        return quote(name, safe="/").replace("%20", "+") if url else escape(name)

    items = "".join(
        f"<Contents><Key>{text(key)}</Key><LastModified>{MODIFIED}</LastModified><ETag>&quot;{number:x}&quot;</ETag>"
        f"<Size>{number + 1}</Size><StorageClass>STANDARD</StorageClass></Contents>"
        for number, key in enumerate(objects)
    )
    prefixes = "".join(f"<CommonPrefixes><Prefix>{text(folder)}</Prefix></CommonPrefixes>" for folder in folders)
    encoding = "<EncodingType>url</EncodingType>" if url else ""
    more = f"<NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"{encoding}<IsTruncated>{str(bool(token)).lower()}</IsTruncated>{more}{items}{prefixes}</ListBucketResult>"
    ).encode()
