"""The contents of images as SHA-256 digests, and the search for many of them in a file of features.

Digests are 32 bytes instead of 64 hexadecimal digits, in sorted arrays. A million of them take 32 MB, so that each
worker can hold all contents of a dataset.
"""

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from orchard_spark import parts
from orchard_spark.parts import Indices

# [n] of 32 bytes. NumPy compares byte strings of one width as memcmp does.
Digests: TypeAlias = npt.NDArray[np.bytes_]

# 64 rows of a file of features take as many bytes as 4,096 keys.
KEY_ROWS = 65_536
NOT_FOUND = -1
DIGEST_BYTES = 32


def digests(column: pa.Array) -> Digests:
    """Return a column of SHA-256 in hexadecimal as an array of digests.

    >>> digests(pa.array(["00" * 32, "ff" * 32])).nbytes
    64
    """
    return np.frombuffer(bytes.fromhex("".join(column.to_pylist())), f"S{DIGEST_BYTES}")


def search(values: Digests, ordered: Digests) -> Indices:
    """Return the index of each value in a sorted array without duplicates, or NOT_FOUND.

    >>> search(np.array([b"c", b"b"]), np.array([b"a", b"c"])).tolist()
    [1, -1]
    """
    if not len(ordered):
        return np.full(len(values), NOT_FOUND)
    places = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return np.where(ordered[places] == values, places, NOT_FOUND)


def read_keys(part: parts.Part) -> Iterator[tuple[Digests, pa.RecordBatch]]:
    """Yield the digests of a file of FEATURES, with the columns `model` and `run_id`, in order."""
    for batch in parts.read(part, ["sha256", "model", "run_id"], KEY_ROWS):
        yield digests(batch["sha256"]), batch
