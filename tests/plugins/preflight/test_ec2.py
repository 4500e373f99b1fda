import uuid
from collections.abc import Iterator
from typing import Any

import boto3
import pytest

from orchard.cluster.tags import MANAGED_POLICIES_TAG
from orchard.preflight.checks import Clients
from orchard.preflight.ec2 import (
    PRIVATE_GROUPS,
    PUBLIC_GROUPS,
    isolated_subnets,
    types_not_offered,
    untagged_network,
    unusable_security_groups,
    unusable_subnets,
)
from sandbox import aws
from tests.plugins.answers import answering
from tests.plugins.preflight.accounts import TAGS, Account, create_account
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


@pytest.fixture(scope="module")
def complete(aws_url: str) -> Account:
    regional: Any = {name: aws.client(name, aws_url) for name in ("s3", "iam", "ec2", "emr", "glue", "sns")}
    return create_account(Clients(**regional))


@pytest.fixture
def account(complete: Account) -> Iterator[Account]:
    """A VPC with a public subnet. What a test removes is restored."""
    yield complete
    complete.tag(complete.vpc, complete.subnet)


@pytest.fixture
def private(account: Account) -> Iterator[Account]:
    """The same VPC, whose subnet has only a route to an S3 endpoint."""
    account.remove_default_route()
    endpoint = account.add_s3_endpoint()
    yield account
    account.clients.ec2.delete_vpc_endpoints(VpcEndpointIds=[endpoint])
    account.clients.ec2.create_route(
        RouteTableId=account.route_table, DestinationCidrBlock="0.0.0.0/0", GatewayId=account.gateway
    )


def own_groups(account: Account) -> dict[str, Any]:
    """Create security groups for the primary node and the others, and return them by the names of their settings."""
    return {
        name: account.group(f"{name}-{uuid.uuid4().hex[:8]}")
        for name in ("primary_security_group", "core_security_group")
    }


def command_for(*resources: str) -> str:
    return (
        f"run `aws ec2 create-tags --region eu-west-1 --resources {' '.join(resources)} --tags "
        "Key=for-use-with-amazon-emr-managed-policies,Value=true`"
    )


def test_a_tagged_network_passes(ec2: Any, account: Account, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "orchard")
    assert untagged_network(ec2, cluster_request(account.subnet)) == []
    own = [record.getMessage() for record in caplog.records if record.name.startswith("orchard.")]
    assert own == ["preflight: 1 subnets, 0 security groups and 1 VPCs are tagged"]


def test_each_subnet_without_the_tag_is_named_with_the_command(ec2: Any, account: Account) -> None:
    other = create_subnet(ec2, account.vpc, "10.79.2.0/24")
    assert untagged_network(ec2, cluster_request(account.subnet, other)) == [
        f"subnet {other} lacks the tag for-use-with-amazon-emr-managed-policies=true, which AmazonEMRServicePolicy_v2 "
        f"needs; {command_for(other)}, or set ORCHARD_SUBNET_IDS to subnets that have it"
    ]
    account.untag(account.subnet)
    (fault,) = untagged_network(ec2, cluster_request(account.subnet, other))
    assert fault.startswith("subnets subnet-")
    assert "lack the tag" in fault
    assert {account.subnet, other} <= set(fault.replace(",", "").split())
    ec2.delete_subnet(SubnetId=other)


@pytest.mark.parametrize(
    ("key", "value", "is_fault"),
    [
        (MANAGED_POLICIES_TAG, "True", True),
        (MANAGED_POLICIES_TAG, "", True),
        ("for-use-with-amazon-emr-managed-policy", "true", True),
        # IAM compares the names of tags without case.
        (MANAGED_POLICIES_TAG.upper(), "true", False),
    ],
)
def test_the_tag_has_the_value_true(ec2: Any, account: Account, key: str, value: str, is_fault: bool) -> None:
    account.untag(account.subnet)
    ec2.create_tags(Resources=[account.subnet], Tags=[{"Key": key, "Value": value}])
    assert bool(untagged_network(ec2, cluster_request(account.subnet))) is is_fault
    ec2.delete_tags(Resources=[account.subnet], Tags=[{"Key": key}])


