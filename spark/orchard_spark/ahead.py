"""Do the work behind an iterator in a thread, a few items ahead of the reader."""

import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def ahead(items: Iterator[Item], count: int = 2) -> Generator[Item]:
    """The same items in the same order; at most `count` are ready and not yet taken.

    What the iterator raises is raised here, in its turn. A reader that is given up ends the thread.
    """
    ready: queue.Queue[tuple[bool, Item | BaseException | None]] = queue.Queue(count)
    given_up = threading.Event()

    def put(more: bool, item: Item | BaseException | None) -> bool:
        while not given_up.is_set():
            try:
                ready.put((more, item), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put(True, item):
                    return
        except BaseException as error:  # the reader's to deal with
            put(False, error)
        else:
            put(False, None)

    thread = threading.Thread(target=work, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            more, item = ready.get()
            if more:
                yield item  # type: ignore[misc]  # an Item, as there is more
            elif item is None:
                return
            else:
                raise item  # type: ignore[misc]  # an exception, as there is no more
    finally:
        given_up.set()
        thread.join()
