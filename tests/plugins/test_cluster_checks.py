import json
import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.exceptions import ClientError

from orchard.cluster import ClusterSpec, run_job_flow_request
from orchard.cluster_checks import (
    missing_instance_profile,
    missing_security_configuration,
    missing_service_role,
    types_not_offered,
    unknown_release_label,
    unsupported_instance_types,
    unusable_subnets,
)
from orchard.settings import Settings
from tests.plugins.answers import answering, failing

if TYPE_CHECKING:
    from mypy_boto3_emr import EMRClient
    from mypy_boto3_iam import IAMClient

SETTINGS = Settings(bucket="fruits-data", release="1")
# moto knows it for two zones of the three: its tables are those of AWS.
TYPE_OF_A_AND_B = "c8a.xlarge"


def request(*subnets: str, workers: int = 2, **settings: Any) -> dict[str, Any]:
    spec = ClusterSpec(name="orchard", instance_type="m5.xlarge", core_instances=workers, tags={})
    return run_job_flow_request(spec, replace(SETTINGS, subnet_ids=subnets, **settings))


def of_types(asked: dict[str, Any], *kinds: str) -> dict[str, Any]:
    """The request with other instance types in every fleet."""
    for fleet in asked["Instances"]["InstanceFleets"]:
        fleet["InstanceTypeConfigs"] = [{"InstanceType": kind, "WeightedCapacity": 1} for kind in kinds]
    return asked


@pytest.fixture(scope="module")
def vpc(ec2: Any) -> Iterator[str]:
    vpc_id = ec2.create_vpc(CidrBlock="10.77.0.0/16")["Vpc"]["VpcId"]
    yield vpc_id
    for subnet in ec2.describe_subnets(Filters=[{"Name": "vpc-id", "Values": [vpc_id]}])["Subnets"]:
        ec2.delete_subnet(SubnetId=subnet["SubnetId"])
    ec2.delete_vpc(VpcId=vpc_id)


def make_subnet(ec2: Any, vpc: str, block: str, zone: str = "eu-west-1a") -> str:
    subnet: dict[str, str] = ec2.create_subnet(VpcId=vpc, CidrBlock=block, AvailabilityZone=zone)["Subnet"]
    return subnet["SubnetId"]


@pytest.fixture(scope="module")
def subnet_a(ec2: Any, vpc: str) -> str:
    """A subnet of 251 addresses."""
    return make_subnet(ec2, vpc, "10.77.1.0/24")


@pytest.fixture(scope="module")
def subnet_c(ec2: Any, vpc: str) -> str:
    """A subnet of 251 addresses, in another zone."""
    return make_subnet(ec2, vpc, "10.77.2.0/24", "eu-west-1c")


@pytest.fixture(scope="module")
def small_subnet(ec2: Any, vpc: str) -> str:
    """A subnet of 11 addresses: AWS keeps five of the sixteen."""
    return make_subnet(ec2, vpc, "10.77.3.0/28")


@pytest.fixture(scope="module")
def foreign_subnet(ec2: Any) -> Iterator[str]:
    vpc_id = ec2.create_vpc(CidrBlock="10.78.0.0/16")["Vpc"]["VpcId"]
    subnet = make_subnet(ec2, vpc_id, "10.78.1.0/24")
    yield subnet
    ec2.delete_subnet(SubnetId=subnet)
    ec2.delete_vpc(VpcId=vpc_id)


def test_a_release_label_that_emr_does_not_offer_is_told_with_those_that_it_does(emr: "EMRClient") -> None:
    assert unknown_release_label(emr, request()) == []
    (fault,) = unknown_release_label(emr, request(release_label="emr-7.99.0"))
    assert fault.startswith(
        "release label 'emr-7.99.0' is not offered in eu-west-1; set ORCHARD_RELEASE_LABEL to one that is: emr-7.14.0, "
    )


def test_a_release_label_of_an_unknown_family_is_a_fault(emr: "EMRClient") -> None:
    (fault,) = unknown_release_label(emr, request(release_label="emr-9.0.0"))
    assert fault.endswith("set ORCHARD_RELEASE_LABEL to one that is: none begins with emr-9.")


