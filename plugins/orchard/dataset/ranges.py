"""Divide the keys below a prefix into ranges, so that several workers list them at the same time.

A worker lists a range page after page. A worker without work takes over the upper part of the range that seems to have
most pages left. Wherever a range is cut, each key belongs to exactly one of its parts: where to cut is a guess, and a
bad guess only costs a request without keys. The first cuts are where folders end. Inside a folder, a key is read as a
number, whose digits are the characters seen so far. The numbers between the last key and the end of the range, compared
with those of the last page, tell how many pages are left if the keys go on like this.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# A range with fewer pages is not cut: a second worker would not finish it earlier.
FEW_PAGES = 2
# A larger estimate is wrong: keys such as 2026-11-26_0001.jpg leave most numbers out.
MANY_PAGES = 10_000
# After each page, a range may be cut so many times. The first three cuts rely on its keys, the last one does not.
GUESSES = 4
# Which characters the keys have is learnt from one key in so many.
SAMPLE = 50
# A cut has so many more characters than it needs to differ from the last listed key.
PRECISION = 2
# S3's limit.
MAX_KEY_BYTES = 1024
SURROGATES = range(0xD800, 0xE000)
END_OF_CHARACTERS = 0x110000


class NotInOrder(ValueError):
    """A page of a listing has keys that are not in the order of their characters, or not in the range asked for."""

    def __init__(self, after: str) -> None:
        super().__init__(f"the keys after {after!r} are not listed in the order of their UTF-8 bytes")


@dataclass(eq=False)
class KeyRange:
    """The keys after `after`, up to and including `end`, that are still to be listed.

    `first` is the first key of the last page, which ends at `after`, if there is one. `token` continues the listing.
    """

    after: str
    end: str | None = None
    first: str = ""
    token: str | None = None
    guesses: int = 0


class KeyRanges:
    """The ranges that are being listed. In the beginning, one range, `whole`, has all keys below the prefix."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._characters: list[str] = []
        self._folder_ends: list[str] | None = None
        self.whole = KeyRange("")
        self._ranges = [self.whole]

    def add_folders(self, folders: Iterable[str]) -> None:
        """Cut where these folders end, before any other cut. "0" is the character after "/"."""
        self._folder_ends = sorted(f"{folder[:-1]}0" for folder in folders)
        self._learn(self._folder_ends)

    def advance(self, part: KeyRange, page: Sequence[str], token: str | None) -> int:
        """Advance a range by the page that follows its last key. Return how many of the page's keys belong to it.

        The other keys belong to the next ranges. `token` is None if no key follows the page. Afterwards, a complete
        range has no token.

        Raises:
            NotInOrder: the keys are not in their order.
        """
        if any(before >= key for before, key in zip((part.after, *page), page, strict=False)):
            raise NotInOrder(part.after)
        count = len(page) if part.end is None else bisect_right(page, part.end)
        complete = token is None or count < len(page) or (count > 0 and page[-1] == part.end)
        part.token = None if complete else token
        if complete:
            self._ranges.remove(part)
        elif page:
            self._learn((*page[::SAMPLE], page[-1]))
            part.first, part.after, part.guesses = page[0], page[-1], GUESSES
        return count

    def split(self) -> KeyRange | None:
        """Cut the range that seems to have most pages left. Return its upper part.

        Return None if no cut is worthwhile, or if the folders are not known yet.
        """
        if self._folder_ends is None:
            return None
        measured = [(self._folders_left(part), self._pages_left(part), part) for part in self._ranges]
        for folders, pages, part in sorted(measured, key=lambda item: (len(item[0]), item[1]), reverse=True):
            cut = folders[len(folders) // 2] if folders else self._guess(part, pages)
            if cut and part.after < cut and (part.end is None or cut < part.end) and len(cut.encode()) <= MAX_KEY_BYTES:
                upper = KeyRange(cut, part.end)
                part.end = cut
                self._ranges.append(upper)
                return upper
        return None

    def _learn(self, keys: Iterable[str]) -> None:
        seen = set("".join(key.removeprefix(self._prefix) for key in keys)).difference(self._characters)
        if seen:
            self._characters = sorted({*self._characters, *seen})

    def _folders_left(self, part: KeyRange) -> Sequence[str]:
        """Return the ends of folders within a range."""
        ends = self._folder_ends or []
        return ends[bisect_right(ends, part.after) : len(ends) if part.end is None else bisect_left(ends, part.end)]

    def _pages_left(self, part: KeyRange) -> int:
        """Return a guess of the number of pages that are left of a range. Without a page of it, nothing is known."""
        if not part.first:
            return 0
        left, page, _ = self._measure(part)
        return left // page

    def _guess(self, part: KeyRange, pages: int) -> str | None:
        """Return the next string at which to cut a range, or None if there have been enough since its last page.

        Far more pages than there can be mean that the numbers have gaps. They may be at the end of the range or between
        any of its keys, so the cuts are in the middle, and at two thirds and one third of the magnitude.
        """
        if part.guesses == 0:
            return None
        part.guesses = part.guesses - 1 if pages >= FEW_PAGES else 0
        if part.guesses == 0:
            return _between(part.after, part.end, len(self._prefix))
        left, page, places = self._measure(part)
        distance = left // 2
        if pages > MANY_PAGES and part.guesses < GUESSES - 1:
            distance = page << pages.bit_length() * part.guesses // (GUESSES - 1)
        cut = self._text(self._number(part.after, places) + distance, places)
        lengths = (length for length in range(1, len(cut) + 1) if cut[:length] > part.after)
        return cut[: next(lengths, 0) + PRECISION]

    def _measure(self, part: KeyRange) -> tuple[int, int, int]:
        """Return the size of what is left of a range, the size of its last page, and the places of these numbers."""
        places = max(len(part.after), len(part.end or "")) - len(self._prefix) + PRECISION
        last = self._number(part.after, places)
        end = self._number(part.end, places) if part.end is not None else (len(self._characters) + 1) ** places
        return end - last, max(1, last - self._number(part.first, places)), places

    def _number(self, key: str, places: int) -> int:
        """Return a key as a number. The digit 0 is the end of a key: a key precedes those that it is the start of."""
        base = len(self._characters) + 1
        text = key.removeprefix(self._prefix)[:places]
        number = 0
        for character in text:
            number = number * base + bisect_left(self._characters, character) + 1
        return int(number * base ** (places - len(text)))

    def _text(self, number: int, places: int) -> str:
        """Return the start of the keys that have this number or a larger one."""
        digits = []
        for _ in range(places):
            number, digit = divmod(number, len(self._characters) + 1)
            digits.append(digit)
        text = ""
        for digit in reversed(digits):
            if digit == 0:
                break
            text += self._characters[digit - 1]
        return self._prefix + text


def _between(after: str, end: str | None, start: int) -> str | None:
    """Return a string between two others, in the middle of the code points of the first character that can differ.

    The strings are the same up to `start`. Without an end, all strings that start like this are before it.
    """
    below_end = end is None
    for place in range(start, len(after) + 1):
        low = ord(after[place]) if place < len(after) else -1
        high = END_OF_CHARACTERS if below_end or end is None else ord(end[place])
        middle = (low + high) // 2
        if middle in SURROGATES:
            middle = SURROGATES.stop if high > SURROGATES.stop else SURROGATES.start - 1
        if low < middle < high:
            return after[:place] + chr(middle)
        below_end = below_end or low < high
    return None
