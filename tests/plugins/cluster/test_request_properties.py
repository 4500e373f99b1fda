"""Every request that sizing can make is valid for EMR's model and rules, and YARN accepts its containers everywhere."""

from collections.abc import Iterator
from typing import Any

import botocore.session
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moto.core import DEFAULT_ACCOUNT_ID
from moto.ec2.models import ec2_backends
from moto.iam.models import iam_backends

from local_aws.emr import yarn
from local_aws.emr.checks import check_cluster, check_parameters
from local_aws.emr.errors import EmrError
from local_aws.emr.life import Timings
from local_aws.emr.service import Emr
from orchard.cluster.instances import INSTANCE_TYPES
from orchard.cluster.prices import read_prices
from orchard.cluster.request import (
    ClusterSpec,
    instance_fleets,
    instance_types,
    keeps_notebooks,
    requested_instances,
    run_job_flow_request,
)
from orchard.cluster.sizing import Speed, Work, Workers, estimate, with_spot, workers_needed
from orchard.run.params import MAX_CORE_INSTANCES, MAX_HOLD_MINUTES
from orchard.settings import Settings
from orchard.storage import split_uri

REGION = "eu-west-1"
ROLE = "request-properties"
MODEL = botocore.session.get_session().get_service_model("emr").operation_model("RunJobFlow")
COUNTS = st.integers(min_value=0, max_value=10**9)
# What a run of the DAG and its settings can choose.
SIZES = st.one_of(
    st.builds(Workers, st.integers(min_value=1, max_value=MAX_CORE_INSTANCES)),
    st.tuples(COUNTS, COUNTS, st.floats(min_value=0.01, max_value=10_000)),
)


@pytest.fixture(scope="module")
def subnets() -> tuple[str, ...]:
    return tuple(next(iter(zone)) for zone in ec2_backends[DEFAULT_ACCOUNT_ID][REGION].subnets.values())


@pytest.fixture(scope="module")
def emr() -> Iterator[Emr]:
    """An EMR without clusters, with the roles and the security configuration of the requests."""
    iam = iam_backends[DEFAULT_ACCOUNT_ID]["aws"]
    iam.create_role(ROLE, "{}", "/", None, "", [], "3600")
    iam.create_instance_profile(ROLE, "/", [])
    service = Emr(runner=None, timings=Timings(), state=None)  # type: ignore[arg-type]  # it starts no cluster
    service.security_configurations[REGION, ROLE] = {}
    yield service
    iam.delete_instance_profile(ROLE)
    iam.delete_role(ROLE)


def check(emr: Emr, request: dict[str, Any]) -> None:
    """Check a request as the local EMR does before it creates a cluster."""
    check_parameters(MODEL, request)
    check_cluster(emr, request, REGION)


def properties(request: dict[str, Any], classification: str) -> dict[str, str]:
    found = [item["Properties"] for item in request["Configurations"] if item["Classification"] == classification]
    return dict(found[0]) if found else {}


