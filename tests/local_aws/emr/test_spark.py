import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.local_aws.user import BUCKET, LOG_URI, QUICK_JVM, User, command

if TYPE_CHECKING:
    from mypy_boto3_emr.type_defs import StepTypeDef

PROGRAM = """
import json, os, sys
from pyspark.sql import SparkSession

source, target = sys.argv[1:3]
spark = SparkSession.builder.getOrCreate()
lines = spark.read.text(source).selectExpr("upper(value) AS value")
if sys.argv[3:]:
    raise ValueError(f"will not write {sys.argv[3]}")
lines.coalesce(1).write.text(target)
settings = dict(spark.sparkContext.getConf().getAll())
print(json.dumps({"settings": settings, "environment": dict(os.environ), "python": sys.executable}))
"""
# As on EMR, a bootstrap action installs the Python in PYSPARK_PYTHON.
INSTALL_PYTHON = """#!/bin/bash
mkdir -p "$1"
ln -s "$(python3.11 -c 'import sys; print(sys.executable)')" "$1/python"
"""
YARN_OPTIONS = ["--deploy-mode", "client", "--num-executors", "4", "--conf", "spark.executor.instances=4"]
CONFIGURATIONS = [
    {
        "Classification": "spark-defaults",
        "Properties": {"spark.sql.shuffle.partitions": "3", "spark.yarn.maxAppAttempts": "1", "spark.app.id": "an-id"},
    },
    {
        "Classification": "spark-env",
        "Configurations": [
            {
                "Classification": "export",
                "Properties": {"PYSPARK_PYTHON": "/opt/python/bin/python", "OF_THE_CLUSTER": "yes"},
            }
        ],
    },
]


class Ran(NamedTuple):
    """A cluster that ran a Spark program twice: one step succeeded, and one raised an exception."""

    user: User
    root: Path
    succeeded: "StepTypeDef"
    failed: "StepTypeDef"

    def output(self) -> dict[str, Any]:
        """Return what the step that succeeded printed."""
        stdout = self.user.read_log(f"{LOG_URI}{self.root.name}/steps/{self.succeeded['Id']}/stdout.gz")
        (line,) = [line for line in stdout.splitlines() if line.startswith("{")]
        output: dict[str, Any] = json.loads(line)
        return output


@pytest.fixture(scope="module")
def ran(user: User, data: Path) -> Ran:
    program, source = user.put("spark/program.py", PROGRAM), user.put("spark/source.txt", "apple\npear\n")
    python = user.put("spark/install-python.sh", INSTALL_PYTHON)
    submit = ["spark-submit", *YARN_OPTIONS, *QUICK_JVM, "--conf", "spark.of.the.step=yes", program, source]
    cluster_id = user.run(
        command(*submit, f"s3://{BUCKET}/spark/target/"),
        command(*submit, f"s3://{BUCKET}/spark/nothing/", "anything"),
        bootstrap=[(python, "/opt/python/bin")],
        Configurations=CONFIGURATIONS,
    )
    succeeded, failed = user.steps(cluster_id)
    return Ran(user, data / "clusters" / cluster_id, succeeded, failed)


def test_a_spark_program_in_s3_reads_and_writes_s3(ran: Ran) -> None:
    assert ran.succeeded["Status"]["State"] == "COMPLETED"
    marker, part = ran.user.keys(f"s3://{BUCKET}/spark/target/")
    assert marker == "_SUCCESS"
    assert ran.user.s3.get_object(Bucket=BUCKET, Key=f"spark/target/{part}")["Body"].read() == b"APPLE\nPEAR\n"


def test_a_spark_step_has_the_settings_of_its_cluster_and_its_arguments(ran: Ran) -> None:
    settings = ran.output()["settings"]
    assert settings["spark.sql.shuffle.partitions"] == "3"
    assert settings["spark.of.the.step"] == "yes"


def test_a_spark_step_runs_on_this_machine_without_yarn_settings(ran: Ran) -> None:
    settings = ran.output()["settings"]
    assert settings["spark.master"] == "local[*]"
    assert not {"spark.executor.instances", "spark.yarn.maxAppAttempts"} & set(settings)


def test_a_spark_step_has_the_environment_and_the_python_of_its_cluster(ran: Ran) -> None:
    output = ran.output()
    assert output["environment"]["OF_THE_CLUSTER"] == "yes"
    assert output["environment"]["PYSPARK_PYTHON"] == output["python"] == f"{ran.root}/opt/python/bin/python"


def test_the_failure_details_of_a_spark_step_have_its_traceback(ran: Ran) -> None:
    assert ran.failed["Status"]["State"] == "FAILED"
    failure = ran.failed["Status"]["FailureDetails"]
    lines = failure["Message"].splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "ValueError: will not write anything"
    assert "program.py" in lines[1]
    assert failure["LogFile"] == f"{LOG_URI}{ran.root.name}/steps/{ran.failed['Id']}/stderr.gz"
    assert ran.user.keys(f"s3://{BUCKET}/spark/nothing/") == []
