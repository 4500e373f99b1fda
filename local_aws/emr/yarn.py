"""The part of YARN that a Spark application meets on EMR: options that only YARN understands, and its limits.

The programs of a node import this module, so that it imports only the standard library.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

# Only YARN understands these options, or they size executors for EMR instances instead of this machine.
_OPTIONS: Final = {
    "--master": "spark.master",
    "--deploy-mode": "spark.submit.deployMode",
    "--num-executors": "spark.executor.instances",
    "--executor-cores": "spark.executor.cores",
    "--executor-memory": "spark.executor.memory",
    "--queue": "spark.yarn.queue",
}
_PROPERTIES = (
    "spark.master",
    "spark.submit.deployMode",
    "spark.yarn.",
    "spark.dynamicAllocation.",
    "spark.executor.instances",
    "spark.executor.cores",
    "spark.executor.memory",
    "spark.shuffle.service.",
    "spark.default.parallelism",
)
FLAGS = ("--verbose", "-v", "--supervise", "--silent", "-S", "--help", "-h", "-H", "--version", "--usage-error")
_UNITS: Final = {"b": 0, "k": 1, "kb": 1, "m": 2, "mb": 2, "g": 3, "gb": 3, "t": 4, "tb": 4, "p": 5, "pb": 5}
_DEFAULT_OVERHEAD_SHARE = 0.1
_MIN_OVERHEAD_MB = 384

# MB of memory and number of vCores that YARN has on a node:
# https://docs.aws.amazon.com/emr/latest/ReleaseGuide/emr-hadoop-task-config.html.
NODES: Mapping[str, tuple[int, int]] = {
    "m5.xlarge": (12_288, 4),
    "m5.2xlarge": (24_576, 8),
    "m5.4xlarge": (57_344, 16),
    **dict.fromkeys(("m6i.xlarge", "m7i.xlarge", "m7g.xlarge"), (11_712, 4)),
    **dict.fromkeys(("m6i.2xlarge", "m7i.2xlarge", "m7g.2xlarge"), (23_424, 8)),
    **dict.fromkeys(("m6i.4xlarge", "m7i.4xlarge", "m7g.4xlarge"), (54_272, 16)),
    **dict.fromkeys(("c6i.xlarge", "c7i.xlarge", "c7g.xlarge"), (5_632, 4)),
    **dict.fromkeys(("c6i.2xlarge", "c7i.2xlarge", "c7g.2xlarge"), (11_712, 8)),
    **dict.fromkeys(("c6i.4xlarge", "c7i.4xlarge", "c7g.4xlarge"), (23_424, 16)),
}


class Refused(ValueError):
    """YARN would refuse the application. The message is Spark's on EMR."""


@dataclass(frozen=True)
class Option:
    """An option of spark-submit: its name, its value ("" for a flag), and its words in the command."""

    name: str
    value: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class Limits:
    """The largest container of a cluster; None is unknown."""

    memory_mb: int | None = None
    vcores: int | None = None


def cluster_limits(instance_types: Iterable[str], yarn_site: Mapping[str, str]) -> Limits:
    """Return the limits of a cluster with nodes of these types, and these properties of the classification yarn-site.

    >>> cluster_limits(["m5.xlarge", "c7i.xlarge"], {})
    Limits(memory_mb=5632, vcores=4)
    """
    known = [NODES[kind] for kind in instance_types if kind in NODES]
    memory = _smallest([memory_mb for memory_mb, _ in known], yarn_site, "resource.memory-mb", "allocation-mb")
    vcores = _smallest([vcores for _, vcores in known], yarn_site, "resource.cpu-vcores", "allocation-vcores")
    return Limits(memory, vcores)


def _smallest(values: list[int], yarn_site: Mapping[str, str], of_node: str, of_container: str) -> int | None:
    configured = [
        int(yarn_site[name])
        for name in (f"yarn.nodemanager.{of_node}", f"yarn.scheduler.maximum-{of_container}")
        if yarn_site.get(name, "").isdecimal()
    ]
    return min(configured or values, default=None)


def is_for_yarn(name: str) -> bool:
    """Return whether only YARN understands a property of Spark, or it sizes executors for EMR instances."""
    return name.startswith(_PROPERTIES)


def split_options(arguments: Sequence[str]) -> tuple[list[Option], list[str]]:
    """Return the options of spark-submit, and its other arguments, which begin with the application.

    >>> split_options(["--conf", "a=1", "--class=X", "-v", "a.py", "--b"])[1]
    ['a.py', '--b']
    """
    options: list[Option] = []
    rest = list(arguments)
    while rest and rest[0].startswith("-"):
        name, equals, value = rest[0].partition("=")
        count = 1 if equals or name in FLAGS else 2
        options.append(Option(name, value if equals else "".join(rest[1:count]), tuple(rest[:count])))
        rest = rest[count:]
    return options, rest


