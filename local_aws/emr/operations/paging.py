"""Split lists into pages, as EMR does."""

from collections.abc import Callable, Sequence

from local_aws.emr.errors import InvalidMarker
from local_aws.emr.model import Wire

PAGE_SIZE = 50


def page(items: Sequence[Wire], marker: str | None, is_listed: Callable[[Wire], bool]) -> tuple[list[Wire], Wire]:
    """Return at most 50 listed items after the marker, and a dict with the `Marker` of the next page if there is one.

    The marker is the id of the last item of a page, so that new items at the front do not shift the pages. Items are
    filtered after the marker is found, because its item may have changed state and no longer be listed.

    Raises:
        InvalidMarker: no item has the marker as its id.
    """
    ids = [item["Id"] for item in items]
    if marker is not None and marker not in ids:
        raise InvalidMarker(marker)
    start = 0 if marker is None else ids.index(marker) + 1
    listed = [item for item in items[start:] if is_listed(item)]
    has_next = len(listed) > PAGE_SIZE
    return listed[:PAGE_SIZE], {"Marker": listed[PAGE_SIZE - 1]["Id"]} if has_next else {}
