"""Give a folder a path that needs no quotes.

Requests contain paths of a node in scripts, options and lists. The server rewrites these paths, but cannot know how to
quote each of them.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from local_aws.quoting import is_plain


class UnusableFolder(ValueError):
    """A folder that Java cannot use, even through a link, because it resolves links."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            f"Java cannot use the folder {str(folder)!r}, because its path has characters above U+FFFF or bytes that "
            "are not UTF-8: use another --data"
        )


def plain_path(folder: Path) -> Path:
    """Return the absolute path of a folder if it needs no quotes, or else the path for a link to it.

    The link is always the same, because files in the folder contain it.

    Raises:
        UnusableFolder: Java cannot use the folder.
    """
    path = folder.absolute()
    if is_plain(str(path)):
        return path
    # Python reads bytes that are not UTF-8 as surrogates.
    if any(ord(character) > 0xFFFF or 0xD800 <= ord(character) <= 0xDFFF for character in str(path)):
        raise UnusableFolder(path)
    parent = tempfile.gettempdir()
    name = f"local_aws-{os.getuid()}-{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    return Path(parent if is_plain(parent) else "/tmp") / name


@contextmanager
def linked(folder: Path) -> Iterator[None]:
    """Make the link that `plain_path` returns for a folder, if it needs one, and remove it at the end.

    Raises:
        FileExistsError: another file has the path of the link.
    """
    link, target = plain_path(folder), folder.absolute()
    if link == target:
        yield
        return
    if not _is_own_link(link, target):  # else a server that was killed left it
        link.symlink_to(target)
    try:
        yield
    finally:
        link.unlink(missing_ok=True)


def _is_own_link(link: Path, target: Path) -> bool:
    return link.is_symlink() and link.lstat().st_uid == os.getuid() and link.readlink() == target
