from collections.abc import Iterator
from typing import Any

import boto3
import pytest

from orchard.preflight.ec2 import types_not_offered, unusable_subnets
from tests.plugins.preflight.cluster_requests import cluster_request, with_instance_types

# moto has AWS's own tables: two of the region's three zones offer this type.
TYPE_IN_ZONES_A_AND_B = "c8a.xlarge"


@pytest.fixture(scope="module")
def vpc(ec2: Any) -> Iterator[str]:
    vpc_id = ec2.create_vpc(CidrBlock="10.77.0.0/16")["Vpc"]["VpcId"]
    yield vpc_id
    for subnet in ec2.describe_subnets(Filters=[{"Name": "vpc-id", "Values": [vpc_id]}])["Subnets"]:
        ec2.delete_subnet(SubnetId=subnet["SubnetId"])
    ec2.delete_vpc(VpcId=vpc_id)


def create_subnet(ec2: Any, vpc: str, block: str, zone: str = "eu-west-1a") -> str:
    subnet: dict[str, str] = ec2.create_subnet(VpcId=vpc, CidrBlock=block, AvailabilityZone=zone)["Subnet"]
    return subnet["SubnetId"]


@pytest.fixture(scope="module")
def subnet_a(ec2: Any, vpc: str) -> str:
    """A subnet with 251 free addresses."""
    return create_subnet(ec2, vpc, "10.77.1.0/24")


@pytest.fixture(scope="module")
def subnet_c(ec2: Any, vpc: str) -> str:
    """A subnet with 251 free addresses in another zone."""
    return create_subnet(ec2, vpc, "10.77.2.0/24", "eu-west-1c")


@pytest.fixture(scope="module")
def small_subnet(ec2: Any, vpc: str) -> str:
    """A subnet with 11 free addresses: AWS reserves five of the sixteen."""
    return create_subnet(ec2, vpc, "10.77.3.0/28")


@pytest.fixture(scope="module")
def subnet_of_another_vpc(ec2: Any) -> Iterator[str]:
    vpc_id = ec2.create_vpc(CidrBlock="10.78.0.0/16")["Vpc"]["VpcId"]
    subnet = create_subnet(ec2, vpc_id, "10.78.1.0/24")
    yield subnet
    ec2.delete_subnet(SubnetId=subnet)
    ec2.delete_vpc(VpcId=vpc_id)


def test_the_free_addresses_of_the_subnets_are_logged(
    ec2: Any, subnet_a: str, small_subnet: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "orchard")
    # One subnet that is large enough is sufficient, because EMR selects one of them.
    assert unusable_subnets(ec2, cluster_request(subnet_a, small_subnet, workers=20)) == []
    assert "preflight: free addresses for 21 instances:" in caplog.text
    assert f"{subnet_a} has 251" in caplog.text


def test_a_subnet_without_one_address_per_instance_is_named_with_its_free_addresses(
    ec2: Any, small_subnet: str
) -> None:
    assert unusable_subnets(ec2, cluster_request(small_subnet, workers=10)) == []
    assert unusable_subnets(ec2, cluster_request(small_subnet, workers=11)) == [
        f"no subnet has 12 free addresses, one per instance: {small_subnet} has 11; free some, lower core_instances, "
        "or add a larger subnet to ORCHARD_SUBNET_IDS"
    ]


def test_each_spot_instance_needs_a_free_address(ec2: Any, small_subnet: str) -> None:
    assert unusable_subnets(ec2, cluster_request(small_subnet, workers=1, spot=9)) == []
    assert unusable_subnets(ec2, cluster_request(small_subnet, workers=1, spot=10)) == [
        f"no subnet has 12 free addresses, one per instance: {small_subnet} has 11; free some, use a longer "
        "target_minutes, or add a larger subnet to ORCHARD_SUBNET_IDS"
    ]


def test_the_zone_of_a_subnet_must_offer_a_type_of_the_spot_fleet(ec2: Any, subnet_c: str) -> None:
    request = cluster_request(subnet_c, workers=1, spot=3)
    assert types_not_offered(ec2, request) == []
    request["Instances"]["InstanceFleets"][2]["InstanceTypeConfigs"] = [{"InstanceType": TYPE_IN_ZONES_A_AND_B}]
    (fault,) = types_not_offered(ec2, request)
    assert "eu-west-1c has no c8a.xlarge;" in fault


