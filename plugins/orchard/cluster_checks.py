"""What preflight asks of EMR, EC2 and IAM about a RunJobFlow request. Each check gives a sentence a fault."""

import logging
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

if TYPE_CHECKING:
    from mypy_boto3_emr import EMRClient
    from mypy_boto3_iam import IAMClient

log = logging.getLogger(__name__)

Request = Mapping[str, Any]


def unknown_release_label(emr: "EMRClient", request: Request) -> list[str]:
    """Whether EMR does not offer the release label."""
    label = request["ReleaseLabel"]
    # One page: a family has some twenty labels, a page up to a hundred.
    family = f"{label.partition('.')[0]}."
    offered = emr.list_release_labels(Filters={"Prefix": family}).get("ReleaseLabels", [])
    if label not in offered:
        region = emr.meta.region_name
        return [
            f"release label {label!r} is not offered in {region}; set ORCHARD_RELEASE_LABEL to one that is: "
            f"{', '.join(offered) or f'none begins with {family}'}"
        ]
    log.info("preflight: EMR has the release label %s", label)
    return []


def unsupported_instance_types(emr: "EMRClient", request: Request) -> list[str]:
    """Which of the instance types the EMR release does not support."""
    label = request["ReleaseLabel"]
    supported: set[str] = set()
    marker: dict[str, Any] = {}
    while True:
        try:
            page = emr.list_supported_instance_types(ReleaseLabel=label, **marker)
        except ClientError as error:
            if error.response["Error"]["Code"] not in ("ValidationException", "InvalidRequestException"):
                raise
            log.info("preflight: instance types skipped, as EMR knows none for this release label: %s", error)
            return []
        supported |= {found["Type"] for found in page.get("SupportedInstanceTypes", [])}
        if not page.get("Marker"):
            break
        marker = {"Marker": page["Marker"]}
    wanted = sorted({kind for fleet in fleets(request) for kind in types(fleet)})
    faults = [
        f"instance type {kind!r} is not supported by {label}; choose another instance_type"
        for kind in wanted
        if kind not in supported
    ]
    if not faults:
        log.info("preflight: %s supports %s", label, ", ".join(wanted))
    return faults


def unusable_subnets(ec2: Any, request: Request) -> list[str]:
    """Whether subnets are missing, of several VPCs, or none has an address for every instance."""
    ids = subnet_ids(request)
    subnets = describe_subnets(ec2, ids)
    missing = sorted(set(ids) - {subnet["SubnetId"] for subnet in subnets})
    faults = [
        f"subnet {subnet!r} is not in {ec2.meta.region_name}; set ORCHARD_SUBNET_IDS to ones that are"
        for subnet in missing
    ]
    if not subnets and not ids:
        faults.append(f"no subnet is configured, and {ec2.meta.region_name} has no default VPC; set ORCHARD_SUBNET_IDS")
    if len({subnet["VpcId"] for subnet in subnets}) > 1:
        places = ", ".join(f"{subnet['SubnetId']} of {subnet['VpcId']}" for subnet in subnets)
        faults.append(f"the subnets are not of one VPC: {places}; set ORCHARD_SUBNET_IDS to subnets of one")
    needed = instances(request)
    free = ", ".join(f"{subnet['SubnetId']} has {subnet['AvailableIpAddressCount']}" for subnet in subnets)
    if subnets and not roomy(subnets, needed):
        faults.append(
            f"no subnet has a free address for each of the {needed} instances: {free}; free some, lower "
            "core_instances, or add a larger subnet to ORCHARD_SUBNET_IDS"
        )
    if not faults:
        log.info("preflight: free addresses for %d instances: %s", needed, free)
    return faults


def types_not_offered(ec2: Any, request: Request) -> list[str]:
    """Whether no zone of the subnets has, for every fleet, one of its instance types."""
    subnets = describe_subnets(ec2, subnet_ids(request))
    # EMR puts the whole cluster into one subnet; where none is large enough, unusable_subnets says so.
    zones = sorted({subnet["AvailabilityZone"] for subnet in roomy(subnets, instances(request)) or subnets})
    wanted = sorted({kind for fleet in fleets(request) for kind in types(fleet)})
    places, location_type = (zones, "availability-zone") if zones else ([ec2.meta.region_name], "region")
    pages = ec2.get_paginator("describe_instance_type_offerings").paginate(
        LocationType=location_type,
        Filters=[{"Name": "instance-type", "Values": wanted}, {"Name": "location", "Values": places}],
    )
    offered = {(found["Location"], found["InstanceType"]) for page in pages for found in page["InstanceTypeOfferings"]}
    lacking = {
        place: [
            " or ".join(types(fleet))
            for fleet in fleets(request)
            if not any((place, kind) in offered for kind in types(fleet))
        ]
        for place in places
    }
    if all(lacking.values()):
        told = ", ".join(f"{place} has no {' and no '.join(dict.fromkeys(kinds))}" for place, kinds in lacking.items())
        return [
            f"EC2 offers the cluster's instance types in no zone of its subnets: {told}; choose another "
            "instance_type, or set ORCHARD_SUBNET_IDS to subnets of other zones"
        ]
    fit = [place for place, kinds in lacking.items() if not kinds]
    log.info("preflight: EC2 offers %s in %s", ", ".join(wanted), ", ".join(fit))
    return []


