"""The transient cluster: what it costs, and the RunJobFlow request that makes it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchard.settings import Settings

# Where bootstrap/install.sh puts the steps' Python on each node.
NODE_PREFIX = "/opt/orchard"
NODE_PYTHON = f"{NODE_PREFIX}/venv/bin/python"
# The steps work in Python. Compiling the JVM's code thoroughly takes more of a node than such short runs give back.
JAVA_OPTIONS = "-XX:TieredStopAtLevel=1"
# What clusters of ours are known by.
NAME_PREFIX = "orchard-"
DAG_TAG = "orchard:dag_id"
RUN_TAG = "orchard:run_id"
DATASET_TAG = "orchard:dataset_uri"


@dataclass(frozen=True)
class InstanceType:
    """One kind of machine; the price is EMR's and EC2's together, On-Demand in eu-west-1, in November 2026."""

    vcpus: int
    memory_gib: int
    usd_per_hour: float


# x86_64 only: a release holds wheels for one architecture.
INSTANCE_TYPES: Mapping[str, InstanceType] = {
    "m5.xlarge": InstanceType(4, 16, 0.262),
    "m6i.xlarge": InstanceType(4, 16, 0.262),
    "m7i.xlarge": InstanceType(4, 16, 0.2751),
    "c6i.xlarge": InstanceType(4, 8, 0.2249),
    "c7i.xlarge": InstanceType(4, 8, 0.2361),
}


@dataclass(frozen=True, kw_only=True)
class ClusterSpec:
    """The cluster of one run: a primary node and `core_instances` workers of the same type."""

    name: str
    instance_type: str
    core_instances: int
    tags: Mapping[str, str]

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: an instance type that Orchard does not know, or no worker.
        """
        if self.instance_type not in INSTANCE_TYPES:
            raise ValueError(f"instance_type is {self.instance_type!r}: choose from {', '.join(INSTANCE_TYPES)}")
        if self.core_instances < 1:
            raise ValueError(f"core_instances is {self.core_instances}: a cluster needs at least 1")

    @property
    def task_slots(self) -> int:
        """How many Spark tasks run at once."""
        return INSTANCE_TYPES[self.instance_type].vcpus * self.core_instances

    @property
    def usd_per_hour(self) -> float:
        """What the cluster costs while it exists, at the prices of eu-west-1."""
        return round(INSTANCE_TYPES[self.instance_type].usd_per_hour * (1 + self.core_instances), 4)


def run_job_flow_request(spec: ClusterSpec, settings: Settings) -> dict[str, Any]:
    """The RunJobFlow request: a cluster that waits for steps, and ends by itself when nobody uses it."""
    instances: dict[str, Any] = {
        # Fleets, because only they can choose among several subnets.
        "InstanceFleets": [
            _fleet("MASTER", spec.instance_type, 1),
            _fleet("CORE", spec.instance_type, spec.core_instances),
        ],
        "KeepJobFlowAliveWhenNoSteps": True,
        "TerminationProtected": False,
    }
    if settings.subnet_ids:
        instances["Ec2SubnetIds"] = list(settings.subnet_ids)
    request: dict[str, Any] = {
        "Name": spec.name,
        "LogUri": settings.log_uri,
        "ReleaseLabel": settings.release_label,
        "Applications": [{"Name": "Spark"}],
        "Instances": instances,
        "BootstrapActions": [
            {
                "Name": "install the steps' Python",
                "ScriptBootstrapAction": {
                    "Path": f"{settings.release_uri}/bootstrap/install.sh",
                    "Args": ["--release", settings.release_uri, "--prefix", NODE_PREFIX],
                },
            }
        ],
        "Configurations": spark_configurations(spec, settings),
        "JobFlowRole": settings.instance_profile,
        "ServiceRole": settings.service_role,
        "VisibleToAllUsers": True,
        "StepConcurrencyLevel": 1,
        "AutoTerminationPolicy": {"IdleTimeout": settings.idle_timeout_minutes * 60},
        "Tags": [{"Key": key, "Value": value} for key, value in spec.tags.items()],
    }
    if settings.security_configuration:
        request["SecurityConfiguration"] = settings.security_configuration
    return request


def spark_configurations(spec: ClusterSpec, settings: Settings) -> list[dict[str, Any]]:
    """EMR's configuration classifications for Spark: our Python, and memory for what it holds outside the JVM."""
    # Half of the node goes to one executor of all its cores, so that YARN's own share and the application master fit
    # beside it on the smallest type. Python workers live in the overhead, half of that.
    quarter_mib = INSTANCE_TYPES[spec.instance_type].memory_gib * 1024 // 4
    defaults = {
        "spark.pyspark.python": NODE_PYTHON,
        "spark.submit.deployMode": "client",
        "spark.executor.cores": str(INSTANCE_TYPES[spec.instance_type].vcpus),
        "spark.executor.memory": f"{quarter_mib}m",
        "spark.executor.memoryOverhead": f"{quarter_mib}m",
        "spark.default.parallelism": str(spec.task_slots),
        "spark.driver.extraJavaOptions": JAVA_OPTIONS,
        "spark.executor.extraJavaOptions": JAVA_OPTIONS,
        # boto3 does not learn the region from the node.
        "spark.executorEnv.AWS_DEFAULT_REGION": settings.region,
    }
    exported = {"PYSPARK_PYTHON": NODE_PYTHON, "AWS_DEFAULT_REGION": settings.region}
    return [
        {"Classification": "spark-defaults", "Properties": defaults},
        {
            "Classification": "spark-env",
            "Properties": {},
            "Configurations": [{"Classification": "export", "Properties": exported}],
        },
    ]


def _fleet(role: str, instance_type: str, count: int) -> dict[str, Any]:
    return {
        "Name": role.lower(),
        "InstanceFleetType": role,
        "TargetOnDemandCapacity": count,
        "InstanceTypeConfigs": [{"InstanceType": instance_type, "WeightedCapacity": 1}],
    }
