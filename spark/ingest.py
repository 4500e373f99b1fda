"""Step 1: read the images of a prefix, verify them, and pack them into Parquet.

Writes into the run folder `inventory/` (the listed objects), `images/` (the original bytes of every image that
decodes), `rejects/` (all other objects, with a reason) and `ingest.metrics.json`. Every listed object ends up in either
`images/` or `rejects/`.
"""

import argparse
import hashlib
import logging
import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from orchard_spark import dataset, images, objects, parts, schemas, step, turns
from orchard_spark.rejects import REASONS, RejectedObject

FILE_BYTES = 128 * 1024**2
BATCH_BYTES = 8 * 1024**2
BATCH_ROWS = 64
INVENTORY_BATCH_ROWS = 4096
REASONS_SHOWN = 3

# Both outcomes in one schema: an image has `content`, a rejected object has a `reason`.
OUTCOMES = pa.unify_schemas([schemas.IMAGES, schemas.REJECTS])

EXAMPLE = """example:
  spark-submit --py-files orchard_spark.zip ingest.py --input-uri s3://BUCKET/images/ \\
      --run-uri s3://BUCKET/runs/fruits/20261122T020000-1a2b3c --max-reject-ratio 0.01
"""

log = logging.getLogger("ingest")


class NoImages(ValueError):
    """The prefix contains no image."""

    def __init__(self, input_uri: str, ignored: Mapping[str, int]) -> None:
        endings = ", ".join(dataset.IMAGE_ENDINGS)
        super().__init__(
            f"no images below {input_uri}: expected files ending in {endings}, in one folder per label. "
            f"Ignored: {describe(ignored)}"
        )


class TooManyRejects(ValueError):
    """The share of rejected objects exceeds `max_reject_ratio`."""

    def __init__(self, reasons: Mapping[str, int], listed: int, max_reject_ratio: float, rejects_uri: str) -> None:
        rejected = sum(reasons.values())
        most_common = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))[:REASONS_SHOWN]
        described = "; ".join(f"{count} {reason} ({REASONS[reason]})" for reason, count in most_common)
        super().__init__(
            f"{rejected} of {listed} objects were rejected: the ratio {rejected / listed:.3f} exceeds max_reject_ratio "
            f"{max_reject_ratio:g}. Most common reasons: {described}. {rejects_uri} lists each object. Fix or remove "
            "them, or set a higher max_reject_ratio"
        )


class AllForbidden(PermissionError):
    """S3 denies every object of the dataset: the fault lies in the permissions, not in the objects."""

    def __init__(self, input_uri: str, listed: int, rejects_uri: str) -> None:
        super().__init__(
            f"access to all {listed} objects below {input_uri} is denied: give the nodes' role s3:GetObject on them, "
            f"and kms:Decrypt on their key. {rejects_uri} has S3's answer for each object"
        )


def describe(ignored: Mapping[str, int]) -> str:
    """Return the number of ignored objects per ending as text.

    >>> describe({".heic": 3, "no ending": 1}), describe({})
    ('3 .heic, 1 no ending', 'nothing')
    """
    return ", ".join(f"{count} {ending}" for ending, count in ignored.items()) or "nothing"


def verify(listed: dataset.Listed, content: bytes | RejectedObject, max_pixels: int) -> dict[str, Any]:
    """Return one row of OUTCOMES: an image if the object was read and decodes, else a rejected object."""
    row: dict[str, Any] = {
        "path": listed.path,
        "label": listed.label,
        "etag": listed.etag,
        "size": listed.size,
        "modified": listed.modified,
    }
    try:
        if isinstance(content, RejectedObject):
            raise content
        with turns.turn(images.decoding_bytes(content)):
            info = images.decode(content, max_pixels)[1]
    except RejectedObject as rejected:
        return row | {"reason": rejected.reason, "message": str(rejected)}
    return row | {
        "sha256": hashlib.sha256(content).hexdigest(),
        "format": info.format,
        "width": info.width,
        "height": info.height,
        "content": content,
    }


