"""Runs as the Spark steps leave them, made with PyArrow in the schemas of the steps."""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchard_spark import tables

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

SCHEMAS = {"rejects": tables.REJECTS, "features": tables.FEATURES, "embeddings": tables.EMBEDDINGS}


@dataclass(frozen=True)
class Run:
    """A run of some images, of which the last few are broken."""

    bucket: str
    name: str
    dataset_uri: str
    images: int = 5
    rejects: int = 1
    folder: str = "images"
    changed: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def prefix(self) -> str:
        return f"runs/{self.folder}/{self.name}"

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"

    @property
    def plan(self) -> dict[str, Any]:
        return {"run_uri": self.uri, "dataset_uri": self.dataset_uri, "images": self.images + self.rejects}

    def rows(self, table: str) -> pa.Table:
        """What the step writes; each value tells the run, so that rows of two runs are never alike."""
        refused = table == "rejects"
        numbers = range(self.images, self.images + self.rejects) if refused else range(self.images)
        own = float(sum(self.name.encode()))
        values = [
            {
                "path": f"{self.dataset_uri}Kiwi/{number}.jpg",
                "label": "Kiwi",
                "etag": f"{number:032x}",
                "size": number,
                "stage": "decode",
                "reason": "undecodable",
                "message": f"refused by {self.name}",
                "sha256": f"{number:064x}",
                "features": [own, number, 0.5, 0.25],
                "vector": [own, number],
                "model": "mobilenet",
                "pca_model": f"pca-{self.name}",
                "run_id": self.name,
            }
            for number in numbers
        ]
        schema = SCHEMAS[table]
        return pa.Table.from_pylist([{key: row[key] for key in schema.names} for row in values], schema=schema)

    def write(self, s3: "S3Client", steps: tuple[str, ...] = ("ingest", "features", "pca"), job: str = "0") -> None:
        """Write what the steps write, in two files a table; `job` is the part of Spark's file names that is random."""
        written = {"ingest": "rejects", "features": "features", "pca": "embeddings"}
        common = {"run_id": self.name, "seconds": 2.5, "images_per_second": 3.6}
        rows = {"rows_in": self.images, "rows_out": self.images}
        metrics: dict[str, dict[str, Any]] = {
            "ingest": {
                "rows_in": self.images + self.rejects,
                "rows_out": self.images,
                "rejects": self.rejects,
                "reject_reasons": {"undecodable": self.rejects} if self.rejects else {},
            },
            "features": {**rows, "model": "mobilenet"},
            "pca": {**rows, "n_components": 2, "explained_variance": 0.96, "pca_model": f"pca-{self.name}"},
        }
        for step in steps:
            folder = f"{self.prefix}/{written[step]}"
            for item in s3.list_objects_v2(Bucket=self.bucket, Prefix=f"{folder}/").get("Contents", []):
                s3.delete_object(Bucket=self.bucket, Key=item["Key"])
            table = self.rows(written[step])
            for number, part in enumerate((table.slice(0, 2), table.slice(2))):
                self.put(s3, f"{written[step]}/part-{number:05d}-{job}-c000.snappy.parquet", parquet(part))
            self.put(s3, f"{written[step]}/_SUCCESS", b"")
            told = {**common, **metrics[step], **self.changed.get(step, {})}
            self.put(s3, f"{step}.metrics.json", json.dumps(told).encode())

    def put(self, s3: "S3Client", path: str, body: bytes) -> None:
        s3.put_object(Bucket=self.bucket, Key=f"{self.prefix}/{path}", Body=body)


def parquet(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()
