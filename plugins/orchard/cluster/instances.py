"""The EC2 instance types that a cluster can use, and their prices."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class InstanceType:
    """An EC2 instance type.

    `yarn_memory_mib` is the memory of a node that YARN can allocate, EMR's yarn.nodemanager.resource.memory-mb:
    https://docs.aws.amazon.com/emr/latest/ReleaseGuide/emr-hadoop-task-config.html. `usd_per_hour` is the On-Demand
    price of EC2 and EMR together in eu-west-1, November 2026.
    """

    vcpus: int
    memory_gib: int
    yarn_memory_mib: int
    usd_per_hour: float


# x86_64 only: a release contains wheels for one architecture. For the c types, the YARN memory of c4.xlarge is a lower
# bound, because c4.xlarge has half a GiB less memory.
INSTANCE_TYPES: Mapping[str, InstanceType] = {
    "m5.xlarge": InstanceType(4, 16, 12_288, 0.262),
    "m6i.xlarge": InstanceType(4, 16, 12_288, 0.262),
    "m7i.xlarge": InstanceType(4, 16, 12_288, 0.2751),
    "c6i.xlarge": InstanceType(4, 8, 5_632, 0.2249),
    "c7i.xlarge": InstanceType(4, 8, 5_632, 0.2361),
}


def alternatives(name: str) -> list[str]:
    """Return an instance type, followed by the types of equal vCPUs and memory that can replace it.

    >>> alternatives("m6i.xlarge"), alternatives("c6i.xlarge")
    (['m6i.xlarge', 'm5.xlarge', 'm7i.xlarge'], ['c6i.xlarge', 'c7i.xlarge'])
    """

    def size(kind: InstanceType) -> tuple[int, int, int]:
        return kind.vcpus, kind.memory_gib, kind.yarn_memory_mib

    return [
        name,
        *(
            other
            for other, kind in INSTANCE_TYPES.items()
            if size(kind) == size(INSTANCE_TYPES[name]) and other != name
        ),
    ]
