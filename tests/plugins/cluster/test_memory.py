import pytest

from orchard.cluster import memory
from orchard.cluster.instances import INSTANCE_TYPES, alternatives, smallest_yarn_memory_mib
from orchard.cluster.memory import executor_memory, python_mib_needed
from orchard.run.params import DEFAULT_MAX_BYTES
from orchard_spark import images, turns
from orchard_spark.images import DEFAULT_MAX_PIXELS

MIB = 1024**2


@pytest.mark.parametrize("name", INSTANCE_TYPES)
def test_the_containers_of_a_node_have_all_the_memory_of_yarn(name: str) -> None:
    executor = executor_memory(name)
    assert memory.MASTER_HEAP_MIB + memory.MASTER_OVERHEAD_MIB <= memory.MASTER_CONTAINER_MIB
    assert executor.heap_mib + executor.overhead_mib + memory.MASTER_CONTAINER_MIB == (
        smallest_yarn_memory_mib(alternatives(name))
    )


@pytest.mark.parametrize("name", INSTANCE_TYPES)
def test_the_python_workers_have_most_of_the_memory(name: str) -> None:
    executor = executor_memory(name)
    assert executor.python_mib > 2 * (executor.heap_mib + memory.JVM_MIB_OUTSIDE_HEAP)


@pytest.mark.parametrize("name", INSTANCE_TYPES)
def test_the_largest_images_of_the_defaults_fit_into_the_python_workers_of_every_instance_type(name: str) -> None:
    assert python_mib_needed(name, DEFAULT_MAX_BYTES, DEFAULT_MAX_PIXELS) <= executor_memory(name).python_mib


def test_airflow_and_the_steps_agree_on_what_decoding_takes() -> None:
    assert memory.SMALL_IMAGE_MIB * MIB == turns.LARGE_BYTES
    assert images.MOST_BYTES_PER_PIXEL == memory.BYTES_PER_PIXEL


def test_larger_objects_and_images_need_more_memory() -> None:
    kind = "m5.xlarge"
    needed = python_mib_needed(kind, DEFAULT_MAX_BYTES, DEFAULT_MAX_PIXELS)
    # One worker at a time decodes a large image, and meanwhile the others pack large objects.
    assert python_mib_needed(kind, DEFAULT_MAX_BYTES, 2 * DEFAULT_MAX_PIXELS) == pytest.approx(needed + 763, abs=1)
    assert python_mib_needed(kind, DEFAULT_MAX_BYTES + MIB, DEFAULT_MAX_PIXELS) == needed + 3 * 7 + 3
    # Small images need no turn.
    assert python_mib_needed(kind, MIB, 1) == python_mib_needed(kind, MIB, 100_000)
