"""The types of resources. Each is created, changed and deleted by calls to its service, as in AWS.

The keyword arguments of a function are the properties that its type supports, in snake case.
"""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from botocore import xform_name

from local_aws.cloudformation.template import BadTemplate

# Returns a boto3 client for a service of the local AWS.
Services: TypeAlias = Callable[[str], Any]
Tags: TypeAlias = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Made:
    """A resource: what `Ref` returns, and what `Fn::GetAtt` returns."""

    id: str
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Kind:
    """A type of resource.

    `put(services, name, existing, **properties)` creates a resource, with a name that CloudFormation has chosen, or
    changes the one whose id is `existing`. A resource of a type that is `replaced` is never changed: a new one takes
    its place. `delete(services, id, properties)` deletes one.
    """

    put: Callable[..., Made]
    delete: Callable[[Services, str, Mapping[str, Any]], object]
    replaced: bool


KINDS: dict[str, Kind] = {}


def kind(
    name: str, delete: Callable[[Services, str, Mapping[str, Any]], object], *, replaced: bool = False
) -> Callable[[Callable[..., Made]], Callable[..., Made]]:
    """Register the function that creates or changes the resources of a type."""

    def register(put: Callable[..., Made]) -> Callable[..., Made]:
        KINDS[name] = Kind(put, delete, replaced)
        return put

    return register


def kind_of(name: str) -> Kind:
    """Return a type.

    Raises:
        BadTemplate: the local AWS does not support it.
    """
    if name not in KINDS:
        raise BadTemplate(f"the local AWS does not support the resource type {name}; it supports {', '.join(KINDS)}")
    return KINDS[name]


def arguments(type_name: str, properties: Mapping[str, Any]) -> dict[str, Any]:
    """Return the properties of a resource as arguments for the function of its type.

    Raises:
        BadTemplate: the local AWS does not support a property.
    """
    supported = inspect.signature(kind_of(type_name).put).parameters.keys() - {"services", "name", "existing"}
    named = {xform_name(key): value for key, value in properties.items()}
    if unknown := [key for key in properties if xform_name(key) not in supported]:
        raise BadTemplate(f"the local AWS does not support the properties {', '.join(unknown)} of {type_name}")
    return named


def _account(services: Services) -> str:
    return str(services("sts").get_caller_identity()["Account"])


def _if_set(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


# S3.


def _delete_bucket(services: Services, bucket: str, _: Mapping[str, Any]) -> None:
    services("s3").delete_bucket(Bucket=bucket)


@kind("AWS::S3::Bucket", _delete_bucket)
def _bucket(
    services: Services,
    name: str,
    existing: str | None,
    *,
    bucket_name: str | None = None,
    public_access_block_configuration: Mapping[str, bool] | None = None,
    ownership_controls: Mapping[str, Any] | None = None,
    bucket_encryption: Mapping[str, Any] | None = None,
    versioning_configuration: Mapping[str, str] | None = None,
    lifecycle_configuration: Mapping[str, Any] | None = None,
    tags: Tags | None = None,
) -> Made:
    s3 = services("s3")
    bucket = existing or bucket_name or name.lower()
    if existing is None:
        region = s3.meta.region_name
        location = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
        s3.create_bucket(Bucket=bucket, **location)
    if public_access_block_configuration:
        s3.put_public_access_block(Bucket=bucket, PublicAccessBlockConfiguration=public_access_block_configuration)
    if ownership_controls:
        s3.put_bucket_ownership_controls(Bucket=bucket, OwnershipControls=ownership_controls)
    if bucket_encryption:
        rules = [
            {
                ("ApplyServerSideEncryptionByDefault" if key.startswith("Server") else key): value
                for key, value in rule.items()
            }
            for rule in bucket_encryption["ServerSideEncryptionConfiguration"]
        ]
        s3.put_bucket_encryption(Bucket=bucket, ServerSideEncryptionConfiguration={"Rules": rules})
    if versioning_configuration:
        s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration=versioning_configuration)
    if lifecycle_configuration:
        rules = [_lifecycle_rule(**rule) for rule in lifecycle_configuration["Rules"]]
        s3.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": rules})
    if tags:
        s3.put_bucket_tagging(Bucket=bucket, Tagging={"TagSet": tags})
    return Made(bucket, {"Arn": f"arn:aws:s3:::{bucket}"})


