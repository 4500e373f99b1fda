"""The EC2 instance types that a cluster can use. Their prices are in `orchard.cluster.prices`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# The architectures of the nodes' wheels, in the words of Python's platform.machine(). EC2 calls the second one arm64:
# https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_ProcessorInfo.html
ARCHITECTURES = X86_64, AARCH64 = "x86_64", "aarch64"


@dataclass(frozen=True)
class InstanceType:
    """An EC2 instance type.

    `yarn_memory_mib` is the memory of a node that YARN can allocate, EMR's yarn.nodemanager.resource.memory-mb:
    https://docs.aws.amazon.com/emr/latest/ReleaseGuide/emr-hadoop-task-config.html. `architecture` is that of its
    processors, as Python's platform.machine() names it there.
    """

    vcpus: int
    memory_gib: int
    yarn_memory_mib: int
    architecture: str


# The m7g and c7g types have Graviton processors. All values of YARN's memory are documented.
INSTANCE_TYPES: Mapping[str, InstanceType] = {
    "m5.xlarge": InstanceType(4, 16, 12_288, X86_64),
    "m6i.xlarge": InstanceType(4, 16, 11_712, X86_64),
    "m7i.xlarge": InstanceType(4, 16, 11_712, X86_64),
    "m5.2xlarge": InstanceType(8, 32, 24_576, X86_64),
    "m6i.2xlarge": InstanceType(8, 32, 23_424, X86_64),
    "m7i.2xlarge": InstanceType(8, 32, 23_424, X86_64),
    "m5.4xlarge": InstanceType(16, 64, 57_344, X86_64),
    "m6i.4xlarge": InstanceType(16, 64, 54_272, X86_64),
    "m7i.4xlarge": InstanceType(16, 64, 54_272, X86_64),
    "c6i.xlarge": InstanceType(4, 8, 5_632, X86_64),
    "c7i.xlarge": InstanceType(4, 8, 5_632, X86_64),
    "c6i.2xlarge": InstanceType(8, 16, 11_712, X86_64),
    "c7i.2xlarge": InstanceType(8, 16, 11_712, X86_64),
    "c6i.4xlarge": InstanceType(16, 32, 23_424, X86_64),
    "c7i.4xlarge": InstanceType(16, 32, 23_424, X86_64),
    "m7g.xlarge": InstanceType(4, 16, 11_712, AARCH64),
    "m7g.2xlarge": InstanceType(8, 32, 23_424, AARCH64),
    "m7g.4xlarge": InstanceType(16, 64, 54_272, AARCH64),
    "c7g.xlarge": InstanceType(4, 8, 5_632, AARCH64),
    "c7g.2xlarge": InstanceType(8, 16, 11_712, AARCH64),
    "c7g.4xlarge": InstanceType(16, 32, 23_424, AARCH64),
}


def alternatives(name: str) -> list[str]:
    """Return an instance type, followed by the types that can replace it.

    These have the same architecture, vCPUs and memory, so that the settings of Spark, and the check of the release's
    wheels, hold for every node of a cluster.

    >>> alternatives("m6i.xlarge"), alternatives("c6i.xlarge"), alternatives("m7g.xlarge")
    (['m6i.xlarge', 'm5.xlarge', 'm7i.xlarge'], ['c6i.xlarge', 'c7i.xlarge'], ['m7g.xlarge'])
    """

    def size(kind: InstanceType) -> tuple[str, int, int]:
        return kind.architecture, kind.vcpus, kind.memory_gib

    return [
        name,
        *(
            other
            for other, kind in INSTANCE_TYPES.items()
            if size(kind) == size(INSTANCE_TYPES[name]) and other != name
        ),
    ]


def primary_type(name: str) -> str:
    """Return the instance type of the primary node, for workers of a type: the smallest one of the same family.

    The primary node runs the driver, whose memory does not depend on the size of the workers, and no executor.

    >>> primary_type("c6i.4xlarge")
    'c6i.xlarge'
    """
    family = name.partition(".")[0]
    return min(
        (other for other in INSTANCE_TYPES if other.partition(".")[0] == family),
        key=lambda other: INSTANCE_TYPES[other].vcpus,
    )


def task_slots(name: str, core_instances: int) -> int:
    """Return the number of Spark tasks that run at the same time on this many workers of a type.

    >>> task_slots("m5.xlarge", 3)
    12
    """
    return INSTANCE_TYPES[name].vcpus * core_instances


def smallest_yarn_memory_mib(names: Sequence[str]) -> int:
    """Return the memory that YARN can allocate on a node of each of the types: an executor must fit all of them.

    >>> smallest_yarn_memory_mib(["m5.xlarge", "m6i.xlarge"])
    11712
    """
    return min(INSTANCE_TYPES[name].yarn_memory_mib for name in names)