def in_batches(rows: Iterable[dict[str, Any]]) -> Iterator[pa.RecordBatch]:
    """Yield record batches of OUTCOMES with at most 64 rows and less than 16 MiB of content, or a single larger row."""
    batch: list[dict[str, Any]] = []
    batch_bytes = 0

    def flush() -> pa.RecordBatch:
        nonlocal batch, batch_bytes
        full = pa.RecordBatch.from_pylist(batch, schema=OUTCOMES)
        batch, batch_bytes = [], 0
        return full

    for row in rows:
        row_bytes = len(row.get("content") or b"")
        if batch and row_bytes >= BATCH_BYTES:
            yield flush()
        batch.append(row)
        batch_bytes += row_bytes
        if len(batch) == BATCH_ROWS or batch_bytes >= BATCH_BYTES:
            del row  # a large image would be held twice while its batch is written
            yield flush()
    if batch:
        yield flush()


def verify_part(part: parts.Part, max_pixels: int) -> Iterator[pa.RecordBatch]:
    """Read and verify each object of one file of the INVENTORY; yield one row of OUTCOMES for each."""
    batches = parts.read(part, schemas.INVENTORY.names, INVENTORY_BATCH_ROWS)
    listed = (dataset.Listed.from_row(row) for batch in batches for row in batch.to_pylist())
    return in_batches(verify(item, content, max_pixels) for item, content in dataset.read_all(listed))


def file_count(rows: int, total_bytes: int, task_slots: int) -> int:
    """Return the number of Parquet files: of at most 128 MiB on average, and the same number for each task slot.

    >>> file_count(300, 5_000, 2), file_count(300, 1024**3, 2), file_count(300, 1024**3, 3), file_count(1, 5_000, 2)
    (2, 8, 9, 1)
    """
    return min(rows, task_slots * math.ceil(total_bytes / (FILE_BYTES * task_slots) or 1))


def write_inventory(inventory: pa.Table, uri: str, files: int) -> list[parts.Part]:
    """Write the INVENTORY into this number of files of equal size, and return them.

    Neighbours in a listing often take a similar time, so they go to different files, and therefore to different tasks.
    """
    numbers = (np.arange(number, inventory.num_rows, files) for number in range(files))
    return [parts.write_table(uri, inventory.take(rows)) for rows in numbers]


@dataclass(frozen=True)
class Outcome:
    """What a task wrote: its files, None where it has no rows, and the object count per reason ("" for images)."""

    images: parts.Part | None
    rejects: parts.Part | None
    counts: Counter[str]


def write_outcomes(outcomes: Iterable[pa.RecordBatch], images_uri: str, rejects_uri: str) -> Outcome:
    """Write the images and the rejects of one file of the INVENTORY."""
    counts: Counter[str] = Counter()
    with (
        parts.Writer(images_uri, schemas.IMAGES) as images_writer,
        parts.Writer(rejects_uri, schemas.REJECTS) as rejects_writer,
    ):
        for batch in outcomes:
            is_image = pc.is_null(batch["reason"])
            images_writer.write(batch.filter(is_image).select(schemas.IMAGES.names))
            rejects_writer.write(batch.filter(pc.invert(is_image)).select(schemas.REJECTS.names))
            counts.update(reason or "" for reason in batch["reason"].to_pylist())
    return Outcome(images_writer.part, rejects_writer.part, counts)


