"""The stack in a local AWS, and what its services say about each of its resources, in the form of the template."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from infra.stack import TEMPLATE
from sandbox import aws

KEY = "arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"
DATASETS = {
    "OtherDatasetBuckets": "arn:aws:s3:::pears",
    "OtherDatasetObjects": "arn:aws:s3:::pears/2026/*,arn:aws:s3:::pears/2027/*",
}
# Every condition of the template holds. The local AWS of other tests in this process shares moto's state, so that names
# of resources must be unique.
EVERYTHING = {
    "CreateVpc": "true",
    "HoldClusters": "true",
    "AlertEmail": "team@example.com",
    "KmsKeyArn": KEY,
    "AirflowRoleName": "airflow-of-the-stack",
    "BucketName": "fruits-of-the-stack",
    "DatabaseName": "fruits_of_the_stack",
    **DATASETS,
}
ACCOUNT = "123456789012"


@dataclass(frozen=True)
class Deployed:
    """A stack that is complete."""

    url: str
    name: str

    def client(self, service: str) -> Any:
        return client(service, self.url)

    @property
    def ids(self) -> dict[str, str]:
        """The physical id of each resource by its logical id."""
        found = self.client("cloudformation").describe_stack_resources(StackName=self.name)["StackResources"]
        return {resource["LogicalResourceId"]: resource["PhysicalResourceId"] for resource in found}

    @property
    def outputs(self) -> dict[str, str]:
        (stack,) = self.client("cloudformation").describe_stacks(StackName=self.name)["Stacks"]
        return {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}


@cache
def client(service: str, url: str) -> Any:
    return aws.client(service, url)


def create_stack(url: str, name: str, **parameters: str) -> Deployed:
    given = [{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()]
    client("cloudformation", url).create_stack(
        StackName=name, TemplateBody=TEMPLATE.read_text(), Parameters=given, Capabilities=["CAPABILITY_IAM"]
    )
    (stack,) = client("cloudformation", url).describe_stacks(StackName=name)["Stacks"]
    assert stack["StackStatus"] == "CREATE_COMPLETE", client("cloudformation", url).describe_stack_events(
        StackName=name
    )
    return Deployed(url, name)


def _bucket(stack: Deployed, name: str) -> dict[str, Any]:
    s3 = stack.client("s3")
    (encryption,) = s3.get_bucket_encryption(Bucket=name)["ServerSideEncryptionConfiguration"]["Rules"]
    return {
        "BucketName": name,
        "PublicAccessBlockConfiguration": s3.get_public_access_block(Bucket=name)["PublicAccessBlockConfiguration"],
        "OwnershipControls": s3.get_bucket_ownership_controls(Bucket=name)["OwnershipControls"],
        "BucketEncryption": {
            "ServerSideEncryptionConfiguration": [
                {
                    "BucketKeyEnabled": encryption["BucketKeyEnabled"],
                    "ServerSideEncryptionByDefault": encryption["ApplyServerSideEncryptionByDefault"],
                }
            ]
        },
        "VersioningConfiguration": {"Status": s3.get_bucket_versioning(Bucket=name)["Status"]},
        "LifecycleConfiguration": {
            "Rules": [_lifecycle_rule(rule) for rule in s3.get_bucket_lifecycle_configuration(Bucket=name)["Rules"]]
        },
        "Tags": s3.get_bucket_tagging(Bucket=name)["TagSet"],
    }


def _lifecycle_rule(rule: Mapping[str, Any]) -> dict[str, Any]:
    same = ("Status", "AbortIncompleteMultipartUpload", "NoncurrentVersionExpiration")
    return {
        "Id": rule["ID"],
        **{key: rule[key] for key in same if key in rule},
        **({"Prefix": rule["Filter"]["Prefix"]} if rule["Filter"]["Prefix"] else {}),
        **({"ExpirationInDays": rule["Expiration"]["Days"]} if "Expiration" in rule else {}),
    }


def _bucket_policy(stack: Deployed, name: str) -> dict[str, Any]:
    policy = stack.client("s3").get_bucket_policy(Bucket=name)["Policy"]
    return {"Bucket": name, "PolicyDocument": json.loads(policy)}


def _database(stack: Deployed, name: str) -> dict[str, Any]:
    found = stack.client("glue").get_database(Name=name)["Database"]
    return {
        "CatalogId": found["CatalogId"],
        "DatabaseInput": {key: found[key] for key in ("Name", "Description", "LocationUri")},
    }


def _role(stack: Deployed, name: str) -> dict[str, Any]:
    iam = stack.client("iam")
    role = iam.get_role(RoleName=name)["Role"]
    attached = iam.list_attached_role_policies(RoleName=name)["AttachedPolicies"]
    inline = iam.list_role_policies(RoleName=name)["PolicyNames"]
    policies = [
        {
            "PolicyName": policy,
            "PolicyDocument": iam.get_role_policy(RoleName=name, PolicyName=policy)["PolicyDocument"],
        }
        for policy in inline
    ]
    return {
        "Description": role["Description"],
        "AssumeRolePolicyDocument": role["AssumeRolePolicyDocument"],
        **({"ManagedPolicyArns": [policy["PolicyArn"] for policy in attached]} if attached else {}),
        "Policies": policies,
        "Tags": role["Tags"],
    }


def _instance_profile(stack: Deployed, name: str) -> dict[str, Any]:
    profile = stack.client("iam").get_instance_profile(InstanceProfileName=name)["InstanceProfile"]
    return {"Roles": [role["RoleName"] for role in profile["Roles"]]}


def policy_document(stack: Deployed, arn: str) -> dict[str, Any]:
    iam = stack.client("iam")
    version = iam.get_policy(PolicyArn=arn)["Policy"]["DefaultVersionId"]
    document: dict[str, Any] = iam.get_policy_version(PolicyArn=arn, VersionId=version)["PolicyVersion"]["Document"]
    return document


def _managed_policy(stack: Deployed, arn: str) -> dict[str, Any]:
    iam = stack.client("iam")
    return {
        "Description": iam.get_policy(PolicyArn=arn)["Policy"]["Description"],
        "Roles": [role["RoleName"] for role in iam.list_entities_for_policy(PolicyArn=arn)["PolicyRoles"]],
        "PolicyDocument": policy_document(stack, arn),
    }


def _security_configuration(stack: Deployed, name: str) -> dict[str, Any]:
    text = stack.client("emr").describe_security_configuration(Name=name)["SecurityConfiguration"]
    return {"SecurityConfiguration": json.loads(text)}


def _topic(stack: Deployed, arn: str) -> dict[str, Any]:
    sns = stack.client("sns")
    return {
        "DisplayName": sns.get_topic_attributes(TopicArn=arn)["Attributes"]["DisplayName"],
        "Tags": sns.list_tags_for_resource(ResourceArn=arn)["Tags"],
    }


def _topic_policy(stack: Deployed, _: str) -> dict[str, Any]:
    topic = stack.ids["AlertTopic"]
    policy = stack.client("sns").get_topic_attributes(TopicArn=topic)["Attributes"]["Policy"]
    return {"Topics": [topic], "PolicyDocument": json.loads(policy)}


def _subscription(stack: Deployed, arn: str) -> dict[str, Any]:
    found = stack.client("sns").get_subscription_attributes(SubscriptionArn=arn)["Attributes"]
    return {key: found[key] for key in ("TopicArn", "Protocol", "Endpoint")}


def _budget(stack: Deployed, name: str) -> dict[str, Any]:
    budgets, of = stack.client("budgets"), {"AccountId": ACCOUNT, "BudgetName": name}
    budget = budgets.describe_budget(**of)["Budget"]
    # moto cannot list the subscribers of a notification.
    topic = [{"SubscriptionType": "SNS", "Address": stack.ids["AlertTopic"]}]
    return {
        "Budget": {key: budget[key] for key in ("BudgetName", "BudgetType", "TimeUnit", "BudgetLimit", "CostFilters")},
        "NotificationsWithSubscribers": [
            {"Notification": notification, "Subscribers": topic}
            for notification in budgets.describe_notifications_for_budget(**of)["Notifications"]
        ],
    }


def _vpc(stack: Deployed, vpc_id: str) -> dict[str, Any]:
    ec2 = stack.client("ec2")
    (vpc,) = ec2.describe_vpcs(VpcIds=[vpc_id])["Vpcs"]

    def attribute(name: str) -> bool:
        found = ec2.describe_vpc_attribute(VpcId=vpc_id, Attribute=name[0].lower() + name[1:])
        return bool(found[name]["Value"])

    names = ("EnableDnsHostnames", "EnableDnsSupport")
    return {"CidrBlock": vpc["CidrBlock"], **{name: attribute(name) for name in names}, "Tags": vpc["Tags"]}


def _subnet(stack: Deployed, subnet_id: str) -> dict[str, Any]:
    (found,) = stack.client("ec2").describe_subnets(SubnetIds=[subnet_id])["Subnets"]
    return {key: found[key] for key in ("VpcId", "CidrBlock", "AvailabilityZone", "Tags")}


def _route_table(stack: Deployed, route_table_id: str) -> dict[str, Any]:
    (found,) = stack.client("ec2").describe_route_tables(RouteTableIds=[route_table_id])["RouteTables"]
    return {key: found[key] for key in ("VpcId", "Tags")}


def _association(stack: Deployed, association_id: str) -> dict[str, Any]:
    tables = stack.client("ec2").describe_route_tables()["RouteTables"]
    (found,) = (
        each for table in tables for each in table["Associations"] if each["RouteTableAssociationId"] == association_id
    )
    return {key: found[key] for key in ("SubnetId", "RouteTableId")}


def _endpoint(stack: Deployed, endpoint_id: str) -> dict[str, Any]:
    (found,) = stack.client("ec2").describe_vpc_endpoints(VpcEndpointIds=[endpoint_id])["VpcEndpoints"]
    same = {key: found[key] for key in ("VpcId", "VpcEndpointType", "ServiceName")}
    if found["VpcEndpointType"] == "Gateway":
        policy = json.loads(found["PolicyDocument"])
        return {**same, "RouteTableIds": found["RouteTableIds"], "PolicyDocument": policy}
    groups = [group["GroupId"] for group in found["Groups"]]
    return {**same, **{key: found[key] for key in ("PrivateDnsEnabled", "SubnetIds")}, "SecurityGroupIds": groups}


def _security_group(stack: Deployed, group_id: str) -> dict[str, Any]:
    (found,) = stack.client("ec2").describe_security_groups(GroupIds=[group_id])["SecurityGroups"]
    rules = [
        {**{key: rule[key] for key in ("IpProtocol", "FromPort", "ToPort")}, **range_}
        for rule in found["IpPermissions"]
        for range_ in rule["IpRanges"]
    ]
    return {
        "GroupDescription": found["Description"],
        "VpcId": found["VpcId"],
        **({"SecurityGroupIngress": rules} if rules else {}),
        "Tags": found["Tags"],
    }


def _ingress(stack: Deployed, _: str) -> dict[str, Any]:
    group_id = stack.ids["ServiceSecurityGroup"]
    (group,) = stack.client("ec2").describe_security_groups(GroupIds=[group_id])["SecurityGroups"]
    (rule,) = group["IpPermissions"]
    (source,) = rule["UserIdGroupPairs"]
    return {
        "GroupId": group_id,
        **{key: rule[key] for key in ("IpProtocol", "FromPort", "ToPort")},
        "SourceSecurityGroupId": source["GroupId"],
        "Description": source["Description"],
    }


# For each type, a function that returns the properties of a resource, as its service describes them.
READ: Mapping[str, Callable[[Deployed, str], dict[str, Any]]] = {
    "AWS::S3::Bucket": _bucket,
    "AWS::S3::BucketPolicy": _bucket_policy,
    "AWS::Glue::Database": _database,
    "AWS::IAM::Role": _role,
    "AWS::IAM::InstanceProfile": _instance_profile,
    "AWS::IAM::ManagedPolicy": _managed_policy,
    "AWS::EMR::SecurityConfiguration": _security_configuration,
    "AWS::SNS::Topic": _topic,
    "AWS::SNS::TopicPolicy": _topic_policy,
    "AWS::SNS::Subscription": _subscription,
    "AWS::Budgets::Budget": _budget,
    "AWS::EC2::VPC": _vpc,
    "AWS::EC2::Subnet": _subnet,
    "AWS::EC2::RouteTable": _route_table,
    "AWS::EC2::SubnetRouteTableAssociation": _association,
    "AWS::EC2::VPCEndpoint": _endpoint,
    "AWS::EC2::SecurityGroup": _security_group,
    "AWS::EC2::SecurityGroupIngress": _ingress,
}
