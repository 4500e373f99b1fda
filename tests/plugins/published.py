"""What a run has published, as rows that a test appends to the tables itself."""

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyiceberg.catalog import Catalog

from orchard.release import read_release
from orchard.run.params import DEFAULT_MAX_BYTES, DEFAULT_MAX_PIXELS
from orchard.settings import Settings
from orchard.storage import split_uri
from orchard.tables.catalog import open_table
from orchard.tables.rows import arrow_schema

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

BASE = "20261121T020000-aaaaaa"
PCA_MODEL = "pca-1"


def append(catalog: Catalog, settings: Settings, table: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows to a table. Columns that a row lacks are null."""
    found = open_table(catalog, settings, table)
    schema = arrow_schema(found.schema())
    batch = [{name: row.get(name) for name in schema.names} for row in rows]
    if batch:
        found.append(pa.Table.from_pylist(batch, schema=schema))


def publish(
    s3: "S3Client",
    catalog: Catalog,
    settings: Settings,
    rejects: Mapping[str, str] | None = None,
    *,
    run_id: str = BASE,
    has_run: bool = True,
    **attributes: Any,
) -> None:
    """Publish a run that has read all objects of the dataset as they are now.

    `rejects` has the reasons of those that it rejected, by the end of their key; all others are images of one pixel.
    `attributes` are columns of the row of the run in `runs`; without `has_run` there is no such row.
    """
    dataset, reasons = settings.dataset_uri, rejects or {}
    bucket, prefix = split_uri(dataset)
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    images, refused = [], []
    for item in (item for page in pages for item in page.get("Contents", [])):
        row = {
            "dataset": dataset,
            "path": f"s3://{bucket}/{item['Key']}",
            "label": "Kiwi",
            "etag": item["ETag"].strip('"'),
            "size": item["Size"],
            "modified": item["LastModified"],
            "run_id": run_id,
        }
        reason = next((reasons[end] for end in reasons if item["Key"].endswith(end)), None)
        content = {"sha256": f"sha of {item['Key']}", "format": "JPEG", "width": 1, "height": 1}
        if reason is None:
            images.append({**row, **content, "features_run_id": run_id})
        else:
            refused.append({**row, "reason": reason, "message": f"run {run_id} says {reason}"})
    append(catalog, settings, "images", images)
    append(catalog, settings, "embeddings", [{**row, "vector": [0.5], "pca_model": PCA_MODEL} for row in images])
    append(catalog, settings, "rejects", refused)
    if has_run:
        counts = {"images": len(images), "rejects": sorted(Counter(row["reason"] for row in refused).items())}
        append(catalog, settings, "runs", [{**run_row(s3, settings, run_id), **counts, **attributes}])


def run_row(s3: "S3Client", settings: Settings, run_id: str) -> dict[str, Any]:
    """Return the row in `runs` of a run with the release of the settings and the default params."""
    release = read_release(s3, settings)
    return {
        "run_id": run_id,
        "dataset": settings.dataset_uri,
        "model": release.model_name,
        "decoder": release.decoder,
        "pca_model": PCA_MODEL,
        "pca_mode": "refit",
        "n_components": 0.95,
        "max_bytes": DEFAULT_MAX_BYTES,
        "max_pixels": DEFAULT_MAX_PIXELS,
        "published_at": datetime(2026, 11, 21, 3, tzinfo=UTC),
    }


def publish_basis(s3: "S3Client", catalog: Catalog, settings: Settings, pca_model: str = PCA_MODEL) -> None:
    """Add the basis of a run to the tables."""
    row = {
        "pca_model": pca_model,
        "dataset": settings.dataset_uri,
        "model": read_release(s3, settings).model_name,
        "n_samples_": 3,
        "n_components_": 1,
        "mean_": [0.5, 0.25],
        "components_": [[1.0, 0.0]],
        "explained_variance_": [2.0],
        "explained_variance_ratio_": [0.96],
        "run_id": BASE,
    }
    append(catalog, settings, "pca_models", [row])