def missing_service_role(iam: "IAMClient", request: Request) -> list[str]:
    """Whether the cluster's service role does not exist."""
    role = request["ServiceRole"]
    try:
        iam.get_role(RoleName=_name(role))
    except ClientError as error:
        return [f"service role {role!r}: {_absence(error)}; set ORCHARD_SERVICE_ROLE to one that exists"]
    log.info("preflight: service role %s exists", role)
    return []


def missing_instance_profile(iam: "IAMClient", request: Request) -> list[str]:
    """Whether the nodes' instance profile does not exist."""
    profile = request["JobFlowRole"]
    try:
        iam.get_instance_profile(InstanceProfileName=_name(profile))
    except ClientError as error:
        return [f"instance profile {profile!r}: {_absence(error)}; set ORCHARD_INSTANCE_PROFILE to one that exists"]
    log.info("preflight: instance profile %s exists", profile)
    return []


def missing_security_configuration(emr: "EMRClient", request: Request) -> list[str]:
    """Whether the security configuration, if the request names one, does not exist."""
    name = request.get("SecurityConfiguration")
    if name is None:
        log.info("preflight: no security configuration is asked for")
        return []
    try:
        emr.describe_security_configuration(Name=name)
    except ClientError as error:
        if error.response["Error"]["Code"] != "InvalidRequestException":
            raise
        return [
            f"security configuration {name!r}: {error}; set ORCHARD_SECURITY_CONFIGURATION to one that exists, or "
            "leave it out"
        ]
    log.info("preflight: security configuration %s exists", name)
    return []


def fleets(request: Request) -> list[dict[str, Any]]:
    """The instance fleets of a request."""
    found: list[dict[str, Any]] = request["Instances"]["InstanceFleets"]
    return found


def types(fleet: Mapping[str, Any]) -> list[str]:
    """The instance types of a fleet."""
    return [config["InstanceType"] for config in fleet["InstanceTypeConfigs"]]


def subnet_ids(request: Request) -> list[str]:
    """The subnets that a request names."""
    return list(request["Instances"].get("Ec2SubnetIds", []))


def instances(request: Request) -> int:
    """How many instances a request makes at most, each of which takes an address of the subnet.

    >>> of_two = {"InstanceType": "m5.xlarge", "WeightedCapacity": 2}
    >>> instances({"Instances": {"InstanceFleets": [{"TargetSpotCapacity": 5, "InstanceTypeConfigs": [of_two]}]}})
    3
    """
    return sum(
        math.ceil(
            (fleet.get("TargetOnDemandCapacity", 0) + fleet.get("TargetSpotCapacity", 0))
            / min(config.get("WeightedCapacity", 1) for config in fleet["InstanceTypeConfigs"])
        )
        for fleet in fleets(request)
    )


def describe_subnets(ec2: Any, ids: list[str]) -> list[dict[str, Any]]:
    """Those of the subnets that exist; without ids the default ones, of which EMR then takes one."""
    # Filters, as for SubnetIds EC2 answers with an error that names only the first one that is missing.
    wanted = {"Name": "subnet-id", "Values": ids} if ids else {"Name": "default-for-az", "Values": ["true"]}
    pages = ec2.get_paginator("describe_subnets").paginate(Filters=[wanted])
    return [subnet for page in pages for subnet in page["Subnets"]]


def roomy(subnets: Iterable[dict[str, Any]], needed: int) -> list[dict[str, Any]]:
    """The subnets with so many free addresses."""
    return [subnet for subnet in subnets if subnet["AvailableIpAddressCount"] >= needed]


def _name(name_or_arn: str) -> str:
    return name_or_arn.rpartition("/")[2]


def _absence(error: ClientError) -> ClientError:
    """IAM's answer that something does not exist; any other error tells nothing about it and is raised."""
    if error.response["Error"]["Code"] != "NoSuchEntity":
        raise error
    return error
