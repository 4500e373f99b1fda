"""Check a RunJobFlow request against EC2's subnets and instance types. Each check returns one sentence per fault."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from orchard.cluster.request import (
    instance_fleets,
    instance_types,
    requested_instance_types,
    requested_instances,
    spot_instances,
    subnet_ids,
)

log = logging.getLogger(__name__)

Request = Mapping[str, Any]


def unusable_subnets(ec2: Any, request: Request) -> list[str]:
    """Check that the subnets exist and belong to one VPC, and that one of them has a free address per instance."""
    ids = subnet_ids(request)
    subnets = describe_subnets(ec2, ids)
    missing = sorted(set(ids) - {subnet["SubnetId"] for subnet in subnets})
    faults = [
        f"subnet {subnet!r} is not in {ec2.meta.region_name}; set ORCHARD_SUBNET_IDS to subnets that are"
        for subnet in missing
    ]
    if not subnets and not ids:
        faults.append(f"no subnet is configured, and {ec2.meta.region_name} has no default VPC; set ORCHARD_SUBNET_IDS")
    if len({subnet["VpcId"] for subnet in subnets}) > 1:
        places = ", ".join(f"{subnet['SubnetId']} in {subnet['VpcId']}" for subnet in subnets)
        faults.append(f"the subnets belong to several VPCs: {places}; set ORCHARD_SUBNET_IDS to subnets of one VPC")
    needed = requested_instances(request)
    free = ", ".join(f"{subnet['SubnetId']} has {subnet['AvailableIpAddressCount']}" for subnet in subnets)
    if subnets and not with_free_addresses(subnets, needed):
        fewer = "use a longer target_minutes" if spot_instances(request) else "lower core_instances"
        faults.append(
            f"no subnet has {needed} free addresses, one per instance: {free}; free some, {fewer}, or add a larger "
            "subnet to ORCHARD_SUBNET_IDS"
        )
    if not faults:
        log.info("preflight: free addresses for %d instances: %s", needed, free)
    return faults


def types_not_offered(ec2: Any, request: Request) -> list[str]:
    """Check that one availability zone of the subnets offers an instance type of every fleet."""
    subnets = describe_subnets(ec2, subnet_ids(request))
    # EMR places the whole cluster in one subnet. If none is large enough, unusable_subnets reports it.
    candidates = with_free_addresses(subnets, requested_instances(request)) or subnets
    zones = sorted({subnet["AvailabilityZone"] for subnet in candidates})
    requested = requested_instance_types(request)
    places, location_type = (zones, "availability-zone") if zones else ([ec2.meta.region_name], "region")
    pages = ec2.get_paginator("describe_instance_type_offerings").paginate(
        LocationType=location_type,
        Filters=[{"Name": "instance-type", "Values": requested}, {"Name": "location", "Values": places}],
    )
    offered = {(found["Location"], found["InstanceType"]) for page in pages for found in page["InstanceTypeOfferings"]}
    lacking = {
        place: [
            " or ".join(instance_types(fleet))
            for fleet in instance_fleets(request)
            if not any((place, kind) in offered for kind in instance_types(fleet))
        ]
        for place in places
    }
    if all(lacking.values()):
        gaps = ", ".join(f"{place} has no {' and no '.join(dict.fromkeys(kinds))}" for place, kinds in lacking.items())
        return [
            f"EC2 does not offer the cluster's instance types in any zone of its subnets: {gaps}; choose another "
            "instance_type, or set ORCHARD_SUBNET_IDS to subnets in other zones"
        ]
    for place in (place for place, kinds in lacking.items() if not kinds):
        found = [kind for kind in requested if (place, kind) in offered]
        log.info("preflight: EC2 offers %s in %s", ", ".join(found), place)
    return []


def describe_subnets(ec2: Any, ids: list[str]) -> list[dict[str, Any]]:
    """Return the given subnets that exist. Without ids, return the default subnets, of which EMR uses one."""
    # Filters instead of SubnetIds: if subnets are missing, the error for SubnetIds names only the first.
    criterion = {"Name": "subnet-id", "Values": ids} if ids else {"Name": "default-for-az", "Values": ["true"]}
    pages = ec2.get_paginator("describe_subnets").paginate(Filters=[criterion])
    return [subnet for page in pages for subnet in page["Subnets"]]


def with_free_addresses(subnets: Iterable[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Return the subnets that have at least `count` free addresses."""
    return [subnet for subnet in subnets if subnet["AvailableIpAddressCount"] >= count]
