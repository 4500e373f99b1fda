import threading
import time
from collections.abc import Iterator

import pytest

from orchard_spark.ahead import ahead


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


def test_the_items_come_in_their_order() -> None:
    assert list(ahead(iter(range(50)))) == list(range(50))
    assert list(ahead(iter([]))) == []
    assert list(ahead(iter([None, None]))) == [None, None]


def test_no_more_are_made_than_are_asked_for_ahead() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            made.append(number)
            yield number

    reader = ahead(items(), count=2)
    assert next(reader) == 0
    deadline = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.001)
    # One is taken, two are ready, and one waits for its place.
    assert made == [0, 1, 2, 3]
    assert list(reader) == list(range(1, 20))


def test_an_error_comes_in_its_turn_and_as_it_is() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ZeroDivisionError("in the thread")

    reader = ahead(items())
    assert next(reader) == 1
    with pytest.raises(ZeroDivisionError, match="in the thread"):
        next(reader)
    assert "ahead" not in threads()


def test_a_reader_that_is_given_up_leaves_no_thread() -> None:
    reader = ahead(iter(range(100)))
    next(reader)
    reader.close()
    assert "ahead" not in threads()