def sized(size: Any, instance_type: str) -> Workers:
    if isinstance(size, Workers):
        return size
    objects, kept, target = size
    work = Work(objects, objects + kept)
    workers = with_spot(workers_needed(work, instance_type, target, MAX_CORE_INSTANCES, Speed()))
    found = estimate(work, instance_type, workers, read_prices(), Speed())
    assert found.usd_with_spot[0] <= found.usd_with_spot[1] <= found.usd, "On-Demand is the most that it costs"
    return workers


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=SIZES,
    instance_type=st.sampled_from(list(INSTANCE_TYPES)),
    in_subnets=st.integers(min_value=0, max_value=3),
    secured=st.booleans(),
    idle_minutes=st.integers(min_value=1, max_value=7 * 24 * 60),
    hold_minutes=st.integers(min_value=0, max_value=MAX_HOLD_MINUTES),
    tags=st.dictionaries(st.sampled_from("abc"), st.text(st.characters(exclude_categories=["C"]), max_size=256)),
)
def test_every_request_that_sizing_can_make_is_accepted(
    emr: Emr,
    subnets: tuple[str, ...],
    size: Any,
    instance_type: str,
    in_subnets: int,
    secured: bool,
    idle_minutes: int,
    hold_minutes: int,
    tags: dict[str, str],
) -> None:
    workers = sized(size, instance_type)
    assert 1 <= workers.total <= MAX_CORE_INSTANCES
    deployment = Settings(
        bucket="fruits-data",
        release="0123456789ab",
        service_role=ROLE,
        instance_profile=ROLE,
        subnet_ids=subnets[:in_subnets],
        security_configuration=ROLE if secured else "",
        idle_timeout_minutes=idle_minutes,
    )
    spec = ClusterSpec(
        name="orchard-fruits",
        instance_type=instance_type,
        core_instances=workers.core,
        task_instances=workers.task,
        tags=tags,
        hold_minutes=hold_minutes,
    )
    request = run_job_flow_request(spec, deployment)
    check(emr, request)
    assert split_uri(request["LogUri"])
    assert requested_instances(request) == 1 + workers.total
    defaults, yarn_site = properties(request, "spark-defaults"), properties(request, "yarn-site")
    assert int(defaults["spark.default.parallelism"]) == workers.total * INSTANCE_TYPES[instance_type].vcpus
    for fleet in instance_fleets(request)[1:]:
        for name in instance_types(fleet):
            check_containers(defaults, yarn_site, name)
    on_spot = [fleet["InstanceFleetType"] for fleet in instance_fleets(request) if fleet.get("TargetSpotCapacity")]
    assert on_spot == (["TASK"] if workers.task else [])
    assert keeps_notebooks(request) == (hold_minutes > 0)
    idle_seconds = request["AutoTerminationPolicy"]["IdleTimeout"]
    assert idle_seconds == min(60 * (idle_minutes + hold_minutes), 7 * 24 * 60 * 60)
    assert idle_seconds >= 60 * hold_minutes, "otherwise idleness would end a hold"
    assert ("yarn.node-labels.am.default-node-label-expression" in yarn_site) == bool(workers.task)


def check_containers(defaults: dict[str, str], yarn_site: dict[str, str], name: str) -> None:
    """Check that YARN accepts the containers on a node of a type, and that they fit on it together."""
    memory_mb, vcores = yarn.NODES[name]
    limits = yarn.cluster_limits([name], yarn_site)
    assert (limits.memory_mb, limits.vcores) == (memory_mb, vcores)
    yarn.check(defaults, limits, is_python=True)
    mib = [int(defaults[f"spark.{key}"].removesuffix("m")) for key in ("executor.memory", "executor.memoryOverhead")]
    master = [int(defaults[f"spark.yarn.am.{key}"].removesuffix("m")) for key in ("memory", "memoryOverhead")]
    # YARN rounds each container up.
    assert sum(mib) + 1024 <= memory_mb
    assert sum(master) <= 1024


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda task: task.update(InstanceFleetType="WORKER"), "InstanceFleetType"),
        (lambda task: task.update(Name="n" * 257), "a length of at most 256"),
        (lambda task: task.update(Name="a\0b"), "must match"),
        (lambda task: task.update(TargetSpotCapacity=-1), "Invalid value for parameter"),
        (lambda task: task["LaunchSpecifications"]["SpotSpecification"].update(TimeoutAction="RETRY"), "TimeoutAction"),
        (
            lambda task: task["LaunchSpecifications"]["SpotSpecification"].update(TimeoutDurationMinutes=4),
            "TimeoutDurationMinutes must be between 5 and 1440, not 4",
        ),
        (
            lambda task: task["LaunchSpecifications"]["SpotSpecification"].update(AllocationStrategy="cheapest"),
            "AllocationStrategy",
        ),
        (lambda task: task.update(InstanceFleetType="CORE"), "one instance fleet of each type"),
        (lambda task: task.update(InstanceTypeConfigs=task["InstanceTypeConfigs"] * 11), "can have 30 instance types"),
    ],
)
def test_the_checks_of_the_property_reject_what_emr_rejects(emr: Emr, change: Any, message: str) -> None:
    spec = ClusterSpec(name="orchard", instance_type="m5.xlarge", core_instances=1, task_instances=3, tags={})
    deployment = Settings(bucket="fruits-data", release="1", service_role=ROLE, instance_profile=ROLE)
    request = run_job_flow_request(spec, deployment)
    check(emr, request)
    change(instance_fleets(request)[2])
    with pytest.raises(EmrError, match=message):
        check(emr, request)


def test_a_type_whose_executor_does_not_fit_is_refused() -> None:
    request = run_job_flow_request(
        ClusterSpec(name="orchard", instance_type="m5.xlarge", core_instances=1, task_instances=3, tags={}),
        Settings(bucket="fruits-data", release="1"),
    )
    with pytest.raises(yarn.Refused, match="Required executor memory"):
        check_containers(properties(request, "spark-defaults"), {}, "c6i.xlarge")
