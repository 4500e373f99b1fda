"""The Spark programs of a node: they run PySpark's scripts without options for YARN, and refuse what YARN refuses.

A node's `spark-submit` calls `main`, with the paths below and the name of the program before the user's arguments. The
user's shell may have changed every variable, so this reads none.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NoReturn

from local_aws.emr import yarn

# The programs in /usr/bin and /usr/lib/spark/bin of an EMR node that submit an application.
SUBMITTING = ("pyspark", "run-example", "spark-example", "spark-shell", "spark-sql", "spark-submit")
PROGRAMS = (*SUBMITTING, "spark-class")
SUBMIT_CLASS: Final = "org.apache.spark.deploy.SparkSubmit"
EXAMPLES_PACKAGE: Final = "org.apache.spark.examples."
# PySpark comes without the jar of the Scala and Java examples, but has some of them in Python, with the same arguments.
EXAMPLES: Mapping[str, str] = {
    **dict.fromkeys(("SparkPi", "JavaSparkPi"), "pi.py"),
    **dict.fromkeys(("SparkTC", "JavaTC"), "transitive_closure.py"),
    **dict.fromkeys(("SparkPageRank", "JavaPageRank"), "pagerank.py"),
    "SparkKMeans": "kmeans.py",
    "JavaWordCount": "wordcount.py",
}


class NoSuchExample(ValueError):
    """The example is only in Scala or Java."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"the example {name} is not available in local_aws, because PySpark comes without spark-examples.jar: use "
            f"one of {', '.join(EXAMPLES)}, or a Python example in /usr/lib/spark/examples/src/main/python"
        )


def example_command(arguments: Sequence[str], examples: Path) -> list[str]:
    """Translate the arguments of run-example, which are options, a class and its arguments, to those of spark-submit.

    Raises:
        NoSuchExample: the example has no equivalent in Python.
    """
    options, rest = yarn.split_options(arguments)
    words = [word for option in options for word in option.words]
    return [*words, str(_example(rest[0], examples)), *rest[1:]] if rest else words


def replace_example(arguments: Sequence[str], examples: Path) -> list[str]:
    """Replace a class of spark-examples.jar in the arguments of spark-submit by its equivalent in Python.

    Raises:
        NoSuchExample: the example has no equivalent in Python.
    """
    options, rest = yarn.split_options(arguments)
    name = next((option.value for option in reversed(options) if option.name == "--class"), "")
    if not (name.startswith(EXAMPLES_PACKAGE) and rest and Path(rest[0]).name.startswith("spark-examples")):
        return list(arguments)
    words = [word for option in options if option.name != "--class" for word in option.words]
    return [*words, str(_example(name, examples)), *rest[1:]]


def _example(name: str, examples: Path) -> Path:
    short = name.removeprefix(EXAMPLES_PACKAGE)
    if short not in EXAMPLES:
        raise NoSuchExample(name)
    return examples / EXAMPLES[short]


def command(
    program: str, arguments: Sequence[str], home: Path, cluster: Mapping[str, str], limits: yarn.Limits
) -> list[str]:
    """Return the command of a Spark program on this machine, with Spark in the folder `home`.

    `cluster` has the properties of the cluster's spark-defaults.

    Raises:
        NoSuchExample: the example is only in Scala or Java.
        Refused: YARN refuses the application.
    """
    first: list[str] = []
    rest = list(arguments)
    if program == "spark-class":
        if rest[:1] != [SUBMIT_CLASS]:
            return [str(home / "bin/spark-class"), *rest]
        first, rest = rest[:1], rest[1:]
    examples = home / "examples/src/main/python"
    if program in ("run-example", "spark-example"):
        program, rest = "spark-submit", example_command(rest, examples)
    elif program in ("spark-submit", "spark-class"):
        rest = replace_example(rest, examples)
    configured, rest = yarn.split_arguments(rest)
    yarn.check({**cluster, **configured}, limits, is_python=_is_python(program, rest))
    return [str(home / "bin" / program), *first, *rest]


def _is_python(program: str, arguments: Sequence[str]) -> bool:
    return program == "pyspark" or any(argument.endswith(".py") for argument in arguments)


def main() -> NoReturn:
    """Become PySpark's program; exit with 1 and the reason if it is refused."""
    home, cluster_file, program, *arguments = sys.argv[1:]
    cluster = json.loads(Path(cluster_file).read_text(encoding="utf-8"))
    try:
        line = command(program, arguments, Path(home), cluster["properties"], yarn.Limits(**cluster["limits"]))
    except yarn.Refused as refused:
        sys.exit(f'Exception in thread "main" {refused}')
    except ValueError as error:
        sys.exit(f"{program}: {error}")
    os.execv(line[0], line)  # noqa: S606
