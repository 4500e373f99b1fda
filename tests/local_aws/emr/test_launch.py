"""What a service role with AmazonEMRServicePolicy_v2 cannot launch."""

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import boto3
import pytest

from local_aws.emr.launch import POLICY_V2, PRIVATE_GROUPS, PUBLIC_GROUPS, refusal
from local_aws.emr.model import SECURITY_GROUPS, Cluster
from tests.local_aws.user import REGION, User, default_node_role

TAG = "for-use-with-amazon-emr-managed-policies"
TAGS = [{"Key": TAG, "Value": "true"}]


def trust(service: str) -> str:
    statement = {"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


def pass_role(role_arn: str, **condition: str) -> str:
    """Return a policy that allows to pass a role to a service."""
    statement = {"Effect": "Allow", "Action": "iam:PassRole", "Resource": role_arn}
    services = {"StringEquals": {"iam:PassedToService": condition.get("service", "ec2.amazonaws.com")}}
    return json.dumps({"Version": "2012-10-17", "Statement": [{**statement, "Condition": services}]})


@dataclass
class Account:
    """Roles and a VPC with a public subnet, in which clusters start. All of them are tagged."""

    user: User
    name: str = field(default_factory=lambda: f"launch-{uuid.uuid4().hex[:8]}")

    def __post_init__(self) -> None:
        session = boto3.Session(aws_access_key_id="user", aws_secret_access_key="secret", region_name=REGION)
        self.iam = session.client("iam", endpoint_url=self.user.endpoint_url)
        self.ec2: Any = session.client("ec2", endpoint_url=self.user.endpoint_url)
        self.iam.create_role(RoleName=self.name, AssumeRolePolicyDocument=trust("elasticmapreduce.amazonaws.com"))
        self.iam.attach_role_policy(RoleName=self.name, PolicyArn=POLICY_V2)
        self.nodes = f"{self.name}-nodes"
        role = self.iam.create_role(RoleName=self.nodes, AssumeRolePolicyDocument=trust("ec2.amazonaws.com"))["Role"]
        self.iam.create_instance_profile(InstanceProfileName=self.nodes)
        self.iam.add_role_to_instance_profile(InstanceProfileName=self.nodes, RoleName=self.nodes)
        self.grant(pass_role(role["Arn"]))
        self.node_arn = role["Arn"]
        self.vpc = self.ec2.create_vpc(CidrBlock="10.60.0.0/16")["Vpc"]["VpcId"]
        self.subnet = self.ec2.create_subnet(VpcId=self.vpc, CidrBlock="10.60.1.0/24")["Subnet"]["SubnetId"]
        self.route_table = self.ec2.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [self.vpc]}])[
            "RouteTables"
        ][0]["RouteTableId"]
        self.gateway = self.ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
        self.ec2.attach_internet_gateway(InternetGatewayId=self.gateway, VpcId=self.vpc)
        self.ec2.create_route(RouteTableId=self.route_table, DestinationCidrBlock="0.0.0.0/0", GatewayId=self.gateway)
        self.tag(self.vpc, self.subnet)

    def grant(self, policy: str) -> None:
        """Replace the inline policy of the service role."""
        self.iam.put_role_policy(RoleName=self.name, PolicyName="pass", PolicyDocument=policy)

    def tag(self, *resources: str) -> None:
        self.ec2.create_tags(Resources=list(resources), Tags=TAGS)

    def untag(self, *resources: str) -> None:
        self.ec2.delete_tags(Resources=list(resources), Tags=[{"Key": TAG}])

    @contextmanager
    def private(self) -> Iterator[None]:
        """Replace the route to the internet gateway by a gateway endpoint for S3 while the context is open."""
        endpoint = self.ec2.create_vpc_endpoint(
            VpcId=self.vpc,
            ServiceName=f"com.amazonaws.{REGION}.s3",
            VpcEndpointType="Gateway",
            RouteTableIds=[self.route_table],
        )["VpcEndpoint"]["VpcEndpointId"]
        with self.isolated():
            yield
        self.ec2.delete_vpc_endpoints(VpcEndpointIds=[endpoint])

    @contextmanager
    def isolated(self) -> Iterator[None]:
        """Remove the route to the internet gateway while the context is open."""
        route = {"RouteTableId": self.route_table, "DestinationCidrBlock": "0.0.0.0/0"}
        self.ec2.delete_route(**route)
        yield
        self.ec2.create_route(**route, GatewayId=self.gateway)

    def group(self, name: str, vpc: str | None = None, tags: bool = True) -> str:
        """Create a security group, and return its id."""
        name = name if name.startswith("ElasticMapReduce") else f"{name}-{uuid.uuid4().hex[:8]}"
        created = self.ec2.create_security_group(GroupName=name, Description=name, VpcId=vpc or self.vpc)
        group: str = created["GroupId"]
        if tags:
            self.tag(group)
        return group

    def request(self, *, subnet: bool = True, **request: Any) -> dict[str, Any]:
        """Return a RunJobFlow request for a cluster without steps."""
        instances = {**({"Ec2SubnetId": self.subnet} if subnet else {}), **request.pop("Instances", {})}
        roles: dict[str, Any] = {"ServiceRole": self.name, "JobFlowRole": self.nodes}
        return {"Tags": TAGS, **roles, **request, "Instances": instances}

    def outcome(self, **request: Any) -> str:
        """Return why the instances of a cluster are not launched, or `started`."""
        why = refusal(Cluster(self.request(**request), REGION))
        if why is None:
            return "started"
        return why.message if why.error_code is None else f"{why.error_code}: {why.message}"

    def denied(self, action: str, resource: str) -> str:
        """Return the message about an action that the service role may not call."""
        return (
            f"Service role arn:aws:iam::123456789012:role/{self.name} has insufficient EC2 permissions (in local_aws: "
            f"{action} on {resource} is not allowed: implicitDeny)"
        )

    def arn(self, kind: str, resource: str) -> str:
        return f"arn:aws:ec2:{REGION}:123456789012:{kind}/{resource}"


