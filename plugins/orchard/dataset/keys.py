"""What an object's entry in a listing says: whether it is an image, and whether `ingest` can read it."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
# An object of these storage classes can be read only after it is restored. The objects of S3 Glacier Instant Retrieval
# are read as any others.
ARCHIVES = ("GLACIER", "DEEP_ARCHIVE")

# How many endings of ignored objects are counted one by one.
ENDINGS_COUNTED = 20
# The limit of different endings that are counted. Further endings count as other endings.
MAX_ENDINGS = 10_000
HIDDEN, NO_ENDING, OTHER_ENDING = "hidden", "no ending", "other endings"

_ENDING = re.compile(r"[^.](\.[a-z0-9_+~-]{1,12})$")
_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f]")


def is_hidden(key: str) -> bool:
    """Return whether a part of a key starts with a dot."""
    return key.startswith(".") or "/." in key


def is_image(key: str) -> bool:
    """Return whether a key, relative to the dataset's prefix, names an image.

    The key has the file extension of an image, and no part of it starts with a dot.

    >>> is_image("Kiwi/1.JPG"), is_image("Kiwi/._1.jpg"), is_image(".trash/1.jpg"), is_image("Kiwi/notes.txt")
    (True, False, False, False)
    """
    return key.lower().endswith(IMAGE_ENDINGS) and not is_hidden(key)


def ending(key: str) -> str | None:
    """Return under what an object that is not an image is counted: its last ending in lower case, or why it has none.

    The objects that programs create to show empty folders count as nothing.

    >>> [ending(key) for key in ("a/1.HEIC", "a/1.jpg.gz", "a/1", "a/._1.jpg", ".git/x.jpg", "a/1.2 (copy)", "a/")]
    ['.heic', '.gz', 'no ending', 'hidden', 'hidden', 'other endings', None]
    """
    if key.endswith("/") or not key:
        return None
    if is_hidden(key):
        return HIDDEN
    name = key.rsplit("/", 1)[-1].lower()
    if "." not in name:
        return NO_ENDING
    found = _ENDING.search(name)
    return found[1] if found else OTHER_ENDING


def count_ignored(counts: Counter[str], keys: Iterable[str]) -> None:
    """Add those of some keys that are not images to the counts, by their ending.

    >>> counts = Counter()
    >>> count_ignored(counts, ["a/1.jpg", "a/1.heic", "a/2.heic", "a/"])
    >>> counts
    Counter({'.heic': 2})
    """
    for key in keys:
        if not is_image(key) and (found := ending(key)):
            counts[found if found in counts or len(counts) < MAX_ENDINGS else OTHER_ENDING] += 1


def most_common_endings(endings: Mapping[str, int]) -> dict[str, int]:
    """Return the counts of the most common endings, the most common first, and the sum of all others.

    >>> most_common_endings({".gif": 1, ".heic": 3})
    {'.heic': 3, '.gif': 1}
    """
    ordered = sorted(endings.items(), key=lambda item: (-item[1], item[0]))
    counted = dict(ordered[:ENDINGS_COUNTED])
    if others := sum(count for _, count in ordered[ENDINGS_COUNTED:]):
        counted[OTHER_ENDING] = counted.get(OTHER_ENDING, 0) + others
    return counted


def label(path: str) -> str:
    """Return the name of the folder that an object lies in.

    >>> label("s3://bucket/images/Kiwi/1.jpg")
    'Kiwi'
    """
    return path.rsplit("/", 2)[-2]


def is_archived(storage_class: str | None, *, restored: bool) -> bool:
    """Return whether an object must be restored before it can be read.

    A restored object keeps its storage class.

    >>> is_archived("GLACIER", restored=False), is_archived("GLACIER_IR", restored=False)
    (True, False)
    """
    return storage_class in ARCHIVES and not restored


def is_unreadable(key: str) -> bool:
    """Return whether a key is not valid as a Hadoop path or for clients of object stores.

    >>> [is_unreadable(key) for key in ("images/1.jpg", "images//1.jpg", "images/../1.jpg")]
    [False, True, True]
    """
    whole = f"/{key}/"
    if "//" in whole or "/./" in whole or "/../" in whole:
        return True
    return not key.isprintable() and _CONTROL_CHARACTER.search(key) is not None


def reject_reason(key: str, size: int, max_bytes: int, *, archived: bool = False) -> str:
    """Return why `ingest` will reject an image of a listing, or an empty string. The first of several reasons counts.

    >>> [reject_reason("images/1.jpg", size, max_bytes=9) for size in (0, 9, 10)]
    ['empty', '', 'too_many_bytes']
    """
    if archived:
        return "archived"
    if size > max_bytes:
        return "too_many_bytes"
    if is_unreadable(key):
        return "unreadable_key"
    return "" if size else "empty"


def reject_message(reason: str, path: str, size: int, max_bytes: int, storage_class: str | None) -> str | None:
    """Return the message of a reject whose entry in the listing is enough to reject it, and None for any other object.

    >>> reject_message("too_many_bytes", "s3://bucket/1.jpg", 10, 9, "STANDARD")
    '10 bytes, over 9'
    """
    if reason == "archived":
        remedy = "restore it with `aws s3api restore-object`, or copy it to the class STANDARD"
        return f"{path} is in {storage_class}: {remedy}"
    return f"{size} bytes, over {max_bytes}" if reason == "too_many_bytes" else None
