"""The embeddings of a run in memory: the points of its map, their neighbours, and the images to look at."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.catalog import Catalog

from orchard.report.snapshots import PublishedRows, published_rows
from orchard.settings import Settings

Singles: TypeAlias = npt.NDArray[np.float32]
Numbers: TypeAlias = npt.NDArray[np.int64]
Hashes: TypeAlias = npt.NDArray[np.uint64]
Flags: TypeAlias = npt.NDArray[np.bool_]

COLUMNS = ("path", "label", "sha256", "vector")
# 8,192 vectors of 1280 components take 42 MB.
BATCH_ROWS = 8192
# A sample has this many images of each label, if there are so many and there is room.
LEAST_OF_LABEL = 5
# The cosines of float32 differ from the exact ones by less.
ROUNDING = 1e-5


@dataclass(frozen=True, eq=False)
class Points:
    """The embeddings of a run, or a sample of them: n images with vectors of d components.

    `labels` has the most frequent label first, and labels of the same frequency by name. `label_totals` says how many
    rows of the dataset have each of them. `label_codes` are indices of `labels`. Texts that are null in the table are
    empty. `left_out` rows have no usable vector: it is null, of another length, or is not finite.
    """

    dataset: str
    run_id: str
    paths: list[str]
    sha256: list[str]
    labels: list[str]
    label_totals: Numbers  # [labels]
    label_codes: npt.NDArray[np.int32]  # [n]
    vectors: Singles  # [n, d]
    lengths: Singles  # [n], 0 for a vector of zeros, which has no direction
    total: int  # the rows of the dataset
    left_out: int = 0

    @property
    def is_sample(self) -> bool:
        """Whether the dataset has images with a usable vector that are not among the points."""
        return len(self.paths) + self.left_out < self.total

    @property
    def nbytes(self) -> int:
        """About how many bytes of memory the points take."""
        texts = sum(map(len, self.paths)) + sum(map(len, self.sha256)) + 100 * len(self.paths)
        return self.vectors.nbytes + self.lengths.nbytes + self.label_codes.nbytes + texts

    @cached_property
    def indices(self) -> dict[str, int]:
        """The index of each path."""
        return {path: index for index, path in enumerate(self.paths)}

    def label(self, index: int) -> str:
        """Return the label of a point."""
        return self.labels[int(self.label_codes[index])]


def load_points(catalog: Catalog, settings: Settings, dataset_uri: str, run_id: str, *, most: int = 100_000) -> Points:
    """Load the embeddings of a dataset as a run published them. `run_id` is the name of the run's folder.

    Of more than `most` rows, load a sample by label, which is the same each time. The rows are read twice for it, and
    no more than about twice `most` of them are in memory at the same time.

    Raises:
        RunNotPublished: the tables do not show the run, and `runs` has no row of it.
        SnapshotExpired: the tables show another run, and the snapshot that showed this one is gone.
        MixedRuns: another program has written to the table.
        WrongWarehouse: the tables are of another deployment.
        OldLayout: a table has the columns of an earlier release.
    """
    rows = published_rows(catalog, settings, "embeddings", dataset_uri, run_id)
    total = rows.count()
    quotas = None
    if total > most:
        counts = _label_counts(rows)
        names = sorted(counts)
        quotas = dict(zip(names, share([counts[name] for name in names], most), strict=True))
    chosen = _Chosen(most, quotas)
    for batch in rows.stream(COLUMNS, batch_rows=BATCH_ROWS):
        chosen.add(batch)
    return chosen.points(rows, total)


def sample_by_label(points: Points, most: int = 20_000) -> Numbers:
    """Return the indices of at most `most` points, in ascending order, the same each time.

    Each label has a share that is proportional to its number of points, but a few images at least. Within a label, the
    points with the smallest hashes of their paths are chosen.
    """
    if len(points.paths) <= most:
        return np.arange(len(points.paths), dtype=np.int64)
    quotas = _quotas(np.bincount(points.label_codes, minlength=len(points.labels)), most)
    return np.flatnonzero(_smallest(points.label_codes, path_hashes(points.paths), quotas)).astype(np.int64)


@dataclass(frozen=True)
class Neighbour:
    """A point that is near another one, and the cosine of the two vectors."""

    index: int
    similarity: float


def nearest(points: Points, index: int, count: int = 12) -> list[Neighbour]:
    """Return the points with the largest cosines to a point, without the point itself; equal ones by their paths.

    A vector of zeros has no direction, and so no neighbours.

    Raises:
        IndexError: there is no such point.
    """
    if not 0 <= index < len(points.paths):
        raise IndexError(f"there is no point {index} among {len(points.paths)}")
    count = min(count, int(np.count_nonzero(points.lengths)) - 1)
    if count <= 0 or not points.lengths[index]:
        return []
    has_direction = points.lengths > 0
    products = points.vectors @ (points.vectors[index] / points.lengths[index])
    cosines = np.full(len(products), -np.inf, np.float32)
    np.divide(products, points.lengths, out=cosines, where=has_direction)
    cosines[index] = -np.inf
    last = np.partition(cosines, len(cosines) - count)[len(cosines) - count]
    close = np.flatnonzero(cosines >= last - ROUNDING)
    exact = _exact_cosines(points, index, close)
    order = sorted(zip(close.tolist(), exact.tolist(), strict=True), key=lambda each: (-each[1], points.paths[each[0]]))
    return [Neighbour(other, similarity) for other, similarity in order[:count]]


def _exact_cosines(points: Points, index: int, others: Numbers) -> npt.NDArray[np.float64]:
    """Return cosines to 9 decimals, so that those of equal vectors are equal."""
    query = points.vectors[index].astype(np.float64)
    query /= np.linalg.norm(query)
    found = np.empty(len(others))
    for start in range(0, len(others), BATCH_ROWS):
        vectors = points.vectors[others[start : start + BATCH_ROWS]].astype(np.float64)
        products = np.einsum("ij,j->i", vectors, query)
        found[start : start + BATCH_ROWS] = products / np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    return np.clip(np.round(found, 9), -1, 1)


def path_hashes(paths: Sequence[str]) -> Hashes:
    """Return a number of 64 bits for each path, evenly distributed.

    >>> path_hashes(["a", "b"]).tolist()
    [14598278634844962250, 4477677635727087946]
    """
    hashed = (hashlib.sha256(path.encode(errors="surrogatepass")).digest()[:8] for path in paths)
    return np.frombuffer(b"".join(hashed), ">u8").astype(np.uint64)


def share(counts: Sequence[int], most: int) -> list[int]:
    """Return how many rows of each label a sample of at most `most` rows has, from the number of rows of each.

    Each label has LEAST_OF_LABEL rows, or fewer if not all labels can have so many. The rest is shared in proportion to
    what the labels have beyond these.

    >>> share([90, 10, 2], 20)
    [13, 5, 2]
    """
    quotas: list[int] = _quotas(np.array(counts, np.int64), most).tolist()
    return quotas


def _quotas(counts: Numbers, most: int) -> Numbers:
    least = max(least for least in range(LEAST_OF_LABEL + 1) if np.minimum(counts, least).sum() <= most)
    base = np.minimum(counts, least)
    beyond, room = counts - base, most - base.sum()
    if beyond.sum() <= room:
        return counts
    shares = beyond * (room / beyond.sum())
    quotas: Numbers = base + np.floor(shares).astype(np.int64)
    # The largest remainders first: https://en.wikipedia.org/wiki/Largest_remainder_method
    order = np.argsort(np.floor(shares) - shares, kind="stable")
    quotas[order[: most - quotas.sum()]] += 1
    return quotas


def _smallest(codes: npt.NDArray[Any], hashes: Hashes, quotas: Numbers) -> Flags:
    """Return for each row whether its hash is among the smallest of its label, as many as the label's quota."""
    order = np.lexsort((hashes, codes))
    counts = np.bincount(codes, minlength=len(quotas))
    rank = np.arange(len(codes)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = np.zeros(len(codes), np.bool_)
    chosen[order] = rank < quotas[codes[order]]
    return chosen


def _label_counts(rows: PublishedRows) -> Counter[str]:
    counts: Counter[str] = Counter()
    for batch in rows.stream(["label"]):
        for each in pc.value_counts(batch["label"]).to_pylist():
            counts[each["values"] or ""] += each["counts"]
    return counts


@dataclass
class _Part:
    """Some rows with usable vectors."""

    codes: npt.NDArray[np.int32]
    hashes: Hashes
    paths: pa.Array
    sha256: pa.Array
    vectors: Singles

    def take(self, chosen: Flags) -> "_Part":
        mask = pa.array(chosen)
        return _Part(
            self.codes[chosen],
            self.hashes[chosen],
            self.paths.filter(mask),
            self.sha256.filter(mask),
            self.vectors[chosen],
        )


@dataclass
class _Chosen:
    """Collects the rows of a dataset: all of them, or with quotas a sample by label."""

    most: int
    quotas: dict[str, int] | None
    codes: dict[str, int] = field(default_factory=dict)  # of the labels, in the order of their first row
    counts: Counter[int] = field(default_factory=Counter)
    parts: list[_Part] = field(default_factory=list)
    dimension: int = 0
    usable: int = 0
    # No row of a label whose hash is larger can be in the sample.
    limits: Hashes = field(default_factory=lambda: np.empty(0, np.uint64))

    def add(self, batch: pa.RecordBatch) -> None:
        """Add the rows of a batch with COLUMNS that have usable vectors."""
        labels = pc.fill_null(batch["label"], "").dictionary_encode()
        of_label = np.array([self.codes.setdefault(name, len(self.codes)) for name in labels.dictionary.to_pylist()])
        codes = of_label[labels.indices.to_numpy()].astype(np.int32) if len(of_label) else np.empty(0, np.int32)
        self.counts.update(dict(enumerate(np.bincount(codes).tolist())))
        usable, vectors = self._vectors(batch)
        self.usable += len(vectors)
        paths = batch["path"].filter(pa.array(usable))
        sha256 = pc.fill_null(batch["sha256"], "").filter(pa.array(usable))
        if self.quotas is None:
            hashes = np.zeros(len(vectors), np.uint64)
            self.parts.append(_Part(codes[usable], hashes, paths, sha256, vectors))
            return
        new = np.full(len(self.codes) - len(self.limits), np.iinfo(np.uint64).max, np.uint64)
        self.limits = np.concatenate([self.limits, new])
        part = _Part(codes[usable], path_hashes(paths.to_pylist()), paths, sha256, vectors)
        self.parts.append(part.take(part.hashes <= self.limits[part.codes]))
        if sum(len(each.codes) for each in self.parts) > self.most + max(self.most // 2, BATCH_ROWS):
            self._drop(self.quotas)

    def _vectors(self, batch: pa.RecordBatch) -> tuple[Flags, Singles]:
        """Return which rows of a batch have a path and a usable vector, and these vectors."""
        column = batch["vector"]
        sizes = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        if not self.dimension and sizes.any():
            self.dimension = int(np.bincount(sizes[sizes > 0]).argmax())
        usable = (sizes == self.dimension) & (sizes > 0) & batch["path"].is_valid().to_numpy(zero_copy_only=False)
        values = column.filter(pa.array(usable)).flatten().to_numpy(zero_copy_only=False)
        vectors = values.reshape(-1, self.dimension) if self.dimension else np.empty((0, 0), np.float32)
        finite = np.isfinite(lengths_of(vectors))
        usable[usable] = finite
        return usable, vectors[finite].astype(np.float32, copy=False)

    def _drop(self, quotas: dict[str, int]) -> None:
        """Drop the rows that are beyond the quota of their label."""
        codes = np.concatenate([part.codes for part in self.parts])
        hashes = np.concatenate([part.hashes for part in self.parts])
        of_code = np.array([quotas.get(name, 0) for name in self.codes], np.int64)
        chosen = _smallest(codes, hashes, of_code)
        largest = np.zeros(len(self.codes), np.uint64)
        np.maximum.at(largest, codes[chosen], hashes[chosen])
        is_full = np.bincount(codes[chosen], minlength=len(of_code)) >= of_code
        self.limits = np.where(is_full, largest, self.limits)
        start = 0
        for number, part in enumerate(self.parts):
            self.parts[number] = part.take(chosen[start : start + len(part.codes)])
            start += len(part.codes)
        self.parts = [part for part in self.parts if len(part.codes)]

    def points(self, rows: PublishedRows, total: int) -> Points:
        """Return the chosen rows as points."""
        if self.quotas is not None and self.parts:
            self._drop(self.quotas)
        size = sum(len(part.codes) for part in self.parts)
        vectors, codes = np.empty((size, self.dimension), np.float32), np.empty(size, np.int32)
        paths: list[str] = []
        sha256: list[str] = []
        for part in self._emptied():
            place = slice(len(paths), len(paths) + len(part.codes))
            vectors[place], codes[place] = part.vectors, part.codes
            paths += part.paths.to_pylist()
            sha256 += part.sha256.to_pylist()
        labels, totals, codes = _by_frequency(list(self.codes), self.counts, codes)
        return Points(
            *(rows.dataset, rows.run_id, paths, sha256, labels, totals, codes, vectors, lengths_of(vectors), total),
            left_out=sum(self.counts.values()) - self.usable,
        )

    def _emptied(self) -> Iterator[_Part]:
        """Yield the parts. Each is free as soon as the next one is asked for, so that no vector is in memory twice."""
        self.parts.reverse()
        while self.parts:
            yield self.parts.pop()


def lengths_of(vectors: Singles) -> Singles:
    """Return the lengths of vectors [n, d]."""
    blocks = (vectors[start : start + BATCH_ROWS].astype(np.float64) for start in range(0, len(vectors), BATCH_ROWS))
    found = [np.sqrt(np.einsum("ij,ij->i", block, block)) for block in blocks]
    with np.errstate(over="ignore"):
        return np.concatenate([*found, np.empty(0)]).astype(np.float32)


def _by_frequency(
    names: Sequence[str], counts: Counter[int], codes: npt.NDArray[np.int32]
) -> tuple[list[str], Numbers, npt.NDArray[np.int32]]:
    """Return the labels that points have, the most frequent first, their counts, and the codes of the points."""
    order = sorted(np.unique(codes).tolist(), key=lambda code: (-counts[code], names[code]))
    new = np.zeros(len(names), np.int32)
    new[order] = np.arange(len(order), dtype=np.int32)
    return [names[code] for code in order], np.array([counts[code] for code in order], np.int64), new[codes]
