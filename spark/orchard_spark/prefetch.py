"""Run an iterator in a thread, a few items ahead of its reader."""

import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def prefetch(items: Iterator[Item], count: int = 2) -> Generator[Item]:
    """Yield the same items in the same order, with at most `count` items queued.

    An error in the iterator is raised here, after the items before it. Closing the generator ends the thread.
    """
    ready: queue.Queue[tuple[bool, Item | BaseException | None]] = queue.Queue(count)
    closed = threading.Event()

    def put(is_item: bool, value: Item | BaseException | None) -> bool:
        """Return whether the value was queued; it is not once the generator is closed."""
        while not closed.is_set():
            try:
                ready.put((is_item, value), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            for item in items:
                if not put(True, item):
                    return
        except BaseException as error:  # raised again in the reader's thread
            put(False, error)
        else:
            put(False, None)

    thread = threading.Thread(target=produce, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            is_item, value = ready.get()
            if is_item:
                yield value  # type: ignore[misc]  # an Item
            elif value is None:
                return
            else:
                raise value  # type: ignore[misc]  # an exception
    finally:
        closed.set()
        thread.join()
