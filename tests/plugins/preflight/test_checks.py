import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, EndpointConnectionError

from orchard.cluster.tags import RUN_TAG
from orchard.errors import PermanentError
from orchard.preflight.checks import ACTIONS, Clients, NotReady, check
from orchard.run.plan import RunPlan
from orchard.settings import Settings
from sandbox import aws
from tests.plugins.answers import answering, failing
from tests.plugins.plans import plan, put_images
from tests.plugins.preflight.accounts import Account, create_account

if TYPE_CHECKING:
    from mypy_boto3_iam import IAMClient
    from mypy_boto3_s3 import S3Client

README = Path(__file__).parents[3] / "README.md"
# A run's turn depends on all clusters of a region. No other test creates clusters in this one.
REGION = "eu-north-1"
# The error code with which each service refuses a call.
REFUSALS = {
    "s3": "AccessDenied",
    "iam": "AccessDenied",
    "ec2": "UnauthorizedOperation",
    "emr": "AccessDeniedException",
    "glue": "AccessDeniedException",
    "sns": "AuthorizationError",
}
# The answer to a HEAD request has no body, and so no error code.
HEADS = ("HeadBucket", "HeadObject")
# Called only after certain answers to other calls.
RARE = ("GetBucketLocation", "DescribeCluster", "CreateDatabase")


@pytest.fixture(scope="module")
def clients(aws_url: str, s3: "S3Client", iam: "IAMClient") -> Clients:
    regional: Any = {
        name: boto3.client(name, endpoint_url=aws_url, region_name=REGION) for name in ("ec2", "emr", "glue", "sns")
    }
    return Clients(s3=s3, iam=iam, **regional)


@pytest.fixture(scope="module")
def account(clients: Clients) -> Account:
    return create_account(clients)


@pytest.fixture
def ready(released: Settings, clients: Clients, account: Account) -> Settings:
    """A deployment with everything that a run needs."""
    put_images(clients.s3, released.bucket)
    return account.settings(released)


def client_of(clients: Clients, operation: str) -> Any:
    service = ACTIONS[operation].partition(":")[0]
    return getattr(clients, {"elasticmapreduce": "emr"}.get(service, service))


def logged(caplog: pytest.LogCaptureFixture, level: str) -> list[str]:
    """Return Orchard's log messages. The local AWS logs in the same process."""
    records = [record for record in caplog.records if record.name.startswith("orchard.")]
    return [record.getMessage() for record in records if record.levelname == level]


def faults(clients: Clients, settings: Settings, run: RunPlan) -> str:
    """Return the message of the error that reports the faults."""
    with pytest.raises(NotReady) as error:
        check(clients, settings, run)
    return str(error.value)


