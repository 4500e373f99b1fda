"""The map of a run for the browser: the points that it shows, their labels and the plot that draws them."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from orchard.report.plots import map_plot
from orchard.report.points import Neighbour, Points
from orchard.report.suspects import Suspect


def base64_of(values: np.ndarray) -> str:
    """Return numbers as base64: floats as little-endian 32-bit floats, whole numbers as little-endian 32-bit ones.

    >>> base64_of(np.array([1.0]))
    'AACAPw=='
    """
    kind = "<f4" if np.issubdtype(values.dtype, np.floating) else "<i4"
    return base64.b64encode(np.ascontiguousarray(values, kind).tobytes()).decode("ascii")


def map_data(points: Points, shown: np.ndarray, ratios: Sequence[float], components: int = 2) -> dict[str, Any]:
    """Return what the browser needs to draw a map.

    Args:
        points: the embeddings of the run.
        shown: the indices of the points that the map shows.
        ratios: the share of the variance that each component explains.
        components: how many components to return at once. The browser asks for the others.
    """
    dimensions = points.vectors.shape[1] if len(points.vectors) else 0
    codes = points.label_codes[shown]
    return {
        "total": points.total,
        "loaded": len(points.paths),
        "shown": len(shown),
        "labels": points.labels,
        "counts": np.bincount(codes, minlength=len(points.labels)).tolist(),
        "codes": base64_of(codes),
        "paths": [below(points.dataset, points.paths[index]) for index in shown],
        "dimensions": dimensions,
        "ratios": [round(float(ratio), 6) for ratio in ratios[:dimensions]],
        "coordinates": [
            base64_of(points.vectors[shown, component]) for component in range(min(components, dimensions))
        ],
        "plot": map_plot(),
    }


def neighbour_of(points: Points, neighbour: Neighbour) -> Mapping[str, Any]:
    """Return a neighbour for the browser."""
    return {**_image(points, neighbour.index), "similarity": round(float(neighbour.similarity), 4)}


def suspect_of(points: Points, suspect: Suspect) -> Mapping[str, Any]:
    """Return an image to look at for the browser."""
    return {**_image(points, suspect.index), "reason": suspect.reason}


def _image(points: Points, index: int) -> dict[str, str]:
    return {"path": below(points.dataset, points.paths[index]), "label": points.label(index)}


def below(dataset_uri: str, path: str) -> str:
    """Return the path of an image below its dataset.

    >>> below("s3://fruits/images/", "s3://fruits/images/Kiwi/1.jpg")
    'Kiwi/1.jpg'
    """
    return path.removeprefix(dataset_uri)