def test_each_missing_subnet_is_named(ec2: Any, subnet_a: str) -> None:
    assert unusable_subnets(ec2, cluster_request("subnet-1", subnet_a, "subnet-2")) == [
        "subnet 'subnet-1' is not in eu-west-1; set ORCHARD_SUBNET_IDS to subnets that are",
        "subnet 'subnet-2' is not in eu-west-1; set ORCHARD_SUBNET_IDS to subnets that are",
    ]


def test_subnets_of_two_vpcs_are_named_with_their_vpcs(
    ec2: Any, vpc: str, subnet_a: str, subnet_of_another_vpc: str
) -> None:
    (fault,) = unusable_subnets(ec2, cluster_request(subnet_a, subnet_of_another_vpc))
    assert "the subnets belong to several VPCs: " in fault
    assert f"{subnet_a} in {vpc}" in fault
    assert f"{subnet_of_another_vpc} in vpc-" in fault


def test_without_configured_subnets_the_default_subnets_are_checked(ec2: Any) -> None:
    assert unusable_subnets(ec2, cluster_request()) == []
    assert types_not_offered(ec2, cluster_request()) == []


def test_a_region_without_a_default_vpc_is_a_fault_if_no_subnet_is_configured(aws_url: str) -> None:
    tokyo: Any = boto3.client("ec2", endpoint_url=aws_url, region_name="ap-northeast-1")  # no other test uses it
    for subnet in tokyo.describe_subnets()["Subnets"]:
        tokyo.delete_subnet(SubnetId=subnet["SubnetId"])
    assert unusable_subnets(tokyo, cluster_request()) == [
        "no subnet is configured, and ap-northeast-1 has no default VPC; set ORCHARD_SUBNET_IDS"
    ]
    assert types_not_offered(tokyo, cluster_request()) == [], "the region offers the types"
    (fault,) = types_not_offered(tokyo, with_instance_types(cluster_request(), "m9.huge"))
    assert "ap-northeast-1 has no m9.huge" in fault


def test_an_instance_type_that_the_zone_of_the_only_subnet_does_not_offer_is_a_fault(
    ec2: Any, subnet_a: str, subnet_c: str
) -> None:
    assert types_not_offered(ec2, with_instance_types(cluster_request(subnet_a), TYPE_IN_ZONES_A_AND_B)) == []
    assert types_not_offered(ec2, with_instance_types(cluster_request(subnet_a, subnet_c), TYPE_IN_ZONES_A_AND_B)) == []
    assert types_not_offered(ec2, with_instance_types(cluster_request(subnet_c), TYPE_IN_ZONES_A_AND_B)) == [
        "EC2 does not offer the cluster's instance types in any zone of its subnets: eu-west-1c has no c8a.xlarge; "
        "choose another instance_type, or set ORCHARD_SUBNET_IDS to subnets in other zones"
    ]


def test_a_fleet_with_several_types_needs_only_one_of_them(ec2: Any, subnet_c: str) -> None:
    request = cluster_request(subnet_c)
    assert types_not_offered(ec2, with_instance_types(request, TYPE_IN_ZONES_A_AND_B, "m5.xlarge")) == []
    (fault,) = types_not_offered(ec2, with_instance_types(request, TYPE_IN_ZONES_A_AND_B, "m9.huge"))
    assert "eu-west-1c has no c8a.xlarge or m9.huge" in fault


def test_the_log_names_only_the_types_that_each_zone_offers(
    ec2: Any, subnet_a: str, subnet_c: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "orchard")
    request = with_instance_types(cluster_request(subnet_a, subnet_c), "m5.xlarge", TYPE_IN_ZONES_A_AND_B)
    assert types_not_offered(ec2, request) == []
    assert "preflight: EC2 offers c8a.xlarge, m5.xlarge in eu-west-1a" in caplog.text
    assert "preflight: EC2 offers m5.xlarge in eu-west-1c" in caplog.text


def test_a_zone_is_ignored_if_its_subnet_has_too_few_addresses(ec2: Any, small_subnet: str, subnet_c: str) -> None:
    request = with_instance_types(cluster_request(small_subnet, subnet_c, workers=20), TYPE_IN_ZONES_A_AND_B)
    assert unusable_subnets(ec2, request) == []
    (fault,) = types_not_offered(ec2, request)
    assert "eu-west-1c has no c8a.xlarge" in fault
