import random
from bisect import bisect_right
from collections.abc import Sequence
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchard.dataset.ranges import KeyRange, KeyRanges, NotInOrder

PREFIX = "p/"
WORKERS = 16
PAGE = 100
PAGES = 300
COUNT = PAGE * PAGES
ORDER = random.Random(1)  # noqa: S311

# Pieces of keys that are each other's start, neighbours of "/", special in URLs, or of several bytes in UTF-8.
PIECES = ["a", "b", "/", "//", "0", ".", "~", " ", "%", "+", "&", "é", "\uffff", "\U0001f34f", "a/b", ".jpg", "\x7f"]
names = st.lists(st.lists(st.sampled_from(PIECES), max_size=5).map("".join), max_size=60, unique=True)


class Listing:
    """Lists keys as S3 does. Some workers request pages at the same time, which arrive in any order."""

    def __init__(self, keys: Sequence[str], page_size: int, workers: int, order: random.Random) -> None:
        self.keys = sorted(set(keys), key=str.encode)
        self.page_size, self.workers, self.order = page_size, workers, order
        self.rounds = self.requests = 0
        self.listed: list[str] = []

    def run(self, *, all_arrive: bool) -> "Listing":
        """List all keys. In each round all running requests are answered, or only one of them."""
        ranges = KeyRanges(PREFIX)
        running: list[tuple[KeyRange | None, list[str], bool]] = [self._request(ranges.whole)]
        asked = False
        while running:
            self.rounds += 1
            self.order.shuffle(running)
            arrived, running = (running, []) if all_arrive else (running[:1], running[1:])
            for part, page, more in arrived:
                if part is None:
                    ranges.add_folders(page)
                    continue
                self.listed += page[: ranges.advance(part, page, "token" if more else None)]
                if part.token:
                    running.append(self._request(part))
                if more and not asked:
                    running.append((None, self._folders(), False))
                    asked = True
            while len(running) < self.workers and (half := ranges.split()):
                running.append(self._request(half))
        return self

    def _request(self, part: KeyRange) -> tuple[KeyRange, list[str], bool]:
        self.requests += 1
        part.after.encode()
        start = bisect_right(self.keys, part.after) if part.after else 0
        return part, self.keys[start : start + self.page_size], len(self.keys) > start + self.page_size

    def _folders(self) -> list[str]:
        parts = (key.removeprefix(PREFIX).partition("/") for key in self.keys)
        return sorted({f"{PREFIX}{name}/" for name, slash, _ in parts if slash})[: self.page_size]


@given(names, st.integers(1, 7), st.integers(1, 16), st.randoms(use_true_random=False), st.booleans())
def test_every_key_is_listed_once(
    names: list[str], page_size: int, workers: int, order: random.Random, all_arrive: bool
) -> None:
    keys = [f"{PREFIX}{name}" for name in names]
    listing = Listing(keys, page_size, workers, order).run(all_arrive=all_arrive)
    assert sorted(listing.listed) == sorted(keys)


@pytest.mark.parametrize("seed", range(20))
def test_a_key_where_a_range_is_cut_is_listed_once(seed: int) -> None:
    # A folder ends where the key with a 0 in the place of its slash begins.
    keys = [f"p/{name}" for name in ("a/1", "a/2", "a0", "a0/1", "b/1", "b0", "c", "c/1", "c0", "d/1")]
    order = random.Random(seed)  # noqa: S311
    assert sorted(Listing(keys, 1, 4, order).run(all_arrive=False).listed) == keys


def test_a_cut_is_a_string_that_can_be_sent() -> None:
    # Between these characters lie the surrogates, which UTF-8 has no bytes for.
    keys = [f"p/{chr(code)}.jpg" for code in (*range(0xD000, 0xD800), *range(0xE000, 0xF000))]
    listing = Listing(keys, 10, WORKERS, ORDER).run(all_arrive=True)
    assert sorted(listing.listed) == keys


