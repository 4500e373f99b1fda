from pathlib import Path

import pytest

from local_aws.emr.spark_program import SUBMIT_CLASS, NoSuchExample, command
from local_aws.emr.yarn import Limits
from tests.local_aws.user import LOG_URI, User, bash
from tests.local_aws.user import command as step

HOME = Path("/spark")
PI = "/spark/examples/src/main/python/pi.py"
JAR = "/usr/lib/spark/examples/jars/spark-examples.jar"


def rewritten(program: str, *arguments: str) -> list[str]:
    return command(program, arguments, HOME, {}, Limits())


@pytest.mark.parametrize("program", ["pyspark", "spark-shell", "spark-sql", "spark-submit"])
def test_a_program_runs_the_script_of_pyspark_without_options_for_yarn(program: str) -> None:
    assert rewritten(program, "--master", "yarn", "--name", "x", "a") == [f"/spark/bin/{program}", "--name", "x", "a"]


def test_spark_class_is_changed_only_if_it_submits() -> None:
    assert rewritten("spark-class", "a.Main", "--master", "x") == ["/spark/bin/spark-class", "a.Main", "--master", "x"]
    submit = rewritten("spark-class", SUBMIT_CLASS, "--master", "yarn", "a.py")
    assert submit == ["/spark/bin/spark-class", SUBMIT_CLASS, "a.py"]


@pytest.mark.parametrize(
    ("program", "arguments", "remaining"),
    [
        ("run-example", ["SparkPi", "10"], [PI, "10"]),
        ("spark-example", ["org.apache.spark.examples.SparkPi"], [PI]),
        (
            "run-example",
            ["--master", "yarn", "--verbose", "--conf=spark.x=1", "SparkPi"],
            ["--verbose", "--conf=spark.x=1", PI],
        ),
        ("run-example", [], []),
        ("spark-submit", ["--class", "org.apache.spark.examples.SparkPi", JAR, "10"], [PI, "10"]),
        ("spark-submit", ["--class=org.apache.spark.examples.JavaSparkPi", "--verbose", JAR], ["--verbose", PI]),
        ("spark-submit", ["--class", "my.SparkPi", "my.jar"], ["--class", "my.SparkPi", "my.jar"]),
        ("spark-submit", ["--class", "my.Main", JAR], ["--class", "my.Main", JAR]),
    ],
)
def test_an_example_is_replaced_by_its_equivalent_in_python(
    program: str, arguments: list[str], remaining: list[str]
) -> None:
    assert rewritten(program, *arguments) == ["/spark/bin/spark-submit", *remaining]


def test_an_example_without_an_equivalent_is_refused_and_the_others_are_listed() -> None:
    with pytest.raises(NoSuchExample, match=r"example SparkLR is not available .*: use one of SparkPi, "):
        rewritten("run-example", "SparkLR")


@pytest.mark.parametrize(
    "path",
    [
        "/usr/bin/spark-submit",
        "/bin/spark-submit",
        "/usr/lib/spark/bin/spark-submit",
        "spark-submit",
        "/usr/bin/sudo spark-submit",
    ],
)
def test_spark_submit_is_found_by_each_of_its_paths(user: User, path: str) -> None:
    # A refusal, as of YARN, shows that the program is that of the node. It costs no start of Spark.
    options = "--executor-memory 12g program.py"
    cluster_id = user.run(step(*path.split(), *options.split()), bash(f"cd /tmp && {path} {options}"))
    refusals = [status["Status"]["FailureDetails"]["Message"] for status in user.steps(cluster_id)]
    assert ["Required executor memory (12288 MB)" in message for message in refusals] == [True, True]


def test_spark_submit_runs_without_its_options_for_yarn(user: User) -> None:
    options = "--master yarn --deploy-mode cluster --version"
    cluster_id = user.run(step("spark-submit", *options.split()), bash(f"cd /tmp && /usr/bin/spark-submit {options}"))
    assert user.step_states(cluster_id) == ["COMPLETED", "COMPLETED"]


def test_every_program_of_a_node_is_in_the_folders_of_emr(user: User) -> None:
    script = (
        "set -e; ls /usr/lib/spark/bin; "
        "for file in /usr/bin/spark-class /usr/bin/spark-shell /usr/bin/spark-sql /usr/bin/pyspark /usr/bin/python3.11 "
        "/usr/bin/run-example /usr/bin/sudo; do test -x $file; done; "
        "/usr/bin/python3 -V; /usr/bin/pip3 --version; /usr/bin/aws --version"
    )
    cluster_id = user.run(bash(script))
    (done,) = user.steps(cluster_id)
    assert done["Status"]["State"] == "COMPLETED", done["Status"]
    lines = user.read_log(f"{LOG_URI}{cluster_id}/steps/{done['Id']}/stdout.gz").splitlines()
    *programs, python, pip, aws = lines
    assert programs == [
        *("pyspark", "run-example", "spark-class", "spark-example", "spark-shell", "spark-sql", "spark-submit")
    ]
    assert (python.split()[0], pip.split()[0], aws.partition("/")[0]) == ("Python", "pip", "aws-cli")


@pytest.mark.slow
def test_an_example_and_a_query_run(user: User) -> None:
    sql = "spark-sql --master yarn -e 'select 40 + 2'"
    cluster_id = user.run(
        bash(f"/usr/lib/spark/bin/run-example --deploy-mode cluster SparkPi 2 && {sql}"),
        step("spark-example", "SparkLR"),
    )
    done, refused = user.steps(cluster_id)
    assert done["Status"]["State"] == "COMPLETED", done["Status"]
    stdout = user.read_log(f"{LOG_URI}{cluster_id}/steps/{done['Id']}/stdout.gz").splitlines()
    assert "42" in stdout
    assert any(line.startswith("Pi is roughly 3.1") for line in stdout)
    assert "the example SparkLR is not available" in refused["Status"]["FailureDetails"]["Message"]
