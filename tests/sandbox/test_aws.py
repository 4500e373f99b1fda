import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from botocore.exceptions import ClientError

from local_aws.client import LocalAwsClient
from local_aws.server import LocalAws
from orchard.preflight import ec2, iam
from sandbox import aws
from sandbox.processes import DidNotStart, free_port
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


def test_the_options_in_the_variable_are_those_of_the_local_aws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_AWS_OPTIONS", "--starting-seconds '1' --like-emr")
    command = aws.local_aws_command(tmp_path, 5000, "--starting-seconds", "2")
    assert command[3:] == [
        *("--starting-seconds", "1", "--like-emr"),
        *("--port", "5000", "--data", str(tmp_path)),
        *("--starting-seconds", "2"),
    ]


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("--like-emr '", "No closing quotation: quote each option as in a shell"),
        ("--port 5000", "remove --port: `make up AWS_PORT=…` sets the port"),
        ("--like-emr --data=/tmp", "remove --data: the option --folder"),
    ],
)
def test_the_error_about_wrong_options_in_the_variable_names_it_its_value_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, why: str
) -> None:
    monkeypatch.setenv("LOCAL_AWS_OPTIONS", value)
    with pytest.raises(aws.BadOptions) as error:
        aws.local_aws_command(tmp_path, 5000)
    assert str(error.value).startswith(f"the variable LOCAL_AWS_OPTIONS is {value!r}: {why}")


def test_an_option_that_the_local_aws_does_not_know_ends_the_start_at_once_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_AWS_OPTIONS", "--nonsense")
    with (
        pytest.raises(DidNotStart) as error,
        aws.local_aws(tmp_path / "aws", free_port(), tmp_path / "aws.log"),
    ):
        pass
    assert "the process has exited with code 2" in str(error.value)
    assert "error: unrecognized arguments: --nonsense" in str(error.value)
    assert "The variable LOCAL_AWS_OPTIONS is '--nonsense'" in str(error.value)


def test_a_client_sends_a_request_as_often_as_it_is_told(tmp_path: Path) -> None:
    with LocalAws(tmp_path / "aws") as server:
        LocalAwsClient(server.endpoint_url).fail("emr:ListClusters", "ThrottlingException", calls=[1, 3])
        once, twice = (aws.client("emr", server.endpoint_url, attempts) for attempts in (1, 2))
        with pytest.raises(ClientError, match="ThrottlingException"):
            once.list_clusters()
        assert once.list_clusters()["Clusters"] == []
        assert twice.list_clusters()["Clusters"] == []