def test_a_complete_deployment_passes_with_one_log_line_per_check(
    clients: Clients, ready: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    run = plan(clients.s3, ready)
    caplog.clear()
    caplog.set_level("INFO", "orchard")
    check(clients, ready, run)
    lines = logged(caplog, "INFO")
    role = ready.service_role
    for expected, line in zip(
        (
            f"bucket {ready.bucket} is in eu-west-1",
            f"release {ready.release_uri} is complete: 8 files, ",
            f"dataset {ready.dataset_uri} is readable",
            f"output {run['run_uri']} is writable",
            f"output {run['scratch_uri']} is writable",
            f"output {ready.warehouse_uri} is writable",
            f"output s3://{ready.bucket}/locks is writable",
            "EMR offers the release label emr-7.14.0",
            "emr-7.14.0 supports m5.xlarge",
            "EC2 offers m5.xlarge, m6i.xlarge, m7i.xlarge in eu-north-1",
            "free addresses for 3 instances: subnet-",
            "no security groups are set: EMR uses its default groups",
            f"service role {role} exists",
            f"instance profile {role} exists",
            f"service role {role} may pass role arn:aws:iam::123456789012:role/{role}-nodes to EC2",
            "1 subnets, 0 security groups and 1 VPCs are tagged",
            f"security configuration {role} exists",
            f"Glue database {ready.catalog_database} ",
            f"SNS topic {ready.alert_topic_arn} exists",
            "0 of Orchard's clusters are active",
        ),
        lines,
        strict=True,
    ):
        assert line.startswith(f"preflight: {expected}")


def test_the_checks_leave_no_objects(clients: Clients, ready: Settings) -> None:
    def keys() -> list[str]:
        return [item["Key"] for item in clients.s3.list_objects_v2(Bucket=ready.bucket)["Contents"]]

    run = plan(clients.s3, ready)
    before = keys()
    check(clients, ready, run)
    assert keys() == before


def test_all_faults_are_reported_together(clients: Clients, ready: Settings) -> None:
    s3 = clients.s3
    wrong = replace(
        ready,
        service_role="nobody",
        instance_profile="nothing",
        subnet_ids=("subnet-0",),
        security_configuration="lax",
        alert_topic_arn=ready.alert_topic_arn.replace("orchard-", "fruits-"),
        release_label="emr-7.99.0",
    )
    run = plan(s3, wrong)
    run["cluster"]["Instances"]["InstanceFleets"][1]["InstanceTypeConfigs"] = [{"InstanceType": "m9.huge"}]
    s3.delete_object(Bucket=ready.bucket, Key=f"releases/{ready.release}/spark/pca.py")
    for number in (1, 2):
        s3.delete_object(Bucket=ready.bucket, Key=f"images/Kiwi/{number}.jpg")
    with answering(s3, "HeadBucket", {"BucketRegion": "eu-west-3"}), failing(s3, "PutObject", "AccessDenied", 403):
        message = faults(clients, wrong, run)
    assert message.startswith("11 checks failed, no cluster was created: ")
    for expected in (
        "is in eu-west-3, but the cluster would be in eu-west-1; set ORCHARD_REGION to eu-west-3",
        "spark/pca.py is missing; delete its manifest.json, upload it again",
        f"no images below {ready.dataset_uri}",
        "grant s3:PutObject to Airflow",
        "release label 'emr-7.99.0' is not available in eu-north-1; set ORCHARD_RELEASE_LABEL",
        "eu-north-1 has no m9.huge; choose another instance_type",
        "subnet 'subnet-0' is not in eu-north-1; set ORCHARD_SUBNET_IDS",
        "service role 'nobody'",
        "instance profile 'nothing'",
        "security configuration 'lax'",
        "SNS topic 'arn:aws:sns:eu-north-1:123456789012:fruits-",
    ):
        assert expected in message


def test_a_fault_is_a_permanent_error(clients: Clients, ready: Settings) -> None:
    with pytest.raises(PermanentError):
        check(clients, replace(ready, release="ffff"), plan(clients.s3, ready))


def test_a_deleted_bucket_is_a_fault_of_everything_that_was_in_it(clients: Clients, ready: Settings) -> None:
    deleted = replace(ready, bucket=f"deleted-{uuid.uuid4().hex[:8]}")
    run = plan(clients.s3, ready)
    run["dataset_uri"], run["run_uri"] = deleted.dataset_uri, f"{deleted.bucket_uri}/runs/images/1"
    run["scratch_uri"] = f"{deleted.bucket_uri}/scratch/images/1"
    message = faults(clients, deleted, run)
    assert message.startswith("4 checks failed")
    assert f"bucket '{deleted.bucket}' does not exist; create it" in message
    assert f"release '{ready.release}' is not in" in message
    for uri in (run["dataset_uri"], run["run_uri"]):
        assert f"{uri}: An error occurred (NoSuchBucket)" in message
    assert "create the bucket, or use another" in message


@pytest.mark.parametrize("operation", [name for name in ACTIONS if name not in RARE])
def test_a_missing_permission_is_reported_with_the_action_to_grant(
    clients: Clients, ready: Settings, operation: str
) -> None:
    run, client = plan(clients.s3, ready), client_of(clients, operation)
    code = "403" if operation in HEADS else REFUSALS[client.meta.service_model.service_name]
    with failing(client, operation, code, 403):
        message = faults(clients, ready, run)
    assert f"grant {ACTIONS[operation]} to Airflow" in message


def without_service_role(account: Account) -> None:
    iam = account.clients.iam
    iam.delete_role_policy(RoleName=account.name, PolicyName="pass-role")
    iam.detach_role_policy(RoleName=account.name, PolicyArn=aws.SERVICE_POLICY)
    iam.delete_role(RoleName=account.name)


def without_pass_role(account: Account) -> None:
    account.clients.iam.delete_role_policy(RoleName=account.name, PolicyName="pass-role")


def without_instance_profile(account: Account) -> None:
    without_role_of_nodes(account)
    account.clients.iam.delete_instance_profile(InstanceProfileName=account.name)


def without_role_of_nodes(account: Account) -> None:
    profile = {"InstanceProfileName": account.name, "RoleName": f"{account.name}-nodes"}
    account.clients.iam.remove_role_from_instance_profile(**profile)


def without_security_configuration(account: Account) -> None:
    account.clients.emr.delete_security_configuration(Name=account.name)


def without_topic(account: Account) -> None:
    account.clients.sns.delete_topic(TopicArn=account.topic)


def without_subnet(account: Account) -> None:
    account.clients.ec2.delete_subnet(SubnetId=account.subnet)


def without_gateway(account: Account) -> None:
    account.remove_default_route()


@pytest.mark.parametrize(
    ("take_away", "expected"),
    [
        (without_service_role, "service role '{0.name}': An error occurred (NoSuchEntity)"),
        (without_pass_role, "service role '{0.name}' may not pass role '{0.node_role}' of instance profile"),
        (without_instance_profile, "instance profile '{0.name}': An error occurred (NoSuchEntity)"),
        (without_role_of_nodes, "instance profile '{0.name}' has no role"),
        (without_security_configuration, "security configuration '{0.name}': "),
        (without_topic, "SNS topic '{0.topic}' is not in eu-north-1"),
        (without_subnet, "subnet '{0.subnet}' is not in eu-north-1"),
        (without_gateway, "subnet '{0.subnet}' has no route out of {0.vpc}"),
        (lambda account: account.untag(account.subnet), "subnet {0.subnet} lacks the tag"),
        (lambda account: account.untag(account.vpc), "VPC {0.vpc} lacks the tag"),
        (
            lambda account: account.set_trust(account.name, "ec2.amazonaws.com"),
            "service role '{0.name}' does not trust EMR",
        ),
        (
            lambda account: account.set_trust(f"{account.name}-nodes", "elasticmapreduce.amazonaws.com"),
            "role '{0.name}-nodes' of instance profile '{0.name}' does not trust EC2",
        ),
    ],
)
def test_the_fault_names_the_resource_that_is_taken_away(
    clients: Clients, released: Settings, take_away: Callable[[Account], None], expected: str
) -> None:
    account = create_account(clients)
    put_images(clients.s3, released.bucket)
    settings = account.settings(released)
    run = plan(clients.s3, settings)
    take_away(account)
    message = faults(clients, settings, run)
    assert message.startswith(f"1 checks failed, no cluster was created: {expected.format(account)}")


def test_a_missing_database_is_created_or_reported_if_airflow_may_not_create_it(
    clients: Clients, ready: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    settings = replace(ready, catalog_database=f"orchard_{uuid.uuid4().hex[:8]}")
    run, name = plan(clients.s3, settings), settings.catalog_database
    with failing(clients.glue, "CreateDatabase", "AccessDeniedException"):
        message = faults(clients, settings, run)
    assert f"Glue database '{name}' does not exist in {REGION}, and Airflow may not create it" in message
    assert f"`aws glue create-database --region {REGION} --database-input Name={name}`" in message
    caplog.set_level("INFO", "orchard")
    check(clients, settings, run)
    check(clients, settings, run)
    assert [line for line in logged(caplog, "INFO") if "Glue database" in line] == [
        f"preflight: Glue database {name} did not exist, and was created",
        f"preflight: Glue database {name} exists",
    ]


def test_another_policy_than_the_managed_one_is_not_checked(
    clients: Clients, released: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    account = create_account(clients)
    put_images(clients.s3, released.bucket)
    settings = account.settings(released)
    run = plan(clients.s3, settings)
    account.untag(account.subnet, account.vpc)
    without_pass_role(account)
    assert faults(clients, settings, run).startswith("3 checks failed")
    clients.iam.detach_role_policy(RoleName=account.name, PolicyArn=aws.SERVICE_POLICY)
    caplog.set_level("INFO", "orchard")
    check(clients, settings, run)
    (line,) = [line for line in logged(caplog, "INFO") if "AmazonEMRServicePolicy_v2" in line]
    assert line == (
        f"preflight: service role {account.name} does not have AmazonEMRServicePolicy_v2: tags and iam:PassRole are "
        "not checked"
    )


def test_a_missing_permission_for_a_buckets_location_is_reported(clients: Clients, ready: Settings) -> None:
    run = plan(clients.s3, ready)
    with answering(clients.s3, "HeadBucket", {}), failing(clients.s3, "GetBucketLocation", "AccessDenied", 403):
        assert "grant s3:GetBucketLocation to Airflow" in faults(clients, ready, run)


def test_a_missing_permission_to_describe_clusters_is_reported(clients: Clients, ready: Settings) -> None:
    run = plan(clients.s3, ready)
    listed = {"Clusters": [{"Id": "j-1", "Name": "orchard-1", "Status": {"State": "RUNNING"}}]}
    with (
        answering(clients.emr, "ListClusters", listed),
        failing(clients.emr, "DescribeCluster", "AccessDeniedException"),
    ):
        assert "grant elasticmapreduce:DescribeCluster to Airflow" in faults(clients, ready, run)


def test_the_readme_lists_every_action_that_airflow_needs() -> None:
    text = README.read_text()
    needed = {action.partition(":")[2] for action in ACTIONS.values()}
    assert {action for action in needed if action not in text} == set()


@pytest.mark.parametrize(
    ("operation", "code"),
    [
        ("HeadObject", "SlowDown"),
        ("GetObject", "InternalError"),
        ("GetRole", "Throttling"),
        ("DescribeSubnets", "RequestLimitExceeded"),
        ("ListReleaseLabels", "ThrottlingException"),
        ("ListClusters", "InternalServerException"),
    ],
)
def test_the_error_of_a_busy_service_is_raised_so_that_airflow_retries(
    clients: Clients, ready: Settings, operation: str, code: str
) -> None:
    run = plan(clients.s3, ready)
    with failing(client_of(clients, operation), operation, code, 503), pytest.raises(ClientError, match=code):
        check(clients, ready, run)


def test_a_connection_error_is_raised_so_that_airflow_retries(clients: Clients, ready: Settings) -> None:
    once = Config(retries={"total_max_attempts": 1})
    nowhere: Any = boto3.client("ec2", endpoint_url="http://127.0.0.1:1", region_name=REGION, config=once)
    with pytest.raises(EndpointConnectionError):
        check(replace(clients, ec2=nowhere), ready, plan(clients.s3, ready))


@pytest.mark.parametrize(
    ("operation", "code", "skipped"),
    [
        ("ListSupportedInstanceTypes", "NotImplementedException", "instance types of EMR"),
        ("DescribeSecurityConfiguration", "UnknownOperationException", "security configuration"),
        ("PutObject", "NotImplemented", "output"),
    ],
)
def test_a_check_that_a_local_aws_cannot_answer_is_skipped_with_a_warning(
    clients: Clients,
    ready: Settings,
    operation: str,
    code: str,
    skipped: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = plan(clients.s3, ready)
    with failing(client_of(clients, operation), operation, code, 501):
        check(clients, ready, run)
    (warning,) = logged(caplog, "WARNING")
    assert warning.startswith(f"preflight: {skipped}")
    assert "skipped: not implemented" in warning


def test_active_clusters_are_counted_and_a_run_does_not_wait_for_them(
    clients: Clients, ready: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    run = plan(clients.s3, ready)
    other = {**run["cluster"], "Tags": [*run["cluster"]["Tags"], {"Key": RUN_TAG, "Value": "manual__2"}]}
    cluster_id = clients.emr.run_job_flow(**{**other, "BootstrapActions": []})["JobFlowId"]
    caplog.set_level("INFO", "orchard")
    try:
        check(clients, replace(ready, max_running_clusters=1), run)
    finally:
        clients.emr.terminate_job_flows(JobFlowIds=[cluster_id])
    assert logged(caplog, "INFO")[-1] == "preflight: 1 of Orchard's clusters are active"


@pytest.mark.parametrize("folder", ["runs/", "scratch/", "warehouse/", "locks/"])
def test_a_missing_permission_to_write_to_a_folder_is_reported(clients: Clients, ready: Settings, folder: str) -> None:
    run = plan(clients.s3, ready)

    def refuse(params: dict[str, Any], **_: Any) -> None:
        if params["Key"].startswith(folder):
            raise ClientError({"Error": {"Code": "AccessDenied", "Message": "denied"}}, "PutObject")

    clients.s3.meta.events.register("provide-client-params.s3.PutObject", refuse)
    try:
        assert "grant s3:PutObject to Airflow" in faults(clients, ready, run)
    finally:
        clients.s3.meta.events.unregister("provide-client-params.s3.PutObject", refuse)
