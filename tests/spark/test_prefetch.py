import threading
import time
from collections.abc import Iterator

import pytest

from orchard_spark.prefetch import prefetch


def thread_names() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


def test_items_keep_their_order() -> None:
    assert list(prefetch(iter(range(50)))) == list(range(50))
    assert list(prefetch(iter([]))) == []
    assert list(prefetch(iter([None, None]))) == [None, None]


def test_the_number_of_queued_items_is_limited() -> None:
    produced: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            produced.append(number)
            yield number

    reader = prefetch(items(), count=2)
    assert next(reader) == 0
    deadline = time.monotonic() + 5
    while len(produced) < 4 and time.monotonic() < deadline:
        time.sleep(0.001)
    # One was read, two are queued, and one waits for a place in the queue.
    assert produced == [0, 1, 2, 3]
    assert list(reader) == list(range(1, 20))


def test_an_error_is_raised_unchanged_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ZeroDivisionError("in the thread")

    reader = prefetch(items())
    assert next(reader) == 1
    with pytest.raises(ZeroDivisionError, match="in the thread"):
        next(reader)
    assert "prefetch" not in thread_names()


def test_closing_the_reader_ends_the_thread() -> None:
    reader = prefetch(iter(range(100)))
    next(reader)
    reader.close()
    assert "prefetch" not in thread_names()
