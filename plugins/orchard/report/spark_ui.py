"""The Spark UI of a run's cluster: the URL at which EMR shows it, also after the cluster has terminated.

EMR copies the event logs of Spark from HDFS, and shows them in a history server of its own. This is its persistent
application UI: https://docs.aws.amazon.com/emr/latest/ManagementGuide/app-history-spark-UI.html.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import BotoCoreError, ClientError

from orchard.cluster.tags import DAG_TAG, RUN_TAG, run_tag
from orchard.errors import is_final
from orchard.run.names import hash_in_cluster_name, run_id_hash
from orchard.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_emr import EMRClient
    from mypy_boto3_emr.type_defs import ClusterTypeDef

HISTORY_SERVER: Final = "SHS"
# The status of a UI whose URL can be requested. The API does not document it, but AWS's own clients wait for it:
# https://pypi.org/project/sagemaker-jupyterlab-emr-extension/.
READY = "ATTACHED"
FAILED = "FAILED"
DENIED = ("AccessDeniedException", "AccessDenied", "UnauthorizedOperation", "NotAuthorized")
POLL_SECONDS = 1.0


class SparkUiError(Exception):
    """Base class of the reasons why there is no URL. The message is for the user who has asked for it."""


class UnknownCluster(SparkUiError):
    """EMR does not know the cluster."""

    def __init__(self, cluster_id: str) -> None:
        super().__init__(
            f"EMR does not know the cluster {cluster_id}: it forgets a cluster two months after its end. Look at the "
            "logs of its steps on S3"
        )


class SparkUiDenied(SparkUiError):
    """Airflow's API server lacks a permission."""

    def __init__(self, cluster_id: str, action: str) -> None:
        self.action = action
        super().__init__(
            f"Airflow's API server may not call elasticmapreduce:{action} for the cluster {cluster_id}: grant this "
            "action on the cluster to its role"
        )


class SparkUiNotReady(SparkUiError):
    """EMR has not created the UI yet."""

    def __init__(self, cluster_id: str, status: str) -> None:
        super().__init__(f"EMR prepares the Spark UI of the cluster {cluster_id} ({status}): try again in a minute")


class NoSparkUi(SparkUiError):
    """EMR has no UI for the cluster, or does not respond."""

    def __init__(self, cluster_id: str, reason: object) -> None:
        super().__init__(
            f"EMR does not open the Spark UI of the cluster {cluster_id}: {reason}. EMR keeps it for 30 days after the "
            "end of the cluster. Look at the logs of its steps on S3"
        )


def spark_ui_url(emr: "EMRClient", cluster_id: str, wait_seconds: float = 20.0) -> str:
    """Return the URL of the Spark history server of a cluster, active or terminated.

    The URL needs no login, and expires. So ask for it when somebody opens it, and do not store it. Steps appear at
    least two minutes after their start.

    Args:
        emr: a client with the permissions DescribeCluster, CreatePersistentAppUI, DescribePersistentAppUI and
            GetPersistentAppUIPresignedURL.
        cluster_id: the id of the cluster.
        wait_seconds: how long to wait until EMR has created the UI, in seconds. Only the first request for a cluster
            takes longer than a second.

    Raises:
        UnknownCluster: EMR does not know the cluster.
        SparkUiDenied: a permission is missing.
        SparkUiNotReady: EMR has not created the UI within `wait_seconds`.
        NoSparkUi: EMR refuses the request, or does not respond.
    """
    arn = _describe_cluster(emr, cluster_id)["ClusterArn"]
    with _explained(cluster_id, "CreatePersistentAppUI"):
        app_ui_id = emr.create_persistent_app_ui(TargetResourceArn=arn)["PersistentAppUIId"]
    deadline = time.monotonic() + wait_seconds
    while True:
        with _explained(cluster_id, "DescribePersistentAppUI"):
            app_ui: Any = emr.describe_persistent_app_ui(PersistentAppUIId=app_ui_id)["PersistentAppUI"]
        status = app_ui.get("PersistentAppUIStatus", "no status yet")
        if status == READY:
            with _explained(cluster_id, "GetPersistentAppUIPresignedURL"):
                answer = emr.get_persistent_app_ui_presigned_url(
                    PersistentAppUIId=app_ui_id, PersistentAppUIType=HISTORY_SERVER
                )
            if answer.get("PresignedURLReady", True) and answer.get("PresignedURL"):
                return answer["PresignedURL"]
        if status == FAILED:
            raise NoSparkUi(cluster_id, app_ui.get("LastStateChangeReason", FAILED))
        if time.monotonic() + POLL_SECONDS > deadline:
            raise SparkUiNotReady(cluster_id, status)
        time.sleep(POLL_SECONDS)


def is_cluster_of_run(emr: "EMRClient", settings: Settings, dag_id: str, run_id: str, cluster_id: str) -> bool:
    """Return whether a cluster was created for a run of this deployment. It is not, if EMR does not know it.

    The tag of the run and the hash in the name of the cluster must both fit, because a tag cannot contain every run_id.

    Raises:
        SparkUiDenied: the permission DescribeCluster is missing.
        NoSparkUi: EMR does not respond.
    """
    try:
        cluster = _describe_cluster(emr, cluster_id)
    except UnknownCluster:
        return False
    tags = {tag["Key"]: tag["Value"] for tag in cluster.get("Tags", [])}
    found = hash_in_cluster_name(cluster["Name"], settings.bucket, settings.deployment)
    has_tags = tags.get(DAG_TAG) == dag_id and tags.get(RUN_TAG) == run_tag(run_id)
    return has_tags and found == run_id_hash(run_id, settings.deployment)


def _describe_cluster(emr: "EMRClient", cluster_id: str) -> "ClusterTypeDef":
    with _explained(cluster_id, "DescribeCluster"):
        try:
            return emr.describe_cluster(ClusterId=cluster_id)["Cluster"]
        except Exception as error:
            if is_final(error):
                raise UnknownCluster(cluster_id) from error
            raise


@contextmanager
def _explained(cluster_id: str, action: str) -> Iterator[None]:
    """Replace an error of boto3 by one that names what the user can do."""
    try:
        yield
    except ClientError as error:
        if error.response["Error"]["Code"] in DENIED:
            raise SparkUiDenied(cluster_id, action) from error
        raise NoSparkUi(cluster_id, error) from error
    except BotoCoreError as error:
        raise NoSparkUi(cluster_id, error) from error
