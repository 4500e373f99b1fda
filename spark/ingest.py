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
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from orchard_spark import images, job, objects, parts, tables

FILE_BYTES = 128 * 1024**2
BATCH_BYTES = 8 * 1024**2
BATCH_ROWS = 64
LISTED_ROWS = 4096
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


def ingest(part: parts.Part, max_pixels: int) -> Iterator[pa.RecordBatch]:
    """Read and verify each object of one file of the INVENTORY; one row of OUTCOMES for each."""
    read = parts.read(part, tables.INVENTORY.names, LISTED_ROWS)
    listed = (objects.Listed.from_row(row) for batch in read for row in batch.to_pylist())
    return in_batches(verify(item, content, max_pixels) for item, content in objects.read_all(listed))


def file_count(rows: int, total_bytes: int, task_slots: int) -> int:
    """How many Parquet files: at most 128 MiB each, and as many for each task slot, so that none waits for another.

    >>> file_count(300, 5_000, 2), file_count(300, 1024**3, 2), file_count(300, 1024**3, 3), file_count(1, 5_000, 2)
    (2, 8, 9, 1)
    """
    return min(rows, task_slots * math.ceil(total_bytes / (FILE_BYTES * task_slots) or 1))


def write_inventory(inventory: pa.Table, uri: str, files: int) -> list[parts.Part]:
    """Write the INVENTORY as so many files, replacing what is there; each has as many rows, spread over the listing.

    Neighbours in a listing are alike, also in what they cost, and so they go to different tasks.
    """
    objects.clear(uri)
    written = []
    for number in range(files):
        rows = inventory.take(np.arange(number, inventory.num_rows, files))
        written.append(parts.Part(f"{uri}/part-{number:05}.parquet", rows.num_rows))
        objects.write_table(written[-1].uri, rows)
    return written


def write_outcomes(
    part: parts.Part, outcomes: Iterable[pa.RecordBatch], images_uri: str, rejects_uri: str
) -> Counter[str]:
    """Write each outcome of one file of the INVENTORY into its dataset; count the rejects by reason, images as ""."""
    counts: Counter[str] = Counter()
    with (
        parts.Writer(f"{images_uri}/{part.name}", tables.IMAGES) as taken,
        parts.Writer(f"{rejects_uri}/{part.name}", tables.REJECTS) as refused,
    ):
        for batch in outcomes:
            is_image = pc.is_null(batch["reason"])
            taken.write(batch.filter(is_image).select(tables.IMAGES.names))
            refused.write(batch.filter(pc.invert(is_image)).select(tables.REJECTS.names))
            counts.update(reason or "" for reason in batch["reason"].to_pylist())
    return counts


def run(input_uri: str, run_uri: str, max_reject_ratio: float, max_pixels: int) -> dict[str, object]:
    """Do the step; return its metrics.

    Raises:
        NoImages: nothing to ingest.
        TooManyRejects: the share of rejects is over the bound; `rejects/` is written, `images/` is not.
        job.LostRows: images and rejects do not add up to the listing.
    """
    started = time.monotonic()
    images_uri, rejects_uri = f"{run_uri}/images", f"{run_uri}/rejects"
    with job.spark_context("ingest") as context:
        job.reopen(run_uri, "ingest")
        inventory = objects.list_images(input_uri)
        listed = inventory.num_rows
        if listed == 0:
            raise NoImages(input_uri)
        bytes_listed = sum(inventory["size"].to_pylist())
        files = file_count(listed, bytes_listed, context.defaultParallelism)
        log.info("ingest: %d objects, %.1f MB below %s, into %d files", listed, bytes_listed / 1e6, input_uri, files)
        found = write_inventory(inventory, f"{run_uri}/inventory", files)
        for uri in (images_uri, rejects_uri):
            objects.clear(uri)

        tasks = parts.task_list(context)
        outcomes = parts.each(
            context, found, lambda part: write_outcomes(part, ingest(part, max_pixels), images_uri, rejects_uri), tasks
        )
        counts = sum(outcomes.collect(), Counter())
        images_written = counts.pop("", 0)
        rejected = sum(counts.values())
        parts.show_columns(rejects_uri, tables.REJECTS, rejected)
        if rejected / listed > max_reject_ratio:
            objects.clear(images_uri)
            raise TooManyRejects(counts, listed, max_reject_ratio, rejects_uri)
        parts.show_columns(images_uri, tables.IMAGES, images_written)
        if images_written + rejected != listed:
            raise job.LostRows(
                f"{listed} objects listed, but {images_written} images and {rejected} rejects in {run_uri}"
            )
        return job.write_metrics(
            run_uri,
            "ingest",
            rows_in=listed,
            rows_out=images_written,
            started=started,
            passes=[tasks.value],
            rejects=rejected,
            reject_reasons=dict(counts),
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
