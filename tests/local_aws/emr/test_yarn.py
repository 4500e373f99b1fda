from typing import TYPE_CHECKING

import pytest

from local_aws.emr import yarn
from local_aws.emr.hardware import executor_types, make_pools
from local_aws.emr.yarn import Limits, Refused
from orchard.cluster.instances import INSTANCE_TYPES, alternatives
from orchard.cluster.memory import MASTER_CONTAINER_MIB
from orchard.cluster.request import ClusterSpec, run_job_flow_request
from orchard.settings import Settings
from tests.local_aws.user import User, command

if TYPE_CHECKING:
    from mypy_boto3_emr.type_defs import StepConfigTypeDef

M5_XLARGE = Limits(memory_mb=12_288, vcores=4)


@pytest.mark.parametrize(
    ("arguments", "remaining"),
    [
        (["--deploy-mode", "client", "a.py"], ["a.py"]),
        (["--deploy-mode=cluster", "a.py"], ["a.py"]),
        (["--master", "yarn", "--queue", "q", "--num-executors", "4", "--executor-cores", "2", "a.py"], ["a.py"]),
        (["--conf", "spark.yarn.queue=q", "a.py"], ["a.py"]),
        (["--executor-memory", "9g", "--conf", "spark.executor.memoryOverhead=2g", "a.py"], ["a.py"]),
        (["--conf=spark.executor.instances=4", "a.py"], ["a.py"]),
        (["-c", "spark.dynamicAllocation.enabled=true", "a.py"], ["a.py"]),
        (["--conf", "spark.default.parallelism=8", "--conf", "spark.x=1"], ["--conf", "spark.x=1"]),
        (["--conf", "spark.x=1", "a.py"], ["--conf", "spark.x=1", "a.py"]),
        (["--conf=spark.x=1", "a.py"], ["--conf=spark.x=1", "a.py"]),
        (["--verbose", "--master", "yarn", "a.py"], ["--verbose", "a.py"]),
        (["--py-files", "s3://b/x.zip", "a.py"], ["--py-files", "s3://b/x.zip", "a.py"]),
        (["--name", "--master", "a.py"], ["--name", "--master", "a.py"]),
        (["a.py", "--master", "x", "--conf", "spark.yarn.y"], ["a.py", "--master", "x", "--conf", "spark.yarn.y"]),
        (["-S", "--master", "yarn", "-e", "select 1"], ["-S", "-e", "select 1"]),
        (["--master"], []),
        ([], []),
    ],
)
def test_only_yarn_options_are_removed_from_spark_submit(arguments: list[str], remaining: list[str]) -> None:
    original = list(arguments)
    assert yarn.split_arguments(arguments)[1] == remaining
    assert arguments == original


@pytest.mark.parametrize(
    ("arguments", "properties"),
    [
        (["--executor-memory", "9g", "--executor-cores=2", "a.py"], ["memory=9g", "cores=2"]),
        (["--executor-memory", "9g", "--conf", "spark.executor.memory=1g", "a.py"], ["memory=9g"]),
        (["--conf", "spark.executor.memory=1g", "-c", "spark.executor.memory=2g", "a.py"], ["memory=2g"]),
        (["a.py", "--executor-memory", "9g"], []),
    ],
)
def test_an_option_takes_precedence_over_a_property(arguments: list[str], properties: list[str]) -> None:
    expected = {f"spark.executor.{name}": value for name, _, value in (text.partition("=") for text in properties)}
    assert yarn.split_arguments(arguments)[0] == expected


