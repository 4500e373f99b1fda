"""A report of generated embeddings as one file, made without Airflow and without the tables."""

import io
import random
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from orchard.report import pages
from orchard.report.figures import Figures
from orchard.report.file import file_data
from orchard.report.happened import happened_at_publication
from orchard.report.points import Points, lengths_of
from orchard.report.run_folder import RunFolder
from orchard.report.run_rows import Reject, Rejects, Variance
from sandbox.pictures import CLASSES, render
from tests.ui.browser import MARKUP, QUOTES, SCRIPT

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PER_CLASS = 8
DIMENSIONS = 12
RUN_ID = "20261122T020000-aaaaaa"
# The classes whose folders have these names instead.
RENAMED = {"Pear": MARKUP, "Plum": f"{QUOTES} {SCRIPT}"}


@dataclass(frozen=True)
class Image:
    """An image of the report: its path below the dataset, its label, its vector, and its file."""

    path: str
    label: str
    vector: np.ndarray
    content: bytes


def images() -> list[Image]:
    """Return images of all classes. The last one of each of the first two classes looks like one of the other class."""
    generator = np.random.default_rng(14)
    centres = {name: generator.normal(0, 1, DIMENSIONS) for name in CLASSES}
    found = []
    first, second = list(CLASSES)[:2]
    for name in CLASSES:
        label = RENAMED.get(name, name)
        for number in range(PER_CLASS):
            is_wrong = name in (first, second) and number == PER_CLASS - 1
            shown = {first: second, second: first}[name] if is_wrong else name
            buffer = io.BytesIO()
            render(shown, random.Random(f"{name} {number}")).save(buffer, "JPEG")  # noqa: S311  # not for security
            vector = centres[shown] + generator.normal(0, 0.12, DIMENSIONS)
            found.append(Image(f"{label}/{number} {QUOTES}.jpg", label, vector, buffer.getvalue()))
    return found


def points_of(dataset: str, images: list[Image]) -> Points:
    """Return the embeddings of images as the report reads them from the tables."""
    labels = sorted({image.label for image in images})
    codes = np.array([labels.index(image.label) for image in images], np.int32)
    vectors = np.array([image.vector for image in images], np.float32)
    return Points(
        dataset=dataset,
        run_id=RUN_ID,
        paths=[dataset + image.path for image in images],
        sha256=[f"{number:064x}" for number in range(len(images))],
        labels=labels,
        label_totals=np.bincount(codes),
        label_codes=codes,
        vectors=vectors,
        lengths=lengths_of(vectors),
        total=len(images),
    )


def report_file(s3: "S3Client", bucket: str) -> str:
    """Return the report as HTML. The images are in the bucket, and their labels and paths have markup."""
    dataset = f"s3://{bucket}/images/"
    found = images()
    for image in found:
        s3.put_object(Bucket=bucket, Key=f"images/{image.path}", Body=image.content)
    points = points_of(dataset, found)
    labels = {name: int(total) for name, total in zip(points.labels, points.label_totals, strict=True)}
    summary = {
        "run_id": RUN_ID,
        "dataset_uri": dataset,
        "run_uri": f"s3://{bucket}/runs/images/{RUN_ID}",
        "sentence": f"{len(found)} images, 8 new, 3 rejected, 8 min, $0.11",
        "planned_at": datetime(2026, 11, 22, 2, tzinfo=UTC).isoformat(),
        "images_listed": len(found) + 3,
        "images_ingested": len(found),
        "images_rejected": 3,
        "new": 8,
        "changed": 1,
        "deleted": 2,
        "inferences": 9,
        "duplicates": 1,
        "labels": labels,
        "label_count": len(labels),
        "labels_changed": dict.fromkeys(points.labels[:8], 1) | {"Quince": -2},
        "n_components": 4,
        "explained_variance": 0.951,
        "label_accuracy": 0.979,
        "drift": {"shift": 0.03},
        "pca_model": "pca",
        "step_seconds": {"plan": 2.0, "ingest": 61.0, "features": 184.0, "pca": 31.0},
        "images_per_second": {"features": 0.5},
        "warnings": [f"drift is 0.03: {MARKUP}"],
    }
    before = summary | {"images_ingested": 80, "label_accuracy": 0.99, "explained_variance": 0.95}
    reasons = {"undecodable": 2, "too_large": 1}
    rejects = [
        Reject(f"{dataset}{MARKUP}/{number}.jpg", MARKUP, 7, reason, f"{SCRIPT} {QUOTES} is broken")
        for number, reason in enumerate(reasons)
    ]
    ratios = [0.6, 0.2, 0.1, 0.051, 0.02, 0.01, 0.008, 0.005]
    figures = Figures(dataset, summary, Variance("pca", ratios, len(found), RUN_ID), Rejects(rejects, reasons))
    folder = RunFolder(str(summary["run_uri"]), summary, {"usd": 0.113, "usd_per_million": 12.4})
    return pages.report_file(
        happened=happened_at_publication(folder, RunFolder("", before, {}), RUN_ID),
        figures=figures,
        map_data=file_data(s3, points, ratios),
        airflow_url="https://airflow.example.com/dags/fruit_features/runs/manual__1",
    )
