"""What S3 and the other services hold is there again when a killed server has been started anew."""

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
    return session.client(service, endpoint_url=user.endpoint_url)  # type: ignore[call-overload]  # a variable


def fill_bucket(s3: "S3Client") -> None:
    """Objects that came and went in all the ways that there are."""
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


def see_bucket(s3: "S3Client") -> dict[str, Any]:
    """Each object with all that a user can see of it."""
    seen = {}
    for item in s3.list_objects_v2(Bucket=BUCKET)["Contents"]:
        answer = s3.get_object(Bucket=BUCKET, Key=item["Key"])
        tags = s3.get_object_tagging(Bucket=BUCKET, Key=item["Key"])["TagSet"]
        described = answer["ContentType"], answer["Metadata"], answer["LastModified"]
        seen[item["Key"]] = (item, answer["Body"].read(), tags, described)
    return seen


def fill_versions(s3: "S3Client") -> None:
    s3.create_bucket(Bucket=VERSIONED, CreateBucketConfiguration={"LocationConstraint": REGION})
    s3.put_bucket_versioning(Bucket=VERSIONED, VersioningConfiguration={"Status": "Enabled"})
    s3.put_object(Bucket=VERSIONED, Key="twice", Body=b"1")
    s3.put_object(Bucket=VERSIONED, Key="twice", Body=b"2")
    s3.delete_object(Bucket=VERSIONED, Key="twice")


def see_versions(s3: "S3Client") -> Any:
    listed = s3.list_object_versions(Bucket=VERSIONED)
    return listed["Versions"], listed["DeleteMarkers"]


def fill_services(user: User) -> None:
    iam = client(user, "iam")
    iam.create_role(RoleName="kept", AssumeRolePolicyDocument="{}")
    iam.attach_role_policy(RoleName="kept", PolicyArn="arn:aws:iam::aws:policy/AmazonS3ReadOnlyAccess")
    glue, ec2 = client(user, "glue"), client(user, "ec2")
    glue.create_database(DatabaseInput={"Name": "kept"})
    glue.create_table(DatabaseName="kept", TableInput={"Name": "table", "Parameters": {"metadata": "1"}})
    glue.update_table(DatabaseName="kept", TableInput={"Name": "table", "Parameters": {"metadata": "2"}})
    vpc = ec2.create_vpc(CidrBlock="10.1.0.0/16")["Vpc"]["VpcId"]
    ec2.create_subnet(VpcId=vpc, CidrBlock="10.1.1.0/24")


def see_services(user: User) -> Any:
    """Ids and contents; when a role or a table was made is not kept."""
    role = client(user, "iam").get_role(RoleName="kept")["Role"]
    policies = client(user, "iam").list_attached_role_policies(RoleName="kept")["AttachedPolicies"]
    table = client(user, "glue").get_table(DatabaseName="kept", Name="table")["Table"]
    subnets = client(user, "ec2").describe_subnets()["Subnets"]
    return role["RoleId"], role["Arn"], policies, table["Parameters"], table["VersionId"], subnets


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def before(folder: Path) -> dict[str, Any]:
    """What a user saw of a server that was killed then."""
    with serving(folder / "data") as (process, _, user):
        user.make_bucket()
        fill_bucket(user.s3)
        fill_versions(user.s3)
        fill_services(user)
        user.s3.create_bucket(Bucket="not-for-long", CreateBucketConfiguration={"LocationConstraint": REGION})
        user.s3.delete_bucket(Bucket="not-for-long")
        seen = {"bucket": see_bucket(user.s3), "versions": see_versions(user.s3), "services": see_services(user)}
        process.kill()
        return seen


@pytest.fixture(scope="module")
def again(folder: Path, before: dict[str, Any]) -> Iterator[User]:
    """A user of the next server."""
    with serving(folder / "data") as (_, _, user):
        yield user


def test_buckets_are_there_again(again: User) -> None:
    assert {bucket["Name"] for bucket in again.s3.list_buckets()["Buckets"]} == {BUCKET, VERSIONED}


def test_objects_are_what_they_were(again: User, before: dict[str, Any]) -> None:
    assert list(before["bucket"]) == ["Größe/a+b %20.jpg", "changed", "described", "in parts", "plain"]
    assert see_bucket(again.s3) == before["bucket"]


def test_versions_are_what_they_were(again: User, before: dict[str, Any]) -> None:
    assert see_versions(again.s3) == before["versions"]


def test_other_services_hold_the_same_under_the_same_ids(again: User, before: dict[str, Any]) -> None:
    assert see_services(again) == before["services"]


def test_what_is_restored_can_be_changed_and_restored_once_more(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        with serving(tmp_path / "data") as (_, _, user):
            if number == 1:
                user.make_bucket()
            else:
                user.s3.delete_object(Bucket=BUCKET, Key=f"by server {number - 1}")
            user.put(f"by server {number}", b"")
            assert user.keys(f"s3://{BUCKET}/") == [f"by server {number}"]


def test_a_folder_that_another_server_has_ends_the_program_with_1(again: User, folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert start(folder / "data", 0, log).wait(30) == 1
    assert f"another local_aws uses {folder}/data" in log.read_text()
