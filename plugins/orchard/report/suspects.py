"""The images of a run to look at: those whose label or content is probably wrong."""

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from orchard.report.points import Flags, Numbers, Points, Singles, lengths_of, nearest, sample_by_label

Floats: TypeAlias = npt.NDArray[np.float64]
Kind: TypeAlias = Literal["content", "neighbours", "centre"]

# Of more images a sample is compared: the cosines of 20,000 images with each other take seconds.
SAMPLE_IMAGES = 20_000
# The components of a vector are ordered by their variance. The first ones tell images apart, and bound the time.
COMPONENTS = 256
# The cosines of 256 images with 20,000 others are 20 MB.
BLOCK_ROWS = 256
GROUP_COLUMNS = 64
NEIGHBOURS = 10
# Fewer neighbours say nothing about a label.
LEAST_NEIGHBOURS = 3
# An image that is farther from its neighbours than the images of their label usually are, by the inverse of this
# factor, has not their label.
LEAST_FIT = 0.5
# Fewer images have no centre.
LEAST_OF_CLASS = 5
# An image is far from its class beyond this many deviations. Of a normal distribution 1 in 3.5 million is.
FAR = 5.0
# The deviation of an image's distance from the centre is 1.4826 times the median of all deviations, as in
# https://en.wikipedia.org/wiki/Median_absolute_deviation
MEDIAN_TO_DEVIATION = 1.4826
# Classes of images that are almost equal have this deviation. Distances are from 0 to 2.
LEAST_DEVIATION = 0.02
# An image whose neighbours of its label are at most this many times as far as usual is among them.
COMPANY = 1.1
# This share of a class is left out when its centre is found, so that wrong images do not move it.
TRIMMED = 0.2


@dataclass(frozen=True)
class Suspect:
    """A point to look at, and why: text for a person, which contains labels and paths as they are.

    `kind` is "content" for an image that is equal to one with another label, "neighbours" for one whose nearest
    neighbours have another label, and "centre" for one that is far from the others of its label. `label` is the other
    label, `other` the index of an image that has it. `score` is from 0 to 1, comparable within a kind and between the
    last two.
    """

    index: int
    kind: Kind
    reason: str
    score: float
    label: str | None = None
    other: int | None = None


def suspects(points: Points, most: int = 50) -> list[Suspect]:
    """Return the points to look at, the most suspicious first: those with equal images of other labels before others.

    Equal images are found among all points, the others among a sample by label of SAMPLE_IMAGES. Each image is listed
    once. Copies of an image are no neighbours of each other.
    """
    found = _contradictions(points, most)
    listed = {suspect.index for suspect in found}
    compared = _compare(points, _distinct(points, sample_by_label(points, SAMPLE_IMAGES)))
    others = {suspect.index: suspect for suspect in _among_others(points, compared) if suspect.index not in listed}
    for far in _far_from_class(points, compared):
        if far.index in others:  # its other label says more
            others[far.index] = replace(others[far.index], score=max(far.score, others[far.index].score))
        elif far.index not in listed:
            others[far.index] = far
    found += sorted(others.values(), key=lambda each: (-each.score, points.paths[each.index]))
    return found[:most]


def _contradictions(points: Points, most: int) -> list[Suspect]:
    """Return the images whose content also has another label, which more of its copies or neighbours have."""
    by_content: dict[str, list[int]] = defaultdict(list)
    for index, content in enumerate(points.sha256):
        if content:
            by_content[content].append(index)
    found: list[Suspect] = []
    groups = [rows for rows in by_content.values() if len({int(points.label_codes[row]) for row in rows}) > 1]
    for rows in sorted(groups, key=lambda rows: min(points.paths[row] for row in rows)):
        if len(found) >= most:
            break
        copies = np.bincount(points.label_codes[rows], minlength=len(points.labels))
        votes = np.zeros(len(points.labels), np.int64)
        if np.count_nonzero(copies == copies.max()) > 1:
            near = nearest(points, rows[0], NEIGHBOURS + len(rows))
            distinct = [each.index for each in near if points.sha256[each.index] != points.sha256[rows[0]]]
            np.add.at(votes, points.label_codes[distinct[:NEIGHBOURS]], 1)
        right = int(np.lexsort((-np.arange(len(copies)), votes, copies))[-1])
        ordered = sorted(rows, key=lambda row: points.paths[row])
        other = next(row for row in ordered if points.label_codes[row] == right)
        reason = f"same content as {points.paths[other]}, labelled {points.labels[right]}"
        found += [
            Suspect(row, "content", reason, 1.0, points.labels[right], other)
            for row in ordered
            if points.label_codes[row] != right
        ]
    return found