@pytest.fixture(scope="module")
def complete(user: User) -> Account:
    return Account(user)


@pytest.fixture
def account(complete: Account) -> Iterator[Account]:
    """The account of this module. What a test removes is restored."""
    yield complete
    complete.tag(complete.vpc, complete.subnet)
    complete.grant(pass_role(complete.node_arn))


def test_a_refused_cluster_terminates_with_a_validation_error(account: Account) -> None:
    user = account.user
    cluster_id = user.start(**account.request(LogUri=None))
    user.wait_for(cluster_id, "TERMINATED")
    account.untag(account.subnet)
    cluster_id = user.start(**account.request(LogUri=None), bootstrap=[("s3://none/none",)])
    status = user.wait_for(cluster_id, "TERMINATED_WITH_ERRORS")["Status"]
    assert status["StateChangeReason"] == {
        "Code": "VALIDATION_ERROR",
        "Message": account.denied("ec2:RunInstances", account.arn("subnet", account.subnet)),
    }
    assert "ErrorDetails" not in status


def test_the_code_of_a_refusal_is_in_the_error_details(account: Account) -> None:
    other = account.ec2.create_vpc(CidrBlock="10.62.0.0/16")["Vpc"]["VpcId"]
    groups = dict.fromkeys(SECURITY_GROUPS, account.group("elsewhere", other))
    cluster_id = account.user.start(**account.request(LogUri=None, Instances=groups))
    (detail,) = account.user.wait_for(cluster_id, "TERMINATED_WITH_ERRORS")["Status"]["ErrorDetails"]
    assert detail["ErrorCode"] == "VALIDATION_ERROR_SECURITY_GROUP_NOT_FROM_ONE_VPC"


def test_a_cluster_starts_if_all_of_its_resources_have_the_tag(account: Account) -> None:
    assert account.outcome() == "started"
    # Names of condition keys are case-insensitive, also the tag's part of them.
    assert account.outcome(Tags=[{"Key": TAG.upper(), "Value": "true"}]) == "started"
    own = [account.group(name) for name in ("primary", "core")]
    account.untag(account.vpc)  # only EMR's default groups need the VPC
    assert account.outcome(Instances=dict(zip(SECURITY_GROUPS, own, strict=False))) == "started"


@pytest.mark.parametrize("tags", [[], [{"Key": TAG, "Value": "True"}]])
def test_a_cluster_without_the_tag_is_refused(account: Account, tags: list[dict[str, str]]) -> None:
    assert account.outcome(Tags=tags) == account.denied("ec2:RunInstances", account.arn("instance", "*"))


def test_a_subnet_without_the_tag_is_refused(account: Account) -> None:
    account.untag(account.subnet)
    assert account.outcome() == account.denied("ec2:RunInstances", account.arn("subnet", account.subnet))