def test_without_configured_subnets_all_default_subnets_and_their_vpc_need_the_tag(aws_url: str) -> None:
    seoul: Any = boto3.client("ec2", endpoint_url=aws_url, region_name="ap-northeast-2")  # no other test uses it
    subnets = seoul.describe_subnets()["Subnets"]
    ids, vpc = [subnet["SubnetId"] for subnet in subnets], subnets[0]["VpcId"]
    of_subnets, of_vpc = untagged_network(seoul, cluster_request())
    assert of_subnets.startswith(f"default subnets {', '.join(ids)} lack the tag")
    assert f"--region ap-northeast-2 --resources {' '.join(ids)} --tags" in of_subnets
    assert of_vpc.startswith(f"VPC {vpc} lacks the tag")
    assert "so that EMR need not create its default groups in it" in of_vpc
    seoul.create_tags(Resources=[*ids[:-1], vpc], Tags=TAGS)
    (fault,) = untagged_network(seoul, cluster_request())
    assert fault.startswith(f"default subnet {ids[-1]} lacks the tag")
    seoul.create_tags(Resources=ids, Tags=TAGS)
    assert untagged_network(seoul, cluster_request()) == []


@pytest.mark.parametrize("names", [*zip(*PUBLIC_GROUPS, strict=True)])
def test_the_default_groups_of_a_public_subnet_need_the_tag_and_their_vpc_does_not(
    ec2: Any, account: Account, names: tuple[str, str]
) -> None:
    account.untag(account.vpc)
    request = cluster_request(account.subnet)
    groups = [account.group(names[0])]
    (fault,) = untagged_network(ec2, request)
    assert fault.startswith(f"VPC {account.vpc} lacks the tag"), "EMR creates the other group"
    groups.append(account.group(names[1], tags=False))
    (fault,) = untagged_network(ec2, request)
    assert fault.startswith(f"security group {groups[1]} lacks the tag")
    assert command_for(groups[1]) in fault
    account.tag(groups[1])
    assert untagged_network(ec2, request) == []
    for group in groups:
        ec2.delete_security_group(GroupId=group)


def test_a_private_subnet_has_other_default_groups(ec2: Any, private: Account) -> None:
    private.untag(private.vpc)
    request = cluster_request(private.subnet)
    public = [private.group(name) for name, _ in PUBLIC_GROUPS]
    (fault,) = untagged_network(ec2, request)
    assert fault.startswith(f"VPC {private.vpc} lacks the tag")
    groups = [private.group(names[0]) for names in PRIVATE_GROUPS]
    assert untagged_network(ec2, request) == []
    private.untag(groups[2])
    (fault,) = untagged_network(ec2, request)
    assert fault.startswith(f"security group {groups[2]} lacks the tag")
    for group in [*public, *groups]:
        ec2.delete_security_group(GroupId=group)


def test_own_groups_need_the_tag_and_the_vpc_does_not(ec2: Any, account: Account) -> None:
    account.untag(account.vpc)
    groups = own_groups(account)
    request = cluster_request(account.subnet, **groups)
    assert untagged_network(ec2, request) == []
    account.untag(groups["core_security_group"])
    assert untagged_network(ec2, request) == [
        f"security group {groups['core_security_group']} lacks the tag for-use-with-amazon-emr-managed-policies=true, "
        f"which AmazonEMRServicePolicy_v2 needs; {command_for(groups['core_security_group'])}, or set "
        "ORCHARD_PRIMARY_SECURITY_GROUP and ORCHARD_CORE_SECURITY_GROUP to groups that have it"
    ]


def test_a_security_group_that_does_not_exist_or_is_elsewhere_is_named_with_its_setting(
    ec2: Any, account: Account, vpc: str
) -> None:
    groups = own_groups(account)
    assert unusable_security_groups(ec2, cluster_request(account.subnet)) == []
    assert unusable_security_groups(ec2, cluster_request(account.subnet, **groups)) == []
    missing = {**groups, "core_security_group": f"sg-{'0' * 17}"}
    assert unusable_security_groups(ec2, cluster_request(account.subnet, **missing)) == [
        f"security group 'sg-{'0' * 17}' is not in eu-west-1; set ORCHARD_CORE_SECURITY_GROUP to a group of "
        f"{account.vpc}"
    ]
    elsewhere = {**groups, "primary_security_group": account.group(f"other-{uuid.uuid4().hex[:8]}", vpc)}
    assert unusable_security_groups(ec2, cluster_request(account.subnet, **elsewhere)) == [
        f"security group '{elsewhere['primary_security_group']}' is in {vpc}, but the subnets are in {account.vpc}; "
        f"set ORCHARD_PRIMARY_SECURITY_GROUP to a group of {account.vpc}"
    ]
    ec2.delete_security_group(GroupId=elsewhere["primary_security_group"])


