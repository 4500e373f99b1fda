"""Preflight accepts the resources of the stack, and names each that is taken away.

The service-linked role for Spot is not among them, because the small runs here have no Spot instances.
"""

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from infra import release
from infra.stack import settings as stack_settings
from local_aws.server import LocalAws
from orchard.preflight.checks import Clients, NotReady, check
from orchard.settings import Settings
from tests.infra.deployed_stack import Deployed, client, create_stack
from tests.plugins.plans import plan, put_images

TAG = "for-use-with-amazon-emr-managed-policies"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with LocalAws(tmp_path_factory.mktemp("aws")) as server:
        yield server.endpoint_url


@dataclass(frozen=True)
class Deployment:
    """A stack with a release and a dataset, and the settings that it gives to Orchard."""

    stack: Deployed
    settings: Settings

    @property
    def ids(self) -> dict[str, str]:
        return self.stack.ids

    def check(self, hold_minutes: int = 0) -> None:
        names = ("s3", "iam", "ec2", "emr", "glue", "sns")
        clients = Clients(**{name: self.stack.client(name) for name in names})
        # The clusters are those of other tests in the region: none is active here.
        check(clients, self.settings, plan(clients.s3, self.settings, core_instances=None, hold_minutes=hold_minutes))


@pytest.fixture
def deployment(url: str, parts: Path) -> Deployment:
    return deploy(url, parts)


def deploy(url: str, parts: Path, **parameters: str) -> Deployment:
    name = f"ready-{uuid.uuid4().hex[:8]}"
    names = {"BucketName": name, "DatabaseName": name.replace("-", "_"), "DeploymentName": name}
    stack = create_stack(url, name, CreateVpc="true", **names, **parameters)
    (described,) = client("cloudformation", url).describe_stacks(StackName=name)["Stacks"]
    s3 = client("s3", url)
    version = release.upload(s3, name, release.collect(parts))
    put_images(s3, name)
    return Deployment(stack, Settings.from_env({**stack_settings(described), "ORCHARD_RELEASE": version}))


def test_preflight_passes(deployment: Deployment) -> None:
    deployment.check()


def test_a_run_with_a_hold_needs_the_parameter_of_the_stack_for_that(url: str, parts: Path) -> None:
    deploy(url, parts, HoldClusters="true").check(hold_minutes=60)
    without = deploy(url, parts)
    with pytest.raises(NotReady, match=r"1 checks failed, .* s3:PutObject, .* deploy the stack with HoldClusters=true"):
        without.check(hold_minutes=60)


def untag(logical_id: str) -> Callable[[Deployment], str]:
    def change(deployment: Deployment) -> str:
        found = deployment.ids[logical_id]
        deployment.stack.client("ec2").delete_tags(Resources=[found], Tags=[{"Key": TAG}])
        return found

    return change


def delete_subnet(deployment: Deployment) -> str:
    ec2, subnet = deployment.stack.client("ec2"), deployment.ids["FirstSubnet"]
    ec2.disassociate_route_table(AssociationId=deployment.ids["FirstSubnetRoutes"])
    ec2.delete_subnet(SubnetId=subnet)
    return f"subnet {subnet!r} is not in"


def delete_endpoint(deployment: Deployment) -> str:
    deployment.stack.client("ec2").delete_vpc_endpoints(VpcEndpointIds=[deployment.ids["S3Endpoint"]])
    return deployment.ids["FirstSubnet"]


def delete_service_group(deployment: Deployment) -> str:
    ec2, group = deployment.stack.client("ec2"), deployment.ids["ServiceSecurityGroup"]
    ec2.delete_security_group(GroupId=group)
    return group


def revoke_ingress(deployment: Deployment) -> str:
    ec2, group = deployment.stack.client("ec2"), deployment.ids["ServiceSecurityGroup"]
    (found,) = ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"]
    ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=found["IpPermissions"])
    return "9443"


def revoke_pass_role(deployment: Deployment) -> str:
    role = deployment.ids["ServiceRole"]
    deployment.stack.client("iam").delete_role_policy(RoleName=role, PolicyName="pass-the-nodes-role")
    return f"service role {role!r} may not pass role"


def remove_node_role(deployment: Deployment) -> str:
    iam, profile = deployment.stack.client("iam"), deployment.ids["InstanceProfile"]
    iam.remove_role_from_instance_profile(InstanceProfileName=profile, RoleName=deployment.ids["NodeRole"])
    return f"instance profile {profile!r} has no role"


def delete_instance_profile(deployment: Deployment) -> str:
    message = remove_node_role(deployment)
    deployment.stack.client("iam").delete_instance_profile(InstanceProfileName=deployment.ids["InstanceProfile"])
    return message.removesuffix(" has no role")


def delete_service_role(deployment: Deployment) -> str:
    iam, role = deployment.stack.client("iam"), deployment.ids["ServiceRole"]
    iam.delete_role_policy(RoleName=role, PolicyName="pass-the-nodes-role")
    for policy in iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]:
        iam.detach_role_policy(RoleName=role, PolicyArn=policy["PolicyArn"])
    iam.delete_role(RoleName=role)
    return f"service role {role!r}"


def delete_security_configuration(deployment: Deployment) -> str:
    name = deployment.ids["SecurityConfiguration"]
    deployment.stack.client("emr").delete_security_configuration(Name=name)
    return f"security configuration {name!r}"


def delete_topic(deployment: Deployment) -> str:
    deployment.stack.client("sns").delete_topic(TopicArn=deployment.ids["AlertTopic"])
    return deployment.ids["AlertTopic"]


def delete_release(deployment: Deployment) -> str:
    s3, bucket = deployment.stack.client("s3"), deployment.settings.bucket
    s3.delete_object(Bucket=bucket, Key=f"releases/{deployment.settings.release}/bootstrap/install.sh")
    return "bootstrap/install.sh is missing"


@pytest.mark.parametrize(
    "take_away",
    [
        *(untag(name) for name in ("FirstSubnet", "SecondSubnet", "PrimarySecurityGroup", "ServiceSecurityGroup")),
        delete_subnet,
        delete_endpoint,
        delete_service_group,
        revoke_ingress,
        revoke_pass_role,
        remove_node_role,
        delete_instance_profile,
        delete_service_role,
        delete_security_configuration,
        delete_topic,
        delete_release,
    ],
)
def test_preflight_names_what_is_taken_away(deployment: Deployment, take_away: Callable[[Deployment], str]) -> None:
    expected = take_away(deployment)
    with pytest.raises(NotReady) as raised:
        deployment.check()
    assert expected in str(raised.value)
