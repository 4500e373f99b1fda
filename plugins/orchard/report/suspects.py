"""The images of a run to look at: those whose label or content is probably wrong."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from orchard.report.points import Numbers, Points, Singles, nearest, sample_by_label

Floats: TypeAlias = npt.NDArray[np.float64]
Kind: TypeAlias = Literal["content", "neighbours", "centre"]

# Of more images a sample is compared: the cosines of 20,000 images with each other take seconds.
SAMPLE_IMAGES = 20_000
# The cosines of 256 images with 20,000 others are 20 MB.
BLOCK_ROWS = 256
NEIGHBOURS = 10
# Fewer neighbours say nothing about a label.
LEAST_NEIGHBOURS = 3
# Fewer images have no centre.
LEAST_OF_CLASS = 5
# An image is far from its class beyond this many deviations. Of a normal distribution 1 in 3.5 million is.
FAR = 5.0
# The deviation of an image's distance from the centre is 1.4826 times the median of all deviations, as in
# https://en.wikipedia.org/wiki/Median_absolute_deviation
MEDIAN_TO_DEVIATION = 1.4826
# Classes of images that are almost equal have this deviation. Distances are from 0 to 2.
LEAST_DEVIATION = 0.02
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
    rows = _distinct(points, sample_by_label(points, SAMPLE_IMAGES))
    others = [*_among_others(points, rows), *_far_from_class(points, rows)]
    for suspect in sorted(others, key=lambda each: (-each.score, points.paths[each.index])):
        if len(found) >= most:
            break
        if suspect.index not in listed:
            listed.add(suspect.index)
            found.append(suspect)
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
    """Return one row of each content among rows with a direction, ordered by their paths."""
    ordered = sorted(rows[points.lengths[rows] > 0].tolist(), key=lambda row: points.paths[row])
    first: dict[str, int] = {}
    for row in ordered:
        first.setdefault(points.sha256[row] or f"of {row}", row)
    return np.array(list(first.values()), np.int64)


def _among_others(points: Points, rows: Numbers) -> list[Suspect]:
    """Return the images most of whose nearest neighbours have one other label.

    The score is the share of these neighbours. It is lower if many images of the image's label are near the other
    label, and if the image is farther from its neighbours than images of the other label are.
    """
    width = min(NEIGHBOURS, len(rows) - 1)
    if width < LEAST_NEIGHBOURS:
        return []
    codes = points.label_codes[rows].astype(np.int64)
    near, distances = _nearest_rows(_units(points, rows), width)
    of_near = codes[near]
    sizes = np.bincount(codes, minlength=len(points.labels))
    # An image of a label with few others cannot have more neighbours of its label.
    counted = np.clip(sizes[codes] - 1, LEAST_NEIGHBOURS, width)
    counts = np.arange(width) < counted[:, np.newaxis]
    votes = np.zeros(of_near.shape, np.int64)
    for column in range(width):
        votes += counts & counts[:, column, np.newaxis] & (of_near == of_near[:, column, np.newaxis])
    votes[of_near == codes[:, np.newaxis]] = 0
    everyone = np.arange(len(rows))
    best = votes.argmax(axis=1)  # of equal ones the nearest
    label, share = of_near[everyone, best], votes[everyone, best] / counted
    flagged = np.flatnonzero(share > 0.5)
    own = np.where(counts & (of_near == codes[:, np.newaxis]), distances, np.nan)
    reach = _usual_reach(own, codes, len(points.labels))
    pairs, pair_counts = np.unique(np.stack([codes[flagged], label[flagged]]), axis=1, return_counts=True)
    alike = {(a, b): count for (a, b), count in zip(pairs.T.tolist(), pair_counts.tolist(), strict=True)}
    found = []
    for row in flagged.tolist():
        mine, theirs, size = int(codes[row]), int(label[row]), int(sizes[codes[row]])
        distance = distances[row, counts[row] & (of_near[row] == theirs)].mean()
        fit = 1.0 if distance <= reach[theirs] else float(reach[theirs] / distance)
        if size <= LEAST_NEIGHBOURS and fit < 1:
            continue  # a small class of its own, whose images have no neighbours of their label
        score = float(share[row]) * (1 - (alike[mine, theirs] - 1) / size) * fit
        other = int(rows[near[row, best[row]]])
        name = points.labels[theirs]
        reason = f"{votes[row, best[row]]} of {counted[row]} nearest neighbours are labelled {name}"
        found.append(Suspect(int(rows[row]), "neighbours", reason, score, name, other))
    return found


def _usual_reach(own: Floats, codes: Numbers, labels: int) -> Floats:
    """Return for each label how far its images are from their neighbours of the label: at most, for 19 of 20 images.

    `own` has the distances [n, k], NaN for neighbours of other labels. It is 0 for a label without such neighbours.
    """
    has_own = np.isfinite(own).any(axis=1)
    means, of_label = np.nanmean(own[has_own], axis=1), codes[has_own]
    reach = np.zeros(labels)
    for label in np.unique(of_label).tolist():
        reach[label] = np.quantile(means[of_label == label], 0.95)
    return reach


def _far_from_class(points: Points, rows: Numbers) -> list[Suspect]:
    """Return the images whose distance from the centre of their label is far beyond the usual one of the label."""
    codes, units = points.label_codes[rows], _units(points, rows)
    order = np.argsort(codes, kind="stable")
    found = []
    for of_label in np.split(order, np.flatnonzero(np.diff(codes[order])) + 1):
        if len(of_label) < LEAST_OF_CLASS:
            continue
        vectors = units[of_label]
        near = np.argsort(_distances(vectors, vectors.mean(axis=0)))[: int(np.ceil(len(vectors) * (1 - TRIMMED)))]
        distances = _distances(vectors, vectors[near].mean(axis=0))
        middle = np.median(distances)
        deviation = max(MEDIAN_TO_DEVIATION * float(np.median(np.abs(distances - middle))), LEAST_DEVIATION)
        far = (distances - middle) / deviation
        name = points.labels[codes[of_label[0]]]
        found += [
            Suspect(int(rows[of_label[row]]), "centre", f"far from the other images labelled {name}", score)
            for row, score in zip(range(len(far)), (1 - FAR / np.maximum(far, FAR)).tolist(), strict=True)
            if score > 0
        ]
    return found


def _units(points: Points, rows: Numbers) -> Singles:
    return points.vectors[rows] / points.lengths[rows, np.newaxis]


def _distances(units: Singles, centre: Singles) -> Floats:
    """Return the distances [n] of vectors of length 1 from the direction of a centre: from 0 to 2."""
    length = float(np.linalg.norm(centre))
    cosines = units.astype(np.float64) @ (centre / length if length else centre)
    return np.sqrt(np.maximum(2 - 2 * cosines, 0))


def _nearest_rows(units: Singles, width: int) -> tuple[Numbers, Floats]:
    """Return the nearest others of each vector of length 1, as indices and distances [n, width], the nearest first."""
    near = np.empty((len(units), width), np.int64)
    distances = np.empty((len(units), width))
    for start in range(0, len(units), BLOCK_ROWS):
        block = units[start : start + BLOCK_ROWS]
        cosines = block @ units.T
        everyone = np.arange(len(block))
        cosines[everyone, start + everyone] = -np.inf
        largest = np.argpartition(cosines, cosines.shape[1] - width, axis=1)[:, -width:]
        found = np.take_along_axis(cosines, largest, axis=1)
        order = np.lexsort((largest, -found), axis=1)
        near[start : start + len(block)] = np.take_along_axis(largest, order, axis=1)
        of_block = np.take_along_axis(found, order, axis=1).astype(np.float64)
        distances[start : start + len(block)] = np.sqrt(np.maximum(2 - 2 * of_block, 0))
    return near, distances
