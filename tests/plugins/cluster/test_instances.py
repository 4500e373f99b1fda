import pytest

from local_aws.emr.offerings import instance_type_details
from orchard.cluster.instances import AARCH64, ARCHITECTURES, INSTANCE_TYPES, X86_64, alternatives
from orchard.cluster.request import ClusterSpec, requested_instance_types, run_job_flow_request
from orchard.settings import Settings


@pytest.mark.parametrize("name", INSTANCE_TYPES)
def test_the_vcpus_and_the_architecture_are_those_that_emr_lists(name: str) -> None:
    listed = instance_type_details()[name]
    kind = INSTANCE_TYPES[name]
    assert (kind.vcpus, kind.architecture) == (listed["VCPU"], listed["Architecture"].lower())
    # EMR lists 15.25 GiB for types with 16 GiB, from m6g and c6g on.
    assert kind.memory_gib == pytest.approx(listed["MemoryGB"], rel=0.07)


def test_each_family_has_three_sizes_and_the_graviton_families_are_the_only_ones_of_their_architecture() -> None:
    families = {name.partition(".")[0] for name in INSTANCE_TYPES}
    assert INSTANCE_TYPES.keys() == {f"{family}.{n}xlarge" for family in families for n in ("", 2, 4)}
    graviton = {name.partition(".")[0] for name, kind in INSTANCE_TYPES.items() if kind.architecture == AARCH64}
    assert graviton == {"m7g", "c7g"}
    assert {kind.architecture for kind in INSTANCE_TYPES.values()} == set(ARCHITECTURES)


@pytest.mark.parametrize("name", INSTANCE_TYPES)
def test_a_cluster_never_mixes_architectures(name: str) -> None:
    spec = ClusterSpec(name="orchard", instance_type=name, core_instances=3, tags={})
    requested = requested_instance_types(run_job_flow_request(spec, Settings(bucket="fruits-data", release="1")))
    assert name in requested
    assert {INSTANCE_TYPES[kind].architecture for kind in requested} == {INSTANCE_TYPES[name].architecture}


@pytest.mark.parametrize("name", INSTANCE_TYPES)
def test_the_alternatives_of_a_type_are_all_types_of_its_architecture_and_size(name: str) -> None:
    first, *others = alternatives(name)
    assert first == name
    kind = INSTANCE_TYPES[name]
    size = (kind.architecture, kind.vcpus, kind.memory_gib)
    same = {other for other, it in INSTANCE_TYPES.items() if (it.architecture, it.vcpus, it.memory_gib) == size}
    assert sorted(others) == sorted(same - {name})


@pytest.mark.parametrize(("intel", "graviton"), [("m7i", "m7g"), ("c7i", "c7g")])
def test_a_graviton_type_has_the_size_of_its_intel_counterpart_and_does_not_replace_it(
    intel: str, graviton: str
) -> None:
    for size in ("xlarge", "2xlarge", "4xlarge"):
        first, second = INSTANCE_TYPES[f"{intel}.{size}"], INSTANCE_TYPES[f"{graviton}.{size}"]
        assert (first.architecture, second.architecture) == (X86_64, AARCH64)
        assert (first.vcpus, first.memory_gib) == (second.vcpus, second.memory_gib)
        assert f"{graviton}.{size}" not in alternatives(f"{intel}.{size}")
        assert f"{intel}.{size}" not in alternatives(f"{graviton}.{size}")
