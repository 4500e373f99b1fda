import json
import sys
from pathlib import Path
from typing import Any

import pytest

from local_aws.server import LocalAws
from tests.local_aws.user import BUCKET, LOG_URI, User, command

# Two tasks that wait for each other. Each executor has one core, so that they cannot run in the same one.
PROGRAM = """
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
            details = {"executor": executor, "python": sys.executable, "environment": dict(os.environ)}
            yield pandas.DataFrame({"details": [json.dumps(details)]})

spark = SparkSession.builder.getOrCreate()
tasks = [json.loads(row.details) for row in spark.range(0, 2, 1, 2).mapInPandas(meet, "details string").collect()]
lines = sorted(row.value for row in spark.read.text(source).collect())
print(json.dumps({"driver": os.getppid(), "tasks": tasks, "lines": lines}))
"""
# As on EMR, a bootstrap action installs the environment in spark.pyspark.python.
INSTALL_PYTHON = f"""#!/bin/bash
mkdir -p "$1/bin"
ln -s {sys.executable} "$1/bin/python"
ln -s {sys.prefix}/lib {sys.prefix}/pyvenv.cfg "$1"
"""
# The executor size is meant for EMR instances, and larger than the executors of the master.
SETTINGS = {"spark.pyspark.python": "/opt/python/bin/python", "spark.executor.memory": "1g"}


@pytest.mark.usefixtures("user")  # creates the bucket: moto's buckets belong to the process
@pytest.mark.slow
@pytest.mark.parametrize("master", ["local-cluster[2,1,512]", "standalone[2,1,512]"])
def test_the_tasks_of_a_step_run_in_several_executors(tmp_path: Path, master: str) -> None:
    with LocalAws(tmp_path, master=master) as server:
        user = User(server.endpoint_url)
        user.put("executors/source/1.txt", "apple")
        user.put("executors/source/2.txt", "pear")
        program = user.put("executors/program.py", PROGRAM)
        source = f"s3://{BUCKET}/executors/source/"
        cluster_id = user.run(
            command("spark-submit", "--executor-memory", "1g", program, source, str(tmp_path)),
            bootstrap=[(user.put("executors/install-python.sh", INSTALL_PYTHON), "/opt/python")],
            Configurations=[{"Classification": "spark-defaults", "Properties": SETTINGS}],
        )
        (step,) = user.steps(cluster_id)
        assert step["Status"]["State"] == "COMPLETED", step["Status"]
        stdout = user.read_log(f"{LOG_URI}{cluster_id}/steps/{step['Id']}/stdout.gz")
        (line,) = [line for line in stdout.splitlines() if line.startswith("{")]
        output: dict[str, Any] = json.loads(line)
        assert len({output["driver"], *(task["executor"] for task in output["tasks"])}) == 3
        assert output["lines"] == ["apple", "pear"]
        root = tmp_path / "clusters" / cluster_id
        for task in output["tasks"]:
            assert task["python"] == f"{root}/opt/python/bin/python"
            assert task["environment"]["HOME"] == f"{root}/home/hadoop"
            assert task["environment"]["AWS_ENDPOINT_URL"] == server.endpoint_url