@pytest.mark.parametrize(
    ("properties", "sizes"),
    [
        # 11,171 MB and a tenth of it are 12,288 MB.
        ({"memory": "11172m"}, (11172, 0, 1117, 0)),
        ({"memory": "12g", "memoryOverhead": "1"}, (12288, 0, 1, 0)),
        ({"memory": "1g", "memoryOverhead": "11265m"}, (1024, 0, 11265, 0)),
        ({"memory": "8g", "memoryOverheadFactor": "0.6"}, (8192, 0, 4915, 0)),
        ({"memory": "11g", "minMemoryOverhead": "2g"}, (11264, 0, 2048, 0)),
        ({"memory": "8g", "pyspark.memory": "4g"}, (8192, 0, 819, 4096)),
    ],
)
def test_an_executor_that_is_too_large_is_refused_in_the_words_of_spark(
    properties: dict[str, str], sizes: tuple[int, int, int, int]
) -> None:
    with pytest.raises(Refused) as refused:
        check(properties)
    assert str(refused.value) == (
        "java.lang.IllegalArgumentException: Required executor memory ({} MB), offHeap memory ({}) MB, overhead ({} "
        "MB), and PySpark memory ({} MB) is above the max threshold (12288 MB) of this cluster! Please check the "
        "values of 'yarn.scheduler.maximum-allocation-mb' and/or 'yarn.nodemanager.resource.memory-mb'."
    ).format(*sizes)


def check(properties: dict[str, str], limits: Limits = M5_XLARGE, *, is_python: bool = True) -> None:
    yarn.check({f"spark.executor.{name}": value for name, value in properties.items()}, limits, is_python=is_python)


def test_memory_outside_the_heap_counts_only_if_it_is_used() -> None:
    off_heap = {"spark.memory.offHeap.size": str(12 * 1024**3)}
    yarn.check(off_heap, M5_XLARGE, is_python=True)
    with pytest.raises(Refused, match=r"executor memory \(1024 MB\), offHeap memory \(12288\) MB, overhead \(384 MB\)"):
        yarn.check({**off_heap, "spark.memory.offHeap.enabled": "true"}, M5_XLARGE, is_python=True)
    check({"memory": "8g", "pyspark.memory": "4g"}, is_python=False)


@pytest.mark.parametrize(
    "properties",
    [
        {},
        {"memory": "11171m"},
        {"memory": "9g", "memoryOverhead": "3g", "cores": "4"},
        {"memory": str(9 * 1024), "memoryOverhead": str(3 * 1024)},
    ],
)
def test_an_executor_that_fits_is_not_refused(properties: dict[str, str]) -> None:
    check(properties)


def test_more_cores_than_a_node_has_are_refused_in_the_words_of_yarn() -> None:
    with pytest.raises(Refused) as refused:
        check({"cores": "5"})
    assert "requested resource is greater than maximum allowed allocation. Requested resource type=[vcores], " in str(
        refused.value
    )
    assert "Requested resource=<memory:1408, vCores:5>, maximum allowed allocation=<memory:12288, vCores:4>" in str(
        refused.value
    )


def test_the_driver_is_an_application_master_only_in_cluster_mode() -> None:
    driver = {"spark.driver.memory": "12g"}
    yarn.check(driver, M5_XLARGE, is_python=True)
    with pytest.raises(Refused, match=r"Required AM memory \(12288\+1228 MB\) is above the max threshold \(12288 MB\)"):
        yarn.check({**driver, "spark.submit.deployMode": "cluster"}, M5_XLARGE, is_python=True)


def test_an_unknown_instance_type_has_no_limits() -> None:
    assert yarn.cluster_limits(["x9.huge"], {}) == Limits()
    check({"memory": "900g", "cores": "900"}, Limits())
    assert yarn.cluster_limits(["x9.huge", "m5.xlarge"], {}) == M5_XLARGE


def test_the_sizes_of_nodes_are_those_that_orchard_uses() -> None:
    sizes = {name: (kind.yarn_memory_mib, kind.vcpus) for name, kind in INSTANCE_TYPES.items() if name in yarn.NODES}
    assert sizes == dict(yarn.NODES)


