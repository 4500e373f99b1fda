"""Check everything that can be checked before money is spent, and report all faults together."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from orchard.cluster.request import subnet_ids
from orchard.errors import PermanentError
from orchard.preflight import ec2, emr, glue, hold, iam, s3, sns
from orchard.run.turn import LOCKS, active_clusters
from orchard.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_emr import EMRClient
    from mypy_boto3_glue import GlueClient
    from mypy_boto3_iam import IAMClient
    from mypy_boto3_s3 import S3Client

    from orchard.run.plan import RunPlan

log = logging.getLogger(__name__)

# Every operation that the checks call, with its IAM action.
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
    "ListAttachedRolePolicies": "iam:ListAttachedRolePolicies",
    "SimulatePrincipalPolicy": "iam:SimulatePrincipalPolicy",
    "DescribeSubnets": "ec2:DescribeSubnets",
    "DescribeRouteTables": "ec2:DescribeRouteTables",
    "DescribeSecurityGroups": "ec2:DescribeSecurityGroups",
    "DescribeVpcs": "ec2:DescribeVpcs",
    "DescribeInstanceTypeOfferings": "ec2:DescribeInstanceTypeOfferings",
    "ListReleaseLabels": "elasticmapreduce:ListReleaseLabels",
    "ListSupportedInstanceTypes": "elasticmapreduce:ListSupportedInstanceTypes",
    "DescribeSecurityConfiguration": "elasticmapreduce:DescribeSecurityConfiguration",
    "ListClusters": "elasticmapreduce:ListClusters",
    "DescribeCluster": "elasticmapreduce:DescribeCluster",
    "GetDatabase": "glue:GetDatabase",
    "CreateDatabase": "glue:CreateDatabase",
    "GetTopicAttributes": "sns:GetTopicAttributes",
}
# The error code differs by service. For a HEAD request, S3 returns only the HTTP status: the response has no body.
DENIED = ("AccessDenied", "AccessDeniedException", "AuthorizationError", "UnauthorizedOperation", "403")
NOT_IMPLEMENTED = ("NotImplemented", "NotImplementedException", "UnknownOperationException")


class NotReady(PermanentError):
    """A cluster would fail. The message lists every reason."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__(f"{len(faults)} checks failed, no cluster was created: {'; '.join(faults)}")


@dataclass(frozen=True)
class Clients:
    """boto3 clients for the cluster's region."""

    s3: "S3Client"
    iam: "IAMClient"
    ec2: Any  # boto3-stubs is installed without EC2
    emr: "EMRClient"
    glue: "GlueClient"
    sns: Any  # boto3-stubs is installed without SNS


def check(clients: Clients, settings: Settings, plan: "RunPlan") -> None:
    """Check that a run's cluster and steps will find what they need.

    A check that a local AWS does not implement is skipped with a warning.

    Raises:
        NotReady: at least one check failed. A retry does not fix it.
        ClientError: a service is busy or broken. A retry may succeed. Connection errors are raised too.
    """
    faults: list[str] = []
    for name, find_faults in _checks(clients, settings, plan):
        with _collecting(name, faults):
            faults += find_faults()
    if faults:
        raise NotReady(faults)


def _checks(clients: Clients, settings: Settings, plan: "RunPlan") -> list[tuple[str, Callable[[], list[str]]]]:
    """Return all checks, each with the name of what it checks."""
    dataset, output, request = plan["dataset_uri"], plan["run_uri"], plan["cluster"]
    # The nodes write the vectors to the folders of two tables. Airflow writes the rest of the tables.
    folders = [output, plan["scratch_uri"], settings.warehouse_uri, f"{settings.bucket_uri}/{LOCKS}"]
    uses_policy_v2 = cache(partial(iam.uses_policy_v2, clients.iam, request))

    def if_policy_v2(find_faults: Callable[[], list[str]]) -> Callable[[], list[str]]:
        return lambda: find_faults() if uses_policy_v2() else []

    tags = partial(ec2.untagged_network, clients.ec2, request)
    subnets = f"subnets {', '.join(subnet_ids(request)) or 'of the default VPC'}"
    return [
        (f"bucket {settings.bucket}", partial(s3.misplaced_bucket, clients.s3, settings)),
        (f"release {settings.release_uri}", partial(s3.damaged_release, clients.s3, settings)),
        (f"region of dataset {dataset}", partial(s3.distant_dataset, clients.s3, settings, dataset)),
        (f"dataset {dataset}", partial(s3.unreadable_dataset, clients.s3, dataset)),
        (f"output {output}", partial(_unwritable_folders, clients.s3, folders)),
        (f"release label {request['ReleaseLabel']}", partial(emr.unknown_release_label, clients.emr, request)),
        ("instance types of EMR", partial(emr.unsupported_instance_types, clients.emr, request)),
        ("instance types of EC2", partial(ec2.types_not_offered, clients.ec2, request)),
        (subnets, partial(ec2.unusable_subnets, clients.ec2, request)),
        ("routes of the subnets", partial(ec2.isolated_subnets, clients.ec2, request)),
        ("security groups", partial(ec2.unusable_security_groups, clients.ec2, request)),
        (f"service role {request['ServiceRole']}", partial(iam.unusable_service_role, clients.iam, request)),
        (f"instance profile {request['JobFlowRole']}", partial(iam.unusable_instance_profile, clients.iam, request)),
        ("role of the nodes", if_policy_v2(partial(iam.unpassable_role, clients.iam, request))),
        ("tags of the network", if_policy_v2(tags)),
        ("hold of the cluster", partial(hold.unreachable_notebooks, clients.iam, settings, request)),
        ("service-linked role for Spot", partial(iam.missing_spot_role, clients.iam, request)),
        ("security configuration", partial(emr.missing_security_configuration, clients.emr, request)),
        (f"Glue database {settings.catalog_database}", partial(glue.missing_database, clients.glue, settings)),
        ("SNS topic", partial(sns.missing_topic, clients.sns, settings)),
        ("active clusters", partial(_unlisted_clusters, clients.emr)),
    ]


def _unwritable_folders(client: "S3Client", uris: list[str]) -> list[str]:
    return [fault for uri in uris for fault in s3.unwritable_output(client, uri)]


def _unlisted_clusters(client: "EMRClient") -> list[str]:
    """Check that clusters can be listed and described, as a run must do to get its turn. A refusal is raised."""
    log.info("preflight: %d of Orchard's clusters are active", len(active_clusters(client)))
    return []


@contextmanager
def _collecting(name: str, faults: list[str]) -> Iterator[None]:
    """Record denied access as a fault, and log a check that is not implemented. Raise every other error."""
    try:
        yield
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code in DENIED:
            faults.append(f"{name}: {error}; grant {ACTIONS[error.operation_name]} to Airflow")
        elif code == "NoSuchBucket":
            faults.append(f"{name}: {error}; create the bucket, or use another")
        elif code in NOT_IMPLEMENTED:
            log.warning("preflight: %s skipped: not implemented: %s", name, error)
        else:
            raise
