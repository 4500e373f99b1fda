"""Measure how many requests per second the local AWS and stock moto serve, in alternation on one machine.

Write every round to benchmarks/local_aws.json and print the medians. Each server is a process of its own. The client
sends one request after the other over one connection.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sandbox import aws
from sandbox.processes import free_port, running, wait_for_port

OBJECT = os.urandom(5_000)
OBJECTS = 500
DESCRIPTIONS = 1_000
ROUNDS = 5
TARGET = Path(__file__).with_suffix(".json")
EXAMPLE = """\
example:
  python -m benchmarks.local_aws
"""


@contextmanager
def serving(module: str) -> Iterator[str]:
    """Run a server as a process while the context is open, and yield its endpoint URL."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        arguments = {
            "local_aws": ["--port", str(port), "--data", folder],
            "moto.server": ["--host", "127.0.0.1", "--port", str(port)],
        }
        log_file = Path(folder) / "log"
        with running([sys.executable, "-m", module, *arguments[module]], log_file, os.environ) as process:
            wait_for_port(port, process, log_file)
            yield f"http://127.0.0.1:{port}"


def per_second(count: int, call: Callable[[int], object]) -> float:
    """Make `count` calls, and return the number of calls per second."""
    started = time.perf_counter()
    for number in range(count):
        call(number)
    return count / (time.perf_counter() - started)


def measure_s3(url: str, round_number: int) -> dict[str, float]:
    """Return the number of PUT and of GET requests per second, with objects of 5 KB."""
    s3 = aws.client("s3", url)
    bucket = f"round-{round_number}"
    s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": aws.REGION})
    return {
        "put": per_second(OBJECTS, lambda number: s3.put_object(Bucket=bucket, Key=str(number), Body=OBJECT)),
        "get": per_second(OBJECTS, lambda number: s3.get_object(Bucket=bucket, Key=str(number))["Body"].read()),
    }


def measure_describe(url: str) -> float:
    """Return the number of DescribeCluster requests per second."""
    emr = aws.client("emr", url)
    cluster_id = emr.run_job_flow(
        Name="benchmark",
        ReleaseLabel="emr-7.14.0",
        ServiceRole="benchmark",
        JobFlowRole="benchmark",
        Instances={"MasterInstanceType": "m5.xlarge", "InstanceCount": 1, "KeepJobFlowAliveWhenNoSteps": True},
    )["JobFlowId"]
    return per_second(DESCRIPTIONS, lambda _: emr.describe_cluster(ClusterId=cluster_id))


def main(argv: list[str] | None = None) -> None:
    """Measure, write the results and print the medians."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.local_aws",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(argv)
    ours: list[dict[str, float]] = []
    moto: list[dict[str, float]] = []
    with serving("local_aws") as our_url, serving("moto.server") as moto_url:
        iam = aws.client("iam", our_url)
        iam.create_role(RoleName="benchmark", AssumeRolePolicyDocument="{}")
        iam.create_instance_profile(InstanceProfileName="benchmark")
        for number in range(ROUNDS):
            ours.append({**measure_s3(our_url, number), "describe_cluster": measure_describe(our_url)})
            moto.append(measure_s3(moto_url, number))
    result = {
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}",
        **{
            f"{name}_vs_moto": round(statistics.median(a[name] / b[name] for a, b in zip(ours, moto, strict=True)), 2)
            for name in ("put", "get")
        },
        "describe_cluster_per_second": round(statistics.median(figures["describe_cluster"] for figures in ours)),
        "rounds": {"ours": ours, "moto": moto},
    }
    TARGET.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "rounds"}, indent=2))


if __name__ == "__main__":
    main()
