"""Step 1: read the new and changed images of a dataset, verify them, and pack them into Parquet.

Reads the files of `inventory/` that the plan lists. Writes `images/` (the original bytes of every image that decodes),
`rejects/` (all other objects, with a reason) and `ingest.metrics.json`. Every object of the inventory ends up in either
`images/` or `rejects/`.
"""

import argparse
import hashlib
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from orchard_spark import images, parts, read_ahead, schemas, step, turns
from orchard_spark.read_ahead import Listed
from orchard_spark.rejects import REASONS, RejectedObject

BATCH_BYTES = 8 * 1024**2
BATCH_ROWS = 64
INVENTORY_ROWS = 4096
REASONS_SHOWN = 3

# Both outcomes in one schema: an image has `content`, a rejected object has a `reason`.
OUTCOMES = pa.unify_schemas([schemas.IMAGES, schemas.REJECTS])

EXAMPLE = """example:
  spark-submit --py-files orchard_spark.zip ingest.py --run-uri s3://BUCKET/runs/fruits/20261122T020000-1a2b3c \\
      --scratch-uri s3://BUCKET/scratch/fruits/20261122T020000-1a2b3c --max-reject-ratio 0.01
"""

log = logging.getLogger("ingest")


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


def verify(listed: Listed, content: bytes | RejectedObject, max_pixels: int) -> dict[str, Any]:
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
    batches = parts.read(part, schemas.INVENTORY.names, INVENTORY_ROWS)
    listed = (Listed(**row) for batch in batches for row in batch.to_pylist())
    return in_batches(verify(item, content, max_pixels) for item, content in read_ahead.read_all(listed))


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


def run(run_uri: str, scratch_uri: str, max_reject_ratio: float, max_pixels: int) -> dict[str, object]:
    """Run the step and return its metrics.

    Raises:
        step.StepUnfinished: the plan has not finished.
        AllForbidden: S3 denies every object of the dataset.
        TooManyRejects: the share of rejects in the whole dataset exceeds the limit. `rejects/` is written.
        step.LostRows: images and rejects do not add up to the inventory.
    """
    started = time.monotonic()
    images_uri, rejects_uri = f"{scratch_uri}/images", f"{scratch_uri}/rejects"
    with step.running(run_uri, "ingest") as (context, reporter):
        plan = step.read_metrics(run_uri, "plan")
        reporter.plan_id = plan.get("plan_id")
        inventory = step.scratch_files(plan, "inventory")
        rows_in = parts.count_rows(inventory)
        log.info("ingest: %d new and changed objects of %d in %s", rows_in, plan["listed"], plan["dataset"])

        read = reporter.phase(None, [part.rows for part in inventory])

        def ingest_part(part: parts.Part) -> Outcome:
            return write_outcomes(read.counted(verify_part(part, max_pixels)), images_uri, rejects_uri)

        usage = parts.task_usage(context)
        outcomes = parts.map_tasks(context, ingest_part, inventory, usage).collect()
        counts = sum((outcome.counts for outcome in outcomes), Counter())
        rows_out = counts.pop("", 0)
        rejects = counts.total()
        if 0 < rows_in == counts["forbidden"] == plan["listed"]:
            raise AllForbidden(plan["dataset"], rows_in, rejects_uri)
        if rejects and (rejects + plan["rejects_kept"]) / plan["listed"] > max_reject_ratio:
            all_reasons = counts + Counter(plan["kept_reject_reasons"])
            raise TooManyRejects(all_reasons, plan["listed"], max_reject_ratio, rejects_uri)
        if rows_out + rejects != rows_in:
            raise step.LostRows(f"{rows_in} objects planned, but {rows_out} images and {rejects} rejects in {run_uri}")
        return step.write_metrics(
            run_uri,
            "ingest",
            plan_id=plan.get("plan_id"),
            files={
                "images": [outcome.images for outcome in outcomes if outcome.images is not None],
                "rejects": [outcome.rejects for outcome in outcomes if outcome.rejects is not None],
            },
            rows_in=rows_in,
            rows_out=rows_out,
            started=started,
            passes=[usage.value],
            rejects=rejects,
            reject_reasons=dict(counts),
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


def main(argv: list[str] | None = None) -> None:
    """Run the step. `argv` defaults to the command-line arguments of the process."""
    parser = step.argument_parser("Read the new and changed images of a dataset, and pack them into Parquet.", EXAMPLE)
    step.add_uri(parser, "--scratch-uri", "folder for what the run needs only until it is published")
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
    arguments = parser.parse_args(argv)
    run(arguments.run_uri, arguments.scratch_uri, arguments.max_reject_ratio, arguments.max_pixels)


if __name__ == "__main__":
    main()
