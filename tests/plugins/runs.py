"""Runs as the task `plan` and the Spark steps leave them on S3, written directly with PyArrow."""

import io
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchard.run.plan import RunPlan
from orchard.storage import split_uri
from orchard.tables.catalog import TABLES
from orchard.tables.rows import arrow_schema

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

STEPS = ("plan", "ingest", "features", "pca")
FILES = 2
MODEL = "mobilenet"
SCHEMAS = {name: arrow_schema(schema) for name, schema in TABLES.items()}
# What a step writes about images and rejects lacks what the publisher adds.
INFO = {
    name: pa.schema([column for column in SCHEMAS[name] if column.name not in ("dataset", "run_id")])
    for name in ("images", "rejects")
}
_LISTED = [INFO["images"].field(name) for name in ("path", "label", "etag", "size", "modified")]
INVENTORY = pa.schema([*_LISTED, INFO["rejects"].field("reason"), INFO["rejects"].field("message")])
File = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A run over some images, and over some broken ones behind them.

    Images are numbered from 0. The first `kept` ones are those of `base`, the run before. An image has the content of
    its own number, but the last `copies` images have the content of image 0. `known` has the contents that other runs
    have inferred before, with the run_id of that run. The `labels` are those of the images in turn.
    """

    bucket: str
    name: str
    dataset_uri: str
    images: int = 5
    rejects: int = 1
    folder: str = "images"
    base: "Run | None" = None
    kept: int = 0
    kept_rejects: int = 0
    copies: int = 0
    known: Mapping[int, str] = field(default_factory=dict)
    model: str = MODEL
    labels: Sequence[str] = ("Kiwi",)
    changed_metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def prefix(self) -> str:
        return f"runs/{self.folder}/{self.name}"

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"

    @property
    def scratch_uri(self) -> str:
        return f"s3://{self.bucket}/scratch/{self.folder}/{self.name}"

    @property
    def plan(self) -> RunPlan:
        return {
            "run_uri": self.uri,
            "scratch_uri": self.scratch_uri,
            "dataset_uri": self.dataset_uri,
            "cluster_name": "orchard",
            "cluster": {},
            "ingest_step": {},
            "features_step": {},
            "pca_step": {},
        }

    @property
    def pca_model(self) -> str:
        """The name of the basis that the run fits, which depends on the images."""
        return f"pca-2-{self.name}-{self.images}"

    @cached_property
    def inferred(self) -> list[int]:
        """The contents that the run infers."""
        new = {self.content(number) for number in range(self.kept, self.images)}
        return sorted(number for number in new if number not in self.known)

    def content(self, number: int) -> int:
        """Return the number of the content of an image."""
        return 0 if number >= self.images - self.copies else number

    def features_run(self, number: int) -> str:
        """Return the run_id of the features of an image."""
        if number < self.kept:
            assert self.base is not None
            return self.base.features_run(number)
        return self.known.get(self.content(number), self.name)

    def rows(self, table: str) -> pa.Table:
        """Return what readers must find; of the table `features`, what the run adds.

        Each vector depends on the run, so that vectors of two runs are never equal.
        """
        if table == "features":
            rows = [self._content(number) for number in self.inferred]
        elif table == "pca_models":
            rows = [self._basis()]
        elif table == "rejects":
            rows = [self._reject(number) for number in range(self.images, self.images + self.rejects)]
        else:
            rows = [self._image(number) for number in range(self.images)]
        schema = SCHEMAS[table]
        return pa.Table.from_pylist([{key: row[key] for key in schema.names} for row in rows], schema=schema)

    def write(
        self,
        s3: "S3Client",
        steps: Sequence[str] = STEPS,
        *,
        features: Sequence[File] = (),
        compacted: Sequence[File] = (),
        replaced: Sequence[File] = (),
    ) -> None:
        """Write what the given steps write, beside the files of earlier attempts, and delete the old `summary.json`.

        `features` are the files of the table that the plan lists. The others are what `pca` compacts.
        """
        s3.delete_object(Bucket=self.bucket, Key=f"{self.prefix}/summary.json")
        warehouse = f"s3://{self.bucket}/warehouse"
        for step in steps:
            files: dict[str, Sequence[File]]
            if step == "plan":
                files = {
                    "inventory": self._write(s3, f"{self.scratch_uri}/inventory", self._inventory()),
                    "kept_images": self._write(s3, f"{self.scratch_uri}/kept_images", self.info("images")[: self.kept]),
                    "kept_rejects": self._write(
                        s3, f"{self.scratch_uri}/kept_rejects", self.info("rejects")[: self.kept_rejects]
                    ),
                    "features": features,
                    "basis": [],
                }
            elif step == "ingest":
                new = self.info("images")[self.kept :]
                files = {
                    "images": self._write(s3, f"{self.scratch_uri}/images", new),
                    "rejects": self._write(
                        s3, f"{self.scratch_uri}/rejects", self.info("rejects")[self.kept_rejects :]
                    ),
                }
            elif step == "features":
                files = {
                    "features": self._write(s3, f"{warehouse}/features/data", self.rows("features")),
                    "new_images": self._write(s3, f"{self.scratch_uri}/new_images", self.info("images")[self.kept :]),
                }
            else:
                files = {
                    "embeddings": self._write(s3, f"{warehouse}/embeddings/data", self.rows("embeddings")),
                    "pca_model": self._write(s3, f"{self.uri}/pca_model", self.rows("pca_models"), count=1),
                    "compacted": compacted,
                    "replaced": replaced,
                }
            self.put(s3, f"{step}.metrics.json", json.dumps({**self.metrics(step), "files": files}).encode())

    def info(self, table: str) -> pa.Table:
        """Return the rows of `images` or `rejects` without the columns that the publisher adds."""
        return self.rows(table).select(INFO[table].names)

    def files(self, s3: "S3Client", step: str, dataset: str) -> list[File]:
        """Return the files of a dataset as its step lists them."""
        content = s3.get_object(Bucket=self.bucket, Key=f"{self.prefix}/{step}.metrics.json")["Body"].read()
        files: list[File] = json.loads(content)["files"][dataset]
        return files

    def metrics(self, step: str) -> dict[str, Any]:
        """Return the metrics of a step without its files, with the run's changes."""
        new = self.images - self.kept
        new_rejects = self.rejects - self.kept_rejects
        metrics: dict[str, dict[str, Any]] = {
            "plan": {
                "dataset": self.dataset_uri,
                "base_run_id": self.base.name if self.base else None,
                "model": self.model,
                "decoder": "pillow-13",
                "n_components": 0.95,
                "pca_mode": "refit",
                "max_bytes": 2**26,
                "max_pixels": 50_000_000,
                "planned_at": "2026-11-22T02:00:03.250000+00:00",
                "listed": self.images + self.rejects,
                "new": new + new_rejects,
                "changed": 0,
                "deleted": max(0, self.base.images - self.images) if self.base else 0,
                "unchanged": self.kept + self.kept_rejects,
                "images_kept": self.kept,
                "rejects_kept": self.kept_rejects,
                "kept_reject_reasons": {"undecodable": self.kept_rejects} if self.kept_rejects else {},
                "ignored": {".heic": 3},
            },
            "ingest": {
                "rows_in": new + new_rejects,
                "rows_out": new,
                "rejects": new_rejects,
                "reject_reasons": {"undecodable": new_rejects} if new_rejects else {},
            },
            "features": {
                "model": self.model,
                "rows_in": new,
                "rows_out": len(self.inferred),
                "known": len({self.content(number) for number in range(self.kept, self.images)} & self.known.keys()),
                "duplicates": self.copies,
            },
            "pca": {
                "rows_in": self.images,
                "rows_out": self.images,
                "duplicates": self.copies,
                "n_components": 2,
                "explained_variance": 0.96,
                "pca_model": self.pca_model,
                "pca_mode": "refit",
                "drift": {"new": 0.05, "fit": 0.04, "shift": 0.125 if self.base else None},
                "label_accuracy": {"accuracy": 0.75, "images": self.images, "labels": 1},
            },
        }
        common = {"run_id": self.name, "plan_id": self.name, "seconds": 2.5, "images_per_second": 3.6}
        return {**common, **metrics[step], **self.changed_metrics.get(step, {})}

    def put(self, s3: "S3Client", path: str, body: bytes) -> None:
        s3.put_object(Bucket=self.bucket, Key=f"{self.prefix}/{path}", Body=body)

    def _inventory(self) -> pa.Table:
        read = [*range(self.kept, self.images), *range(self.images + self.kept_rejects, self.images + self.rejects)]
        rows = [self._object(number) for number in read]
        return pa.Table.from_pylist([{key: row.get(key) for key in INVENTORY.names} for row in rows], schema=INVENTORY)

    def _object(self, number: int) -> dict[str, Any]:
        return {
            "dataset": self.dataset_uri,
            "path": f"{self.dataset_uri}Kiwi/{number}.jpg",
            "label": self.labels[number % len(self.labels)],
            "etag": f"{number:032x}",
            "size": number,
            "modified": datetime(2026, 11, 22, tzinfo=UTC),
            "run_id": self.name,
        }

    def _image(self, number: int) -> dict[str, Any]:
        return {
            **self._object(number),
            "sha256": sha256(self.content(number)),
            "format": "JPEG",
            "width": 100,
            "height": 100,
            "features_run_id": self.features_run(number),
            "vector": self._features(self.content(number))[:2],
            "pca_model": self.pca_model,
        }

    def _reject(self, number: int) -> dict[str, Any]:
        return {**self._object(number), "reason": "undecodable", "message": f"rejected by {self.name}"}

    def _content(self, number: int) -> dict[str, Any]:
        return {
            "sha256": sha256(number),
            "model": self.model,
            "features": self._features(number),
            "run_id": self.name,
        }

    def _features(self, number: int) -> list[float]:
        return [float(sum(self.name.encode())), float(number), 0.5, 0.25]

    def _basis(self) -> dict[str, Any]:
        return {
            "pca_model": self.pca_model,
            "dataset": self.dataset_uri,
            "model": self.model,
            "n_samples_": self.images,
            "n_components_": 2,
            "mean_": [0.0] * 4,
            "components_": [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]],
            "explained_variance_": [1.0, 1.0],
            "explained_variance_ratio_": [0.5, 0.46],
            "run_id": self.name,
        }

    def _write(self, s3: "S3Client", uri: str, rows: pa.Table, count: int = FILES) -> list[File]:
        """Write rows as files under new names, and list them."""
        size = max(1, -(-rows.num_rows // count))
        return [write_file(s3, uri, rows.slice(start, size)) for start in range(0, rows.num_rows, size)]


def sha256(number: int) -> str:
    """Return the hash of the content of this number."""
    return f"{number:064x}"


def write_file(s3: "S3Client", uri: str, rows: pa.Table) -> File:
    """Write rows as a file with a new name in a folder, and list it as a step does."""
    bucket, prefix = split_uri(uri)
    name, content = f"part-{uuid.uuid4().hex}.parquet", parquet(rows)
    s3.put_object(Bucket=bucket, Key=f"{prefix}/{name}", Body=content)
    return {"uri": f"{uri}/{name}", "rows": rows.num_rows, "bytes": len(content)}


def parquet(table: pa.Table) -> bytes:
    """Return a table as the bytes of a Parquet file, with statistics of scalars only, as the steps write it."""
    sink = io.BytesIO()
    scalars = [column.name for column in table.schema if not pa.types.is_nested(column.type)]
    pq.write_table(table, sink, write_statistics=scalars)
    return sink.getvalue()
