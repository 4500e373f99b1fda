"""Refuse to launch the instances of a cluster for the reasons for which IAM and EC2 refuse it.

EMR accepts such a cluster, and terminates it with VALIDATION_ERROR. Permissions are checked only if the service role
has AmazonEMRServicePolicy_v2, the policy of EMR's default service role: a role without policies may do everything here.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from moto.core import DEFAULT_ACCOUNT_ID

from local_aws.emr.model import ADDITIONAL_SECURITY_GROUPS, SECURITY_GROUPS, Cluster
from local_aws.policies import ALLOWED, decide, find_instance_profile, find_role, trusts

POLICY_V2: Final = "arn:aws:iam::aws:policy/service-role/AmazonEMRServicePolicy_v2"
# EMR uses these groups, or creates them, if the request names none, in a public and in a private subnet. Each has the
# name that it had before EMR renamed its nodes, or the one after it:
# https://docs.aws.amazon.com/emr/latest/ManagementGuide/emr-man-sec-groups.html
PUBLIC_GROUPS: Final = (
    ("ElasticMapReduce-master", "ElasticMapReduce-primary"),
    ("ElasticMapReduce-slave", "ElasticMapReduce-core"),
)
PRIVATE_GROUPS: Final = (
    ("ElasticMapReduce-Master-Private", "ElasticMapReduce-Primary-Private"),
    ("ElasticMapReduce-Slave-Private", "ElasticMapReduce-Core-Private"),
    ("ElasticMapReduce-ServiceAccess",),
)
# The master connects to EMR's network interface in a private subnet on this port.
SERVICE_PORT: Final = 9443
_NETWORK: Final = ("Ec2SubnetId", "Ec2SubnetIds", *SECURITY_GROUPS, *ADDITIONAL_SECURITY_GROUPS)


@dataclass(frozen=True)
class Refusal:
    """The message of a cluster's StateChangeReason, and the ErrorCode of its ErrorDetails, None if it has none."""

    message: str
    error_code: str | None = None


def refusal(cluster: Cluster) -> Refusal | None:
    """Return why EC2 or IAM refuses to launch the instances of a cluster. None if they do not."""
    role = find_role(cluster.request["ServiceRole"])
    scoped = role if role is not None and POLICY_V2 in role.managed_policies else None
    if scoped is None and not any(cluster.instances.get(name) for name in _NETWORK):
        return None
    network = _Network(cluster)
    return _refused_network(network) or (None if scoped is None else _refused_role(scoped, cluster, network))


class _Network:
    """What moto's EC2 knows of the subnets and security groups of a cluster."""

    def __init__(self, cluster: Cluster) -> None:
        # This import takes a third of the time in which the server starts.
        from moto.ec2.models import ec2_backends

        self._ec2 = ec2_backends[DEFAULT_ACCOUNT_ID][cluster.region]
        instances = cluster.instances
        requested = [instances.get("Ec2SubnetId"), *instances.get("Ec2SubnetIds", [])]
        ids = [subnet for subnet in requested if subnet]
        known = [subnet for zone in self._ec2.subnets.values() for subnet in zone.values()]
        # EMR chooses one of the subnets: https://docs.aws.amazon.com/emr/latest/ManagementGuide/emr-instance-fleet.html
        self.subnets = [subnet for subnet in known if (subnet.id in ids if ids else subnet.default_for_az)]
        own = [instances[name] for name in SECURITY_GROUPS if instances.get(name)]
        self.master_group: str = instances.get("EmrManagedMasterSecurityGroup", "")
        self.service_group = self._ec2.get_security_group_from_id(instances.get("ServiceAccessSecurityGroup", ""))
        more = [group for name in ADDITIONAL_SECURITY_GROUPS for group in instances.get(name, [])]
        found = [self._ec2.get_security_group_from_id(group) for group in dict.fromkeys([*own, *more])]
        self.groups = [group for group in found if group is not None]

    def vpc(self, subnet: Any) -> Any:
        """Return the VPC of a subnet."""
        return self._ec2.vpcs[subnet.vpc_id]

    def group(self, names: Iterable[str], vpc_id: str) -> Any:
        """Return the first security group with one of these names in a VPC. None if there is none."""
        found = (self._ec2.get_security_group_from_name(name, vpc_id) for name in names)
        return next((group for group in found if group is not None), None)

    def _routes(self, subnet: Any) -> list[Any]:
        tables = [table for table in self._ec2.route_tables.values() if table.vpc_id == subnet.vpc_id]
        own = [table for table in tables if subnet.id in table._associations.values()]
        used = own or [table for table in tables if table.main_association_id is not None]
        return [route for table in used for route in table.routes]

    def is_private(self, subnet: Any) -> bool:
        """Return whether a subnet has no route to an internet gateway. moto's default subnets have none, EC2's have."""
        gateways = [str(route.gateway_id) for route in self._routes(subnet)]
        return not subnet.default_for_az and not any(gateway.startswith("igw-") for gateway in gateways)

    def is_isolated(self, subnet: Any) -> bool:
        """Return whether a subnet has no route out of its VPC."""
        return not subnet.default_for_az and all(route.local for route in self._routes(subnet))

    def service_group_admits(self, master_group: str) -> bool:
        """Return whether the group of EMR's network interface admits the master on its port."""
        return any(
            rule.source_group.get("GroupId") == master_group
            and (rule.ip_protocol == "-1" or int(rule.from_port) <= SERVICE_PORT <= int(rule.to_port))
            for rule in self.service_group.ingress_rules
        )


