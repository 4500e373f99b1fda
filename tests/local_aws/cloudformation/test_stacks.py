import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from local_aws.server import LocalAws
from sandbox import aws

TEMPLATE = """
Parameters:
  Name: {{Type: String}}
  Trusted: {{Type: String, Default: ec2.amazonaws.com}}
Resources:
  Bucket:
    Type: AWS::S3::Bucket
    DeletionPolicy: {policy}
    Properties: {{BucketName: !Ref Name}}
  Role:
    Type: AWS::IAM::Role
    Properties:
      AssumeRolePolicyDocument:
        Version: "2012-10-17"
        Statement: [{{Effect: Allow, Principal: {{Service: !Ref Trusted}}, Action: sts:AssumeRole}}]
      Description: !GetAtt Bucket.Arn
{more}
Outputs:
  Role: {{Value: !Ref Role, Description: the role}}
"""


def template(policy: str = "Delete", more: str = "") -> str:
    return TEMPLATE.format(policy=policy, more=more)


# This instance profile cannot be created, because its role does not exist.
BROKEN = "  Broken: {Type: AWS::IAM::InstanceProfile, DependsOn: Role, Properties: {Roles: [missing]}}"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with LocalAws(tmp_path_factory.mktemp("aws")) as server:
        yield server.endpoint_url


@pytest.fixture
def name() -> str:
    return f"stack-{uuid.uuid4().hex[:8]}"


class Cloud:
    """A user of CloudFormation, who looks at the resources by their own services."""

    def __init__(self, url: str) -> None:
        self.stacks, self.s3, self.iam = (aws.client(each, url) for each in ("cloudformation", "s3", "iam"))

    def create(self, name: str, body: str, **parameters: str) -> None:
        self.stacks.create_stack(StackName=name, TemplateBody=body, Parameters=given({"Name": name, **parameters}))

    def stack(self, name: str) -> dict[str, Any]:
        (found,) = self.stacks.describe_stacks(StackName=name)["Stacks"]
        return dict(found)

    def has_bucket(self, name: str) -> bool:
        return name in [bucket["Name"] for bucket in self.s3.list_buckets()["Buckets"]]

    def role(self, name: str) -> dict[str, Any]:
        (output,) = self.stack(name)["Outputs"]
        return dict(self.iam.get_role(RoleName=output["OutputValue"])["Role"])

    def events(self, name: str) -> list[tuple[str, str]]:
        found = self.stacks.describe_stack_events(StackName=name)["StackEvents"]
        return [(event["LogicalResourceId"], event["ResourceStatus"]) for event in found]