@pytest.mark.parametrize("name", INSTANCE_TYPES)
def test_an_executor_of_orchard_and_the_application_master_fill_the_smallest_node_of_the_fleet(name: str) -> None:
    spec = ClusterSpec(name="orchard-fruits", instance_type=name, core_instances=1, tags={})
    request = run_job_flow_request(spec, Settings(bucket="fruits-data", release="0123456789ab"))
    (defaults,) = [each for each in request["Configurations"] if each["Classification"] == "spark-defaults"]
    types = executor_types(make_pools("j-1", request["Instances"]))
    assert types == set(alternatives(name))
    for kind in types:
        yarn.check(defaults["Properties"], yarn.cluster_limits([kind], {}), is_python=True)
    limits = yarn.cluster_limits(types, {})
    assert limits.memory_mb is not None
    beside_mb = limits.memory_mb - MASTER_CONTAINER_MIB
    yarn.check(defaults["Properties"], Limits(beside_mb, limits.vcores), is_python=True)
    with pytest.raises(Refused, match="Required executor memory"):
        yarn.check(defaults["Properties"], Limits(beside_mb - 1, limits.vcores), is_python=True)


def test_the_classification_yarn_site_sets_the_limits() -> None:
    site = {"yarn.scheduler.maximum-allocation-mb": "9000", "yarn.nodemanager.resource.memory-mb": "8000"}
    assert yarn.cluster_limits(["m5.xlarge"], site) == Limits(8000, 4)
    assert yarn.cluster_limits([], {"yarn.scheduler.maximum-allocation-vcores": "2"}) == Limits(None, 2)


def test_the_smallest_instance_type_that_runs_executors_sets_the_limits() -> None:
    def group(role: str, kind: str) -> dict[str, object]:
        return {"InstanceRole": role, "InstanceType": kind, "InstanceCount": 1}

    groups = [group("MASTER", "c5.xlarge"), group("CORE", "m5.xlarge"), group("TASK", "c7i.xlarge")]
    assert executor_types(make_pools("j-1", {"InstanceGroups": groups})) == {"m5.xlarge", "c7i.xlarge"}
    assert executor_types(make_pools("j-1", {"InstanceGroups": groups[:1]})) == {"c5.xlarge"}
    types = [{"InstanceType": "m5.xlarge"}, {"InstanceType": "c6i.xlarge"}]
    fleets = [
        {"InstanceFleetType": "MASTER", "TargetOnDemandCapacity": 1, "InstanceTypeConfigs": [types[0]]},
        {"InstanceFleetType": "CORE", "TargetOnDemandCapacity": 1, "InstanceTypeConfigs": types},
        {"InstanceFleetType": "TASK", "TargetSpotCapacity": 0, "InstanceTypeConfigs": [{"InstanceType": "x.y"}]},
    ]
    assert executor_types(make_pools("j-1", {"InstanceFleets": fleets})) == {"m5.xlarge", "c6i.xlarge"}


@pytest.mark.parametrize(
    ("step", "properties", "message"),
    [
        (command("spark-submit", "--executor-memory", "12g", "a.py"), {}, "Required executor memory (12288 MB), "),
        (
            command("spark-submit", "--conf", "spark.executor.memory=12g", "a.py"),
            {"spark.executor.memory": "1g"},
            "Required executor memory (12288 MB), ",
        ),
        (command("spark-submit", "a.py"), {"spark.executor.memoryOverhead": "12g"}, "overhead (12288 MB), "),
        (command("bash", "-c", "spark-submit --executor-cores 5 a.py"), {}, "Requested resource type=[vcores]"),
    ],
)
def test_the_cluster_is_created_and_the_step_fails(
    user: User, step: "StepConfigTypeDef", properties: dict[str, str], message: str
) -> None:
    cluster_id = user.run(step, Configurations=[{"Classification": "spark-defaults", "Properties": properties}])
    (failed,) = user.steps(cluster_id)
    assert failed["Status"]["State"] == "FAILED"
    assert failed["Status"]["FailureDetails"]["Message"].startswith('Exception in thread "main" ')
    assert message in failed["Status"]["FailureDetails"]["Message"]
