"""The memory of a worker: how YARN's share of a node is divided between Spark's processes."""

from dataclasses import dataclass

from orchard.cluster.instances import INSTANCE_TYPES, alternatives, smallest_yarn_memory_mib

# In client mode, YARN's application master only requests executors. It runs next to the executor of one worker. These
# are Spark's default sizes: https://spark.apache.org/docs/3.5.8/running-on-yarn.html
MASTER_HEAP_MIB = 512
MASTER_OVERHEAD_MIB = 384
# YARN rounds the size of a container up.
MASTER_CONTAINER_MIB = 1024
# The driver runs on the primary node. It only schedules tasks and collects counts. A million photographs of 3 MB are
# 24,000 tasks.
DRIVER_HEAP_MIB = 1024
# The JVM of an executor only hands out tasks and passes on their results. The images do not pass through it. What it
# uses of the heap is in docs/performance.md.
HEAP_MIB_PER_TASK_SLOT = 192
# What the JVM of an executor takes outside its heap: metaspace, compiled code, threads, network buffers.
JVM_MIB_OUTSIDE_HEAP = 256

# What a Python worker takes at most, as measured: see docs/performance.md. Without images, it has its libraries and the
# model. All workers of a node can decode small images at the same time, but only one of them a large one
# (orchard_spark.turns). After decoding, a worker packs the object.
WORKER_MIB = 176
SMALL_IMAGE_MIB = 128
BYTES_PER_PIXEL = 16
COPIES_WHILE_DECODING = 3
COPIES_WHILE_PACKING = 7


@dataclass(frozen=True)
class ExecutorMemory:
    """The memory of an executor that has all task slots of a node.

    `overhead_mib` is the memory outside the heap, for the Python workers and for the JVM itself.
    """

    heap_mib: int
    overhead_mib: int

    @property
    def python_mib(self) -> int:
        """The memory that all Python workers of the executor can use together."""
        return self.overhead_mib - JVM_MIB_OUTSIDE_HEAP


def executor_memory(name: str) -> ExecutorMemory:
    """Return the memory of the only executor of a node: all that YARN has, without the application master's container.

    The node may be of any type that can replace the given instance type, so the smallest of them counts.

    >>> executor_memory("m5.xlarge")
    ExecutorMemory(heap_mib=768, overhead_mib=9920)
    """
    heap_mib = HEAP_MIB_PER_TASK_SLOT * INSTANCE_TYPES[name].vcpus
    yarn_mib = smallest_yarn_memory_mib(alternatives(name))
    return ExecutorMemory(heap_mib, yarn_mib - MASTER_CONTAINER_MIB - heap_mib)


def python_mib_needed(name: str, max_bytes: int, max_pixels: int) -> int:
    """Return the memory that the Python workers of a node take at most for objects and images up to these sizes."""
    vcpus = INSTANCE_TYPES[name].vcpus
    packing = WORKER_MIB + SMALL_IMAGE_MIB + _mib(COPIES_WHILE_PACKING * max_bytes)
    decoding = WORKER_MIB + _mib(BYTES_PER_PIXEL * max_pixels) + _mib(COPIES_WHILE_DECODING * max_bytes)
    return (vcpus - 1) * packing + max(packing, decoding)


def _mib(size: int) -> int:
    return -(-size // 1024**2)
