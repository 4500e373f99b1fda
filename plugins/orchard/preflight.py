"""Everything that can be checked before money is spent. All checks run; the error lists all that failed."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from orchard import cluster_checks, storage_checks
from orchard.errors import WillNotHeal
from orchard.settings import Settings
from orchard.turn import reasons_to_wait

if TYPE_CHECKING:
    from mypy_boto3_emr import EMRClient
    from mypy_boto3_iam import IAMClient
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

# Every operation that is called here, and the action that a policy names it by.
ACTIONS: Mapping[str, str] = {
    "HeadBucket": "s3:ListBucket",
    "ListObjectsV2": "s3:ListBucket",
    "GetBucketLocation": "s3:GetBucketLocation",
    "GetObject": "s3:GetObject",
    "HeadObject": "s3:GetObject",
    "PutObject": "s3:PutObject",
    "DeleteObject": "s3:DeleteObject",
    "GetRole": "iam:GetRole",
    "GetInstanceProfile": "iam:GetInstanceProfile",
    "DescribeSubnets": "ec2:DescribeSubnets",
    "DescribeInstanceTypeOfferings": "ec2:DescribeInstanceTypeOfferings",
    "ListReleaseLabels": "elasticmapreduce:ListReleaseLabels",
    "ListSupportedInstanceTypes": "elasticmapreduce:ListSupportedInstanceTypes",
    "DescribeSecurityConfiguration": "elasticmapreduce:DescribeSecurityConfiguration",
    "ListClusters": "elasticmapreduce:ListClusters",
    "DescribeCluster": "elasticmapreduce:DescribeCluster",
}
# Each service has its own word; the number is S3's answer to a HEAD, which has no body to hold a word.
DENIED = ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "403")
NOT_ANSWERED = ("NotImplemented", "NotImplementedException", "UnknownOperationException")


class NotReady(WillNotHeal):
    """A cluster made now would fail; the message lists every reason."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__(f"{len(faults)} of the checks failed, no cluster was made: {'; '.join(faults)}")


@dataclass(frozen=True)
class Clients:
    """boto3 clients of the services that are asked, for the cluster's region."""

    s3: "S3Client"
    iam: "IAMClient"
    ec2: Any  # boto3-stubs is installed without EC2
    emr: "EMRClient"


def check(clients: Clients, settings: Settings, run: Mapping[str, Any]) -> list[str]:
    """Check that a run's cluster and steps will find what they need; tell why the run must wait for its turn, if so.

    `run` is what `plan` returned. What a service cannot answer, as a local AWS may not, is skipped with a warning.

    Raises:
        NotReady: at least one check failed. Trying again heals none of its faults.
        ClientError: a service is busy or broken, which trying again may heal; a failed connection is raised too.
    """
    faults: list[str] = []
    for name, find_faults in _checks(clients, settings, run):
        with _noting(name, faults):
            faults += find_faults()
    reasons: list[str] = []
    with _noting("clusters that run", faults):
        reasons = reasons_to_wait(clients.emr, settings, run)
    if faults:
        raise NotReady(faults)
    for reason in reasons:
        log.info("preflight: %s", reason)
    return reasons


def _checks(clients: Clients, settings: Settings, run: Mapping[str, Any]) -> list[tuple[str, Callable[[], list[str]]]]:
    """All checks, each with what it looks at."""
    s3, iam, ec2, emr = clients.s3, clients.iam, clients.ec2, clients.emr
    dataset, output, request = run["dataset_uri"], run["run_uri"], run["cluster"]
    subnets = f"subnets {', '.join(cluster_checks.subnet_ids(request)) or 'of the default VPC'}"
    return [
        (f"bucket {settings.bucket}", partial(storage_checks.misplaced_bucket, s3, settings)),
        (f"release {settings.release_uri}", partial(storage_checks.damaged_release, s3, settings)),
        (f"region of dataset {dataset}", partial(storage_checks.distant_dataset, s3, settings, dataset)),
        (f"dataset {dataset}", partial(storage_checks.unreadable_dataset, s3, dataset)),
        (f"output {output}", partial(storage_checks.unwritable_output, s3, output)),
        (f"release label {request['ReleaseLabel']}", partial(cluster_checks.unknown_release_label, emr, request)),
        ("instance types of EMR", partial(cluster_checks.unsupported_instance_types, emr, request)),
        ("instance types of EC2", partial(cluster_checks.types_not_offered, ec2, request)),
        (subnets, partial(cluster_checks.unusable_subnets, ec2, request)),
        (f"service role {request['ServiceRole']}", partial(cluster_checks.missing_service_role, iam, request)),
        (f"instance profile {request['JobFlowRole']}", partial(cluster_checks.missing_instance_profile, iam, request)),
        ("security configuration", partial(cluster_checks.missing_security_configuration, emr, request)),
    ]


@contextmanager
def _noting(name: str, faults: list[str]) -> Iterator[None]:
    """Note a refusal as a fault, and in the log what cannot be answered; all else is raised."""
    try:
        yield
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code in DENIED:
            faults.append(f"{name}: {error}; grant {ACTIONS[error.operation_name]} to Airflow")
        elif code == "NoSuchBucket":
            faults.append(f"{name}: {error}; create the bucket, or name another")
        elif code in NOT_ANSWERED:
            log.warning("preflight: %s skipped, as it is not answered: %s", name, error)
        else:
            raise