def _lifecycle_rule(
    Id: str,  # noqa: N803  # as in the template
    Status: str,  # noqa: N803
    Prefix: str = "",  # noqa: N803
    ExpirationInDays: int | None = None,  # noqa: N803
    **same: Any,
) -> dict[str, Any]:
    """Return a rule as the API of S3 has it."""
    expiration = {} if ExpirationInDays is None else {"Expiration": {"Days": ExpirationInDays}}
    return {"ID": Id, "Status": Status, "Filter": {"Prefix": Prefix}, **expiration, **same}


@kind("AWS::S3::BucketPolicy", lambda services, bucket, _: services("s3").delete_bucket_policy(Bucket=bucket))
def _bucket_policy(
    services: Services, name: str, existing: str | None, *, bucket: str, policy_document: Mapping[str, Any]
) -> Made:
    services("s3").put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy_document))
    return Made(bucket)


# Glue.


@kind("AWS::Glue::Database", lambda services, database, _: services("glue").delete_database(Name=database))
def _database(
    services: Services, name: str, existing: str | None, *, database_input: Mapping[str, Any], catalog_id: str = ""
) -> Made:
    glue = services("glue")
    if existing is None:
        glue.create_database(DatabaseInput=database_input)
    else:
        glue.update_database(Name=existing, DatabaseInput=database_input)
    return Made(database_input["Name"])


# IAM.


def _delete_role(services: Services, role: str, _: Mapping[str, Any]) -> None:
    iam = services("iam")
    _clear_role(iam, role)
    iam.delete_role(RoleName=role)


def _clear_role(iam: Any, role: str) -> None:
    for policy in iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]:
        iam.detach_role_policy(RoleName=role, PolicyArn=policy["PolicyArn"])
    for policy in iam.list_role_policies(RoleName=role)["PolicyNames"]:
        iam.delete_role_policy(RoleName=role, PolicyName=policy)


@kind("AWS::IAM::Role", _delete_role)
def _role(
    services: Services,
    name: str,
    existing: str | None,
    *,
    assume_role_policy_document: Mapping[str, Any],
    role_name: str | None = None,
    description: str = "",
    managed_policy_arns: Sequence[str] = (),
    policies: Sequence[Mapping[str, Any]] = (),
    tags: Tags = (),
) -> Made:
    iam, trust = services("iam"), json.dumps(assume_role_policy_document)
    role = existing or role_name or name[:64]
    if existing is None:
        iam.create_role(RoleName=role, AssumeRolePolicyDocument=trust, Description=description, Tags=tags)
    else:
        iam.update_assume_role_policy(RoleName=role, PolicyDocument=trust)
        _clear_role(iam, role)
    for arn in managed_policy_arns:
        iam.attach_role_policy(RoleName=role, PolicyArn=arn)
    for policy in policies:
        document = json.dumps(policy["PolicyDocument"])
        iam.put_role_policy(RoleName=role, PolicyName=policy["PolicyName"], PolicyDocument=document)
    return Made(role, {"Arn": iam.get_role(RoleName=role)["Role"]["Arn"]})


def _delete_instance_profile(services: Services, profile: str, properties: Mapping[str, Any]) -> None:
    iam = services("iam")
    for role in iam.get_instance_profile(InstanceProfileName=profile)["InstanceProfile"]["Roles"]:
        iam.remove_role_from_instance_profile(InstanceProfileName=profile, RoleName=role["RoleName"])
    iam.delete_instance_profile(InstanceProfileName=profile)


