"""The state of S3 and other services is restored after a server was killed."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from tests.local_aws.program import serving, start
from tests.local_aws.user import BUCKET, REGION, User

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PART_BYTES = 5 * 1024 * 1024
VERSIONED = "versioned"


def client(user: User, service: str) -> Any:
    session = boto3.Session(aws_access_key_id="user", aws_secret_access_key="secret", region_name=REGION)
    return session.client(service, endpoint_url=user.endpoint_url)  # type: ignore[call-overload]  # not a literal


def fill_bucket(s3: "S3Client") -> None:
    """Create, change and delete objects in every way."""
    for key, content in [("plain", b"\x00\xff"), ("changed", b"old"), ("changed", b"new"), ("gone", b""), ("too", b"")]:
        s3.put_object(Bucket=BUCKET, Key=key, Body=content)
    s3.delete_object(Bucket=BUCKET, Key="gone")
    s3.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": "too"}]})
    s3.copy_object(Bucket=BUCKET, Key="Größe/a+b %20.jpg", CopySource={"Bucket": BUCKET, "Key": "plain"})
    s3.put_object(Bucket=BUCKET, Key="described", ContentType="text/csv", Metadata={"run": "1"}, Tagging="a=1")
    upload = s3.create_multipart_upload(Bucket=BUCKET, Key="in parts")["UploadId"]
    etags = [
        s3.upload_part(
            Bucket=BUCKET, Key="in parts", UploadId=upload, PartNumber=number, Body=bytes([number]) * PART_BYTES
        )["ETag"]
        for number in (1, 2)
    ]
    s3.complete_multipart_upload(
        Bucket=BUCKET,
        Key="in parts",
        UploadId=upload,
        MultipartUpload={"Parts": [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, start=1)]},
    )


def read_bucket(s3: "S3Client") -> dict[str, Any]:
    """Return the content and all metadata of each object."""
    objects = {}
    for item in s3.list_objects_v2(Bucket=BUCKET)["Contents"]:
        answer = s3.get_object(Bucket=BUCKET, Key=item["Key"])
        tags = s3.get_object_tagging(Bucket=BUCKET, Key=item["Key"])["TagSet"]
        described = answer["ContentType"], answer["Metadata"], answer["LastModified"]
        objects[item["Key"]] = (item, answer["Body"].read(), tags, described)
    return objects


def fill_versions(s3: "S3Client") -> None:
    s3.create_bucket(Bucket=VERSIONED, CreateBucketConfiguration={"LocationConstraint": REGION})
    s3.put_bucket_versioning(Bucket=VERSIONED, VersioningConfiguration={"Status": "Enabled"})
    s3.put_object(Bucket=VERSIONED, Key="twice", Body=b"1")
    s3.put_object(Bucket=VERSIONED, Key="twice", Body=b"2")
    s3.delete_object(Bucket=VERSIONED, Key="twice")


def read_versions(s3: "S3Client") -> Any:
    listed = s3.list_object_versions(Bucket=VERSIONED)
    return listed["Versions"], listed["DeleteMarkers"]


def fill_services(user: User) -> None:
    iam = client(user, "iam")
    iam.create_role(RoleName="example", AssumeRolePolicyDocument="{}")
    iam.attach_role_policy(RoleName="example", PolicyArn="arn:aws:iam::aws:policy/AmazonS3ReadOnlyAccess")
    glue, ec2 = client(user, "glue"), client(user, "ec2")
    glue.create_database(DatabaseInput={"Name": "example"})
    glue.create_table(DatabaseName="example", TableInput={"Name": "table", "Parameters": {"metadata": "1"}})
    glue.update_table(DatabaseName="example", TableInput={"Name": "table", "Parameters": {"metadata": "2"}})
    # The first call of EC2, which creates the default VPC, changes nothing, and so is not restored.
    default = ec2.describe_subnets()["Subnets"][0]
    ec2.create_tags(Resources=[default["SubnetId"], default["VpcId"]], Tags=[{"Key": "fruits", "Value": "yes"}])
    vpc = ec2.create_vpc(CidrBlock="10.1.0.0/16")["Vpc"]["VpcId"]
    ec2.create_subnet(VpcId=vpc, CidrBlock="10.1.1.0/24")


def read_services(user: User) -> Any:
    """Return ids and contents; creation times of roles and tables are not saved."""
    role = client(user, "iam").get_role(RoleName="example")["Role"]
    policies = client(user, "iam").list_attached_role_policies(RoleName="example")["AttachedPolicies"]
    table = client(user, "glue").get_table(DatabaseName="example", Name="table")["Table"]
    subnets, vpcs = client(user, "ec2").describe_subnets()["Subnets"], client(user, "ec2").describe_vpcs()["Vpcs"]
    return role["RoleId"], role["Arn"], policies, table["Parameters"], table["VersionId"], subnets, vpcs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def before(folder: Path) -> dict[str, Any]:
    """The state that a user reads from a server before it is killed."""
    with serving(folder / "data") as (process, _, user):
        user.make_bucket()
        fill_bucket(user.s3)
        fill_versions(user.s3)
        fill_services(user)
        user.s3.create_bucket(Bucket="deleted", CreateBucketConfiguration={"LocationConstraint": REGION})
        user.s3.delete_bucket(Bucket="deleted")
        state = {"bucket": read_bucket(user.s3), "versions": read_versions(user.s3), "services": read_services(user)}
        process.kill()
        return state


@pytest.fixture(scope="module")
def restored(folder: Path, before: dict[str, Any]) -> Iterator[User]:
    """A user of the next server in the same folder."""
    with serving(folder / "data") as (_, _, user):
        yield user


def test_buckets_are_restored(restored: User) -> None:
    assert {bucket["Name"] for bucket in restored.s3.list_buckets()["Buckets"]} == {BUCKET, VERSIONED}


def test_objects_are_restored(restored: User, before: dict[str, Any]) -> None:
    assert list(before["bucket"]) == ["Größe/a+b %20.jpg", "changed", "described", "in parts", "plain"]
    assert read_bucket(restored.s3) == before["bucket"]


def test_versions_are_restored(restored: User, before: dict[str, Any]) -> None:
    assert read_versions(restored.s3) == before["versions"]


def test_other_services_are_restored_with_the_same_ids(restored: User, before: dict[str, Any]) -> None:
    assert read_services(restored) == before["services"]


def test_restored_objects_can_be_changed_and_restored_again(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        with serving(tmp_path / "data") as (_, _, user):
            if number == 1:
                user.make_bucket()
            else:
                user.s3.delete_object(Bucket=BUCKET, Key=f"by server {number - 1}")
            user.put(f"by server {number}", b"")
            assert user.keys(f"s3://{BUCKET}/") == [f"by server {number}"]


def test_a_folder_in_use_by_another_server_makes_the_program_exit_with_1(
    restored: User, folder: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    assert start(folder / "data", 0, log).wait(30) == 1
    assert f"another local_aws uses {folder}/data" in log.read_text()
