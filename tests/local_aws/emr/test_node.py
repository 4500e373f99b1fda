import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from local_aws.emr import node as nodes
from local_aws.emr.node import Node, s3a_jars
from tests.local_aws.user import QUICK_JVM

NODE = Node(Path("/data/j-1"), "http://127.0.0.1:1", "eu-west-1", {})


def make_node(folder: Path, *configurations: dict[str, Any]) -> Node:
    return nodes.make_node(folder, "http://127.0.0.1:1", "eu-west-1", configurations)


def defaults(node: Node) -> dict[str, str]:
    """Return the settings in spark-defaults.conf."""
    lines = (node.root / "etc/spark/conf/spark-defaults.conf").read_text().splitlines()
    return {name: value for name, _, value in (line.partition(" ") for line in lines)}


@pytest.mark.parametrize(
    ("text", "rewritten"),
    [
        ("/opt", "/data/j-1/opt"),
        ("/opt/orchard/bin", "/data/j-1/opt/orchard/bin"),
        ("/mnt/x", "/data/j-1/mnt/x"),
        ("/home/hadoop/x", "/data/j-1/home/hadoop/x"),
        ("--prefix=/opt/x", "--prefix=/data/j-1/opt/x"),
        ("/opt/a:/opt/b:/mnt", "/data/j-1/opt/a:/data/j-1/opt/b:/data/j-1/mnt"),
        ("cd /opt && cat '/mnt/x'", "cd /data/j-1/opt && cat '/data/j-1/mnt/x'"),
        ('ls "/mnt"; ls >/opt', 'ls "/data/j-1/mnt"; ls >/data/j-1/opt'),
        ("file:///opt/x", "file:///data/j-1/opt/x"),
        ("/usr/bin/spark-submit", "/data/j-1/usr/bin/spark-submit"),
        ("/bin/spark-submit", "/data/j-1/bin/spark-submit"),
        ("/usr/lib/spark/bin/pyspark", "/data/j-1/usr/lib/spark/bin/pyspark"),
        ("/usr/lib/spark/examples/src/main/python/pi.py", "/data/j-1/usr/lib/spark/examples/src/main/python/pi.py"),
        ("spark.pyspark.python=/usr/bin/python3.11", "spark.pyspark.python=/data/j-1/usr/bin/python3.11"),
        ("x=$(/usr/bin/aws s3 ls); /usr/bin/python3", "x=$(/data/j-1/usr/bin/aws s3 ls); /data/j-1/usr/bin/python3"),
    ],
)
def test_paths_of_a_node_are_rewritten_to_its_root(text: str, rewritten: str) -> None:
    assert NODE.localise(text) == rewritten


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/opt/x",
        "s3://opt/x",
        "hdfs:///mnt/x",
        "https://example.com/opt/x",
        "/optical/x",
        "/opt-2/x",
        "/mnt2",
        "/home/somebody/x",
        "/usr/opt/x",
        "/usr/bin/env python3",
        "/usr/bin/python3-config",
        "/usr/bin/python3.9",
        "/usr/bin/aws/x",
        "/usr/bin:/bin",
        "/usr/local/bin/aws",
        "/usr/lib/sparkling",
        "s3://b/usr/bin/spark-submit",
        "./opt/x",
        "opt/x",
        "~/opt/x",
        "$HOME/opt/x",
        "${HOME}/opt/x",
        "$(pwd)/opt/x",
    ],
)
def test_other_paths_are_not_rewritten(text: str) -> None:
    assert NODE.localise(text) == text


def test_spark_defaults_have_the_properties_of_the_classification_except_yarn_settings(tmp_path: Path) -> None:
    properties = {"spark.x": "a b", "spark.local.dir": "/mnt/y", "spark.master": "yarn", "spark.executor.cores": "4"}
    node = make_node(tmp_path, {"Classification": "spark-defaults", "Properties": properties})
    found = defaults(node)
    assert found["spark.x"] == "a b"
    assert found["spark.local.dir"] == f"{node.root}/mnt/y"
    assert found["spark.master"] == "local[*]"
    assert "spark.executor.cores" not in found


def test_core_site_properties_become_hadoop_settings(tmp_path: Path) -> None:
    properties = {"fs.s3a.threads.max": "7", "fs.s3a.endpoint": "http://elsewhere"}
    found = defaults(make_node(tmp_path, {"Classification": "core-site", "Properties": properties}))
    assert found["spark.hadoop.fs.s3a.threads.max"] == "7"
    assert found["spark.hadoop.fs.s3a.endpoint"] == "http://elsewhere"