@kind("AWS::IAM::InstanceProfile", _delete_instance_profile, replaced=True)
def _instance_profile(
    services: Services,
    name: str,
    existing: str | None,
    *,
    roles: Sequence[str],
    instance_profile_name: str | None = None,
) -> Made:
    iam, profile = services("iam"), instance_profile_name or name
    arn = iam.create_instance_profile(InstanceProfileName=profile)["InstanceProfile"]["Arn"]
    for role in roles:
        iam.add_role_to_instance_profile(InstanceProfileName=profile, RoleName=role)
    return Made(profile, {"Arn": arn})


def _delete_policy(services: Services, arn: str, _: Mapping[str, Any]) -> None:
    iam = services("iam")
    _detach_policy(iam, arn)
    for version in iam.list_policy_versions(PolicyArn=arn)["Versions"]:
        if not version["IsDefaultVersion"]:
            iam.delete_policy_version(PolicyArn=arn, VersionId=version["VersionId"])
    iam.delete_policy(PolicyArn=arn)


def _detach_policy(iam: Any, arn: str) -> None:
    for role in iam.list_entities_for_policy(PolicyArn=arn)["PolicyRoles"]:
        iam.detach_role_policy(RoleName=role["RoleName"], PolicyArn=arn)


@kind("AWS::IAM::ManagedPolicy", _delete_policy)
def _managed_policy(
    services: Services,
    name: str,
    existing: str | None,
    *,
    policy_document: Mapping[str, Any],
    managed_policy_name: str | None = None,
    description: str = "",
    roles: Sequence[str] = (),
) -> Made:
    iam, document = services("iam"), json.dumps(policy_document)
    if existing is None:
        created = iam.create_policy(
            PolicyName=managed_policy_name or name, PolicyDocument=document, Description=description
        )
        arn = created["Policy"]["Arn"]
    else:
        arn = existing
        _detach_policy(iam, arn)
        old = [
            version
            for version in iam.list_policy_versions(PolicyArn=arn)["Versions"]
            if not version["IsDefaultVersion"]
        ]
        for version in old:  # IAM keeps at most five
            iam.delete_policy_version(PolicyArn=arn, VersionId=version["VersionId"])
        iam.create_policy_version(PolicyArn=arn, PolicyDocument=document, SetAsDefault=True)
    for role in roles:
        iam.attach_role_policy(RoleName=role, PolicyArn=arn)
    return Made(arn)


# EMR.


def _delete_security_configuration(services: Services, name: str, _: Mapping[str, Any]) -> None:
    services("emr").delete_security_configuration(Name=name)


@kind("AWS::EMR::SecurityConfiguration", _delete_security_configuration, replaced=True)
def _security_configuration(
    services: Services,
    name: str,
    existing: str | None,
    *,
    security_configuration: Mapping[str, Any] | str,
) -> Made:
    text = security_configuration if isinstance(security_configuration, str) else json.dumps(security_configuration)
    services("emr").create_security_configuration(Name=name, SecurityConfiguration=text)
    return Made(name)


# SNS.


@kind("AWS::SNS::Topic", lambda services, arn, _: services("sns").delete_topic(TopicArn=arn), replaced=True)
def _topic(
    services: Services,
    name: str,
    existing: str | None,
    *,
    topic_name: str | None = None,
    display_name: str = "",
    tags: Tags = (),
) -> Made:
    attributes = {"DisplayName": display_name} if display_name else {}
    arn = services("sns").create_topic(Name=topic_name or name, Attributes=attributes, Tags=tags)["TopicArn"]
    return Made(arn, {"TopicArn": arn, "TopicName": topic_name or name})


@kind("AWS::SNS::TopicPolicy", lambda services, _, properties: None)
def _topic_policy(
    services: Services, name: str, existing: str | None, *, topics: Sequence[str], policy_document: Mapping[str, Any]
) -> Made:
    for arn in topics:
        services("sns").set_topic_attributes(
            TopicArn=arn, AttributeName="Policy", AttributeValue=json.dumps(policy_document)
        )
    return Made(existing or name)