def _distinct(points: Points, rows: Numbers) -> Numbers:
    """Return one row of each content, ordered by their paths."""
    ordered = sorted(rows.tolist(), key=lambda row: points.paths[row])
    first: dict[str, int] = {}
    for row in ordered:
        first.setdefault(points.sha256[row] or f"of {row}", row)
    return np.array(list(first.values()), np.int64)


@dataclass(frozen=True)
class _Compared:
    """Images with different contents, their labels, and the nearest others of each, the nearest first.

    `counts` says which of these count: an image of a label with few others cannot have more neighbours of its label.
    `distances` are those of vectors of length 1: from 0 to 2.
    """

    rows: Numbers  # [n], indices of points
    units: Singles  # [n, d]
    codes: Numbers  # [n]
    near: Numbers  # [n, k], indices of `rows`
    distances: Floats  # [n, k]
    counts: Flags  # [n, k]
    reach: Floats  # [labels], how far images are from their neighbours of the same label: 19 of 20 images at most

    @property
    def of_own_label(self) -> Flags:
        """The neighbours [n, k] that count and have the label of the image."""
        same: Flags = self.counts & (self.codes[self.near] == self.codes[:, np.newaxis])
        return same


def _compare(points: Points, rows: Numbers) -> _Compared:
    units = points.vectors[rows, :COMPONENTS]
    lengths = lengths_of(units)
    rows, units = rows[lengths > 0], units[lengths > 0] / lengths[lengths > 0, np.newaxis]
    codes = points.label_codes[rows].astype(np.int64)
    width = max(0, min(NEIGHBOURS, len(rows) - 1))
    near, distances = _nearest_rows(units, width)
    sizes = np.bincount(codes, minlength=len(points.labels))
    counted = np.clip(sizes[codes] - 1, min(LEAST_NEIGHBOURS, width), width)
    counts = np.arange(width) < counted[:, np.newaxis]
    compared = _Compared(rows, units, codes, near, distances, counts, np.zeros(len(points.labels)))
    means = _means(distances, compared.of_own_label)
    for label in np.unique(codes[np.isfinite(means)]).tolist():
        compared.reach[label] = np.nanquantile(means[codes == label], 0.95)
    return compared


def _means(values: Floats, chosen: Flags) -> Floats:
    """Return the mean [n] of chosen values [n, k], NaN where none is chosen."""
    number = chosen.sum(axis=1)
    means = np.full(len(values), np.nan)
    np.divide(np.where(chosen, values, 0).sum(axis=1), number, out=means, where=number > 0)
    return means


def _among_others(points: Points, compared: _Compared) -> list[Suspect]:
    """Return the images most of whose nearest neighbours have one other label.

    The score is the share of these neighbours. It is lower if many images of the image's label are near the other
    label, and if the image is farther from its neighbours than images of the other label are.
    """
    codes, near, counts = compared.codes, compared.near, compared.counts
    if near.shape[1] < LEAST_NEIGHBOURS:
        return []
    of_near = codes[near]
    votes = np.zeros(of_near.shape, np.int64)
    for column in range(near.shape[1]):
        votes += counts & counts[:, column, np.newaxis] & (of_near == of_near[:, column, np.newaxis])
    votes[compared.of_own_label] = 0
    everyone = np.arange(len(codes))
    best = votes.argmax(axis=1)  # of equal ones the nearest
    label, counted = of_near[everyone, best], counts.sum(axis=1)
    share = votes[everyone, best] / counted
    flagged = np.flatnonzero(share > 0.5)
    distance = _means(compared.distances, counts & (of_near == label[:, np.newaxis]))
    sizes = np.bincount(codes, minlength=len(points.labels))
    alike = Counter(zip(codes[flagged].tolist(), label[flagged].tolist(), strict=True))
    found = []
    for row in flagged.tolist():
        mine, theirs = int(codes[row]), int(label[row])
        reach, size = compared.reach[theirs], int(sizes[mine])
        fit = 1.0 if distance[row] <= reach else float(reach / distance[row])
        # Images of a small class have few neighbours of their label, although the class is one of its own.
        if fit < (1.0 if size <= LEAST_NEIGHBOURS else LEAST_FIT):
            continue
        score = float(share[row]) * (1 - (alike[mine, theirs] - 1) / size) * fit
        other = int(compared.rows[near[row, best[row]]])
        name = points.labels[theirs]
        reason = f"{votes[row, best[row]]} of {counted[row]} nearest neighbours are labelled {name}"
        found.append(Suspect(int(compared.rows[row]), "neighbours", reason, score, name, other))
    return found