def test_ranges_are_first_cut_where_folders_end() -> None:
    ranges = KeyRanges(PREFIX)
    ranges.advance(ranges.whole, ["p/a/1"], "token")
    assert ranges.split() is None  # the folders are not known yet
    ranges.add_folders(["p/a/", "p/b/", "p/c/"])
    halves = [ranges.split() for _ in range(3)]
    assert [(half.after, half.end) for half in halves if half] == [("p/b0", "p/c0"), ("p/a0", "p/b0"), ("p/c0", None)]
    assert ranges.whole.end == "p/a0"


def class_folder(number: int) -> str:
    return f"{'train' if number % 5 else 'test'}/class-{number % 200:03}/IMG_{number:07}.jpg"


LAYOUTS = {
    "numbers, no folder": [f"{number:07}.jpg" for number in range(COUNT)],
    "numbers without zeros": [f"{number}.jpg" for number in range(COUNT)],
    "hashes": [f"{sha256(b'%d' % number).hexdigest()}.jpg" for number in range(COUNT)],
    "one folder": [f"2026/11/26/camera/IMG_{number:06}.jpg" for number in range(COUNT)],
    "100 folders": [f"fruit-{number % 100:02}/{number:07}.jpg" for number in range(COUNT)],
    "1,000 small folders": [f"{number % 1000:03}/{number:07}.jpg" for number in range(COUNT)],
    "one large folder of 100": [
        f"{'kiwi' if number > 990 else number // 10}/{number:07}.jpg" for number in range(COUNT)
    ],
    "folders in folders": [class_folder(number) for number in range(COUNT)],
    "Chinese": [f"{chr(0x4E00 + number * 7 % 20000)}{number}.jpg" for number in range(COUNT)],
    "times": [f"2026-{1 + number % 12:02}-{1 + number % 28:02}T02:00:00_{number}.jpg" for number in range(COUNT)],
    "four cameras": [
        f"cam{number % 4}/2026/{1 + number % 12:02}/{1 + number % 28:02}/{number}.jpg" for number in range(COUNT)
    ],
    "Fruits-360": [
        f"Training/Apple {chr(65 + number % 20)} {number % 7}/r_{number}_100.jpg" for number in range(COUNT)
    ],
    "a dense end": [f"x/{number}.jpg" for number in range(PAGE)]
    + [f"x/z/{number:07}.jpg" for number in range(COUNT - PAGE)],
}


@pytest.mark.parametrize("names", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_every_layout_of_a_large_prefix_keeps_the_workers_busy(names: list[str]) -> None:
    listing = Listing([f"{PREFIX}{name}" for name in names], PAGE, WORKERS, ORDER).run(all_arrive=True)
    assert len(listing.listed) == COUNT
    assert listing.rounds < PAGES / 7.5
    assert listing.requests < PAGES * 1.8


def test_a_small_prefix_takes_one_request() -> None:
    listing = Listing([f"{PREFIX}{number}/1.jpg" for number in range(PAGE)], PAGE, WORKERS, ORDER)
    assert listing.run(all_arrive=True).requests == 1


@pytest.mark.parametrize("page", [["p/b", "p/a"], ["p/a", "p/a"], ["p/0"], ["p/1"]])
def test_a_page_whose_keys_are_not_in_their_order_or_not_after_the_last_one_is_refused(page: list[str]) -> None:
    ranges = KeyRanges(PREFIX)
    ranges.advance(ranges.whole, ["p/0", "p/1"], "token")
    with pytest.raises(NotInOrder, match="the keys after 'p/1' are not listed in the order"):
        ranges.advance(ranges.whole, page, "token")


def test_an_empty_page_does_not_end_a_range_that_goes_on() -> None:
    ranges = KeyRanges(PREFIX)
    assert ranges.advance(ranges.whole, [], "token") == 0
    assert ranges.whole.token == "token"
    assert ranges.advance(ranges.whole, ["p/1"], None) == 1
    assert ranges.whole.token is None