@kind(
    "AWS::SNS::Subscription", lambda services, arn, _: services("sns").unsubscribe(SubscriptionArn=arn), replaced=True
)
def _subscription(
    services: Services, name: str, existing: str | None, *, topic_arn: str, protocol: str, endpoint: str
) -> Made:
    subscribed = services("sns").subscribe(
        TopicArn=topic_arn, Protocol=protocol, Endpoint=endpoint, ReturnSubscriptionArn=True
    )
    return Made(subscribed["SubscriptionArn"])


# Budgets.


def _delete_budget(services: Services, name: str, _: Mapping[str, Any]) -> None:
    services("budgets").delete_budget(AccountId=_account(services), BudgetName=name)


@kind("AWS::Budgets::Budget", _delete_budget, replaced=True)
def _budget(
    services: Services,
    name: str,
    existing: str | None,
    *,
    budget: Mapping[str, Any],
    notifications_with_subscribers: Sequence[Mapping[str, Any]] = (),
) -> Made:
    limit = {key: str(value) for key, value in budget["BudgetLimit"].items()}
    services("budgets").create_budget(
        AccountId=_account(services),
        Budget={"BudgetName": name, **budget, "BudgetLimit": limit},
        NotificationsWithSubscribers=notifications_with_subscribers,
    )
    return Made(budget.get("BudgetName", name))


# EC2.


def _tag(ec2: Any, resource_id: str, tags: Tags) -> None:
    if tags:
        ec2.create_tags(Resources=[resource_id], Tags=tags)


@kind("AWS::EC2::VPC", lambda services, vpc_id, _: services("ec2").delete_vpc(VpcId=vpc_id), replaced=True)
def _vpc(
    services: Services,
    name: str,
    existing: str | None,
    *,
    cidr_block: str,
    enable_dns_hostnames: bool = False,
    enable_dns_support: bool = True,
    tags: Tags = (),
) -> Made:
    ec2 = services("ec2")
    vpc_id = ec2.create_vpc(CidrBlock=cidr_block)["Vpc"]["VpcId"]
    ec2.modify_vpc_attribute(VpcId=vpc_id, EnableDnsSupport={"Value": enable_dns_support})
    ec2.modify_vpc_attribute(VpcId=vpc_id, EnableDnsHostnames={"Value": enable_dns_hostnames})
    _tag(ec2, vpc_id, tags)
    return Made(vpc_id, {"VpcId": vpc_id, "CidrBlock": cidr_block})


@kind("AWS::EC2::Subnet", lambda services, subnet, _: services("ec2").delete_subnet(SubnetId=subnet), replaced=True)
def _subnet(
    services: Services,
    name: str,
    existing: str | None,
    *,
    vpc_id: str,
    cidr_block: str,
    availability_zone: str,
    tags: Tags = (),
) -> Made:
    ec2 = services("ec2")
    created = ec2.create_subnet(VpcId=vpc_id, CidrBlock=cidr_block, AvailabilityZone=availability_zone)
    subnet_id = created["Subnet"]["SubnetId"]
    _tag(ec2, subnet_id, tags)
    return Made(subnet_id, {"SubnetId": subnet_id})


def _delete_route_table(services: Services, route_table_id: str, _: Mapping[str, Any]) -> None:
    services("ec2").delete_route_table(RouteTableId=route_table_id)


@kind("AWS::EC2::RouteTable", _delete_route_table, replaced=True)
def _route_table(services: Services, name: str, existing: str | None, *, vpc_id: str, tags: Tags = ()) -> Made:
    ec2 = services("ec2")
    route_table_id = ec2.create_route_table(VpcId=vpc_id)["RouteTable"]["RouteTableId"]
    _tag(ec2, route_table_id, tags)
    return Made(route_table_id, {"RouteTableId": route_table_id})


def _disassociate(services: Services, association_id: str, _: Mapping[str, Any]) -> None:
    services("ec2").disassociate_route_table(AssociationId=association_id)


@kind("AWS::EC2::SubnetRouteTableAssociation", _disassociate, replaced=True)
def _association(services: Services, name: str, existing: str | None, *, subnet_id: str, route_table_id: str) -> Made:
    associated = services("ec2").associate_route_table(SubnetId=subnet_id, RouteTableId=route_table_id)
    return Made(associated["AssociationId"])