def test_emr_cannot_create_its_groups_in_a_vpc_without_the_tag(account: Account) -> None:
    account.untag(account.vpc)
    assert account.outcome() == account.denied("ec2:CreateSecurityGroup", account.arn("vpc", account.vpc))


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("renamed", [False, True])
def test_default_groups_that_exist_need_the_tag_and_their_vpc_does_not(
    account: Account, private: bool, renamed: bool
) -> None:
    names = [names[-1 if renamed else 0] for names in (PRIVATE_GROUPS if private else PUBLIC_GROUPS)]
    account.untag(account.vpc)
    groups = [account.group(name) for name in names]
    with account.private() if private else nullcontext():
        assert account.outcome() == "started"
        account.untag(groups[-1])
        assert account.outcome() == account.denied("ec2:RunInstances", account.arn("security-group", groups[-1]))
    for group in groups:
        account.ec2.delete_security_group(GroupId=group)


@pytest.mark.parametrize("place", [*SECURITY_GROUPS, "AdditionalMasterSecurityGroups"])
def test_own_groups_need_the_tag(account: Account, place: str) -> None:
    groups: dict[str, Any] = {name: account.group(name) for name in SECURITY_GROUPS}
    untagged = account.group("untagged", tags=False)
    groups[place] = [untagged] if place.startswith("Additional") else untagged
    assert account.outcome(Instances=groups) == account.denied(
        "ec2:RunInstances", account.arn("security-group", untagged)
    )


def test_the_default_subnets_need_the_tag_if_no_subnet_is_requested(account: Account) -> None:
    region = "ap-south-1"  # no other test uses it
    ec2: Any = boto3.client("ec2", endpoint_url=account.user.endpoint_url, region_name=region)
    filters = [{"Name": "default-for-az", "Values": ["true"]}]
    subnets = ec2.describe_subnets(Filters=filters)["Subnets"]
    first, *_, last = [subnet["SubnetId"] for subnet in subnets]
    prefix = f"arn:aws:ec2:{region}:123456789012"

    def outcome() -> str:
        why = refusal(Cluster(account.request(subnet=False), region))
        return "started" if why is None else why.message

    assert outcome() == account.denied("ec2:RunInstances", f"{prefix}:subnet/{first}")
    ec2.create_tags(Resources=[subnet["SubnetId"] for subnet in subnets], Tags=TAGS)
    vpc = subnets[0]["VpcId"]
    assert outcome() == account.denied("ec2:CreateSecurityGroup", f"{prefix}:vpc/{vpc}")
    ec2.create_tags(Resources=[vpc], Tags=TAGS)
    assert outcome() == "started"
    ec2.delete_tags(Resources=[last], Tags=[{"Key": TAG}])
    assert outcome() == account.denied("ec2:RunInstances", f"{prefix}:subnet/{last}")


def test_the_policy_passes_only_a_role_of_the_default_name(account: Account) -> None:
    denied = account.denied("iam:PassRole", account.node_arn)
    account.iam.delete_role_policy(RoleName=account.name, PolicyName="pass")
    assert account.outcome() == denied
    account.grant(pass_role(account.node_arn, service="elasticmapreduce.amazonaws.com"))
    assert account.outcome() == denied
    account.grant(pass_role(f"{account.node_arn}-2"))
    assert account.outcome() == denied
    account.grant(pass_role("arn:aws:iam::*:role/launch-*"))
    assert account.outcome() == "started"
    deny = json.loads(pass_role(account.node_arn))
    deny["Statement"] += [{"Effect": "Deny", "Action": "iam:Pass*", "Resource": "*"}]
    account.grant(json.dumps(deny))
    assert account.outcome() == denied.replace("implicitDeny", "explicitDeny")


def test_a_profile_of_another_name_may_hold_the_default_role(account: Account) -> None:
    iam, profile = account.iam, account.nodes
    iam.delete_role_policy(RoleName=account.name, PolicyName="pass")
    with default_node_role(iam) as role:
        iam.remove_role_from_instance_profile(InstanceProfileName=profile, RoleName=account.nodes)
        iam.add_role_to_instance_profile(InstanceProfileName=profile, RoleName=role)
        assert account.outcome() == "started"
        iam.remove_role_from_instance_profile(InstanceProfileName=profile, RoleName=role)
    iam.add_role_to_instance_profile(InstanceProfileName=profile, RoleName=account.nodes)