def run(
    input_uri: str,
    run_uri: str,
    max_reject_ratio: float,
    max_pixels: int,
    max_bytes: int = dataset.DEFAULT_MAX_BYTES,
) -> dict[str, object]:
    """Run the step and return its metrics.

    Raises:
        objects.BadUri, dataset.BadDatasetUri: see `dataset.checked_uri`.
        NoImages: the prefix contains no image.
        AllForbidden: S3 denies every object.
        TooManyRejects: the share of rejects exceeds the limit. `rejects/` is written.
        step.LostRows: images and rejects do not add up to the listing.
    """
    started = time.monotonic()
    images_uri, rejects_uri = f"{run_uri}/images", f"{run_uri}/rejects"
    with step.running(run_uri, "ingest") as context:
        endings: Counter[str] = Counter()
        inventory = dataset.list_images(input_uri, max_bytes, endings)
        ignored = dataset.most_common_endings(endings)
        listed = inventory.num_rows
        if listed == 0:
            raise NoImages(input_uri, ignored)
        if ignored:
            level = logging.WARNING if endings.total() > listed else logging.INFO
            log.log(
                level, "ingest: %d objects are ignored, %d are images: %s", endings.total(), listed, describe(ignored)
            )
        bytes_listed = sum(inventory["size"].to_pylist())
        files = file_count(listed, bytes_listed, context.defaultParallelism)
        log.info("ingest: %d objects (%.1f MB) below %s, %d files", listed, bytes_listed / 1e6, input_uri, files)
        written = write_inventory(inventory, f"{run_uri}/inventory", files)

        def ingest_part(part: parts.Part) -> Outcome:
            return write_outcomes(verify_part(part, max_pixels), images_uri, rejects_uri)

        usage = parts.task_usage(context)
        outcomes = parts.map_tasks(context, ingest_part, written, usage).collect()
        counts = sum((outcome.counts for outcome in outcomes), Counter())
        images_written = counts.pop("", 0)
        rejected = sum(counts.values())
        if counts["forbidden"] == listed:
            raise AllForbidden(input_uri, listed, rejects_uri)
        if rejected / listed > max_reject_ratio:
            raise TooManyRejects(counts, listed, max_reject_ratio, rejects_uri)
        if images_written + rejected != listed:
            raise step.LostRows(
                f"{listed} objects listed, but {images_written} images and {rejected} rejects in {run_uri}"
            )
        return step.write_metrics(
            run_uri,
            "ingest",
            files={
                "images": [outcome.images for outcome in outcomes if outcome.images is not None],
                "rejects": [outcome.rejects for outcome in outcomes if outcome.rejects is not None],
            },
            rows_in=listed,
            rows_out=images_written,
            started=started,
            passes=[usage.value],
            rejects=rejected,
            reject_reasons=dict(counts),
            ignored=ignored,
            bytes_in=bytes_listed,
            input_uri=objects.absolute(input_uri),
        )


def ratio(text: str) -> float:
    """Parse a share from 0 to 1, for argparse."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share: use a number from 0 to 1")
    return value


def positive(text: str) -> int:
    """Parse a whole number from 1, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive: use a whole number from 1")
    return value


def object_bytes(text: str) -> int:
    """Parse the largest size of an object, for argparse."""
    value = positive(text)
    if value > dataset.LARGEST_MAX_BYTES:
        raise argparse.ArgumentTypeError(f"{text} is too large: use at most {dataset.LARGEST_MAX_BYTES}")
    return value


def main(argv: list[str] | None = None) -> None:
    """Run the step. `argv` defaults to the command-line arguments of the process."""
    parser = step.argument_parser(
        "Read the images of a prefix, verify them, and pack them into Parquet.",
        EXAMPLE,
        run_folder="run folder to write to",
    )
    parser.add_argument("--input-uri", required=True, help="s3:// prefix or local folder with one folder per label")
    parser.add_argument(
        "--max-reject-ratio",
        type=ratio,
        default=0.05,
        help="fail if a larger share of the objects is rejected (default: %(default)s)",
    )
    parser.add_argument(
        "--max-pixels",
        type=positive,
        default=images.DEFAULT_MAX_PIXELS,
        help="reject images with more pixels (default: %(default)s)",
    )
    parser.add_argument(
        "--max-bytes",
        type=object_bytes,
        default=dataset.DEFAULT_MAX_BYTES,
        help="reject larger objects without reading them (default: %(default)s)",
    )
    arguments = parser.parse_args(argv)
    run(
        arguments.input_uri,
        arguments.run_uri,
        arguments.max_reject_ratio,
        arguments.max_pixels,
        arguments.max_bytes,
    )


if __name__ == "__main__":
    main()
