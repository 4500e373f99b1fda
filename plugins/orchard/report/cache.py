"""A cache of bounded size for what the routes of the report load, shared by their threads."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Cache(Generic[Key, Value]):
    """Keeps the values that were used last, as many as have `max_bytes` together.

    `size_of` returns the bytes of a value. A value with more than `max_bytes` is not kept. At most `loads` values are
    loaded at the same time, because loading one can take as much memory as keeping it.
    """

    def __init__(self, max_bytes: int, size_of: Callable[[Value], int], *, loads: int = 2) -> None:
        self._max_bytes = max_bytes
        self._size_of = size_of
        self._lock = threading.Lock()
        self._loads = threading.BoundedSemaphore(loads)
        self._values: OrderedDict[Key, tuple[Value, int]] = OrderedDict()
        self._loading: dict[Key, Future[Value]] = {}
        self._bytes = 0

    @property
    def nbytes(self) -> int:
        """The bytes of the kept values."""
        return self._bytes

    def get(self, key: Key, load: Callable[[], Value]) -> Value:
        """Return the value of a key. If it is not kept, load it.

        Threads that ask for the same key at the same time share one load, and the error that it raises. An error is not
        kept: the next call loads again.
        """
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key][0]
            found = self._loading.get(key)
            if found is None:
                own = self._loading[key] = Future()
        return self._load(key, load, own) if found is None else found.result()

    def _load(self, key: Key, load: Callable[[], Value], own: "Future[Value]") -> Value:
        try:
            with self._loads:
                value = load()
            with self._lock:
                self._keep(key, value)
        except BaseException as error:
            with self._lock:
                del self._loading[key]
            own.set_exception(error)
            raise
        with self._lock:
            del self._loading[key]
        own.set_result(value)
        return value

    def _keep(self, key: Key, value: Value) -> None:
        size = self._size_of(value)
        if size > self._max_bytes:
            return
        self._values[key] = value, size
        self._bytes += size
        while self._bytes > self._max_bytes:
            _, (_, dropped) = self._values.popitem(last=False)
            self._bytes -= dropped