def _delete_endpoint(services: Services, endpoint_id: str, _: Mapping[str, Any]) -> None:
    services("ec2").delete_vpc_endpoints(VpcEndpointIds=[endpoint_id])


@kind("AWS::EC2::VPCEndpoint", _delete_endpoint, replaced=True)
def _endpoint(
    services: Services,
    name: str,
    existing: str | None,
    *,
    vpc_id: str,
    service_name: str,
    vpc_endpoint_type: str = "Gateway",
    policy_document: Mapping[str, Any] | None = None,
    route_table_ids: Sequence[str] | None = None,
    subnet_ids: Sequence[str] | None = None,
    security_group_ids: Sequence[str] | None = None,
    private_dns_enabled: bool | None = None,
) -> Made:
    created = services("ec2").create_vpc_endpoint(
        VpcId=vpc_id,
        ServiceName=service_name,
        VpcEndpointType=vpc_endpoint_type,
        **_if_set(
            PolicyDocument=None if policy_document is None else json.dumps(policy_document),
            RouteTableIds=route_table_ids,
            SubnetIds=subnet_ids,
            SecurityGroupIds=security_group_ids,
            PrivateDnsEnabled=private_dns_enabled,
        ),
    )
    return Made(created["VpcEndpoint"]["VpcEndpointId"])


def _delete_security_group(services: Services, group_id: str, _: Mapping[str, Any]) -> None:
    services("ec2").delete_security_group(GroupId=group_id)


@kind("AWS::EC2::SecurityGroup", _delete_security_group, replaced=True)
def _security_group(
    services: Services,
    name: str,
    existing: str | None,
    *,
    vpc_id: str,
    group_description: str,
    group_name: str | None = None,
    security_group_ingress: Sequence[Mapping[str, Any]] = (),
    tags: Tags = (),
) -> Made:
    ec2 = services("ec2")
    created = ec2.create_security_group(GroupName=group_name or name, Description=group_description, VpcId=vpc_id)
    for rule in security_group_ingress:
        ec2.authorize_security_group_ingress(GroupId=created["GroupId"], IpPermissions=[_permission(**rule)])
    _tag(ec2, created["GroupId"], tags)
    return Made(created["GroupId"], {"GroupId": created["GroupId"], "VpcId": vpc_id})


def _permission(
    IpProtocol: str,  # noqa: N803  # as in the template
    FromPort: int,  # noqa: N803
    ToPort: int,  # noqa: N803
    Description: str = "",  # noqa: N803
    CidrIp: str | None = None,  # noqa: N803
    SourceSecurityGroupId: str | None = None,  # noqa: N803
) -> dict[str, Any]:
    """Return a rule of a security group as the API of EC2 has it."""
    permission: dict[str, Any] = {"IpProtocol": IpProtocol, "FromPort": int(FromPort), "ToPort": int(ToPort)}
    if CidrIp:
        permission["IpRanges"] = [{"CidrIp": CidrIp, "Description": Description}]
    if SourceSecurityGroupId:
        permission["UserIdGroupPairs"] = [{"GroupId": SourceSecurityGroupId, "Description": Description}]
    return permission


def _revoke(services: Services, _: str, properties: Mapping[str, Any]) -> None:
    rule = {key: value for key, value in properties.items() if key != "GroupId"}
    services("ec2").revoke_security_group_ingress(GroupId=properties["GroupId"], IpPermissions=[_permission(**rule)])


@kind("AWS::EC2::SecurityGroupIngress", _revoke, replaced=True)
def _ingress(
    services: Services,
    name: str,
    existing: str | None,
    *,
    group_id: str,
    ip_protocol: str,
    from_port: int,
    to_port: int,
    source_security_group_id: str,
    description: str = "",
) -> Made:
    permission = _permission(ip_protocol, from_port, to_port, description, None, source_security_group_id)
    services("ec2").authorize_security_group_ingress(GroupId=group_id, IpPermissions=[permission])
    return Made(name)