def test_executors_of_a_standalone_cluster_get_the_environment_of_the_node(tmp_path: Path) -> None:
    exports = {"Classification": "export", "Properties": {"OF_THE_DRIVER": "1"}}
    configurations: list[dict[str, Any]] = [
        {"Classification": "spark-env", "Configurations": [exports]},
        {"Classification": "spark-defaults", "Properties": {"spark.executorEnv.AWS_DEFAULT_REGION": "eu-north-1"}},
    ]
    master = {"spark.master": "spark://127.0.0.1:1"}
    found = defaults(nodes.make_node(tmp_path, "http://127.0.0.1:1", "eu-west-1", configurations, master))
    assert found["spark.executorEnv.HOME"] == f"{tmp_path}/home/hadoop"
    assert found["spark.executorEnv.AWS_ENDPOINT_URL"] == "http://127.0.0.1:1"
    assert found["spark.executorEnv.AWS_DEFAULT_REGION"] == "eu-north-1"
    assert "spark.executorEnv.OF_THE_DRIVER" not in found


def test_spark_uses_the_s3_of_this_server_and_listens_only_on_this_machine(tmp_path: Path) -> None:
    found = defaults(make_node(tmp_path))
    assert found["spark.hadoop.fs.s3a.endpoint"] == "http://127.0.0.1:1"
    assert (found["spark.driver.host"], found["spark.driver.bindAddress"]) == ("127.0.0.1", "127.0.0.1")
    assert all(Path(jar).is_file() for jar in found["spark.driver.extraClassPath"].split(":"))


def test_only_exports_of_spark_env_are_in_the_environment(tmp_path: Path) -> None:
    exports = [{"Classification": "export", "Properties": {"PYSPARK_PYTHON": "/opt/bin/python", "X": "1"}}]
    env = {"Classification": "spark-env", "Properties": {"OUTER": "1"}, "Configurations": exports}
    other = {"Classification": "hadoop-env", "Configurations": [{"Classification": "export", "Properties": {"Y": "1"}}]}
    node = make_node(tmp_path, env, other)
    environment = node.environment()
    assert (environment["PYSPARK_PYTHON"], environment["X"]) == (f"{node.root}/opt/bin/python", "1")
    assert not {"OUTER", "Y"} & set(environment)


def test_the_programs_of_a_node_are_executable(tmp_path: Path) -> None:
    programs = make_node(tmp_path).root / "usr/bin"
    assert sorted(program.name for program in programs.iterdir()) == [
        "aws",
        "pip3",
        "pyspark",
        "python3",
        "python3.11",
        "run-example",
        "spark-class",
        "spark-example",
        "spark-shell",
        "spark-sql",
        "spark-submit",
        "state-pusher-script",
        "sudo",
    ]
    assert all(os.access(program, os.X_OK) for program in programs.iterdir())


PROGRAM = """
import os
from pyspark.sql import SparkSession
context = SparkSession.builder.getOrCreate().sparkContext
(home,) = context.parallelize([1], 1).map(lambda _: os.environ["HOME"]).collect()
print([home, context._jvm.System.getProperty("java.io.tmpdir"), context.getConf().get("spark.x")])
"""


@pytest.mark.parametrize(
    "master",
    [
        {"spark.master": "local[1]"},
        pytest.param(
            {"spark.master": "local-cluster[1,1,512]", "spark.executor.memory": "512m"}, marks=pytest.mark.slow
        ),
    ],
)
def test_spark_runs_on_a_node_whose_path_needs_quotes(tmp_path: Path, master: dict[str, str]) -> None:
    value = '\\d+ = #! "x"\n\té'
    settings = {"Classification": "spark-defaults", "Properties": {"spark.x": value}}
    root = tmp_path / "a b $c \\\\ \"q\" it's 'é' ${d}"
    node = nodes.make_node(root, "http://127.0.0.1:1", "eu-west-1", [settings], master)
    (root / "home/hadoop/program.py").write_text(PROGRAM)
    process = node.start([str(root / "usr/bin/spark-submit"), *QUICK_JVM, "program.py"], tmp_path / "logs")
    assert process.wait(100) == 0, (tmp_path / "logs/stderr").read_text()
    expected = [f"{root}/home/hadoop", f"{root}/tmp", value]
    assert str(expected) in (tmp_path / "logs/stdout").read_text().splitlines()


def test_the_programs_of_a_node_run_in_a_folder_whose_path_needs_quotes(tmp_path: Path) -> None:
    node = make_node(tmp_path / "a b $c it's")
    done = subprocess.run(
        ["bash", "-c", "sudo python3 -c 'print(1)' && aws --version && pwd"],
        env=node.environment(),
        cwd=node.root / "home/hadoop",
        capture_output=True,
        text=True,
        check=False,
    )
    one, version, folder = done.stdout.splitlines()
    assert (one, version.partition("/")[0], folder) == ("1", "aws-cli", f"{node.root}/home/hadoop")


def test_the_jars_of_s3a_are_found() -> None:
    assert [jar.name.rpartition("-")[0] for jar in s3a_jars()] == ["aws-java-sdk-bundle", "hadoop-aws"]