def test_an_instance_type_that_emr_does_not_support_is_named(emr: "EMRClient") -> None:
    assert unsupported_instance_types(emr, request()) == []
    assert unsupported_instance_types(emr, of_types(request(), "m5.xlarge", "t2.nano")) == [
        "instance type 't2.nano' is not supported by emr-7.14.0; choose another instance_type"
    ]


def test_the_instance_types_of_an_unknown_release_label_are_not_asked_for_and_the_log_says_so(
    emr: "EMRClient", caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "orchard")
    assert unsupported_instance_types(emr, request(release_label="emr-7.99.0")) == []
    assert "preflight: instance types skipped, as EMR knows none for this release label" in caplog.text


def test_subnets_with_addresses_for_all_instances_are_told_with_their_number(
    ec2: Any, subnet_a: str, small_subnet: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "orchard")
    # The fleets' one subnet is chosen by EMR, so that one that is large enough will do.
    assert unusable_subnets(ec2, request(subnet_a, small_subnet, workers=20)) == []
    assert "preflight: free addresses for 21 instances:" in caplog.text
    assert f"{subnet_a} has 251" in caplog.text


def test_a_subnet_without_an_address_for_every_instance_is_named_with_what_it_has(ec2: Any, small_subnet: str) -> None:
    assert unusable_subnets(ec2, request(small_subnet, workers=10)) == []
    assert unusable_subnets(ec2, request(small_subnet, workers=11)) == [
        f"no subnet has a free address for each of the 12 instances: {small_subnet} has 11; free some, lower "
        "core_instances, or add a larger subnet to ORCHARD_SUBNET_IDS"
    ]


def test_each_subnet_that_does_not_exist_is_named(ec2: Any, subnet_a: str) -> None:
    assert unusable_subnets(ec2, request("subnet-1", subnet_a, "subnet-2")) == [
        "subnet 'subnet-1' is not in eu-west-1; set ORCHARD_SUBNET_IDS to ones that are",
        "subnet 'subnet-2' is not in eu-west-1; set ORCHARD_SUBNET_IDS to ones that are",
    ]


def test_subnets_of_two_vpcs_are_named_with_them(ec2: Any, vpc: str, subnet_a: str, foreign_subnet: str) -> None:
    (fault,) = unusable_subnets(ec2, request(subnet_a, foreign_subnet))
    assert "the subnets are not of one VPC: " in fault
    assert f"{subnet_a} of {vpc}" in fault
    assert f"{foreign_subnet} of vpc-" in fault


def test_without_subnets_of_ours_the_default_ones_will_do(ec2: Any) -> None:
    assert unusable_subnets(ec2, request()) == []
    assert types_not_offered(ec2, request()) == []


def test_a_region_without_a_default_vpc_is_a_fault_if_no_subnet_is_configured(aws_url: str) -> None:
    tokyo: Any = boto3.client("ec2", endpoint_url=aws_url, region_name="ap-northeast-1")  # no other test is there
    for subnet in tokyo.describe_subnets()["Subnets"]:
        tokyo.delete_subnet(SubnetId=subnet["SubnetId"])
    assert unusable_subnets(tokyo, request()) == [
        "no subnet is configured, and ap-northeast-1 has no default VPC; set ORCHARD_SUBNET_IDS"
    ]
    assert types_not_offered(tokyo, request()) == [], "the region offers them"
    (fault,) = types_not_offered(tokyo, of_types(request(), "m9.huge"))
    assert "ap-northeast-1 has no m9.huge" in fault


def test_an_instance_type_that_the_zone_of_the_only_subnet_does_not_offer_is_a_fault(
    ec2: Any, subnet_a: str, subnet_c: str
) -> None:
    assert types_not_offered(ec2, of_types(request(subnet_a), TYPE_OF_A_AND_B)) == []
    assert types_not_offered(ec2, of_types(request(subnet_a, subnet_c), TYPE_OF_A_AND_B)) == []
    assert types_not_offered(ec2, of_types(request(subnet_c), TYPE_OF_A_AND_B)) == [
        "EC2 offers the cluster's instance types in no zone of its subnets: eu-west-1c has no c8a.xlarge; choose "
        "another instance_type, or set ORCHARD_SUBNET_IDS to subnets of other zones"
    ]


