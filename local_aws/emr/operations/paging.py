"""Lists in pages, as EMR gives them."""

from collections.abc import Callable, Sequence

from local_aws.emr.errors import InvalidMarker
from local_aws.emr.model import Wire

PAGE_SIZE = 50


def page(items: Sequence[Wire], marker: str | None, keep: Callable[[Wire], bool]) -> tuple[list[Wire], Wire]:
    """The kept items after the marker, at most 50, and the `Marker` for the next page if there is one.

    The marker is the id of a page's last item, so that new items at the front shift nothing; items are only dropped
    behind it, because the last one may be in another state by now.

    Raises:
        InvalidMarker: no item has this id.
    """
    ids = [item["Id"] for item in items]
    if marker is not None and marker not in ids:
        raise InvalidMarker(marker)
    start = 0 if marker is None else ids.index(marker) + 1
    kept = [item for item in items[start:] if keep(item)]
    more = len(kept) > PAGE_SIZE
    return kept[:PAGE_SIZE], {"Marker": kept[PAGE_SIZE - 1]["Id"]} if more else {}
