"""The files of a run as its steps write them, by the steps' own functions and without Spark."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import ingest
from orchard_spark import images, objects, parts, schemas
from orchard_spark.dataset import Listed

FILES = 2


def write_ingested(folder: Path, run_uri: str, files: int = FILES) -> None:
    """Write the images of a local folder as the dataset IMAGES, and the metrics of the step."""
    rows = [ingest.verify(listed(file), file.read_bytes(), images.DEFAULT_MAX_PIXELS) for file in folder.rglob("*.jpg")]
    tables = [pa.Table.from_pylist(rows[number::files], schema=schemas.IMAGES) for number in range(files)]
    write_files(run_uri, "ingest", "images", tables)


def write_files(run_uri: str, step: str, dataset: str, tables: Iterable[pa.Table], **metrics: object) -> None:
    """Write the files of a dataset, and the metrics of its step, which list them."""
    written = [asdict(parts.write_table(f"{run_uri}/{dataset}", table)) for table in tables]
    content = {**metrics, "files": {dataset: written}}
    objects.write(f"{run_uri}/{step}.metrics.json", json.dumps(content).encode())


def read_files(run_uri: str, dataset: str) -> pa.Table:
    """Return the rows of a dataset: of the files that its step lists, or of the whole folder if no step does."""
    folder = Path(run_uri.removeprefix("file://"))
    for metrics in folder.glob("*.metrics.json"):
        files = json.loads(metrics.read_text())["files"]
        if dataset in files:
            found = [pq.read_table(objects.RangedFile(file["uri"])) for file in files[dataset]]
            return pa.concat_tables(found) if found else pa.table({})
    return pq.read_table(folder / dataset)


def listed(file: Path) -> Listed:
    """Return a file as the ingest step lists it."""
    described = file.stat()
    return Listed(f"file://{file}", "etag", described.st_size, datetime.fromtimestamp(described.st_mtime, UTC))
