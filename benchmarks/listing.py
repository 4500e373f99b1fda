"""Measure how fast a large prefix is listed, compared with one paginator of boto3, and with how much memory.

The listing comes from a server that answers each page of 1,000 objects after 100 ms. Each measurement is a process of
its own. The paginator lists a part of the objects, and its seconds are scaled. Write every round to
benchmarks/listing.json and print the medians.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3

from benchmarks.contenders import peak_mb
from orchard.dataset.listing import CLIENT_CONFIG, list_images
from sandbox import aws
from sandbox.folders import ROOT
from sandbox.processes import free_port, running, wait_for_port

OBJECTS, MANY_OBJECTS = 1_000_000, 10_000_000
# A tenth of the objects.
PAGINATOR_PAGES = 100
FOLDERS = {"in_100_folders": 100, "in_no_folder": 0}
MAX_BYTES = 64 * 1024**2
ROUNDS = 3
TARGET = Path(__file__).with_suffix(".json")
EXAMPLE = """\
example:
  PYTHONPATH=plugins python -m benchmarks.listing
"""


def measure_list_images(url: str, count: int, folders: int) -> dict[str, float]:
    """List all objects with `list_images`."""
    s3 = boto3.client("s3", endpoint_url=url, region_name=aws.REGION, config=CLIENT_CONFIG)
    rows = 0

    def write(batch: Any) -> None:
        nonlocal rows
        rows += batch.num_rows

    started = time.monotonic()
    listing = list_images(s3, f"s3://b/{count}/{folders}/", MAX_BYTES, write)
    seconds = time.monotonic() - started
    if not rows == listing.images == count:
        raise RuntimeError(f"{rows} rows and {listing.images} images instead of {count}")
    return {"seconds": seconds, "peak_mb": peak_mb()}


def measure_paginator(url: str, count: int, folders: int) -> dict[str, float]:
    """List the first objects with one paginator, and scale the seconds to all objects."""
    s3 = boto3.client("s3", endpoint_url=url, region_name=aws.REGION)
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket="b", Prefix=f"{count}/{folders}/")
    started = time.monotonic()
    listed = 0
    for number, page in enumerate(pages, start=1):
        listed += len(page["Contents"])
        if number == PAGINATOR_PAGES:
            break
    return {"seconds": (time.monotonic() - started) * count / listed, "peak_mb": peak_mb()}


CONTENDERS = {"list_images": measure_list_images, "paginator": measure_paginator}


@contextmanager
def serving() -> Iterator[str]:
    """Run the server as a process while the context is open, and yield its endpoint URL."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        log_file = Path(folder) / "log"
        command = [sys.executable, "-m", "benchmarks.many_objects", str(port)]
        with running(command, log_file, os.environ) as process:
            wait_for_port(port, process, log_file)
            yield f"http://127.0.0.1:{port}"


def contend(name: str, url: str, count: int, folders: int) -> dict[str, float]:
    """Run a contender as a process, and return its measurements."""
    command = [sys.executable, "-m", "benchmarks.listing", "--run", name, url, str(count), str(folders)]
    env = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local", "PYTHONPATH": f"{ROOT / 'plugins'}:{ROOT}"}
    done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, check=True)
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def measure(url: str) -> dict[str, dict[str, dict[str, float]]]:
    """Measure one round: both contenders on both layouts."""
    return {
        layout: {name: contend(name, url, OBJECTS, folders) for name in CONTENDERS}
        for layout, folders in FOLDERS.items()
    }


def summarise(rounds: list[dict[str, Any]], many: dict[str, Any]) -> dict[str, Any]:
    """Return the medians of the rounds, and the figures of the listing of 10 million objects."""
    figures: dict[str, Any] = {}
    for layout in FOLDERS:
        pairs = [(one[layout]["list_images"]["seconds"], one[layout]["paginator"]["seconds"]) for one in rounds]
        figures[layout] = {
            "seconds": round(statistics.median(ours for ours, _ in pairs), 1),
            "paginator_seconds": round(statistics.median(theirs for _, theirs in pairs), 1),
            "vs_paginator": round(statistics.median(theirs / ours for ours, theirs in pairs), 1),
            "peak_mb": max(one[layout]["list_images"]["peak_mb"] for one in rounds),
        }
    figures["10_million"] = {
        layout: {name: round(value, 1) for name, value in one.items()} for layout, one in many.items()
    }
    return figures


def write(machine: dict[str, Any], rounds: list[dict[str, Any]], many: dict[str, Any]) -> None:
    """Write what has been measured so far."""
    TARGET.write_text(json.dumps({**machine, **summarise(rounds, many), "rounds": rounds}, indent=2) + "\n")


def main(argv: list[str] | None = None) -> None:
    """Measure, write the results and print the medians."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.listing",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds (default: %(default)s)")
    parser.add_argument(
        "--run",
        nargs=4,
        metavar=("NAME", "URL", "COUNT", "FOLDERS"),
        help="only run one contender in this process: " + " or ".join(CONTENDERS),
    )
    arguments = parser.parse_args(argv)
    if arguments.run:
        name, url, count, folders = arguments.run
        print(json.dumps(CONTENDERS[name](url, int(count), int(folders))))
        return
    machine = {
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}",
        "load_before": [round(load, 2) for load in os.getloadavg()],
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }
    rounds: list[dict[str, Any]] = []
    many: dict[str, Any] = {}
    with serving() as url:
        for _ in range(arguments.rounds):
            rounds.append(measure(url))
            write(machine, rounds, many)
        for layout, folders in FOLDERS.items():
            many[layout] = contend("list_images", url, MANY_OBJECTS, folders)
            write(machine, rounds, many)
    print(json.dumps({**machine, **summarise(rounds, many)}, indent=2))


if __name__ == "__main__":
    main()
