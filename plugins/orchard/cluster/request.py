"""Build the RunJobFlow request for a run's cluster, and read values from such a request."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchard.cluster.instances import INSTANCE_TYPES, alternatives, primary_type, task_slots
from orchard.cluster.memory import DRIVER_HEAP_MIB, MASTER_HEAP_MIB, MASTER_OVERHEAD_MIB, executor_memory
from orchard.cluster.sizing import Workers
from orchard.settings import Settings

# The folder in which bootstrap/install.sh creates the Python environment of the steps on each node.
NODE_PREFIX = "/opt/orchard"
NODE_PYTHON = f"{NODE_PREFIX}/venv/bin/python"
# The shortest time that EMR allows. After it, EMR starts On-Demand instances in place of missing Spot instances:
# https://docs.aws.amazon.com/emr/latest/APIReference/API_SpotProvisioningSpecification.html
SPOT_TIMEOUT_MINUTES = 5
# By default, Spark ends a step after 4 failed attempts of one task. An attempt can count as failed if its executor is
# lost (https://spark.apache.org/docs/3.5.8/configuration.html, spark.task.maxFailures). Interruptions must not do that.
TASK_ATTEMPTS_WITH_SPOT = 10
# The steps run in Python, and the JVM only schedules them. In a step of a few minutes, its optimising compiler costs
# more time than it saves.
JAVA_OPTIONS = "-XX:TieredStopAtLevel=1"

# With these settings, an interruption of Spot workers costs the interrupted tasks, and not the run. The rest are EMR's
# defaults (https://docs.aws.amazon.com/emr/latest/ReleaseGuide/emr-spark-configure.html). Spark starts no tasks on
# nodes that are being decommissioned. With dynamic allocation, it starts executors on new nodes while tasks wait, and
# has no limit of lost executors (spark.executor.maxNumFailures), because it has none of executors. Spark's own
# decommissioning (spark.decommission.enabled) is not needed: it copies shuffle files and cached blocks to other nodes,
# and the steps have neither. Their results are on S3, or with the driver on the primary node.
SPOT_DEFAULTS: Mapping[str, str] = {"spark.task.maxFailures": str(TASK_ATTEMPTS_WITH_SPOT)}
# If the node of an application master is lost, so are all of its executors. From EMR 6 on, application masters run on
# any node, unless these properties restrict them to core nodes, which are On-Demand here. Executors run on all nodes:
# https://repost.aws/knowledge-center/emr-configure-node-labeling-yarn,
# https://docs.aws.amazon.com/emr/latest/ManagementGuide/managed-scaling-allocation-strategy.html
SPOT_YARN_SITE: Mapping[str, str] = {
    "yarn.node-labels.enabled": "true",
    "yarn.node-labels.am.default-node-label-expression": "CORE",
}
# The folder of the bucket in which JupyterHub keeps the notebooks of held clusters, and EMR's classification for that:
# https://docs.aws.amazon.com/emr/latest/ReleaseGuide/emr-jupyterhub-s3.html. AWS documents the name of a bucket. A
# folder of it was never tried on EMR.
NOTEBOOKS = "notebooks"
NOTEBOOK_PERSISTENCE = "jupyter-s3-conf"
# The longest time that EMR allows.
MAX_IDLE_MINUTES = 7 * 24 * 60
# The members of Instances for the cluster's own security groups, with the settings that hold them. EMR adds the rules
# that it needs to them: https://docs.aws.amazon.com/emr/latest/ManagementGuide/emr-man-sec-groups.html
SECURITY_GROUP_MEMBERS: Mapping[str, str] = {
    "EmrManagedMasterSecurityGroup": "primary_security_group",
    "EmrManagedSlaveSecurityGroup": "core_security_group",
    "ServiceAccessSecurityGroup": "service_security_group",
}


@dataclass(frozen=True, kw_only=True)
class ClusterSpec:
    """The cluster of one run: workers of an instance type or its alternatives, and a primary node of the same family.

    The `core_instances` are On-Demand, as the primary node is. The `task_instances` are on Spot. A cluster that is kept
    for `hold_minutes` after its last step has JupyterHub.
    """

    name: str
    instance_type: str
    core_instances: int
    tags: Mapping[str, str]
    task_instances: int = 0
    hold_minutes: int = 0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: the instance type is unknown, there is no core instance, or a number is negative.
        """
        if self.instance_type not in INSTANCE_TYPES:
            raise ValueError(f"instance_type is {self.instance_type!r}: choose from {', '.join(INSTANCE_TYPES)}")
        if self.core_instances < 1:
            raise ValueError(f"core_instances is {self.core_instances}: a cluster needs at least 1")
        if self.task_instances < 0:
            raise ValueError(f"task_instances is {self.task_instances}: use 0 or more")
        if self.hold_minutes < 0:
            raise ValueError(f"hold_minutes is {self.hold_minutes}: use 0 or more")

    @property
    def task_slots(self) -> int:
        """The number of Spark tasks that run at the same time."""
        return task_slots(self.instance_type, self.core_instances + self.task_instances)


