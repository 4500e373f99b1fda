"""The persistent application UI of a cluster: Spark's history server."""

import re

from local_aws.emr.errors import NoSuchAppUi, NoSuchCluster, NotAClusterArn, UnsupportedAppUi
from local_aws.emr.model import Wire, now
from local_aws.emr.operations import operation
from local_aws.emr.service import Emr

SPARK_HISTORY_SERVER = "SHS"
_ARN = re.compile(r"arn:aws[\w-]*:elasticmapreduce:(?P<region>[\w-]+):\d*:cluster/(?P<cluster_id>[\w-]+)")
_PREFIX = "p-"


@operation("CreatePersistentAppUI")
def create_persistent_app_ui(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Create the UI of a cluster, or return the one that exists."""
    if parameters.get("ProfilerType", SPARK_HISTORY_SERVER) != SPARK_HISTORY_SERVER:
        raise UnsupportedAppUi(parameters["ProfilerType"])
    match = _ARN.fullmatch(parameters["TargetResourceArn"])
    if match is None:
        raise NotAClusterArn(parameters["TargetResourceArn"])
    cluster_id = match["cluster_id"]
    if match["region"] != region or emr.control(cluster_id).cluster.region != region:
        raise NoSuchCluster(cluster_id)
    emr.history.start(cluster_id)
    return {"PersistentAppUIId": _PREFIX + cluster_id.removeprefix("j-"), "RuntimeRoleEnabledCluster": False}


@operation("DescribePersistentAppUI")
def describe_persistent_app_ui(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Describe the UI of a cluster. Its status becomes ATTACHED when it shows the applications of the cluster."""
    app_ui_id = parameters["PersistentAppUIId"]
    cluster_id = _cluster_of(emr, app_ui_id, region)
    failure = emr.history.failure(cluster_id)
    status = "FAILED" if failure else "ATTACHED" if emr.history.url(cluster_id) else "CREATING"
    described = {
        "PersistentAppUIId": app_ui_id,
        "PersistentAppUITypeList": [SPARK_HISTORY_SERVER],
        "PersistentAppUIStatus": status,
        "LastModifiedTime": now(),
        **({"LastStateChangeReason": failure} if failure else {}),
    }
    return {"PersistentAppUI": described}


@operation("GetPersistentAppUIPresignedURL")
def get_persistent_app_ui_presigned_url(emr: Emr, parameters: Wire, region: str) -> Wire:
    """Return the URL of the UI of a cluster, or of one application in it."""
    kind = parameters.get("PersistentAppUIType", SPARK_HISTORY_SERVER)
    if kind != SPARK_HISTORY_SERVER:
        raise UnsupportedAppUi(kind)
    cluster_id = _cluster_of(emr, parameters["PersistentAppUIId"], region)
    url = emr.history.url(cluster_id, parameters.get("ApplicationId"))
    return {"PresignedURLReady": False} if url is None else {"PresignedURLReady": True, "PresignedURL": url}


def _cluster_of(emr: Emr, app_ui_id: str, region: str) -> str:
    """Return the id of the cluster to which a UI belongs.

    Raises:
        NoSuchAppUi: there is no UI with this id in the region.
    """
    cluster_id = "j-" + app_ui_id.removeprefix(_PREFIX)
    control = emr.controls.get(cluster_id)
    if not app_ui_id.startswith(_PREFIX) or control is None or control.cluster.region != region:
        raise NoSuchAppUi(app_ui_id)
    return cluster_id
