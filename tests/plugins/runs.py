"""Runs as the Spark steps leave them on S3: written by the code of the steps, without Spark and without a model."""

import io
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import features
import ingest
import pca
from orchard.run.plan import RunPlan
from orchard_spark import parts, schemas
from orchard_spark.moments import Pca

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

SCHEMAS = {"rejects": schemas.REJECTS, "features": schemas.FEATURES, "embeddings": schemas.EMBEDDINGS}
# What each step writes, beside its metrics.
DATASETS = {"ingest": ("rejects",), "features": ("features",), "pca": ("embeddings",)}
FILES = 2
MODEL = "mobilenet"
# Keeps the first two of four features.
FITTED = Pca(9, np.zeros(4), np.eye(2, 4), np.ones(2), np.ones(2) / 2)


@dataclass(frozen=True)
class Run:
    """A run over some images, and over some broken ones behind them."""

    bucket: str
    name: str
    dataset_uri: str
    images: int = 5
    rejects: int = 1
    folder: str = "images"
    changed_metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def prefix(self) -> str:
        return f"runs/{self.folder}/{self.name}"

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"

    @property
    def plan(self) -> RunPlan:
        return {
            "run_uri": self.uri,
            "dataset_uri": self.dataset_uri,
            "images": self.images + self.rejects,
            "cluster_name": "orchard",
            "cluster": {},
            "ingest_step": {},
            "features_step": {},
            "pca_step": {},
        }

    def rows(self, table: str) -> pa.Table:
        """Return what readers must find. Each value depends on the run, so that rows of two runs are never equal."""
        rejected = table == "rejects"
        numbers = range(self.images, self.images + self.rejects) if rejected else range(self.images)
        rows = [
            {
                **self._listed(number),
                "reason": "undecodable",
                "message": f"rejected by {self.name}",
                "sha256": f"{number:064x}",
                "features": self._features(number),
                "vector": self._features(number)[:2],
                "model": MODEL,
                "pca_model": FITTED.name,
                "run_id": self.name,
            }
            for number in numbers
        ]
        schema = SCHEMAS[table]
        return pa.Table.from_pylist([{key: row[key] for key in schema.names} for row in rows], schema=schema)

    def write(self, s3: "S3Client", steps: tuple[str, ...] = ("ingest", "features", "pca")) -> None:
        """Write what the given steps write, beside the files of earlier attempts."""
        folder = Path(tempfile.mkdtemp())
        try:
            written = self._run_steps(f"file://{folder}")
            for step in steps:
                files = {name: [self._upload(s3, part) for part in written[name]] for name in DATASETS[step]}
                self.put(s3, f"{step}.metrics.json", json.dumps({**self.metrics(step), "files": files}).encode())
        finally:
            shutil.rmtree(folder)

    def files(self, s3: "S3Client", dataset: str) -> list[dict[str, Any]]:
        """Return the files of a dataset as its step lists them."""
        (step,) = [step for step, names in DATASETS.items() if dataset in names]
        content = s3.get_object(Bucket=self.bucket, Key=f"{self.prefix}/{step}.metrics.json")["Body"].read()
        files: list[dict[str, Any]] = json.loads(content)["files"][dataset]
        return files

    def metrics(self, step: str) -> dict[str, Any]:
        """Return the metrics of a step, with the run's changes."""
        metrics: dict[str, dict[str, Any]] = {
            "ingest": {
                "rows_in": self.images + self.rejects,
                "rejects": self.rejects,
                "reject_reasons": {"undecodable": self.rejects} if self.rejects else {},
            },
            "features": {"model": MODEL},
            "pca": {"n_components": 2, "explained_variance": 0.96, "pca_model": FITTED.name},
        }
        common = {"run_id": self.name, "rows_in": self.images, "rows_out": self.images}
        speed = {"seconds": 2.5, "images_per_second": 3.6}
        return {**common, **speed, **metrics[step], **self.changed_metrics.get(step, {})}

    def put(self, s3: "S3Client", path: str, body: bytes) -> None:
        s3.put_object(Bucket=self.bucket, Key=f"{self.prefix}/{path}", Body=body)

    def _listed(self, number: int) -> dict[str, Any]:
        return {
            "path": f"{self.dataset_uri}Kiwi/{number}.jpg",
            "label": "Kiwi",
            "etag": f"{number:032x}",
            "size": number,
            "modified": datetime(2026, 11, 22, tzinfo=UTC),
        }

    def _features(self, number: int) -> list[float]:
        return [float(sum(self.name.encode())), float(number), 0.5, 0.25]

    def _run_steps(self, uri: str) -> dict[str, list[parts.Part]]:
        """Write the run's folder with the steps' own functions, each Spark task as a plain call. Return the files."""
        listed = [self._listed(number) for number in range(self.images + self.rejects)]
        inventory = pa.Table.from_pylist(listed, schema=schemas.INVENTORY)
        outcomes = [
            ingest.write_outcomes(ingest.in_batches(self._outcomes(part)), f"{uri}/images", f"{uri}/rejects")
            for part in ingest.write_inventory(inventory, f"{uri}/inventory", min(FILES, len(listed)))
        ]
        images = [outcome.images for outcome in outcomes if outcome.images]
        featurised = [write(f"{uri}/features", schemas.FEATURES, self._featurise(part)) for part in images]
        return {
            "rejects": [outcome.rejects for outcome in outcomes if outcome.rejects],
            "features": featurised,
            "embeddings": [
                write(f"{uri}/embeddings", schemas.EMBEDDINGS, pca.embed(part, FITTED, self.name))
                for part in featurised
            ],
        }

    def _outcomes(self, part: parts.Part) -> Iterator[dict[str, Any]]:
        for batch in parts.read(part, schemas.INVENTORY.names, FILES):
            for row in batch.to_pylist():
                number = row["size"]
                if number < self.images:
                    content = {
                        "sha256": f"{number:064x}",
                        "format": "JPEG",
                        "width": 100,
                        "height": 100,
                        "content": b"1",
                    }
                    yield {**row, **content}
                else:
                    yield {**row, "reason": "undecodable", "message": f"rejected by {self.name}"}

    def _featurise(self, part: parts.Part) -> Iterator[pa.RecordBatch]:
        for batch in parts.read(part, features.COLUMNS, FILES):
            numbers = [int(etag.as_py(), 16) for etag in batch["etag"]]
            values = np.array([self._features(number) for number in numbers], np.float32)
            yield features.features_batch(batch, values, MODEL, self.name)

    def _upload(self, s3: "S3Client", part: parts.Part) -> dict[str, Any]:
        """Copy a local file to the same place below the run's folder on S3."""
        dataset, name = part.uri.rsplit("/", 2)[1:]
        self.put(s3, f"{dataset}/{name}", Path(part.uri.removeprefix("file://")).read_bytes())
        return {**asdict(part), "uri": f"{self.uri}/{dataset}/{name}"}


def write(uri: str, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> parts.Part:
    """Write one file of a dataset, as a task of a step does."""
    return parts.write_table(uri, pa.Table.from_batches(batches, schema))


def parquet(table: pa.Table) -> bytes:
    """Return a table as the bytes of a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()