def run_job_flow_request(spec: ClusterSpec, settings: Settings) -> dict[str, Any]:
    """Return the RunJobFlow request for a cluster that waits for steps and terminates itself when it is idle."""
    instances: dict[str, Any] = {
        # Instance fleets, because only they can choose between several subnets and instance types.
        "InstanceFleets": [
            _fleet("MASTER", primary_type(spec.instance_type), 1),
            _fleet("CORE", spec.instance_type, spec.core_instances),
            *([_spot_fleet("TASK", spec.instance_type, spec.task_instances)] if spec.task_instances else []),
        ],
        "KeepJobFlowAliveWhenNoSteps": True,
        "TerminationProtected": False,
    }
    if settings.subnet_ids:
        instances["Ec2SubnetIds"] = list(settings.subnet_ids)
    instances |= {
        name: getattr(settings, field) for name, field in SECURITY_GROUP_MEMBERS.items() if getattr(settings, field)
    }
    request: dict[str, Any] = {
        "Name": spec.name,
        "LogUri": settings.log_uri,
        "ReleaseLabel": settings.release_label,
        "Applications": [{"Name": name} for name in ("Spark", *(["JupyterHub"] if spec.hold_minutes else []))],
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
        "Configurations": [*spark_configurations(spec, settings), *notebook_configurations(spec, settings)],
        "JobFlowRole": settings.instance_profile,
        "ServiceRole": settings.service_role,
        "VisibleToAllUsers": True,
        "StepConcurrencyLevel": 1,
        "AutoTerminationPolicy": {"IdleTimeout": 60 * _idle_minutes(spec, settings)},
        "Tags": [{"Key": key, "Value": value} for key, value in spec.tags.items()],
    }
    if settings.security_configuration:
        request["SecurityConfiguration"] = settings.security_configuration
    return request


def spark_configurations(spec: ClusterSpec, settings: Settings) -> list[dict[str, Any]]:
    """Return EMR's configuration classifications: the steps' Python, the executors' memory, and tolerance of Spot."""
    memory = executor_memory(spec.instance_type)
    defaults = {
        "spark.pyspark.python": NODE_PYTHON,
        "spark.submit.deployMode": "client",
        "spark.driver.memory": f"{DRIVER_HEAP_MIB}m",
        "spark.executor.cores": str(INSTANCE_TYPES[spec.instance_type].vcpus),
        "spark.executor.memory": f"{memory.heap_mib}m",
        "spark.executor.memoryOverhead": f"{memory.overhead_mib}m",
        "spark.yarn.am.memory": f"{MASTER_HEAP_MIB}m",
        "spark.yarn.am.memoryOverhead": f"{MASTER_OVERHEAD_MIB}m",
        "spark.default.parallelism": str(spec.task_slots),
        "spark.driver.extraJavaOptions": JAVA_OPTIONS,
        "spark.executor.extraJavaOptions": JAVA_OPTIONS,
        # boto3 does not read the region from the instance metadata.
        "spark.executorEnv.AWS_DEFAULT_REGION": settings.region,
    }
    if spec.task_instances:
        defaults |= SPOT_DEFAULTS
    exported = {"PYSPARK_PYTHON": NODE_PYTHON, "AWS_DEFAULT_REGION": settings.region}
    return [
        {"Classification": "spark-defaults", "Properties": defaults},
        {
            "Classification": "spark-env",
            "Properties": {},
            "Configurations": [{"Classification": "export", "Properties": exported}],
        },
        *([{"Classification": "yarn-site", "Properties": dict(SPOT_YARN_SITE)}] if spec.task_instances else []),
    ]


def notebook_configurations(spec: ClusterSpec, settings: Settings) -> list[dict[str, Any]]:
    """Return EMR's configuration classification that keeps notebooks on S3, for a cluster that is held."""
    if not spec.hold_minutes:
        return []
    bucket = f"{settings.bucket}/{NOTEBOOKS}"
    properties = {"s3.persistence.enabled": "true", "s3.persistence.bucket": bucket}
    return [{"Classification": NOTEBOOK_PERSISTENCE, "Properties": properties}]


