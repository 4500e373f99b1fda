import os
import sys
from pathlib import Path

import pytest

from local_aws.server import LocalAws
from tests.local_aws.user import LOG_URI, User, command

# Each of four tasks waits long enough for every executor to take one, and tells the process of its JVM.
JOB = """
import os, time
from pyspark.sql import SparkSession

def parent_of_daemon(_):
    time.sleep(3)
    daemon = os.getppid()
    return int(open(f"/proc/{daemon}/stat").read().rsplit(")", 1)[1].split()[1])

context = SparkSession.builder.getOrCreate().sparkContext
print("EXECUTORS", len(set(context.parallelize(range(4), 4).map(parent_of_daemon).collect())))
"""


@pytest.mark.usefixtures("user")  # for its bucket: moto's are those of the process
def test_a_step_is_spread_over_executor_processes(tmp_path: Path) -> None:
    with LocalAws(tmp_path, master="local-cluster[2,1,512]") as server:
        user = User(server.endpoint_url)
        exports = {"PYSPARK_PYTHON": sys.executable, "PATH": os.environ["PATH"]}
        environment = {"Classification": "export", "Properties": exports}
        cluster_id = user.run(
            command("spark-submit", "--conf", "spark.executor.memory=512m", user.put("spark/spread.py", JOB)),
            Configurations=[{"Classification": "spark-env", "Configurations": [environment]}],
        )
        (step,) = user.steps(cluster_id)
        stdout = user.read_log(f"{LOG_URI}{cluster_id}/steps/{step['Id']}/stdout.gz")
        assert "EXECUTORS 2" in stdout, stdout