def test_own_groups_in_a_private_subnet_need_one_for_the_service(ec2: Any, private: Account) -> None:
    groups = own_groups(private)
    assert unusable_security_groups(ec2, cluster_request(private.subnet, **groups)) == [
        f"subnet '{private.subnet}' is private, and the cluster has own security groups; set "
        "ORCHARD_SERVICE_SECURITY_GROUP to a third one, through which EMR reaches the nodes"
    ]


@pytest.mark.parametrize(
    ("rule", "is_fault"),
    [
        ({"IpProtocol": "tcp", "FromPort": 9443, "ToPort": 9443}, False),
        ({"IpProtocol": "tcp", "FromPort": 0, "ToPort": 65535}, False),
        ({"IpProtocol": "-1"}, False),
        ({"IpProtocol": "tcp", "FromPort": 8443, "ToPort": 8443}, True),
        ({"IpProtocol": "udp", "FromPort": 9443, "ToPort": 9443}, True),
    ],
)
def test_the_group_of_the_service_must_admit_the_primary_node(
    ec2: Any, private: Account, rule: dict[str, Any], is_fault: bool
) -> None:
    groups = own_groups(private)
    primary, service = groups["primary_security_group"], private.group(f"service-{uuid.uuid4().hex[:8]}")
    request = cluster_request(private.subnet, **groups, service_security_group=service)
    (fault,) = unusable_security_groups(ec2, request)
    assert fault == (
        f"security group '{service}' does not admit '{primary}' on port 9443; run `aws ec2 "
        f"authorize-security-group-ingress --region eu-west-1 --group-id {service} --protocol tcp --port 9443 "
        f"--source-group {primary}`"
    )
    permission = {**rule, "UserIdGroupPairs": [{"GroupId": primary}]}
    ec2.authorize_security_group_ingress(GroupId=service, IpPermissions=[permission])
    assert bool(unusable_security_groups(ec2, request)) is is_fault


def test_a_subnet_without_a_route_out_of_its_vpc_is_named_with_its_route_table(ec2: Any, account: Account) -> None:
    request = cluster_request(account.subnet)
    assert isolated_subnets(ec2, request) == []
    # A route table of the subnet's own counts instead of the main one.
    table = ec2.create_route_table(VpcId=account.vpc)["RouteTable"]["RouteTableId"]
    association = ec2.associate_route_table(RouteTableId=table, SubnetId=account.subnet)["AssociationId"]
    assert isolated_subnets(ec2, request) == [
        f"subnet '{account.subnet}' has no route out of {account.vpc}, so that nodes cannot read S3; add a gateway "
        f"endpoint for S3, a NAT gateway or an internet gateway to its route table {table}"
    ]
    ec2.disassociate_route_table(AssociationId=association)
    assert isolated_subnets(ec2, cluster_request()) == [], "default subnets are public"


def test_an_endpoint_for_s3_is_a_route_out_of_the_vpc(ec2: Any, private: Account) -> None:
    assert isolated_subnets(ec2, cluster_request(private.subnet)) == []


def test_a_route_to_something_that_was_deleted_is_no_route(ec2: Any, account: Account) -> None:
    (table,) = ec2.describe_route_tables(RouteTableIds=[account.route_table])["RouteTables"]
    for route in table["Routes"]:
        route["State"] = "active" if route["GatewayId"] == "local" else "blackhole"
    with answering(ec2, "DescribeRouteTables", {"RouteTables": [table]}):
        (fault,) = isolated_subnets(ec2, cluster_request(account.subnet))
    assert fault.startswith(f"subnet '{account.subnet}' has no route out of {account.vpc}")
