"""The label accuracy of the vectors: how often the nearest other image of a sample has the same label.

This is the leave-one-out accuracy of a classifier by the nearest neighbour, with the cosine of the vectors as in
https://scikit-learn.org/stable/modules/metrics.html#cosine-similarity. It falls when labels are wrong, and when the
vectors no longer separate the labels.

The sample has the images with the smallest hashes of their paths. It is the same for the same images, however they are
divided among tasks, and most of it stays the same from night to night.
"""

import hashlib
import math
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from orchard_spark.moments import Singles

Hashes: TypeAlias = npt.NDArray[np.uint64]

# 5,000 vectors of 1280 components are 26 MB in float32. The driver holds about 150 MB, and compares them in a second.
SAMPLE_IMAGES = 5000
HASHES = 2**64
# Cosines that differ by less are equal: the rounding error of float64.
EQUAL_COSINES = 1e-12
# The cosines of 256 images with 5,000 others are 10 MB.
BLOCK_ROWS = 256


def path_hashes(paths: pa.Array) -> Hashes:
    """Return a number of 64 bits for each path, evenly distributed.

    >>> path_hashes(pa.array(["a", "b"])).tolist()
    [14598278634844962250, 4477677635727087946]
    """
    hashed = (hashlib.sha256(path.encode()).digest()[:8] for path in paths.to_pylist())
    return np.frombuffer(b"".join(hashed), ">u8").astype(np.uint64)


@dataclass
class Sample:
    """The images of a dataset that may be in its sample: those whose hash is at most `limit`. Tasks add them.

    A task does not know the hashes of the others. So all tasks together have six standard deviations more candidates
    than the sample has images, about 5,420, on average.
    """

    limit: int
    candidates: list[tuple[Hashes, pa.Table, Singles]] = field(default_factory=list)

    @classmethod
    def of(cls, images: int) -> "Sample":
        """Return an empty sample of a dataset with this number of images."""
        candidates = SAMPLE_IMAGES + 6 * math.sqrt(SAMPLE_IMAGES)
        return cls(min(HASHES - 1, int(HASHES * candidates / max(images, 1))))

    def add(self, images: pa.Table, vectors: Singles) -> None:
        """Add the candidates among images (path, label, sha256) with their vectors [images, n_components]."""
        hashes = path_hashes(images["path"])
        rows = np.flatnonzero(hashes <= np.uint64(self.limit))
        if len(rows):
            self.candidates.append((hashes[rows], images.select(["label", "sha256"]).take(rows), vectors[rows]))

    def __add__(self, other: "Sample") -> "Sample":
        return Sample(self.limit, [*self.candidates, *other.candidates])

    def label_accuracy(self) -> "LabelAccuracy":
        """Return the accuracy among the images with the smallest hashes."""
        if not self.candidates:
            return LabelAccuracy(None, 0, 0)
        hashes, tables, vectors = zip(*self.candidates, strict=True)
        smallest = np.argsort(np.concatenate(hashes), kind="stable")[:SAMPLE_IMAGES]
        images = pa.concat_tables(tables).take(smallest)
        return label_accuracy(np.concatenate(vectors)[smallest], images["label"], images["sha256"])


@dataclass(frozen=True)
class LabelAccuracy:
    """The label accuracy of a sample, of how many of its images, and their number of labels.

    The accuracy is None if there is nothing to compare: fewer than two labels, or no label with two contents.
    """

    accuracy: float | None
    images: int
    labels: int


def label_accuracy(vectors: Singles, labels: pa.Array, contents: pa.Array) -> LabelAccuracy:
    """Return the share of images whose nearest other image, by the cosine of the vectors [images, k], has their label.

    Images with the same content are no neighbours of each other: a copy would always be the nearest one. An image whose
    label has no other content in the sample does not count, because no neighbour can have its label. It is a neighbour
    of the others. A vector of zeros has no direction, and is left out, like one with infinite or missing values. If
    several images are equally near, the share of them that has the label counts.
    """
    units = vectors.astype(np.float64)
    lengths = np.sqrt(np.einsum("ij,ij->i", units, units))
    usable = np.flatnonzero(np.isfinite(lengths) & (lengths > 0))
    if len(usable) < len(units):
        units = units[usable]
    units /= lengths[usable, np.newaxis]
    label_of, content_of = _numbers(labels)[usable], _numbers(contents)[usable]
    contents_of_label = np.bincount(np.unique(np.stack([label_of, content_of]), axis=1)[0])
    counted = np.flatnonzero(contents_of_label[label_of] > 1)
    if len(np.unique(label_of)) < 2 or not len(counted):
        return LabelAccuracy(None, 0, 0)
    right = 0.0
    for start in range(0, len(counted), BLOCK_ROWS):
        rows = counted[start : start + BLOCK_ROWS]
        cosines = units[rows] @ units.T
        cosines[content_of[rows, np.newaxis] == content_of] = -np.inf
        nearest = cosines >= cosines.max(axis=1, keepdims=True) - EQUAL_COSINES
        same = nearest & (label_of[rows, np.newaxis] == label_of)
        right += float((same.sum(axis=1) / nearest.sum(axis=1)).sum())
    return LabelAccuracy(right / len(counted), len(counted), len(np.unique(label_of[counted])))


def _numbers(column: pa.Array) -> npt.NDArray[np.int64]:
    """Return a number for each text, equal for equal texts."""
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    numbers: npt.NDArray[np.int64] = whole.dictionary_encode("encode").indices.to_numpy().astype(np.int64)
    return numbers