def _refused_network(network: _Network) -> Refusal | None:
    """Return what is wrong with subnets and security groups, whatever the service role may do.

    https://docs.aws.amazon.com/emr/latest/ManagementGuide/emr-troubleshoot-error-errordetail-validation.html
    """
    vpcs = sorted({subnet.vpc_id for subnet in network.subnets})
    if len(vpcs) > 1:
        return Refusal(
            f"The subnets are not all in one VPC: {', '.join(vpcs)}.", "VALIDATION_ERROR_SUBNET_NOT_FROM_ONE_VPC"
        )
    strays = [f"{group.id} in {group.vpc_id}" for group in network.groups if vpcs and group.vpc_id not in vpcs]
    if strays:
        return Refusal(
            f"Security groups are not in the VPC of the cluster, {vpcs[0]}: {', '.join(strays)}.",
            "VALIDATION_ERROR_SECURITY_GROUP_NOT_FROM_ONE_VPC",
        )
    for subnet in filter(network.is_isolated, network.subnets):
        # https://github.com/h2oai/h2o-3/pull/3844
        return Refusal(
            "The VPC/subnet configuration was invalid: No route to any external sources detected in Route Table for "
            f"Subnet: {subnet.id} for VPC: {subnet.vpc_id}"
        )
    if not network.master_group or not any(map(network.is_private, network.subnets)):
        return None
    if network.service_group is None:
        # https://github.com/hashicorp/terraform/issues/9518
        return Refusal(
            "You must also specify a ServiceAccessSecurityGroup if you use custom security groups when creating a "
            "cluster in a private subnet."
        )
    if not network.service_group_admits(network.master_group):
        # https://github.com/hashicorp/terraform/issues/25673
        return Refusal(
            "ServiceAccessSecurityGroup is missing ingress rule from EmrManagedMasterSecurityGroup on port "
            f"{SERVICE_PORT}"
        )
    return None


def _refused_role(role: Any, cluster: Cluster, network: _Network) -> Refusal | None:
    """Return what the service role or the instance profile lacks."""
    if not trusts(role, "elasticmapreduce.amazonaws.com"):
        # https://github.com/aws/aws-cdk/pull/27736
        return Refusal(f"EMR service role {role.arn} is invalid")
    profile = find_instance_profile(cluster.request["JobFlowRole"])
    if profile is None or not profile.roles:
        return Refusal(f"Invalid InstanceProfile: {cluster.request['JobFlowRole']}.")
    for action, resource, context in _needed(cluster, network, profile.roles[0].arn):
        decision = decide(role, action, resource, {key.lower(): [value] for key, value in context.items()})
        if decision.value != ALLOWED:
            # On AWS, only CloudTrail names the call: https://github.com/terraform-aws-modules/terraform-aws-emr/issues/3
            return Refusal(
                f"Service role {role.arn} has insufficient EC2 permissions (in local_aws: {action} on {resource} is "
                f"not allowed: {decision.value})"
            )
    return None


def _needed(cluster: Cluster, network: _Network, node_role: str) -> Iterator[tuple[str, str, Mapping[str, str]]]:
    """Yield the actions that EMR needs to launch a cluster, each with its resource and the values of context keys.

    EC2 checks RunInstances for each resource that an instance uses, and PassRole for the role of its profile. EMR gives
    the instances the tags of the cluster: https://docs.aws.amazon.com/emr/latest/ManagementGuide/emr-managed-iam-policies.html
    """
    prefix = f"arn:aws:ec2:{cluster.region}:{DEFAULT_ACCOUNT_ID}"
    requested = {f"aws:RequestTag/{key}": value for key, value in cluster.tags.items()}
    yield "ec2:RunInstances", f"{prefix}:instance/*", requested
    for subnet in network.subnets:
        yield "ec2:RunInstances", f"{prefix}:subnet/{subnet.id}", _tags(subnet)
    for group in network.groups:
        yield "ec2:RunInstances", f"{prefix}:security-group/{group.id}", _tags(group)
    if not network.master_group:
        for subnet in network.subnets:
            for names in PRIVATE_GROUPS if network.is_private(subnet) else PUBLIC_GROUPS:
                group = network.group(names, subnet.vpc_id)
                if group is None:
                    yield "ec2:CreateSecurityGroup", f"{prefix}:vpc/{subnet.vpc_id}", _tags(network.vpc(subnet))
                else:
                    yield "ec2:RunInstances", f"{prefix}:security-group/{group.id}", _tags(group)
    yield "iam:PassRole", node_role, {"iam:PassedToService": "ec2.amazonaws.com"}


def _tags(resource: Any) -> dict[str, str]:
    return {f"aws:ResourceTag/{tag['key']}": tag["value"] for tag in resource.get_tags()}
