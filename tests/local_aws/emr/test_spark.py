import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.local_aws.user import BUCKET, LOG_URI, User, command

if TYPE_CHECKING:
    from mypy_boto3_emr.type_defs import StepTypeDef

JOB = """
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
# What a bootstrap action does on EMR too: make the Python that PYSPARK_PYTHON names.
MAKE_PYTHON = """#!/bin/bash
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
    """A cluster that ran a job that works and the same job made to raise."""

    user: User
    root: Path
    works: "StepTypeDef"
    raises: "StepTypeDef"

    def said(self) -> dict[str, Any]:
        """What the job that works has printed."""
        stdout = self.user.read_log(f"{LOG_URI}{self.root.name}/steps/{self.works['Id']}/stdout.gz")
        (line,) = [line for line in stdout.splitlines() if line.startswith("{")]
        said: dict[str, Any] = json.loads(line)
        return said


@pytest.fixture(scope="module")
def ran(user: User, data: Path) -> Ran:
    job, source = user.put("spark/job.py", JOB), user.put("spark/source.txt", "apple\npear\n")
    python = user.put("spark/make-python.sh", MAKE_PYTHON)
    submit = ["spark-submit", *YARN_OPTIONS, "--conf", "spark.of.the.step=yes", job, source]
    cluster_id = user.run(
        command(*submit, f"s3://{BUCKET}/spark/target/"),
        command(*submit, f"s3://{BUCKET}/spark/nothing/", "anything"),
        bootstrap=[(python, "/opt/python/bin")],
        Configurations=CONFIGURATIONS,
    )
    works, raises = user.steps(cluster_id)
    return Ran(user, data / "clusters" / cluster_id, works, raises)


def test_a_job_in_s3_reads_and_writes_s3(ran: Ran) -> None:
    assert ran.works["Status"]["State"] == "COMPLETED"
    marker, part = ran.user.keys(f"s3://{BUCKET}/spark/target/")
    assert marker == "_SUCCESS"
    assert ran.user.s3.get_object(Bucket=BUCKET, Key=f"spark/target/{part}")["Body"].read() == b"APPLE\nPEAR\n"


def test_a_job_has_the_settings_of_its_cluster_and_of_its_step(ran: Ran) -> None:
    settings = ran.said()["settings"]
    assert settings["spark.sql.shuffle.partitions"] == "3"
    assert settings["spark.of.the.step"] == "yes"


def test_a_job_runs_on_this_machine_without_what_is_for_yarn(ran: Ran) -> None:
    settings = ran.said()["settings"]
    assert settings["spark.master"] == "local[*]"
    assert not {"spark.executor.instances", "spark.yarn.maxAppAttempts"} & set(settings)


def test_a_job_has_the_environment_of_its_cluster_and_the_python_that_it_names(ran: Ran) -> None:
    said = ran.said()
    assert said["environment"]["OF_THE_CLUSTER"] == "yes"
    assert said["environment"]["PYSPARK_PYTHON"] == said["python"] == f"{ran.root}/opt/python/bin/python"


def test_a_job_that_raises_has_its_traceback_in_the_failure_details(ran: Ran) -> None:
    assert ran.raises["Status"]["State"] == "FAILED"
    failure = ran.raises["Status"]["FailureDetails"]
    lines = failure["Message"].splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "ValueError: will not write anything"
    assert "job.py" in lines[1]
    assert failure["LogFile"] == f"{LOG_URI}{ran.root.name}/steps/{ran.raises['Id']}/stderr.gz"
    assert ran.user.keys(f"s3://{BUCKET}/spark/nothing/") == []
