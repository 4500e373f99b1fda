"""Write the plan of a run over the images of a folder or prefix, as Airflow's task `plan` does."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from orchard.dataset.listing import list_images
from orchard.run.params import DEFAULT_MAX_BYTES
from orchard.run.row_files import file_count
from orchard_spark import parts, schemas
from orchard_spark.read_ahead import file_etag


@dataclass(frozen=True)
class Earlier:
    """What an earlier run has published: its images, and the files of the table `features`."""

    images: pa.Table
    features: list[dict[str, Any]]

    @classmethod
    def of_run(cls, run: Path) -> "Earlier":
        """Return what a run in a local folder publishes if no run came before it."""
        files = json.loads((run / "features.metrics.json").read_text())["files"]
        tables = [pq.read_table(file["uri"].removeprefix("file://")) for file in files["new_images"]]
        return cls(pa.concat_tables(tables), files["features"])


def write_plan(
    source: str,
    run: Path,
    scratch: Path,
    task_slots: int,
    endpoint_url: str | None = None,
    earlier: Earlier | None = None,
) -> None:
    """Write the plan of a run into its folder, and its inventory and the images that it keeps into its scratch folder.

    Args:
        source: an s3:// URI or a local folder.
        run: the folder of the run.
        scratch: the folder of its inventory.
        task_slots: how many tasks run at once. The inventory has a multiple of this number of files.
        endpoint_url: the URL of S3, or None for a local folder.
        earlier: what an earlier run has published, if there was one.
    """
    if endpoint_url:
        batches: list[pa.RecordBatch] = []
        list_images(boto3.client("s3", endpoint_url=endpoint_url), source, DEFAULT_MAX_BYTES, batches.append)
        listed = pa.Table.from_batches(batches).select(schemas.INVENTORY.names).cast(schemas.INVENTORY)
    else:
        listed = pa.Table.from_pylist(list(_files(Path(source))), schema=schemas.INVENTORY)
    inventory, kept = listed, schemas.IMAGE_INFO.empty_table()
    if earlier is not None:
        inventory = listed.filter(pc.invert(pc.is_in(_version(listed), _version(earlier.images))))
        kept = earlier.images.filter(pc.is_in(_version(earlier.images), _version(listed)))
    total_bytes = sum(inventory["size"].to_pylist())
    count = file_count(inventory.num_rows, total_bytes, task_slots)
    numbers = [list(range(first, inventory.num_rows, count)) for first in range(count)]
    tables = {"inventory": [inventory.take(rows) for rows in numbers], "kept_images": [kept] if len(kept) else []}
    files: dict[str, list[dict[str, Any]]] = {
        name: [asdict(parts.write_table(f"file://{scratch}/{name}", table)) for table in of_name]
        for name, of_name in tables.items()
    }
    files |= {"features": earlier.features if earlier else [], "basis": []}
    plan = {
        "dataset": source,
        "listed": listed.num_rows,
        "rejects_kept": 0,
        "kept_reject_reasons": {},
        "files": files,
    }
    run.mkdir(parents=True, exist_ok=True)
    (run / "plan.metrics.json").write_text(json.dumps(plan))


def _version(table: pa.Table) -> pa.ChunkedArray:
    """Return what tells one version of an object from another: its path and its ETag."""
    return pc.binary_join_element_wise(table["path"], table["etag"], " ")


def _files(folder: Path) -> Iterator[dict[str, object]]:
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        yield {
            "path": f"file://{file}",
            "label": file.parent.name,
            "etag": file_etag(file),
            "size": file.stat().st_size,
            "modified": datetime.fromtimestamp(file.stat().st_mtime, UTC),
        }
