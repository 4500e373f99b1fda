"""`make deploy` and `make destroy` against the local AWS."""

import io
import uuid
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography import x509

from infra import deploy, destroy, stack
from infra.certificate import certificate_zip
from local_aws.server import LocalAws
from sandbox import aws


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with LocalAws(tmp_path_factory.mktemp("aws")) as server:
        yield server.endpoint_url


@pytest.fixture(autouse=True)
def account(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setattr(stack, "POLL_SECONDS", 0.1)


@pytest.fixture
def name() -> str:
    return f"fruits-{uuid.uuid4().hex[:8]}"


def own(name: str, **parameters: str) -> list[str]:
    """Return the arguments for a deployment beside others of the account."""
    given = {"DeploymentName": name, "DatabaseName": name.replace("-", "_"), "BucketName": name, **parameters}
    return ["--stack", name, "--parameters", *(f"{key}={value}" for key, value in given.items())]


def settings(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    return dict(line.split("=", 1) for line in capsys.readouterr().out.splitlines())


def test_the_settings_are_printed(name: str, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    deploy.main(own(name))
    found = settings(capsys)
    assert found["ORCHARD_BUCKET"] == found["ORCHARD_DEPLOYMENT"] == name
    assert "ORCHARD_SUBNET_IDS" not in found
    for role in ("AWSServiceRoleForEC2Spot", "AWSServiceRoleForEMRCleanup"):
        aws.client("iam", url).get_role(RoleName=role)


def test_a_second_deployment_keeps_the_parameters_that_are_not_given(
    name: str, url: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    deploy.main(own(name))
    first = settings(capsys)
    certificate = aws.client("s3", url).head_object(Bucket=name, Key=deploy.CERTIFICATE_KEY)["ETag"]
    deploy.main(["--stack", name, "--datasets", "s3://pears/2026/", "--parameters", "CreateVpc=true"])
    second = settings(capsys)
    assert first.items() <= second.items()
    assert second.keys() - first.keys() == {
        "ORCHARD_SUBNET_IDS",
        *(f"ORCHARD_{group}_SECURITY_GROUP" for group in ("PRIMARY", "CORE", "SERVICE")),
    }
    assert aws.client("s3", url).head_object(Bucket=name, Key=deploy.CERTIFICATE_KEY)["ETag"] == certificate
    deploy.main(["--stack", name])
    assert settings(capsys) == second
    assert f"stack {name} is up to date" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parameters", "Colour=red"], "the stack has no parameter Colour: choose from AirflowRoleName, AlertEmail"),
        (["--parameters", "CreateVpc"], "parameter 'CreateVpc' has no value: use Name=value"),
        (["--parameters", "CreateVpc=yes"], "'CreateVpc' must be one of AllowedValues"),
        (
            ["--datasets", "pears/2026"],
            "dataset 'pears/2026' is not a folder on S3: use a URI such as s3://pears/2026/",
        ),
        (["--datasets", "s3://pears/2026"], "use a URI such as s3://pears/2026/"),
        (["--datasets", "s3://pears/*/"], "use a URI such as s3://pears/2026/"),
    ],
)
def test_a_wrong_argument_is_an_error_that_says_what_to_use(arguments: list[str], message: str, name: str) -> None:
    with pytest.raises(SystemExit) as exit_:
        deploy.main(["--stack", name, *arguments])
    assert message in str(exit_.value)


def test_a_deployment_that_fails_names_the_resource_and_the_reason(name: str, url: str) -> None:
    aws.client("s3", url).create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": aws.REGION})
    with pytest.raises(SystemExit) as exit_:
        deploy.main(own(name))
    assert f"stack {name} is in ROLLBACK_COMPLETE: Bucket CREATE_FAILED: " in str(exit_.value)
    assert "BucketAlreadyOwnedByYou" in str(exit_.value)
    with pytest.raises(SystemExit, match=f"delete it with `make destroy STACK={name}`, and deploy it again"):
        deploy.main(own(name))
    destroy.main(["--stack", name, "--confirm", name])
    deploy.main(own(name, BucketName=f"{name}-2"))


def used(name: str, url: str) -> tuple[Any, Any]:
    """Deploy, and use the deployment: objects in versions, a table, a role with the policies."""
    deploy.main(own(name))
    s3, glue, iam = (aws.client(service, url) for service in ("s3", "glue", "iam"))
    for body in (b"1", b"22"):
        s3.put_object(Bucket=name, Key="images/Apple/1.jpg", Body=body)
    s3.delete_object(Bucket=name, Key="images/Apple/1.jpg")
    glue.create_table(DatabaseName=name.replace("-", "_"), TableInput={"Name": "images"})
    iam.create_role(RoleName=f"airflow-{name}", AssumeRolePolicyDocument="{}")
    (stack,) = aws.client("cloudformation", url).describe_stacks(StackName=name)["Stacks"]
    outputs = {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}
    for arn in outputs["AirflowPolicyArns"].split(","):
        iam.attach_role_policy(RoleName=f"airflow-{name}", PolicyArn=arn)
    return s3, glue


def test_without_a_confirmation_everything_is_listed_and_nothing_is_deleted(
    name: str, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    s3, glue = used(name, url)
    capsys.readouterr()
    destroy.main(["--stack", name])
    found = capsys.readouterr()
    lines = found.out.splitlines()
    assert f"s3://{name}/images/: 3 versions of objects, 0.0 MB" in lines
    assert f"table {name.replace('-', '_')}.images" in lines
    assert sum(line.endswith(f"to the role airflow-{name}") for line in lines) == 2
    assert f"AWS::S3::Bucket {name}" in lines
    assert lines[-1] == f"stack {name}"
    assert f"Nothing was deleted. To delete all of it, run `make destroy STACK={name} CONFIRM={name}`." in found.err
    assert len(s3.list_object_versions(Bucket=name)["Versions"]) == 3
    assert len(glue.get_tables(DatabaseName=name.replace("-", "_"))["TableList"]) == 1


def test_a_confirmed_deletion_leaves_nothing(name: str, url: str) -> None:
    s3, glue = used(name, url)
    destroy.main(["--stack", name, "--confirm", name])
    assert name not in [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]]
    assert name.replace("-", "_") not in [database["Name"] for database in glue.get_databases()["DatabaseList"]]
    roles = aws.client("iam", url).list_roles()["Roles"]
    assert [role["RoleName"] for role in roles if name in role["RoleName"]] == [f"airflow-{name}"]
    with pytest.raises(SystemExit, match=f"stack {name} does not exist in eu-west-1"):
        destroy.main(["--stack", name, "--confirm", name])


def test_a_deployment_with_active_clusters_is_not_deleted(name: str, url: str) -> None:
    s3, _ = used(name, url)
    emr, iam = aws.client("emr", url), aws.client("iam", url)
    request: dict[str, Any] = {
        "Name": "orchard-test",
        "ReleaseLabel": "emr-7.14.0",
        "Instances": {"InstanceCount": 1, "MasterInstanceType": "m5.xlarge", "KeepJobFlowAliveWhenNoSteps": True},
        "ServiceRole": f"airflow-{name}",
        "JobFlowRole": f"airflow-{name}",
        "Tags": [{"Key": "orchard:deployment", "Value": name}],
    }
    iam.create_instance_profile(InstanceProfileName=f"airflow-{name}")
    cluster_id = emr.run_job_flow(**request)["JobFlowId"]
    with pytest.raises(SystemExit, match=f"nothing was deleted, because 1 of its clusters are active: {cluster_id}"):
        destroy.main(["--stack", name, "--confirm", name])
    assert s3.list_object_versions(Bucket=name)["Versions"]
    emr.terminate_job_flows(JobFlowIds=[cluster_id])


def test_the_confirmation_is_the_name_of_the_stack(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        destroy.main(["--stack", name, "--confirm", "yes"])
    assert f"--confirm is 'yes', but the stack is '{name}': nothing was deleted" in capsys.readouterr().err


def test_the_certificate_fits_the_private_names_of_the_nodes() -> None:
    now = datetime(2026, 11, 27, tzinfo=UTC)
    with zipfile.ZipFile(io.BytesIO(certificate_zip("eu-west-1", now))) as archive:
        assert set(archive.namelist()) == {"privateKey.pem", "certificateChain.pem", "trustedCertificates.pem"}
        certificate = x509.load_pem_x509_certificate(archive.read("certificateChain.pem"))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["*.eu-west-1.compute.internal"]
    assert (certificate.not_valid_after_utc - now).days == 3650
