"""The PyArrow schema of every dataset that the steps exchange."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

_OBJECT = [("path", pa.string()), ("label", pa.string()), ("etag", pa.string())]
_MODIFIED = ("modified", pa.timestamp("us", tz="UTC"))

# The new and changed images of a dataset. `path` is the full URI, `label` the name of the parent folder. An object with
# a `reason` is rejected without being read.
INVENTORY = pa.schema([*_OBJECT, ("size", pa.int64()), _MODIFIED, ("reason", pa.string()), ("message", pa.string())])

# The images that decode. `content` is the unchanged bytes of the object, never pixels.
IMAGES = pa.schema(
    [
        *_OBJECT,
        ("size", pa.int64()),
        _MODIFIED,
        ("sha256", pa.string()),
        ("format", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("content", pa.binary()),
    ]
)

# The rejected objects. `reason` is a key of orchard_spark.rejects.REASONS.
REJECTS = pa.schema([*_OBJECT, ("size", pa.int64()), ("reason", pa.string()), ("message", pa.string())])

# The images that the dataset holds now. The features of an image are in the row of FEATURES with its `sha256` whose
# `run_id` is its `features_run_id`.
IMAGE_INFO = pa.schema(
    [
        *_OBJECT,
        ("size", pa.int64()),
        _MODIFIED,
        ("sha256", pa.string()),
        ("format", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("features_run_id", pa.string()),
    ]
)

# One row per content and model. `features` has 1280 values, `model` is the name of the model file.
FEATURES = pa.schema(
    [("sha256", pa.string()), ("model", pa.string()), ("features", pa.list_(pa.float32())), ("run_id", pa.string())]
)

# One row per image. `vector` has n_components values. `pca_model` names the row of PCA_MODELS with its basis.
EMBEDDINGS = pa.schema(
    [
        ("dataset", pa.string()),
        ("path", pa.string()),
        ("label", pa.string()),
        ("sha256", pa.string()),
        ("vector", pa.list_(pa.float32())),
        ("pca_model", pa.string()),
        ("run_id", pa.string()),
    ]
)

# One row per fit, with scikit-learn's attribute names: mean_ [1280], components_ [n_components][1280].
PCA_MODELS = pa.schema(
    [
        ("pca_model", pa.string()),
        ("dataset", pa.string()),
        ("model", pa.string()),
        ("n_samples_", pa.int64()),
        ("n_components_", pa.int32()),
        ("mean_", pa.list_(pa.float64())),
        ("components_", pa.list_(pa.list_(pa.float64()))),
        ("explained_variance_", pa.list_(pa.float64())),
        ("explained_variance_ratio_", pa.list_(pa.float64())),
        ("run_id", pa.string()),
    ]
)

# Columns with few distinct values, which a Parquet dictionary compresses.
_REPETITIVE = ("dataset", "label", "format", "reason", "model", "pca_model", "features_run_id", "run_id")


class WrongColumns(ValueError):
    """A file lacks a column of its dataset."""


def check_columns(actual: pa.Schema, columns: Sequence[str], uri: str) -> None:
    """Check that a file has these columns.

    Raises:
        WrongColumns: a column is missing.
    """
    missing = [name for name in columns if name not in actual.names]
    if missing:
        raise WrongColumns(f"{uri} has no column {', '.join(missing)}")


def to_list_array(matrix: npt.NDArray[np.float32]) -> pa.ListArray:
    """Return the rows of a matrix [n, p] as a column of n lists."""
    offsets = np.arange(0, matrix.size + 1, matrix.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, matrix.ravel())


def parquet_options(schema: pa.Schema) -> dict[str, Any]:
    """Return PyArrow's options for writing Parquet of a schema.

    Only columns with few distinct values get a dictionary. Only columns of scalars get statistics.

    >>> parquet_options(pa.schema([("path", pa.string()), ("label", pa.string()), ("content", pa.binary())]))
    {'use_dictionary': ['label'], 'write_statistics': ['path', 'label']}
    """
    return {
        "use_dictionary": [name for name in schema.names if name in _REPETITIVE],
        "write_statistics": [field.name for field in schema if not _is_large(field.type)],
    }


def _is_large(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_list(kind))