def keeps_notebooks(request: Mapping[str, Any]) -> bool:
    """Return whether the cluster of a request is held after its last step, with JupyterHub and notebooks on S3."""
    return any(item["Classification"] == NOTEBOOK_PERSISTENCE for item in request.get("Configurations", []))


def _idle_minutes(spec: ClusterSpec, settings: Settings) -> int:
    """Return after how many idle minutes EMR terminates a cluster. A hold is longer than the usual time."""
    return min(settings.idle_timeout_minutes + spec.hold_minutes, MAX_IDLE_MINUTES)


def _fleet(role: str, instance_type: str, count: int) -> dict[str, Any]:
    return {
        "Name": role.lower(),
        "InstanceFleetType": role,
        "TargetOnDemandCapacity": count,
        # EMR starts the type of the highest priority, 0, and the next one where EC2 lacks capacity.
        "InstanceTypeConfigs": [
            {"InstanceType": name, "WeightedCapacity": 1, "Priority": float(priority)}
            for priority, name in enumerate(alternatives(instance_type))
        ],
        # EMR has no provisioning timeout for On-Demand instances: ClusterReadySensor limits each launch.
        "LaunchSpecifications": {"OnDemandSpecification": {"AllocationStrategy": "prioritized"}},
    }


def _spot_fleet(role: str, instance_type: str, count: int) -> dict[str, Any]:
    """Return a fleet on Spot. The priorities of its types are for the On-Demand instances that replace missing Spot."""
    fleet = _fleet(role, instance_type, 0)
    # Of the instance types, EC2 starts those that it is least likely to interrupt, and of these the cheapest. No bid
    # price is set, so that none costs more than its On-Demand price:
    # https://docs.aws.amazon.com/emr/latest/ManagementGuide/emr-instance-fleet.html
    spot = {
        "AllocationStrategy": "price-capacity-optimized",
        "TimeoutDurationMinutes": SPOT_TIMEOUT_MINUTES,
        "TimeoutAction": "SWITCH_TO_ON_DEMAND",
    }
    specifications = {**fleet["LaunchSpecifications"], "SpotSpecification": spot}
    return {**fleet, "TargetSpotCapacity": count, "LaunchSpecifications": specifications}


def instance_fleets(request: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the instance fleets of a request."""
    fleets: list[dict[str, Any]] = request["Instances"]["InstanceFleets"]
    return fleets


def instance_types(fleet: Mapping[str, Any]) -> list[str]:
    """Return the instance types of an instance fleet."""
    return [config["InstanceType"] for config in fleet["InstanceTypeConfigs"]]


def requested_instance_types(request: Mapping[str, Any]) -> list[str]:
    """Return the instance types of all fleets of a request, sorted."""
    return sorted({kind for fleet in instance_fleets(request) for kind in instance_types(fleet)})


def subnet_ids(request: Mapping[str, Any]) -> list[str]:
    """Return the subnets that a request names."""
    return list(request["Instances"].get("Ec2SubnetIds", []))


def security_groups(request: Mapping[str, Any]) -> dict[str, str]:
    """Return the security groups that a request names, each by the setting that holds it."""
    instances = request["Instances"]
    return {field: instances[name] for name, field in SECURITY_GROUP_MEMBERS.items() if name in instances}


def spot_instances(request: Mapping[str, Any]) -> int:
    """Return the capacity of a request's fleets that is on Spot, if EC2 has it."""
    return sum(fleet.get("TargetSpotCapacity", 0) for fleet in instance_fleets(request))


def requested_workers(request: Mapping[str, Any]) -> Workers | None:
    """Return the workers of a request that has a fleet of core instances. Return None for any other request."""
    fleets = request.get("Instances", {}).get("InstanceFleets", [])
    capacity = {fleet["InstanceFleetType"]: fleet for fleet in fleets}
    core, task = (capacity.get(role, {}) for role in ("CORE", "TASK"))
    if not core:
        return None
    return Workers(core["TargetOnDemandCapacity"], task.get("TargetSpotCapacity", 0))


def requested_instances(request: Mapping[str, Any]) -> int:
    """Return the largest number of instances that a request can create. Each needs an IP address in the subnet.

    >>> fleet = {"TargetSpotCapacity": 5, "InstanceTypeConfigs": [{"InstanceType": "m5.xlarge", "WeightedCapacity": 2}]}
    >>> requested_instances({"Instances": {"InstanceFleets": [fleet]}})
    3
    """
    return sum(
        math.ceil(
            (fleet.get("TargetOnDemandCapacity", 0) + fleet.get("TargetSpotCapacity", 0))
            / min(config.get("WeightedCapacity", 1) for config in fleet["InstanceTypeConfigs"])
        )
        for fleet in instance_fleets(request)
    )
