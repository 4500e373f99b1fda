"""Step 1: read the images of a prefix, verify them, and pack them into Parquet.

    spark-submit --py-files orchard_spark.zip ingest.py --input-uri s3://BUCKET/images/ --run-uri s3://BUCKET/runs/D/R

Writes below the run's folder `inventory/` (what was listed), `images/` (what decodes, as its original bytes),
`rejects/` (everything else, with a reason) and `ingest.metrics.json`. Each listed object ends in one of the two.
"""

import argparse
import hashlib
import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
from pyspark import StorageLevel
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from orchard_spark import images, job, objects, tables

FILE_BYTES = 128 * 1024**2
BATCH_BYTES = 8 * 1024**2
BATCH_ROWS = 64
REASONS_SHOWN = 3

# Both outcomes in one row: an image has a `content`, a rejected object has a `reason`.
OUTCOMES = pa.unify_schemas([tables.IMAGES, tables.REJECTS])

log = logging.getLogger("ingest")


class NoImages(ValueError):
    """There is no image below the prefix."""

    def __init__(self, input_uri: str) -> None:
        endings = ", ".join(objects.IMAGE_ENDINGS)
        super().__init__(f"no image below {input_uri}: expected files ending in {endings}, in a folder per label")


class TooManyRejects(ValueError):
    """A larger share of the objects was refused than `max_reject_ratio` allows."""

    def __init__(self, reasons: Mapping[str, int], listed: int, max_reject_ratio: float, rejects_uri: str) -> None:
        rejected = sum(reasons.values())
        commonest = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))[:REASONS_SHOWN]
        named = "; ".join(f"{count} {reason} ({images.REASONS[reason]})" for reason, count in commonest)
        super().__init__(
            f"{rejected} of {listed} objects rejected, a ratio of {rejected / listed:.3f}, over max_reject_ratio "
            f"{max_reject_ratio:g}. Commonest reasons: {named}. Each is listed in {rejects_uri}; mend or remove them, "
            "or raise max_reject_ratio"
        )


def verify(listed: objects.Listed, content: bytes | Exception, max_pixels: int) -> dict[str, Any]:
    """One row of OUTCOMES for one object: an image when its bytes decode, else a reject."""
    row: dict[str, Any] = {
        "path": listed.path,
        "label": listed.label,
        "etag": listed.etag,
        "size": listed.size,
        "modified": listed.modified,
    }
    stage = "read"
    try:
        if isinstance(content, Exception):
            raise content
        stage = "decode"
        _, info = images.decode(content, max_pixels)
    except Exception as fault:
        rejected = images.rejection(fault)
        return row | {"stage": stage, "reason": rejected.reason, "message": str(rejected)}
    return row | {
        "sha256": hashlib.sha256(content).hexdigest(),
        "format": info.format,
        "width": info.width,
        "height": info.height,
        "content": content,
    }


def in_batches(rows: Iterable[dict[str, Any]]) -> Iterator[pa.RecordBatch]:
    """Record batches of OUTCOMES with at most 64 rows, and not much over 8 MiB of content."""
    batch: list[dict[str, Any]] = []
    batch_bytes = 0
    for row in rows:
        batch.append(row)
        batch_bytes += len(row.get("content") or b"")
        if len(batch) == BATCH_ROWS or batch_bytes >= BATCH_BYTES:
            yield pa.RecordBatch.from_pylist(batch, schema=OUTCOMES)
            batch, batch_bytes = [], 0
    if batch:
        yield pa.RecordBatch.from_pylist(batch, schema=OUTCOMES)