def test_an_instance_profile_without_a_role_is_invalid(account: Account) -> None:
    profile = {"InstanceProfileName": account.nodes, "RoleName": account.nodes}
    account.iam.remove_role_from_instance_profile(**profile)
    assert account.outcome() == f"Invalid InstanceProfile: {account.nodes}."
    account.iam.add_role_to_instance_profile(**profile)


def test_a_service_role_that_emr_cannot_assume_is_invalid(account: Account) -> None:
    account.iam.update_assume_role_policy(RoleName=account.name, PolicyDocument=trust("ec2.amazonaws.com"))
    assert account.outcome() == f"EMR service role arn:aws:iam::123456789012:role/{account.name} is invalid"
    account.iam.update_assume_role_policy(RoleName=account.name, PolicyDocument=trust("elasticmapreduce.amazonaws.com"))


def test_a_further_policy_of_the_role_can_allow_what_the_managed_one_does_not(account: Account) -> None:
    account.untag(account.subnet, account.vpc)
    everything = {"Effect": "Allow", "Action": ["ec2:*", "iam:PassRole"], "Resource": "*"}
    account.grant(json.dumps({"Version": "2012-10-17", "Statement": everything}))
    assert account.outcome(Tags=[]) == "started"


def test_a_role_without_the_policy_is_not_checked(account: Account) -> None:
    account.untag(account.subnet, account.vpc)
    account.iam.delete_role_policy(RoleName=account.name, PolicyName="pass")
    account.iam.detach_role_policy(RoleName=account.name, PolicyArn=POLICY_V2)
    assert account.outcome(Tags=[]) == "started"
    account.iam.attach_role_policy(RoleName=account.name, PolicyArn=POLICY_V2)


def test_subnets_of_two_vpcs_are_refused(account: Account) -> None:
    other = account.ec2.create_vpc(CidrBlock="10.63.0.0/16")["Vpc"]["VpcId"]
    subnet = account.ec2.create_subnet(VpcId=other, CidrBlock="10.63.1.0/24")["Subnet"]["SubnetId"]
    instances: dict[str, Any] = {
        "Ec2SubnetIds": [account.subnet, subnet],
    }
    outcome = account.outcome(subnet=False, Instances=instances)
    assert outcome.startswith("VALIDATION_ERROR_SUBNET_NOT_FROM_ONE_VPC: ")


def test_security_groups_of_another_vpc_are_refused(account: Account) -> None:
    other = account.ec2.create_vpc(CidrBlock="10.61.0.0/16")["Vpc"]["VpcId"]
    groups = [account.group("primary"), account.group("core", other)]
    assert account.outcome(Instances=dict(zip(SECURITY_GROUPS, groups, strict=False))) == (
        f"VALIDATION_ERROR_SECURITY_GROUP_NOT_FROM_ONE_VPC: Security groups are not in the VPC of the cluster, "
        f"{account.vpc}: {groups[1]} in {other}."
    )


def test_own_groups_in_a_private_subnet_need_one_for_the_service_that_admits_the_master(account: Account) -> None:
    groups = dict(zip(SECURITY_GROUPS, [account.group("private") for _ in SECURITY_GROUPS], strict=True))
    primary, _, service = groups.values()
    missing = "ServiceAccessSecurityGroup is missing ingress rule from EmrManagedMasterSecurityGroup on port 9443"
    rule = {"IpProtocol": "tcp", "FromPort": 9443, "ToPort": 9443, "UserIdGroupPairs": [{"GroupId": primary}]}
    others = [{**rule, "FromPort": 8443, "ToPort": 9442}, {**rule, "UserIdGroupPairs": [{"GroupId": service}]}]
    with account.private():
        account.ec2.authorize_security_group_ingress(GroupId=service, IpPermissions=others)
        assert account.outcome(Instances=groups) == missing
        account.ec2.authorize_security_group_ingress(GroupId=service, IpPermissions=[rule])
        assert account.outcome(Instances=groups) == "started"
        del groups["ServiceAccessSecurityGroup"]
        assert account.outcome(Instances=groups) == (
            "You must also specify a ServiceAccessSecurityGroup if you use custom security groups when creating a "
            "cluster in a private subnet."
        )
    assert account.outcome(Instances=groups) == "started"


def test_a_subnet_without_a_route_out_of_its_vpc_is_refused(account: Account) -> None:
    with account.isolated():
        assert account.outcome() == (
            "The VPC/subnet configuration was invalid: No route to any external sources detected in Route Table for "
            f"Subnet: {account.subnet} for VPC: {account.vpc}"
        )