def split_arguments(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return the properties in the arguments of spark-submit, and the arguments without what only YARN understands.

    >>> split_arguments(["--executor-cores", "2", "--conf", "spark.yarn.queue=a", "--conf", "spark.x=1", "a.py", "--b"])
    ({'spark.yarn.queue': 'a', 'spark.x': '1', 'spark.executor.cores': '2'}, ['--conf', 'spark.x=1', 'a.py', '--b'])
    """
    configured: dict[str, str] = {}
    by_option: dict[str, str] = {}
    remaining: list[str] = []
    options, rest = split_options(arguments)
    for option in options:
        if option.name in ("--conf", "-c"):
            key, _, text = option.value.partition("=")
            configured[key] = text
            if is_for_yarn(key):
                continue
        elif option.name in _OPTIONS:
            by_option[_OPTIONS[option.name]] = option.value
            continue
        elif option.name == "--driver-memory":
            by_option["spark.driver.memory"] = option.value
        remaining += option.words
    return configured | by_option, remaining + rest


def check(properties: Mapping[str, str], limits: Limits, *, is_python: bool) -> None:
    """Check that the containers of a Spark application are not larger than YARN allows.

    Raises:
        Refused: a container is too large.
        ValueError: a property is not a number or a size.
    """
    executor = _mb(properties, "spark.executor.memory", 1024)
    off_heap = 0
    if properties.get("spark.memory.offHeap.enabled", "").lower() == "true":
        off_heap = math.ceil(_mib(properties.get("spark.memory.offHeap.size", "0"), "b"))
    overhead = _overhead(properties, "executor", executor)
    python = _mb(properties, "spark.executor.pyspark.memory", 0) if is_python else 0
    if limits.memory_mb is not None:
        advice = (
            f"is above the max threshold ({limits.memory_mb} MB) of this cluster! Please check the values of "
            "'yarn.scheduler.maximum-allocation-mb' and/or 'yarn.nodemanager.resource.memory-mb'."
        )
        if executor + off_heap + overhead + python > limits.memory_mb:
            raise Refused(
                f"java.lang.IllegalArgumentException: Required executor memory ({executor} MB), offHeap memory "
                f"({off_heap}) MB, overhead ({overhead} MB), and PySpark memory ({python} MB) {advice}"
            )
        master, master_overhead = _application_master(properties)
        if master + master_overhead > limits.memory_mb:
            raise Refused(
                f"java.lang.IllegalArgumentException: Required AM memory ({master}+{master_overhead} MB) {advice}"
            )
    cores = int(properties.get("spark.executor.cores", "1"))
    if limits.vcores is not None and cores > limits.vcores:
        memory = limits.memory_mb or 0
        largest = f"<memory:{memory}, vCores:{limits.vcores}>"
        raise Refused(
            "org.apache.hadoop.yarn.exceptions.InvalidResourceRequestException: Invalid resource request! Cannot "
            "allocate containers as requested resource is greater than maximum allowed allocation. Requested resource "
            f"type=[vcores], Requested resource=<memory:{executor + off_heap + overhead + python}, vCores:{cores}>, "
            f"maximum allowed allocation={largest}, please note that maximum allowed allocation is calculated by "
            "scheduler based on maximum resource of registered NodeManagers, which might be less than configured "
            f"maximum allocation={largest}"
        )


def _application_master(properties: Mapping[str, str]) -> tuple[int, int]:
    """Return the memory and the overhead of the application master, which is the driver in cluster mode."""
    if properties.get("spark.submit.deployMode") == "cluster":
        driver = _mb(properties, "spark.driver.memory", 1024)
        return driver, _overhead(properties, "driver", driver)
    memory = _mb(properties, "spark.yarn.am.memory", 512)
    default = max(int(_DEFAULT_OVERHEAD_SHARE * memory), _MIN_OVERHEAD_MB)
    return memory, _mb(properties, "spark.yarn.am.memoryOverhead", default)


def _overhead(properties: Mapping[str, str], role: str, memory_mb: int) -> int:
    share = float(properties.get(f"spark.{role}.memoryOverheadFactor", _DEFAULT_OVERHEAD_SHARE))
    least = _mb(properties, f"spark.{role}.minMemoryOverhead", _MIN_OVERHEAD_MB)
    old = _mb(properties, f"spark.yarn.{role}.memoryOverhead", max(int(share * memory_mb), least))
    return _mb(properties, f"spark.{role}.memoryOverhead", old)


def _mb(properties: Mapping[str, str], name: str, default: int) -> int:
    return int(_mib(properties[name], "m")) if name in properties else default


def _mib(text: str, default_unit: str) -> float:
    """Return the MiB of a size in Spark's format.

    >>> _mib("2g", "m"), _mib("512", "m"), _mib("1048576", "b")
    (2048.0, 512.0, 1.0)
    """
    match = re.fullmatch(r"(\d+)([a-z]*)", text.strip().lower())
    if match is None or (match[2] or default_unit) not in _UNITS:
        raise ValueError(f"{text!r} is not a size, such as 512m or 4g")
    exponent: int = _UNITS[match[2] or default_unit]
    return int(match[1]) * 1024.0**exponent / 1024**2