def test_a_fleet_of_several_types_needs_one_of_them(ec2: Any, subnet_c: str) -> None:
    assert types_not_offered(ec2, of_types(request(subnet_c), TYPE_OF_A_AND_B, "m5.xlarge")) == []
    (fault,) = types_not_offered(ec2, of_types(request(subnet_c), TYPE_OF_A_AND_B, "m9.huge"))
    assert "eu-west-1c has no c8a.xlarge or m9.huge" in fault


def test_a_zone_counts_only_where_its_subnet_has_the_addresses(ec2: Any, small_subnet: str, subnet_c: str) -> None:
    asked = of_types(request(small_subnet, subnet_c, workers=20), TYPE_OF_A_AND_B)
    assert unusable_subnets(ec2, asked) == []
    (fault,) = types_not_offered(ec2, asked)
    assert "eu-west-1c has no c8a.xlarge" in fault


def test_roles_that_exist_may_be_given_as_names_or_arns(iam: "IAMClient") -> None:
    role = f"role-{uuid.uuid4().hex[:8]}"
    iam.create_role(RoleName=role, AssumeRolePolicyDocument="{}")
    iam.create_instance_profile(InstanceProfileName=role)
    for prefix in ("", "arn:aws:iam::123456789012:role/service-role/"):
        assert missing_service_role(iam, request(service_role=f"{prefix}{role}")) == []
    for prefix in ("", "arn:aws:iam::123456789012:instance-profile/"):
        assert missing_instance_profile(iam, request(instance_profile=f"{prefix}{role}")) == []


def test_roles_that_do_not_exist_are_named_with_the_setting(iam: "IAMClient") -> None:
    asked = request(service_role="nobody", instance_profile="nothing")
    (of_service,), (of_nodes,) = missing_service_role(iam, asked), missing_instance_profile(iam, asked)
    assert of_service.startswith("service role 'nobody': ")
    assert of_service.endswith("set ORCHARD_SERVICE_ROLE to one that exists")
    assert of_nodes.startswith("instance profile 'nothing': ")
    assert of_nodes.endswith("set ORCHARD_INSTANCE_PROFILE to one that exists")


def test_a_security_configuration_must_exist_if_one_is_asked_for(
    emr: "EMRClient", caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "orchard")
    assert missing_security_configuration(emr, request()) == []
    assert "preflight: no security configuration is asked for" in caplog.text
    name = f"security-{uuid.uuid4().hex[:8]}"
    (fault,) = missing_security_configuration(emr, request(security_configuration=name))
    assert fault.startswith(f"security configuration '{name}': ")
    assert fault.endswith("set ORCHARD_SECURITY_CONFIGURATION to one that exists, or leave it out")
    emr.create_security_configuration(Name=name, SecurityConfiguration=json.dumps({}))
    assert missing_security_configuration(emr, request(security_configuration=name)) == []


def test_all_pages_of_the_instance_types_are_read(emr: "EMRClient") -> None:
    first = emr.list_supported_instance_types(ReleaseLabel="emr-7.14.0")
    assert first["Marker"], "else there is but one page"
    with answering(emr, "ListSupportedInstanceTypes", {"SupportedInstanceTypes": []}):
        assert len(unsupported_instance_types(emr, request())) == 1
    last = first
    while last.get("Marker"):
        last = emr.list_supported_instance_types(ReleaseLabel="emr-7.14.0", Marker=last["Marker"])
    assert unsupported_instance_types(emr, of_types(request(), last["SupportedInstanceTypes"][-1]["Type"])) == []


@pytest.mark.parametrize("code", ["Throttling", "AccessDenied"])
def test_an_error_that_tells_nothing_about_a_role_is_raised(iam: "IAMClient", code: str) -> None:
    with failing(iam, "GetRole", code), pytest.raises(ClientError, match=code):
        missing_service_role(iam, request())
    with failing(iam, "GetInstanceProfile", code), pytest.raises(ClientError, match=code):
        missing_instance_profile(iam, request())


@pytest.mark.parametrize("code", ["ThrottlingException", "AccessDeniedException"])
def test_an_error_that_tells_nothing_about_what_emr_has_is_raised(emr: "EMRClient", code: str) -> None:
    with failing(emr, "DescribeSecurityConfiguration", code), pytest.raises(ClientError, match=code):
        missing_security_configuration(emr, request(security_configuration="strict"))
    with failing(emr, "ListSupportedInstanceTypes", code), pytest.raises(ClientError, match=code):
        unsupported_instance_types(emr, request())
