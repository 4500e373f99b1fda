import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from orchard.preflight import ec2, iam
from sandbox import aws
from sandbox.processes import free_port
from tests.plugins.preflight.cluster_requests import cluster_request

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def test_every_file_of_a_folder_is_uploaded(
    s3: "S3Client", bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aws, "BUCKET", bucket)
    for name in ("Kiwi/1.jpg", "Kiwi/broken.jpg", "Lime/late/2.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    assert aws.upload_images(s3, tmp_path, prefix="new/") == 3
    keys = [item["Key"] for item in s3.list_objects_v2(Bucket=bucket)["Contents"]]
    assert keys == ["new/Kiwi/1.jpg", "new/Kiwi/broken.jpg", "new/Lime/late/2.jpg"]


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_the_error_about_a_folder_without_files_names_the_folder(s3: "S3Client", tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=f"no files in {tmp_path}/{name}: use DATA=FOLDER"):
        aws.upload_images(s3, tmp_path / name)


def test_files_whose_names_are_not_utf8_are_named_and_nothing_is_uploaded(
    s3: "S3Client", bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aws, "BUCKET", bucket)
    (tmp_path / "Kiwi").mkdir()
    for name in (b"caf\xe9.jpg", b"na\xefve.jpg", "Äpfel.jpg".encode()):
        Path(os.fsdecode(os.fsencode(tmp_path / "Kiwi") + b"/" + name)).write_bytes(b"x")
    with pytest.raises(aws.BadFileName) as error:
        aws.upload_images(s3, tmp_path)
    assert "the names of 2 files are not UTF-8" in str(error.value)
    assert r"Kiwi/caf\xe9.jpg, Kiwi/na\xefve.jpg. Rename them" in str(error.value)
    assert "Contents" not in s3.list_objects_v2(Bucket=bucket)


def test_the_account_of_the_sandbox_has_the_default_roles_and_passes_the_checks_of_roles_and_tags(
    parts: Path, tmp_path: Path
) -> None:
    with aws.local_aws(tmp_path / "aws", free_port(), tmp_path / "aws.log") as url:
        aws.provision(url, parts)
        iam_client, ec2_client, request = aws.client("iam", url), aws.client("ec2", url), cluster_request()
        assert (request["ServiceRole"], request["JobFlowRole"]) == (aws.SERVICE_ROLE, aws.INSTANCE_PROFILE)
        assert iam.uses_policy_v2(iam_client, request)
        faults = [
            *iam.unusable_service_role(iam_client, request),
            *iam.unusable_instance_profile(iam_client, request),
            *iam.unpassable_role(iam_client, request),
            *ec2.untagged_network(ec2_client, request),
        ]
    assert faults == []
