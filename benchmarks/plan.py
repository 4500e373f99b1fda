"""Measure what the task `plan` needs after the listing: seconds, memory and disk, for generated listings and tables.

Each case runs in a process of its own. With --night, measure two nights of a complete Orchard on this machine as well:
the first reads all rendered images, and in the second nothing has changed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks import orchestration
from benchmarks.contenders import peak_mb
from orchard.dataset.listing import LISTED
from orchard.run.difference import INVENTORY, KNOWN, Rules, compare
from orchard.run.row_files import RowWriter, deal, file_count
from sandbox import pictures
from sandbox.folders import ROOT

PAGE = 1000
TASK_SLOTS = 80
SIZE = 100_000
RULES = Rules(keep_images=True, keep_rejects=True, max_pixels=50_000_000)
MODIFIED = datetime(2026, 11, 22, tzinfo=UTC)
# The number of objects that are new, changed and deleted, each.
CHANGED = {"first": None, "unchanged": 0, "changed": 1000}
EXAMPLE = """\
example:
  PYTHONPATH=plugins python -m benchmarks.plan --objects 1000000 10000000 --night
"""


def listing(objects: int, changed: int) -> Iterator[pa.RecordBatch]:
    """Yield the pages of a listing. The first `changed` objects are deleted, the next changed, the last ones new."""
    for start in range(0, objects, PAGE):
        numbers = range(start + changed, min(start + PAGE, objects) + changed)
        rows = len(numbers)
        columns = {
            "path": [f"s3://bucket/images/label {number % 100:02}/{number:010}.jpg" for number in numbers],
            "label": [f"label {number % 100:02}" for number in numbers],
            "etag": [etag(number, is_changed=number < 2 * changed) for number in numbers],
            "size": [SIZE] * rows,
            "modified": [MODIFIED] * rows,
            "storage_class": ["STANDARD"] * rows,
            "reason": [None] * rows,
            "message": [None] * rows,
        }
        yield pa.RecordBatch.from_pydict(columns, schema=LISTED)


def known(objects: int) -> Iterator[pa.RecordBatch]:
    """Yield the images of the published run."""
    for start in range(0, objects, 50 * PAGE):
        numbers = range(start, min(start + 50 * PAGE, objects))
        rows = len(numbers)
        columns = {
            "path": [f"s3://bucket/images/label {number % 100:02}/{number:010}.jpg" for number in numbers],
            "etag": [etag(number) for number in numbers],
            "sha256": [etag(number) + etag(number + 1) for number in numbers],
            "format": ["JPEG"] * rows,
            "width": [1000] * rows,
            "height": [1000] * rows,
            "features_run_id": ["20261121T020000-aaaaaa"] * rows,
            "reason": [None] * rows,
            "message": [None] * rows,
        }
        yield pa.RecordBatch.from_pydict(columns, schema=KNOWN)


def etag(number: int, *, is_changed: bool = False) -> str:
    """Return an etag as random as a real one."""
    return f"{(number * 2 + is_changed) * 0x9E3779B97F4A7C15F39CC0605CEDC835 & (1 << 128) - 1:032x}"


def write(writer: RowWriter, batches: Iterator[pa.RecordBatch]) -> float:
    """Write batches, and return the seconds that this took without making them."""
    seconds = 0.0
    with writer:
        for batch in batches:
            started = time.perf_counter()
            writer.write(batch)
            seconds += time.perf_counter() - started
    return seconds


def measure(case: str, objects: int) -> dict[str, Any]:
    """Compare a listing with the tables, and deal the inventory into files."""
    changed = CHANGED[case]
    with tempfile.TemporaryDirectory(prefix="bench-plan-") as name:
        folder = Path(name)
        listed, of_tables = RowWriter(folder, "listed", LISTED), RowWriter(folder, "known", KNOWN)
        write_seconds = write(listed, listing(objects, changed or 0))
        write_seconds += write(of_tables, known(0 if changed is None else objects))
        before_mb = round(peak_mb())
        started = time.perf_counter()
        found = compare(folder, listed, of_tables, RULES, {})
        compared = time.perf_counter()
        rows = sum(file.rows for file in found.inventory)
        files = deal(folder, found.inventory, INVENTORY, file_count(rows, found.bytes_to_read, TASK_SLOTS))
        dealt = time.perf_counter()
        disk_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return {
        "case": case,
        "objects": objects,
        "new": found.new,
        "changed": found.changed,
        "deleted": found.deleted,
        "inventory_files": len(files),
        "write_seconds": round(write_seconds, 1),
        "compare_seconds": round(compared - started, 1),
        "deal_seconds": round(dealt - compared, 1),
        "peak_mb_before": before_mb,
        "peak_mb": round(peak_mb()),
        "files_mb": round(disk_bytes / 1e6),
    }


def measure_nights(folder: Path) -> dict[str, Any]:
    """Return the seconds of a run over 300 images, and of the next one, which has nothing to do.

    Raises:
        RuntimeError: a run fails.
    """
    pictures.write_dataset(folder / "pictures")
    seconds = []
    with orchestration.running(folder / "up", folder / "pictures", ROOT / "build") as (api, emr):
        api.set_paused(orchestration.DAG, paused=False)
        for _ in range(2):
            run, _seen = orchestration.follow(api, api.trigger(orchestration.DAG, {}))
            if run["state"] != "success":
                raise RuntimeError(f"run {run['dag_run_id']} failed: see the logs in {folder}")
            start, end = (datetime.fromisoformat(run[name]) for name in ("start_date", "end_date"))
            seconds.append(round((end - start).total_seconds(), 1))
        clusters = len(emr.list_clusters()["Clusters"])
    return {"first_night_seconds": seconds[0], "night_without_changes_seconds": seconds[1], "clusters": clusters}


def main(argv: list[str] | None = None) -> None:
    """Print one line of JSON per measurement."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plan",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--objects", type=int, nargs="*", default=[1_000_000], help="numbers of listed objects")
    parser.add_argument("--cases", nargs="*", choices=list(CHANGED), default=list(CHANGED), help="what is published")
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--night", action="store_true", help="measure two nights, too")
    arguments = parser.parse_args(argv)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'plugins'}:{ROOT}"}
    for objects in arguments.objects:
        for case in arguments.cases:
            if arguments.in_process:
                print(json.dumps(measure(case, objects)), flush=True)
            else:
                command = [sys.executable, "-m", "benchmarks.plan", "--in-process"]
                subprocess.run([*command, "--objects", str(objects), "--cases", case], check=True, env=environment)
    if arguments.night:
        with tempfile.TemporaryDirectory(prefix="bench-night-") as name:
            print(json.dumps(measure_nights(Path(name))))


if __name__ == "__main__":
    main()
