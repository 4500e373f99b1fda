"""The files of a run as the plan and its steps write them, by the steps' own functions and without Spark."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import features
import ingest
import pca
from orchard_spark import images, objects, parts, schemas
from orchard_spark.read_ahead import Listed, file_etag
from orchard_spark.step import files_of, read_metrics

FILES = 2
DATASET = "s3://bucket/images/"
WRITTEN_BY = {
    **dict.fromkeys(("inventory", "kept_images"), "plan"),
    **dict.fromkeys(("images", "rejects"), "ingest"),
    **dict.fromkeys(("features", "new_images"), "features"),
    **dict.fromkeys(("embeddings", "pca_model", "compacted", "replaced"), "pca"),
}
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass(frozen=True)
class RunFolders:
    """The three folders that the steps of a run use."""

    run_uri: str
    scratch_uri: str
    warehouse_uri: str

    @classmethod
    def below(cls, folder: str, run_id: str = "run-1") -> "RunFolders":
        return cls(f"{folder}/runs/{run_id}", f"{folder}/scratch/{run_id}", f"{folder}/warehouse")

    def ingest(self, max_reject_ratio: float = 0, max_pixels: int = 50_000) -> dict[str, Any]:
        return ingest.run(self.run_uri, self.scratch_uri, max_reject_ratio, max_pixels)

    def featurise(self, model_file: Path) -> dict[str, Any]:
        return features.run(self.run_uri, self.scratch_uri, self.warehouse_uri, str(model_file))

    def reduce(self, n_components: float, pca_mode: str = "refit") -> dict[str, Any]:
        return pca.run(self.run_uri, self.warehouse_uri, n_components, pca_mode)

    def read(self, dataset: str) -> pa.Table:
        """Return the rows of the files of a dataset that a step lists, in their order."""
        found = [pq.read_table(objects.RangedFile(part.uri)) for part in self.parts(dataset)]
        return pa.concat_tables(found) if found else pa.table({})

    def parts(self, dataset: str) -> list[parts.Part]:
        """Return the files of a dataset that a step lists."""
        return files_of(read_metrics(self.run_uri, WRITTEN_BY[dataset]), dataset)


def listed(file: Path, **changes: Any) -> dict[str, Any]:
    """Return a file as the plan lists it."""
    described = file.stat()
    modified = datetime.fromtimestamp(described.st_mtime, UTC)
    row = Listed(f"file://{file}", file.parent.name, file_etag(file), described.st_size, modified)
    return {**asdict(row), **changes}


def inventory_of(folder: Path) -> list[dict[str, Any]]:
    """Return the images below a local folder as the plan lists them."""
    return [
        listed(file)
        for file in sorted(folder.rglob("*"))
        if file.name.lower().endswith(ENDINGS) and not file.name.startswith(".")
    ]


def write_plan(
    folders: RunFolders,
    inventory: Sequence[Mapping[str, Any]] = (),
    kept_images: Sequence[Mapping[str, Any]] = (),
    of_table: Sequence[parts.Part] = (),
    basis: Sequence[parts.Part] = (),
    files: int = FILES,
    **changes: Any,
) -> None:
    """Write the plan of a run over new objects and kept images."""
    tables = [pa.Table.from_pylist(list(inventory[number::files]), schemas.INVENTORY) for number in range(files)]
    kept = [pa.Table.from_pylist(list(kept_images), schemas.IMAGE_INFO)]
    content = {
        "dataset": DATASET,
        "listed": len(inventory) + len(kept_images),
        "rejects_kept": 0,
        "kept_reject_reasons": {},
        "files": {
            "inventory": write_tables(f"{folders.scratch_uri}/inventory", tables),
            "kept_images": write_tables(f"{folders.scratch_uri}/kept_images", kept),
            "features": [asdict(part) for part in of_table],
            "basis": [asdict(part) for part in basis],
        },
        **changes,
    }
    write_metrics(folders, "plan", content)


def write_tables(uri: str, tables: Iterable[pa.Table]) -> list[dict[str, Any]]:
    """Write tables as files of a dataset, except empty ones, and return the files as metrics list them."""
    return [asdict(parts.write_table(uri, table)) for table in tables if table.num_rows]


def write_metrics(folders: RunFolders, step: str, content: Mapping[str, Any]) -> None:
    objects.write(f"{folders.run_uri}/{step}.metrics.json", json.dumps(content).encode())


def write_ingested(folders: RunFolders, folder: Path, files: int = FILES) -> None:
    """Write a plan, the images of a local folder as the dataset IMAGES, and the metrics of the step."""
    write_plan(folders, inventory_of(folder))
    rows = [
        ingest.verify(Listed(**row), Path(row["path"].removeprefix("file://")).read_bytes(), images.DEFAULT_MAX_PIXELS)
        for row in inventory_of(folder)
    ]
    tables = [pa.Table.from_pylist(rows[number::files], schema=schemas.IMAGES) for number in range(files)]
    written = write_tables(f"{folders.scratch_uri}/images", tables)
    write_metrics(folders, "ingest", {"files": {"images": written, "rejects": []}})


def digest(number: int) -> str:
    """Return a content's SHA-256 in hexadecimal."""
    return hashlib.sha256(str(number).encode()).hexdigest()


def image_info(number: int, content: int | None = None, run_id: str = "run-1") -> dict[str, Any]:
    """Return an image as a row of IMAGE_INFO. Its content is its number, unless given."""
    return {
        "path": f"{DATASET}Kiwi/{number:06}.jpg",
        "label": "Kiwi",
        "etag": "e",
        "size": 5,
        "modified": datetime(2026, 11, 22, tzinfo=UTC),
        "sha256": digest(number if content is None else content),
        "format": "JPEG",
        "width": 100,
        "height": 100,
        "features_run_id": run_id,
    }


def write_features(
    folders: RunFolders, values: Sequence[np.ndarray], run_id: str = "run-1", first: int = 0, model: str = "m"
) -> parts.Part:
    """Write features of the contents `first`, `first` + 1, … as a file of the table."""
    columns = {
        "sha256": [digest(first + number) for number in range(len(values))],
        "model": [model] * len(values),
        "features": list(values),
        "run_id": [run_id] * len(values),
    }
    return parts.write_table(f"{folders.warehouse_uri}/features/data", pa.table(columns, schema=schemas.FEATURES))


def write_featurised(
    folders: RunFolders,
    new_images: Sequence[Mapping[str, Any]] = (),
    new_features: Sequence[parts.Part] = (),
    files: int = FILES,
) -> None:
    """Write the metrics of the features step, and the images that it describes."""
    tables = [pa.Table.from_pylist(list(new_images[number::files]), schemas.IMAGE_INFO) for number in range(files)]
    written = write_tables(f"{folders.scratch_uri}/new_images", tables)
    content = {"new_images": written, "features": [asdict(part) for part in new_features]}
    write_metrics(folders, "features", {"model": "m", "files": content})
