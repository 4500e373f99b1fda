import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from orchard.report.cache import Cache


def load_of(value: bytes, loads: list[bytes]) -> Callable[[], bytes]:
    def load() -> bytes:
        loads.append(value)
        return value

    return load


def test_the_values_that_were_used_last_stay_within_the_limit() -> None:
    cache: Cache[str, bytes] = Cache(10, len)
    loads: list[bytes] = []
    for key in ("a", "b", "a", "c", "a", "b"):
        assert cache.get(key, load_of(key.encode() * 4, loads)) == key.encode() * 4
    # b was used before a, and had to make room for c.
    assert loads == [b"aaaa", b"bbbb", b"cccc", b"bbbb"]
    assert cache.nbytes == 8


def test_a_value_that_is_larger_than_the_cache_is_returned_and_not_kept() -> None:
    cache: Cache[str, bytes] = Cache(10, len)
    loads: list[bytes] = []
    cache.get("small", load_of(b"x", loads))
    for _ in range(2):
        assert cache.get("large", load_of(b"y" * 11, loads)) == b"y" * 11
    cache.get("small", load_of(b"x", loads))
    assert loads == [b"x", b"y" * 11, b"y" * 11]
    assert cache.nbytes == 1


def test_threads_that_ask_for_the_same_value_share_one_load() -> None:
    cache: Cache[int, int] = Cache(10**6, lambda _: 1)
    counts: Counter[int] = Counter()
    everyone = threading.Barrier(8)

    def load(key: int) -> int:
        counts[key] += 1
        threading.Event().wait(0.05)
        return key * 2

    def ask(key: int) -> int:
        everyone.wait(10)
        return cache.get(key, lambda: load(key))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, [1, 2] * 4)) == [2, 4] * 4
    assert counts == {1: 1, 2: 1}


def test_an_error_reaches_everyone_who_waits_and_is_not_kept() -> None:
    cache: Cache[str, bytes] = Cache(10, len)
    started, release = threading.Event(), threading.Event()

    def fail() -> bytes:
        started.set()
        release.wait(10)
        raise PermissionError("no access")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get, "a", fail)
        assert started.wait(10)
        second = pool.submit(cache.get, "a", fail)
        release.set()
        for answer in (first, second):
            with pytest.raises(PermissionError, match="no access"):
                answer.result(10)
    assert cache.get("a", lambda: b"now") == b"now"


def test_a_size_that_cannot_be_determined_blocks_nobody() -> None:
    cache: Cache[str, Any] = Cache(10, len)
    for _ in range(2):
        with pytest.raises(TypeError):
            cache.get("a", lambda: 5)
    assert cache.get("a", lambda: b"text") == b"text"


def test_only_some_values_are_loaded_at_the_same_time() -> None:
    cache: Cache[int, int] = Cache(100, lambda _: 1, loads=2)
    lock, active, most = threading.Lock(), [0], [0]

    def load() -> int:
        with lock:
            active[0] += 1
            most[0] = max(most[0], active[0])
        threading.Event().wait(0.02)
        with lock:
            active[0] -= 1
        return 1

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda key: cache.get(key, load), range(12))) == [1] * 12
    assert most[0] == 2
