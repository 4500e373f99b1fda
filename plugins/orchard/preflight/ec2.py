"""Check a RunJobFlow request against EC2's subnets, security groups and instance types.

Each check returns one sentence per fault.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from orchard.cluster.request import (
    instance_fleets,
    instance_types,
    requested_instance_types,
    requested_instances,
    security_groups,
    spot_instances,
    subnet_ids,
)
from orchard.cluster.tags import MANAGED_POLICIES_TAG
from orchard.preflight.iam import POLICY_V2

log = logging.getLogger(__name__)

Request = Mapping[str, Any]

# The security groups that EMR uses, or creates, if a request names none: their names before and after EMR renamed its
# nodes. https://docs.aws.amazon.com/emr/latest/ManagementGuide/emr-man-sec-groups.html
PUBLIC_GROUPS = (
    ("ElasticMapReduce-master", "ElasticMapReduce-primary"),
    ("ElasticMapReduce-slave", "ElasticMapReduce-core"),
)
PRIVATE_GROUPS = (
    ("ElasticMapReduce-Master-Private", "ElasticMapReduce-Primary-Private"),
    ("ElasticMapReduce-Slave-Private", "ElasticMapReduce-Core-Private"),
    ("ElasticMapReduce-ServiceAccess",),
)
# The primary node connects to EMR's network interface on this port.
SERVICE_PORT = 9443


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


def isolated_subnets(ec2: Any, request: Request) -> list[str]:
    """Check that each subnet has a route out of its VPC, as EMR does. Nodes without one cannot read S3.

    EMR's message is in https://github.com/h2oai/h2o-3/pull/3844.
    """
    faults = []
    for subnet, table in _route_tables(ec2, _configured_subnets(ec2, request)):
        # A route to a deleted NAT gateway or endpoint is a black hole.
        if any(route.get("GatewayId") != "local" and route.get("State") == "active" for route in table["Routes"]):
            continue
        faults.append(
            f"subnet {subnet['SubnetId']!r} has no route out of {subnet['VpcId']}, so that nodes cannot read S3; add a "
            f"gateway endpoint for S3, a NAT gateway or an internet gateway to its route table {table['RouteTableId']}"
        )
    return faults


def unusable_security_groups(ec2: Any, request: Request) -> list[str]:
    """Check that the cluster's own security groups exist, belong to the VPC of the subnets, and are complete.

    https://docs.aws.amazon.com/emr/latest/ManagementGuide/emr-man-sec-groups.html. EMR's messages are in
    https://github.com/hashicorp/terraform/issues/9518 and https://github.com/hashicorp/terraform/issues/25673.
    """
    wanted = security_groups(request)
    if not wanted:
        log.info("preflight: no security groups are set: EMR uses its default groups")
        return []
    found = {group["GroupId"]: group for group in _describe_groups(ec2, "group-id", list(wanted.values()))}
    subnets = describe_subnets(ec2, subnet_ids(request))
    vpcs = sorted({subnet["VpcId"] for subnet in subnets})
    faults = []
    for name, group in wanted.items():
        setting = f"set ORCHARD_{name.upper()} to a group of {vpcs[0] if vpcs else 'the VPC of the subnets'}"
        if group not in found:
            faults.append(f"security group {group!r} is not in {ec2.meta.region_name}; {setting}")
        elif vpcs and found[group]["VpcId"] not in vpcs:
            faults.append(
                f"security group {group!r} is in {found[group]['VpcId']}, but the subnets are in {vpcs[0]}; {setting}"
            )
    service, primary = wanted.get("service_security_group"), wanted["primary_security_group"]
    private = [subnet["SubnetId"] for subnet in _private_subnets(ec2, subnets)]
    if private and service is None:
        faults.append(
            f"subnet {private[0]!r} is private, and the cluster has own security groups; set "
            "ORCHARD_SERVICE_SECURITY_GROUP to a third one, through which EMR reaches the nodes"
        )
    if private and service in found and not _admits(found[service], primary):
        faults.append(
            f"security group {service!r} does not admit {primary!r} on port {SERVICE_PORT}; run `aws ec2 "
            f"authorize-security-group-ingress --region {ec2.meta.region_name} --group-id {service} --protocol tcp "
            f"--port {SERVICE_PORT} --source-group {primary}`"
        )
    if not faults:
        log.info("preflight: security groups %s exist", ", ".join(wanted.values()))
    return faults


def untagged_network(ec2: Any, request: Request) -> list[str]:
    """Check that the cluster's subnets and security groups have the tag that AmazonEMRServicePolicy_v2 asks for.

    EMR launches the cluster in one of the subnets, without any in one of the default subnets. Which one it chooses
    depends on EC2's capacity, so that all of them need the tag. If the cluster has no own security groups, EMR uses its
    default ones, which need the tag, too. To create those that do not exist, the VPC needs it:
    https://docs.aws.amazon.com/emr/latest/ManagementGuide/emr-managed-iam-policies.html
    """
    subnets = describe_subnets(ec2, subnet_ids(request))
    own = list(security_groups(request).values())
    groups, vpcs = (_describe_groups(ec2, "group-id", own), []) if own else _default_groups(ec2, subnets)
    choice = "or set ORCHARD_SUBNET_IDS to subnets that have it"
    setting = "set ORCHARD_PRIMARY_SECURITY_GROUP and ORCHARD_CORE_SECURITY_GROUP"
    checked = [
        ("subnet" if subnet_ids(request) else "default subnet", subnets, "SubnetId", choice),
        ("security group", groups, "GroupId", f"or {setting} to groups that have it"),
        ("VPC", vpcs, "VpcId", f"or {setting}, so that EMR need not create its default groups in it"),
    ]
    faults = []
    for kind, resources, key, alternative in checked:
        missing = [resource[key] for resource in resources if not _is_tagged(resource)]
        if missing:
            lack = f"{kind}s {', '.join(missing)} lack" if len(missing) > 1 else f"{kind} {missing[0]} lacks"
            faults.append(
                f"{lack} the tag {MANAGED_POLICIES_TAG}=true, which {POLICY_V2} needs; run `aws ec2 create-tags "
                f"--region {ec2.meta.region_name} --resources {' '.join(missing)} --tags "
                f"Key={MANAGED_POLICIES_TAG},Value=true`, {alternative}"
            )
    if not faults:
        log.info("preflight: %d subnets, %d security groups and %d VPCs are tagged", *map(len, (subnets, groups, vpcs)))
    return faults


def _default_groups(ec2: Any, subnets: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return EMR's default security groups for these subnets that exist, and the VPCs in which EMR must create some."""
    groups: list[dict[str, Any]] = []
    lacking = []
    private = {subnet["SubnetId"] for subnet in _private_subnets(ec2, subnets)}
    for vpc in sorted({subnet["VpcId"] for subnet in subnets}):
        inside = {subnet["SubnetId"] for subnet in subnets if subnet["VpcId"] == vpc}
        needed = (*(PRIVATE_GROUPS if inside & private else ()), *(PUBLIC_GROUPS if inside - private else ()))
        names = [name for alternatives in needed for name in alternatives]
        found = [group for group in _describe_groups(ec2, "group-name", names) if group["VpcId"] == vpc]
        groups += found
        present = {group["GroupName"] for group in found}
        if not all(present.intersection(alternatives) for alternatives in needed):
            lacking.append(vpc)
    vpcs = ec2.describe_vpcs(VpcIds=lacking)["Vpcs"] if lacking else []
    return groups, vpcs