def given(parameters: dict[str, str]) -> list[dict[str, str]]:
    return [{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()]


@pytest.fixture
def cloud(url: str) -> Cloud:
    return Cloud(url)


def test_a_stack_creates_its_resources_and_deletes_them(cloud: Cloud, name: str) -> None:
    cloud.create(name, template())
    assert cloud.stack(name)["StackStatus"] == "CREATE_COMPLETE"
    assert cloud.role(name)["Description"] == f"arn:aws:s3:::{name}"
    stack_id, role = cloud.stack(name)["StackId"], cloud.role(name)["RoleName"]
    cloud.stacks.delete_stack(StackName=name)
    assert not cloud.has_bucket(name)
    with pytest.raises(cloud.iam.exceptions.NoSuchEntityException):
        cloud.iam.get_role(RoleName=role)
    with pytest.raises(ClientError, match=f"Stack with id {name} does not exist"):
        cloud.stack(name)
    assert cloud.stack(stack_id)["StackStatus"] == "DELETE_COMPLETE"


@pytest.mark.parametrize("policy", ["Retain", "RetainExceptOnCreate"])
def test_a_resource_can_stay_when_its_stack_is_deleted(cloud: Cloud, name: str, policy: str) -> None:
    cloud.create(name, template(policy))
    cloud.stacks.delete_stack(StackName=name)
    assert cloud.has_bucket(name)


def test_an_update_changes_what_has_changed(cloud: Cloud, name: str) -> None:
    cloud.create(name, template())
    before = cloud.role(name)
    kept = [{"ParameterKey": "Name", "UsePreviousValue": True}]
    changed = given({"Trusted": "glue.amazonaws.com"})
    cloud.stacks.update_stack(StackName=name, UsePreviousTemplate=True, Parameters=[*kept, *changed])
    assert cloud.stack(name)["StackStatus"] == "UPDATE_COMPLETE"
    after = cloud.role(name)
    assert (after["RoleName"], after["Description"]) == (before["RoleName"], before["Description"])
    (statement,) = after["AssumeRolePolicyDocument"]["Statement"]
    assert statement["Principal"] == {"Service": "glue.amazonaws.com"}
    events = cloud.events(name)
    assert ("Role", "UPDATE_COMPLETE") in events
    assert ("Bucket", "UPDATE_COMPLETE") not in events
    with pytest.raises(ClientError, match="No updates are to be performed"):
        cloud.stacks.update_stack(StackName=name, UsePreviousTemplate=True, Parameters=[*kept, *changed])


def test_an_update_deletes_what_the_template_no_longer_has(cloud: Cloud, name: str) -> None:
    profile = "  Profile: {Type: AWS::IAM::InstanceProfile, Properties: {Roles: [!Ref Role]}}"
    cloud.create(name, template(more=profile))
    resources = cloud.stacks.describe_stack_resources(StackName=name, LogicalResourceId="Profile")["StackResources"]
    cloud.stacks.update_stack(StackName=name, TemplateBody=template(), Parameters=given({"Name": name}))
    with pytest.raises(cloud.iam.exceptions.NoSuchEntityException):
        cloud.iam.get_instance_profile(InstanceProfileName=resources[0]["PhysicalResourceId"])


@pytest.mark.parametrize(("policy", "stays"), [("RetainExceptOnCreate", False), ("Retain", True), ("Delete", False)])
def test_a_creation_that_fails_is_rolled_back(cloud: Cloud, name: str, policy: str, *, stays: bool) -> None:
    cloud.create(name, template(policy, BROKEN))
    assert cloud.stack(name)["StackStatus"] == "ROLLBACK_COMPLETE"
    assert cloud.has_bucket(name) is stays
    failed = [
        item for item in cloud.stacks.describe_stack_events(StackName=name)["StackEvents"] if "FAILED" in str(item)
    ]
    (event,) = [item for item in failed if item["ResourceStatus"] == "CREATE_FAILED"]
    assert event["LogicalResourceId"] == "Broken"
    assert "missing" in event["ResourceStatusReason"]
    with pytest.raises(ClientError, match="is in ROLLBACK_COMPLETE state and can not be updated"):
        cloud.stacks.update_stack(StackName=name, TemplateBody=template(), Parameters=given({"Name": name}))


def test_an_update_that_fails_is_rolled_back(cloud: Cloud, name: str) -> None:
    cloud.create(name, template())
    before = cloud.role(name)
    changed = given({"Name": name, "Trusted": "glue.amazonaws.com"})
    cloud.stacks.update_stack(StackName=name, TemplateBody=template(more=BROKEN), Parameters=changed)
    assert cloud.stack(name)["StackStatus"] == "UPDATE_ROLLBACK_COMPLETE"
    assert cloud.role(name)["AssumeRolePolicyDocument"] == before["AssumeRolePolicyDocument"]
    assert cloud.stack(name)["Parameters"] == given({"Name": name})


def test_a_bucket_with_objects_is_not_deleted(cloud: Cloud, name: str) -> None:
    cloud.create(name, template())
    cloud.s3.put_object(Bucket=name, Key="a", Body=b"1")
    cloud.stacks.delete_stack(StackName=name)
    assert cloud.stack(name)["StackStatus"] == "DELETE_FAILED"
    assert ("Bucket", "DELETE_FAILED") in cloud.events(name)
    cloud.s3.delete_object(Bucket=name, Key="a")
    cloud.stacks.delete_stack(StackName=name)
    assert not cloud.has_bucket(name)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("  A: {Type: AWS::S3::AccessPoint}", "does not support the resource type AWS::S3::AccessPoint"),
        (
            "  A: {Type: AWS::S3::Bucket, Properties: {AccelerateConfiguration: {}}}",
            "does not support the properties AccelerateConfiguration of AWS::S3::Bucket",
        ),
        ("  A: {Type: AWS::S3::Bucket, Condition: Huge}", "condition Huge is not defined"),
    ],
)
def test_a_template_that_cannot_be_deployed_as_a_whole_is_refused(
    cloud: Cloud, name: str, more: str, message: str
) -> None:
    with pytest.raises(ClientError, match=message):
        cloud.create(name, template(more=more))
    assert not cloud.has_bucket(name)


def test_a_name_is_used_once(cloud: Cloud, name: str) -> None:
    cloud.create(name, template())
    with pytest.raises(cloud.stacks.exceptions.AlreadyExistsException, match="already exists"):
        cloud.create(name, template())


def test_an_operation_that_is_not_supported_is_an_error_that_names_those_that_are(cloud: Cloud) -> None:
    with pytest.raises(ClientError, match="does not support DescribeAccountLimits; it supports CreateStack"):
        cloud.stacks.describe_account_limits()


def test_stacks_are_restored(tmp_path: Path, name: str) -> None:
    with LocalAws(tmp_path) as server:
        Cloud(server.endpoint_url).create(name, template())
    with LocalAws(tmp_path) as server:
        cloud = Cloud(server.endpoint_url)
        assert cloud.stack(name)["StackStatus"] == "CREATE_COMPLETE"
        cloud.stacks.delete_stack(StackName=name)
        assert not cloud.has_bucket(name)
    with LocalAws(tmp_path) as server, pytest.raises(ClientError, match="does not exist"):
        Cloud(server.endpoint_url).stack(name)