def _far_from_class(points: Points, compared: _Compared) -> list[Suspect]:
    """Return the images whose distance from the centre of their label is far beyond the usual one of the label.

    An image is not far if it is as near to its neighbours of the label as others are: a label can have several centres,
    for example one for each side of a fruit.
    """
    codes, own = compared.codes, compared.of_own_label
    has_company = (own.sum(axis=1) * 2 >= compared.counts.sum(axis=1)) & (
        _means(compared.distances, own) <= COMPANY * compared.reach[codes]
    )
    order = np.argsort(codes, kind="stable")
    found = []
    for of_label in np.split(order, np.flatnonzero(np.diff(codes[order])) + 1):
        if len(of_label) < LEAST_OF_CLASS:
            continue
        vectors = compared.units[of_label]
        near = np.argsort(_distances(vectors, vectors.mean(axis=0)))[: int(np.ceil(len(vectors) * (1 - TRIMMED)))]
        distances = _distances(vectors, vectors[near].mean(axis=0))
        middle = np.median(distances)
        deviation = max(MEDIAN_TO_DEVIATION * float(np.median(np.abs(distances - middle))), LEAST_DEVIATION)
        far = (distances - middle) / deviation
        reason = f"far from the other images labelled {points.labels[codes[of_label[0]]]}"
        found += [
            Suspect(int(compared.rows[of_label[row]]), "centre", reason, float(1 - FAR / far[row]))
            for row in np.flatnonzero((far > FAR) & ~has_company[of_label]).tolist()
        ]
    return found


def _distances(units: Singles, centre: Singles) -> Floats:
    """Return the distances [n] of vectors of length 1 from the direction of a centre: from 0 to 2."""
    length = float(np.linalg.norm(centre))
    cosines = units.astype(np.float64) @ (centre / length if length else centre)
    return np.sqrt(np.maximum(2 - 2 * cosines, 0))


def _nearest_rows(units: Singles, width: int) -> tuple[Numbers, Floats]:
    """Return the nearest others of each vector of length 1, as indices and distances [n, width], the nearest first."""
    size = len(units)
    near = np.empty((size, width), np.int64)
    distances = np.empty((size, width))
    if not width:
        return near, distances
    # The largest cosines are in the groups with the largest maxima. Finding these takes a third of the time of
    # partitioning all cosines.
    groups = max(width, -(-size // GROUP_COLUMNS))
    others = np.zeros((groups * GROUP_COLUMNS, units.shape[1]), np.float32)
    others[:size] = units
    cosines = np.empty((min(BLOCK_ROWS, size), len(others)), np.float32)
    for start in range(0, size, BLOCK_ROWS):
        block = units[start : start + BLOCK_ROWS]
        everyone = np.arange(len(block))
        of_block = np.matmul(block, others.T, out=cosines[: len(block)])
        of_block[:, size:] = -np.inf
        of_block[everyone, start + everyone] = -np.inf
        grouped = of_block.reshape(len(block), groups, GROUP_COLUMNS)
        best = np.argpartition(grouped.max(axis=2), groups - width, axis=1)[:, -width:]
        found = grouped[everyone[:, np.newaxis], best].reshape(len(block), -1)
        columns = (best[:, :, np.newaxis] * GROUP_COLUMNS + np.arange(GROUP_COLUMNS)).reshape(len(block), -1)
        order = np.lexsort((columns, -found), axis=1)[:, :width]
        near[start : start + len(block)] = np.take_along_axis(columns, order, axis=1)
        nearest_cosines = np.take_along_axis(found, order, axis=1).astype(np.float64)
        distances[start : start + len(block)] = np.sqrt(np.maximum(2 - 2 * nearest_cosines, 0))
    return near, distances
