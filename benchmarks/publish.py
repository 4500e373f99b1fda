"""Measure how long it takes to publish a run of many images into the tables of the local AWS.

Two runs are published, one after the other: the first one has only new images, and the next one keeps all but a few of
them. Their files are generated. Vectors have eight values: publishing reads only the footers of the files with vectors.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from orchard.run.plan import RunPlan
from orchard.run.publish import publish_run
from orchard.settings import Settings
from orchard.storage import split_uri
from orchard.tables.catalog import TABLES, open_catalog
from orchard.tables.rows import arrow_schema
from orchard.tables.state import feature_files
from sandbox import aws
from sandbox.processes import free_port

LABELS = 131
FILES = 16
VECTOR = 8
INFO = pa.schema([column for column in arrow_schema(TABLES["images"]) if column.name not in ("dataset", "run_id")])
EXAMPLE = """\
example:
  python -m benchmarks.publish --images 1000000 --changed 1000
"""


@dataclass(frozen=True)
class GeneratedRun:
    """A run over `images` images, of which the first `kept` ones are those of the run `base`."""

    settings: Settings
    name: str
    images: int
    kept: int = 0
    base: str | None = None

    @property
    def plan(self) -> RunPlan:
        """The plan of the run, without what publishing does not need."""
        return {
            "dataset_uri": self.settings.dataset_uri,
            "run_uri": f"{self.settings.bucket_uri}/runs/images/{self.name}",
            "scratch_uri": f"{self.settings.bucket_uri}/scratch/images/{self.name}",
            "cluster_name": "",
            "cluster": {},
            "ingest_step": {},
            "features_step": {},
            "pca_step": {},
        }

    def write(self, s3: Any, features: list[dict[str, Any]]) -> None:
        """Write what the plan and the steps write for a run. `features` are the files of the table `features`."""
        plan, warehouse = self.plan, self.settings.warehouse_uri
        scratch = plan["scratch_uri"]
        info, vectors = self._info(), self._vectors(self.images)
        new, count = info.slice(self.kept), self.images - self.kept
        embeddings = pa.table(
            {
                "dataset": [plan["dataset_uri"]] * self.images,
                **{name: info[name] for name in ("path", "label", "sha256")},
                "vector": vectors,
                "pca_model": [f"pca-{self.name}"] * self.images,
                "run_id": [self.name] * self.images,
            }
        )
        inferred = pa.table(
            {
                "sha256": new["sha256"],
                "model": ["mobilenet"] * count,
                "features": vectors.slice(self.kept),
                "run_id": [self.name] * count,
            }
        )
        files: dict[str, dict[str, Any]] = {
            "plan": {
                "inventory": _write(s3, f"{scratch}/inventory", new.select(["path"])),
                "kept_images": _write(s3, f"{scratch}/kept_images", info.slice(0, self.kept)),
                "kept_rejects": [],
                "features": features,
                "basis": [],
            },
            "ingest": {"images": [], "rejects": []},
            "features": {
                "features": _write(s3, f"{warehouse}/features/data", inferred),
                "new_images": _write(s3, f"{scratch}/new_images", new),
            },
            "pca": {
                "embeddings": _write(s3, f"{warehouse}/embeddings/data", embeddings),
                "pca_model": _write(s3, f"{plan['run_uri']}/pca_model", self._basis()),
                "compacted": [],
                "replaced": [],
            },
        }
        bucket, prefix = split_uri(plan["run_uri"])
        for step, metrics in self._metrics().items():
            content = json.dumps({**metrics, "files": files[step]}).encode()
            s3.put_object(Bucket=bucket, Key=f"{prefix}/{step}.metrics.json", Body=content)

    def _metrics(self) -> Mapping[str, Mapping[str, Any]]:
        new = self.images - self.kept
        common = {"run_id": self.name, "plan_id": "1", "seconds": 1.0, "images_per_second": 1.0}
        return {
            "plan": {
                **common,
                "dataset": self.settings.dataset_uri,
                "base_run_id": self.base,
                "model": "mobilenet",
                "decoder": "1",
                "n_components": 0.95,
                "pca_mode": "refit",
                "max_bytes": 2**26,
                "max_pixels": 50_000_000,
                "planned_at": datetime.now(UTC).isoformat(),
                "listed": self.images,
                "new": new,
                "changed": 0,
                "deleted": 0,
                "unchanged": self.kept,
                "images_kept": self.kept,
                "rejects_kept": 0,
                "kept_reject_reasons": {},
                "ignored": {},
            },
            "ingest": {**common, "rows_in": new, "rows_out": new, "rejects": 0, "reject_reasons": {}},
            "features": {
                **common,
                "rows_in": new,
                "rows_out": new,
                "known": 0,
                "duplicates": 0,
                "model": "mobilenet",
            },
            "pca": {
                **common,
                "rows_in": self.images,
                "rows_out": self.images,
                "duplicates": 0,
                "n_components": VECTOR,
                "explained_variance": 0.95,
                "pca_model": f"pca-{self.name}",
                "pca_mode": "refit",
                "drift": {"new": None, "fit": 0.05},
            },
        }

    def _info(self) -> pa.Table:
        """Return the description of each image. Its hashes and its ETag compress as badly as real ones."""
        numbers, rng = range(self.images), np.random.default_rng(1)
        modified = datetime(2026, 11, 1, tzinfo=UTC)
        bases = [self.base] * self.kept + [self.name] * (self.images - self.kept)
        columns = {
            "path": [f"{self.settings.dataset_uri}class-{number % LABELS}/{number}.jpg" for number in numbers],
            "label": [f"class-{number % LABELS}" for number in numbers],
            "etag": _hex(rng, self.images, 16),
            "size": rng.integers(3_000, 9_000, self.images),
            "modified": [modified + timedelta(seconds=number) for number in numbers],
            "sha256": _hex(rng, self.images, 32),
            "format": ["JPEG"] * self.images,
            "width": np.full(self.images, 100, np.int32),
            "height": np.full(self.images, 100, np.int32),
            "features_run_id": bases,
        }
        return pa.table(columns, schema=INFO)

    def _vectors(self, rows: int) -> pa.Array:
        values = np.random.default_rng(2).random(rows * VECTOR, np.float32)
        return pa.ListArray.from_arrays(np.arange(0, rows * VECTOR + 1, VECTOR, dtype=np.int32), values)

    def _basis(self) -> pa.Table:
        row = {
            "pca_model": f"pca-{self.name}",
            "dataset": self.settings.dataset_uri,
            "model": "mobilenet",
            "n_samples_": self.images,
            "n_components_": VECTOR,
            "mean_": [0.0] * VECTOR,
            "components_": np.eye(VECTOR).tolist(),
            "explained_variance_": [1.0] * VECTOR,
            "explained_variance_ratio_": [1 / VECTOR] * VECTOR,
            "run_id": self.name,
        }
        return pa.Table.from_pylist([row], schema=arrow_schema(TABLES["pca_models"]))


def _hex(rng: np.random.Generator, rows: int, size: int) -> list[str]:
    """Return random hexadecimal hashes of this many bytes."""
    text = rng.bytes(rows * size).hex()
    return [text[start : start + 2 * size] for start in range(0, len(text), 2 * size)]


def _write(s3: Any, uri: str, rows: pa.Table) -> list[dict[str, Any]]:
    """Write rows as files in a folder, as steps do, and list the files."""
    bucket, prefix = split_uri(uri)
    listed = []
    size = max(1, -(-rows.num_rows // FILES))
    for number, start in enumerate(range(0, rows.num_rows, size)):
        part = rows.slice(start, size)
        sink = pa.BufferOutputStream()
        scalars = [column.name for column in rows.schema if not pa.types.is_nested(column.type)]
        pq.write_table(part, sink, write_statistics=scalars)
        content, name = sink.getvalue().to_pybytes(), f"part-{time.monotonic_ns()}-{number}.parquet"
        s3.put_object(Bucket=bucket, Key=f"{prefix}/{name}", Body=content)
        listed.append({"uri": f"{uri}/{name}", "rows": part.num_rows, "bytes": len(content)})
    return listed


def aws_variables(url: str) -> AbstractContextManager[object]:
    """While the context is open, AWS clients that this process creates use the local AWS."""
    return patch.dict(os.environ, AWS_ENDPOINT_URL=url, AWS_ACCESS_KEY_ID="local", AWS_SECRET_ACCESS_KEY="local")  # noqa: S106


def measure(url: str, images: int, changed: int) -> dict[str, Any]:
    """Publish two runs, and return the seconds of each, and the bytes of the files of the table `images`."""
    settings = Settings(bucket=aws.BUCKET, release="1")
    s3: Any = aws.client("s3", url)
    s3.create_bucket(Bucket=aws.BUCKET, CreateBucketConfiguration={"LocationConstraint": aws.REGION})
    catalog = open_catalog(boto3.Session(region_name=aws.REGION), settings)
    first = GeneratedRun(settings, "20261122T020000-000001", images)
    following = GeneratedRun(settings, "20261123T020000-000002", images, images - changed, first.name)
    seconds = {}
    for what, run in (("first run", first), ("next run", following)):
        run.write(s3, feature_files(catalog, settings))
        started = time.monotonic()
        publish_run(s3, catalog, settings, run.plan, None)
        seconds[what] = round(time.monotonic() - started, 2)
    tasks = catalog.load_table((settings.catalog_database, "images")).scan().plan_files()
    return {
        "images": images,
        "changed": changed,
        "seconds": seconds,
        "images_table_mb": round(sum(task.file.file_size_in_bytes for task in tasks) / 1e6, 1),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def main(argv: list[str] | None = None) -> None:
    """Print the measurements as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.publish",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", type=int, default=1_000_000, help="images of each run (default: %(default)s)")
    parser.add_argument("--changed", type=int, default=1_000, help="new images of the next run (default: %(default)s)")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        with aws.local_aws(work / "aws", free_port(), work / "local_aws.log") as url, aws_variables(url):
            print(json.dumps(measure(url, arguments.images, arguments.changed), indent=2))


if __name__ == "__main__":
    main()
