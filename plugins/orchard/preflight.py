"""Everything that can be checked before money is spent. All checks run; the error lists all that failed."""

import logging
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

from orchard.release import missing_files, read_release
from orchard.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_iam import IAMClient
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)


class NotReady(RuntimeError):
    """A cluster made now would fail; the message lists every reason."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__(f"{len(faults)} of the checks failed, no cluster was made: {'; '.join(faults)}")


def check(s3: "S3Client", iam: "IAMClient", settings: Settings) -> None:
    """Check that the cluster and its steps will find what they need.

    Raises:
        NotReady: at least one check failed.
    """
    faults = missing_files(s3, settings, read_release(s3, settings)) + missing_roles(iam, settings)
    if faults:
        raise NotReady(faults)
    log.info("preflight: release %s is whole, the roles exist", settings.release)


def missing_roles(iam: "IAMClient", settings: Settings) -> list[str]:
    """Which of the two roles of a cluster do not exist, one sentence each."""
    faults = []
    try:
        # A service role may be given as an ARN.
        iam.get_role(RoleName=settings.service_role.rsplit("/", 1)[-1])
    except ClientError as error:
        faults.append(f"service role {settings.service_role!r}: {_way_out(error, 'GetRole', 'SERVICE_ROLE')}")
    try:
        iam.get_instance_profile(InstanceProfileName=settings.instance_profile.rsplit("/", 1)[-1])
    except ClientError as error:
        way_out = _way_out(error, "GetInstanceProfile", "INSTANCE_PROFILE")
        faults.append(f"instance profile {settings.instance_profile!r}: {way_out}")
    return faults


def _way_out(error: ClientError, action: str, setting: str) -> str:
    """What to do about an error of IAM's; one that tells nothing about the role is raised again."""
    if error.response["Error"]["Code"] == "NoSuchEntity":
        return f"{error}; set ORCHARD_{setting} to one that exists"
    if error.response["Error"]["Code"] == "AccessDenied":
        return f"{error}; grant iam:{action} to Airflow"
    raise error
