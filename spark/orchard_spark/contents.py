"""The contents of images as SHA-256 digests, and the search for many of them in a file of features.

Digests are 32 bytes instead of 64 hexadecimal digits, in sorted arrays. A million of them take 32 MB, so that each
worker can hold all contents of a dataset.
"""

from collections.abc import Iterable, Iterator
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from orchard_spark import parts
from orchard_spark.parts import Indices

# [n] of 32 bytes. NumPy compares byte strings of one width as memcmp does.
Digests: TypeAlias = npt.NDArray[np.bytes_]
Element = TypeVar("Element", bound=np.generic)

# Rows of narrow columns: hashes, paths and names. A batch has about 10 MB.
NARROW_ROWS = 65_536
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
    for batch in parts.read(part, ["sha256", "model", "run_id"], NARROW_ROWS):
        yield digests(batch["sha256"]), batch


def by_run(values: Iterable[tuple[npt.NDArray[Element], pa.Array]]) -> dict[str, npt.NDArray[Element]]:
    """Return values by the run that each belongs to, from batches of values and the ids of their runs."""
    found: dict[str, list[npt.NDArray[Element]]] = {}
    for of_batch, run_ids in values:
        encoded = run_ids.dictionary_encode()
        numbers = encoded.indices.to_numpy()
        for number in np.unique(numbers):
            found.setdefault(encoded.dictionary[int(number)].as_py(), []).append(of_batch[numbers == number])
    return {run_id: np.concatenate(batches) for run_id, batches in found.items()}
