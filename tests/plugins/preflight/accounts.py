"""An account with all that a cluster needs: roles, a VPC with a public subnet, a security configuration, a topic."""

import json
import uuid
from dataclasses import dataclass, replace
from typing import Any

from orchard.cluster.tags import MANAGED_POLICIES_TAG
from orchard.preflight.checks import Clients
from orchard.settings import Settings
from sandbox import aws

TAGS = [{"Key": MANAGED_POLICIES_TAG, "Value": "true"}]


@dataclass(frozen=True)
class Account:
    """The names and ids of the resources. `name` is that of the service role and of most others."""

    clients: Clients
    name: str
    node_role: str
    vpc: str
    subnet: str
    route_table: str
    gateway: str
    topic: str

    def settings(self, released: Settings) -> Settings:
        """Return the settings of a deployment that uses the account."""
        return replace(
            released,
            service_role=self.name,
            instance_profile=self.name,
            security_configuration=self.name,
            subnet_ids=(self.subnet,),
            catalog_database=self.name.replace("-", "_"),
            alert_topic_arn=self.topic,
        )

    def grant(self, *statements: dict[str, Any]) -> None:
        """Replace the inline policy of the service role."""
        document = json.dumps({"Version": "2012-10-17", "Statement": list(statements)})
        self.clients.iam.put_role_policy(RoleName=self.name, PolicyName="pass-role", PolicyDocument=document)

    def pass_role(self, **elements: Any) -> dict[str, Any]:
        """Return a statement that lets the service role pass the role of the nodes to EC2, with these changes."""
        condition = {"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}}
        allow = {"Effect": "Allow", "Action": "iam:PassRole", "Resource": self.node_role, "Condition": condition}
        return {**allow, **elements}

    def set_trust(self, role: str, service: str) -> None:
        """Let a role trust only this service."""
        allow = {"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}
        document = json.dumps({"Version": "2012-10-17", "Statement": [allow]})
        self.clients.iam.update_assume_role_policy(RoleName=role, PolicyDocument=document)

    def group(self, name: str, vpc: str = "", *, tags: bool = True) -> str:
        """Create a security group, and return its id."""
        ec2 = self.clients.ec2
        group: str = ec2.create_security_group(GroupName=name, Description=name, VpcId=vpc or self.vpc)["GroupId"]
        if tags:
            self.tag(group)
        return group

    def tag(self, *resources: str) -> None:
        """Give resources the tag that AmazonEMRServicePolicy_v2 asks for."""
        self.clients.ec2.create_tags(Resources=list(resources), Tags=TAGS)

    def untag(self, *resources: str) -> None:
        """Take the tag away."""
        self.clients.ec2.delete_tags(Resources=list(resources), Tags=[{"Key": MANAGED_POLICIES_TAG}])

    def remove_default_route(self) -> None:
        """Remove the route to the internet gateway."""
        self.clients.ec2.delete_route(RouteTableId=self.route_table, DestinationCidrBlock="0.0.0.0/0")

    def add_s3_endpoint(self) -> str:
        """Create a gateway endpoint for S3, and return its id."""
        endpoint: str = self.clients.ec2.create_vpc_endpoint(
            VpcId=self.vpc,
            ServiceName=f"com.amazonaws.{self.clients.ec2.meta.region_name}.s3",
            VpcEndpointType="Gateway",
            RouteTableIds=[self.route_table],
        )["VpcEndpoint"]["VpcEndpointId"]
        return endpoint


def create_account(clients: Clients) -> Account:
    """Create an account whose resources no other test uses."""
    iam, ec2, name = clients.iam, clients.ec2, f"orchard-{uuid.uuid4().hex[:8]}"
    aws.create_role(iam, name, "elasticmapreduce")
    iam.attach_role_policy(RoleName=name, PolicyArn=aws.SERVICE_POLICY)
    node_role = aws.create_role(iam, f"{name}-nodes", "ec2")
    iam.create_instance_profile(InstanceProfileName=name)
    iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=f"{name}-nodes")
    clients.emr.create_security_configuration(Name=name, SecurityConfiguration="{}")
    vpc = ec2.create_vpc(CidrBlock="10.79.0.0/16")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.79.1.0/24")["Subnet"]["SubnetId"]
    gateway = ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
    ec2.attach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
    route_table = ec2.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["RouteTables"][0]
    ec2.create_route(RouteTableId=route_table["RouteTableId"], DestinationCidrBlock="0.0.0.0/0", GatewayId=gateway)
    topic = clients.sns.create_topic(Name=name)["TopicArn"]
    account = Account(clients, name, node_role, vpc, subnet, route_table["RouteTableId"], gateway, topic)
    account.grant(account.pass_role())
    account.tag(vpc, subnet)
    return account
