"""The images of a run as the ingest step writes them, by the step's own functions and without Spark."""

from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

import ingest
from orchard_spark import images, objects, schemas
from orchard_spark.dataset import Listed

FILES = 2


def write_images(folder: Path, uri: str) -> None:
    """Write the images of a local folder as the dataset IMAGES."""
    rows = [ingest.verify(listed(file), file.read_bytes(), images.DEFAULT_MAX_PIXELS) for file in folder.rglob("*.jpg")]
    for number in range(FILES):
        table = pa.Table.from_pylist(rows[number::FILES], schema=schemas.IMAGES)
        objects.write_table(f"{uri}/part-{number:05}.parquet", table)


def listed(file: Path) -> Listed:
    """Return a file as the ingest step lists it."""
    described = file.stat()
    return Listed(f"file://{file}", "etag", described.st_size, datetime.fromtimestamp(described.st_mtime, UTC))