def _describe_groups(ec2: Any, criterion: str, values: list[str]) -> list[dict[str, Any]]:
    filters = [{"Name": criterion, "Values": list(dict.fromkeys(values))}]
    pages = ec2.get_paginator("describe_security_groups").paginate(Filters=filters)
    return [group for page in pages for group in page["SecurityGroups"]]


def _admits(group: Mapping[str, Any], source: str) -> bool:
    """Return whether a security group has an inbound rule for another group on EMR's port."""
    return any(
        any(pair.get("GroupId") == source for pair in rule.get("UserIdGroupPairs", []))
        and rule["IpProtocol"] in ("tcp", "-1")
        and rule.get("FromPort", 0) <= SERVICE_PORT <= rule.get("ToPort", SERVICE_PORT)
        for rule in group["IpPermissions"]
    )


def _is_tagged(resource: Mapping[str, Any]) -> bool:
    """Return whether a resource has the tag. IAM compares the names of tags in conditions without case."""
    tags = {tag["Key"].lower(): tag["Value"] for tag in resource.get("Tags", [])}
    return tags.get(MANAGED_POLICIES_TAG) == "true"


def _configured_subnets(ec2: Any, request: Request) -> list[dict[str, Any]]:
    ids = subnet_ids(request)
    return describe_subnets(ec2, ids) if ids else []


def _private_subnets(ec2: Any, subnets: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the subnets without a route to an internet gateway."""
    return [
        subnet
        for subnet, table in _route_tables(ec2, subnets)
        if not any(route.get("GatewayId", "").startswith("igw-") for route in table["Routes"])
    ]


def _route_tables(ec2: Any, subnets: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the subnets, each with its route table. Default subnets, which are public, are left out."""
    own = [subnet for subnet in subnets if not subnet["DefaultForAz"]]
    vpcs = sorted({subnet["VpcId"] for subnet in own})
    if not vpcs:
        return []
    pages = ec2.get_paginator("describe_route_tables").paginate(Filters=[{"Name": "vpc-id", "Values": vpcs}])
    by_subnet, main = {}, {}
    for table in (table for page in pages for table in page["RouteTables"]):
        for association in table["Associations"]:
            if association.get("Main"):
                main[table["VpcId"]] = table
            elif "SubnetId" in association:
                by_subnet[association["SubnetId"]] = table
    return [(subnet, by_subnet.get(subnet["SubnetId"]) or main[subnet["VpcId"]]) for subnet in own]


def describe_subnets(ec2: Any, ids: list[str]) -> list[dict[str, Any]]:
    """Return the given subnets that exist. Without ids, return the default subnets, of which EMR uses one."""
    # Filters instead of SubnetIds: if subnets are missing, the error for SubnetIds names only the first.
    criterion = {"Name": "subnet-id", "Values": ids} if ids else {"Name": "default-for-az", "Values": ["true"]}
    pages = ec2.get_paginator("describe_subnets").paginate(Filters=[criterion])
    return [subnet for page in pages for subnet in page["Subnets"]]


def with_free_addresses(subnets: Iterable[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Return the subnets that have at least `count` free addresses."""
    return [subnet for subnet in subnets if subnet["AvailableIpAddressCount"] >= count]