def ingest(inventory: DataFrame, max_pixels: int) -> DataFrame:
    """Read and verify each object of an inventory; one row of OUTCOMES for each."""

    def ingest_partition(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        listed = (objects.Listed.from_row(row) for batch in batches for row in batch.to_pylist())
        return in_batches(verify(item, content, max_pixels) for item, content in objects.read_all(listed))

    return inventory.mapInArrow(ingest_partition, tables.spark_schema(OUTCOMES))


def file_count(total_bytes: int, task_slots: int) -> int:
    """How many Parquet files: near 128 MiB each, but one for each task slot at least.

    >>> file_count(5_000, 2), file_count(1024**3, 2)
    (2, 8)
    """
    return max(task_slots, math.ceil(total_bytes / FILE_BYTES))


def run(input_uri: str, run_uri: str, max_reject_ratio: float, max_pixels: int) -> dict[str, object]:
    """Do the step; return its metrics.

    Raises:
        NoImages: nothing to ingest.
        TooManyRejects: the share of rejects is over the bound; `rejects/` is written, `images/` is not.
        job.LostRows: images and rejects do not add up to the listing.
    """
    started = time.monotonic()
    with job.spark_session("ingest") as spark:
        job.reopen(run_uri, "ingest")
        inventory = objects.list_images(input_uri)
        listed = inventory.num_rows
        if listed == 0:
            raise NoImages(input_uri)
        bytes_listed = sum(inventory["size"].to_pylist())
        files = file_count(bytes_listed, spark.sparkContext.defaultParallelism)
        log.info("ingest: %d objects, %.1f MB below %s, into %d files", listed, bytes_listed / 1e6, input_uri, files)
        objects.write_table(f"{run_uri}/inventory/part-00000.parquet", inventory)

        frame = tables.read_table(spark, f"{run_uri}/inventory", tables.INVENTORY)
        # Kept, because it is written twice, split by outcome, and no object may be read or judged twice.
        outcomes = ingest(frame.repartition(files), max_pixels).persist(StorageLevel.DISK_ONLY)
        counts = {row["reason"]: row["count"] for row in outcomes.groupBy("reason").count().collect()}
        ingested = counts.pop(None, 0)
        rejected = sum(counts.values())

        rejects = outcomes.where(F.col("reason").isNotNull()).select(tables.REJECTS.names)
        tables.write_table(rejects.repartition(1), f"{run_uri}/rejects", tables.REJECTS)
        if rejected / listed > max_reject_ratio:
            raise TooManyRejects(counts, listed, max_reject_ratio, f"{run_uri}/rejects")
        taken = outcomes.where(F.col("reason").isNull()).select(tables.IMAGES.names)
        tables.write_table(taken, f"{run_uri}/images", tables.IMAGES)

        written = spark.read.parquet(f"{run_uri}/images").count()
        if not written + rejected == ingested + rejected == listed:
            raise job.LostRows(f"{listed} objects listed, but {written} images and {rejected} rejects in {run_uri}")
        return job.write_metrics(
            run_uri,
            "ingest",
            rows_in=listed,
            rows_out=ingested,
            started=started,
            rejects=rejected,
            reject_reasons=counts,
            bytes_in=bytes_listed,
            input_uri=objects.absolute(input_uri),
            files=files,
        )


def ratio(text: str) -> float:
    """A share from 0 to 1, for argparse."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share: give a number from 0 to 1")
    return value


def main(argv: list[str] | None = None) -> None:
    """Run with command line arguments, by default those of the process."""
    parser = argparse.ArgumentParser(description="Read, verify and pack the images of a prefix.")
    parser.add_argument("--input-uri", required=True, help="s3:// prefix or local folder with a folder per label")
    parser.add_argument("--run-uri", required=True, type=lambda uri: objects.absolute(uri).rstrip("/"))
    parser.add_argument("--max-reject-ratio", type=ratio, default=0.05, help="fail above this share (default 0.05)")
    parser.add_argument("--max-pixels", type=int, default=images.DEFAULT_MAX_PIXELS, help="reject larger images")
    arguments = parser.parse_args(argv)
    run(arguments.input_uri, arguments.run_uri, arguments.max_reject_ratio, arguments.max_pixels)


if __name__ == "__main__":
    main()
