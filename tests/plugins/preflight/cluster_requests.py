"""RunJobFlow requests for the checks to check."""

from dataclasses import replace
from typing import Any

from orchard.cluster.request import ClusterSpec, run_job_flow_request
from orchard.settings import Settings

SETTINGS = Settings(bucket="fruits-data", release="1")


def cluster_request(
    *subnets: str, workers: int = 2, spot: int = 0, hold_minutes: int = 0, **settings: Any
) -> dict[str, Any]:
    """Return the request of a cluster of m5.xlarge in the given subnets, with other settings if given.

    It has `workers` core instances, and `spot` task instances.
    """
    size: dict[str, Any] = {"core_instances": workers, "task_instances": spot, "hold_minutes": hold_minutes}
    spec = ClusterSpec(name="orchard", instance_type="m5.xlarge", tags={}, **size)
    return run_job_flow_request(spec, replace(SETTINGS, subnet_ids=subnets, **settings))


def with_instance_types(request: dict[str, Any], *instance_types: str) -> dict[str, Any]:
    """Return the request with other instance types in every fleet."""
    for fleet in request["Instances"]["InstanceFleets"]:
        fleet["InstanceTypeConfigs"] = [{"InstanceType": name, "WeightedCapacity": 1} for name in instance_types]
    return request
