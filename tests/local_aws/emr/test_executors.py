import json
import sys
from pathlib import Path
from typing import Any

import pytest

from local_aws.server import LocalAws
from tests.local_aws.user import BUCKET, LOG_URI, User, command

# Two tasks that wait for each other: with a core each, they cannot be in the same executor.
JOB = """
import json, os, sys, time
from pathlib import Path
import pandas
from pyspark.sql import SparkSession

source, folder = sys.argv[1:3]

def meet(frames):
    for frame in frames:
        for number in frame["id"]:
            (Path(folder) / str(number)).touch()
            while not (Path(folder) / str(1 - number)).exists():
                time.sleep(0.05)
            daemon = os.getppid()
            executor = int(Path(f"/proc/{daemon}/stat").read_text().rpartition(")")[2].split()[1])
            told = {"executor": executor, "python": sys.executable, "environment": dict(os.environ)}
            yield pandas.DataFrame({"told": [json.dumps(told)]})

spark = SparkSession.builder.getOrCreate()
tasks = [json.loads(row.told) for row in spark.range(0, 2, 1, 2).mapInPandas(meet, "told string").collect()]
lines = sorted(row.value for row in spark.read.text(source).collect())
print(json.dumps({"driver": os.getppid(), "tasks": tasks, "lines": lines}))
"""
# What a bootstrap action does on EMR too: make the environment that spark.pyspark.python names.
MAKE_PYTHON = f"""#!/bin/bash
mkdir -p "$1/bin"
ln -s {sys.executable} "$1/bin/python"
ln -s {sys.prefix}/lib {sys.prefix}/pyvenv.cfg "$1"
"""
# The sizes are of EMR's instances: a gigabyte would not fit into executors of half of one.
SETTINGS = {"spark.pyspark.python": "/opt/python/bin/python", "spark.executor.memory": "1g"}


@pytest.mark.usefixtures("user")  # for its bucket: moto's are those of the process
@pytest.mark.slow
@pytest.mark.parametrize("master", ["local-cluster[2,1,512]", "standalone[2,1,512]"])
def test_a_step_is_spread_over_executor_processes(tmp_path: Path, master: str) -> None:
    with LocalAws(tmp_path, master=master) as server:
        user = User(server.endpoint_url)
        user.put("executors/source/1.txt", "apple")
        user.put("executors/source/2.txt", "pear")
        job = user.put("executors/job.py", JOB)
        source = f"s3://{BUCKET}/executors/source/"
        cluster_id = user.run(
            command("spark-submit", "--executor-memory", "1g", job, source, str(tmp_path)),
            bootstrap=[(user.put("executors/make-python.sh", MAKE_PYTHON), "/opt/python")],
            Configurations=[{"Classification": "spark-defaults", "Properties": SETTINGS}],
        )
        (step,) = user.steps(cluster_id)
        assert step["Status"]["State"] == "COMPLETED", step["Status"]
        stdout = user.read_log(f"{LOG_URI}{cluster_id}/steps/{step['Id']}/stdout.gz")
        (line,) = [line for line in stdout.splitlines() if line.startswith("{")]
        said: dict[str, Any] = json.loads(line)
        assert len({said["driver"], *(task["executor"] for task in said["tasks"])}) == 3
        assert said["lines"] == ["apple", "pear"]
        root = tmp_path / "clusters" / cluster_id
        for task in said["tasks"]:
            assert task["python"] == f"{root}/opt/python/bin/python"
            assert task["environment"]["HOME"] == f"{root}/home/hadoop"
            assert task["environment"]["AWS_ENDPOINT_URL"] == server.endpoint_url
