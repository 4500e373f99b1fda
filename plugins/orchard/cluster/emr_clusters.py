"""Create, find and terminate a run's cluster on EMR.

A cluster's name is unique to its run. Each function can therefore be called again: it first checks what an earlier
call has done.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

if TYPE_CHECKING:
    from mypy_boto3_emr import EMRClient
    from mypy_boto3_emr.literals import ClusterStateType
    from mypy_boto3_emr.type_defs import ClusterSummaryTypeDef

log = logging.getLogger(__name__)

# A READY cluster runs steps. An ACTIVE cluster can still do work. An EXISTING cluster still costs money.
READY: Sequence["ClusterStateType"] = ("RUNNING", "WAITING")
ACTIVE: Sequence["ClusterStateType"] = ("STARTING", "BOOTSTRAPPING", *READY)
EXISTING: Sequence["ClusterStateType"] = (*ACTIVE, "TERMINATING")
TERMINATED: Sequence["ClusterStateType"] = ("TERMINATED", "TERMINATED_WITH_ERRORS")
# The first cluster of a run and two replacements.
MAX_CLUSTERS_PER_RUN = 3


def list_clusters(
    emr: "EMRClient", states: Sequence["ClusterStateType"], created_after: datetime | None = None
) -> list["ClusterSummaryTypeDef"]:
    """Return all clusters of the account and region in the given states, in no particular order."""
    since = {} if created_after is None else {"CreatedAfter": created_after}
    pages = emr.get_paginator("list_clusters").paginate(ClusterStates=states, **since)  # type: ignore[arg-type]
    return [cluster for page in pages for cluster in page["Clusters"]]


def clusters_named(
    emr: "EMRClient", name: str, states: Sequence["ClusterStateType"], created_after: datetime | None = None
) -> list[dict[str, Any]]:
    """Return the ClusterSummary of each cluster with the given name and state, newest first."""
    found: list[Any] = [item for item in list_clusters(emr, states, created_after) if item["Name"] == name]
    # ListClusters returns the clusters unsorted.
    return sorted(found, key=lambda cluster: cluster["Status"]["Timeline"]["CreationDateTime"], reverse=True)


def create_cluster(emr: "EMRClient", request: Mapping[str, Any]) -> str:
    """Create the cluster of a run, or adopt the active one of the same name. Return its id.

    `emr` must not retry requests: if the response to RunJobFlow was lost, the cluster exists, and a retry would create
    a second one.
    """
    active = clusters_named(emr, request["Name"], ACTIVE)
    if active:
        log.info("cluster %s exists (%s): adopted", active[0]["Id"], active[0]["Status"]["State"])
        return str(active[0]["Id"])
    cluster_id = emr.run_job_flow(**request)["JobFlowId"]
    log.info("cluster %s: created as %s", cluster_id, request["Name"])
    return cluster_id


def describe_end(status: Mapping[str, Any]) -> str:
    """Return a cluster's state with the reason for it.

    >>> describe_end({"State": "TERMINATED", "StateChangeReason": {"Code": "USER_REQUEST", "Message": "by hand"}})
    'TERMINATED (USER_REQUEST: by hand)'
    """
    reason = status.get("StateChangeReason", {})
    details = [f"{reason['Code']}: {reason.get('Message', '')}"] if "Code" in reason else []
    details += [
        f"{detail.get('ErrorCode', '')}: {detail.get('ErrorMessage', '')}" for detail in status.get("ErrorDetails", [])
    ]
    return f"{status['State']} ({'; '.join(details)})" if details else str(status["State"])


def is_worth_replacing(status: Mapping[str, Any]) -> bool:
    """Return whether a replacement may start: a bootstrap action or an instance failed, or EC2 lacked capacity.

    >>> is_worth_replacing({"StateChangeReason": {"Code": "VALIDATION_ERROR"}})
    False
    >>> is_worth_replacing({"StateChangeReason": {"Code": "BOOTSTRAP_FAILURE"}})
    True
    """
    code = status.get("StateChangeReason", {}).get("Code", "")
    details = [str(detail.get("ErrorCode", "")) for detail in status.get("ErrorDetails", [])]
    return code == "BOOTSTRAP_FAILURE" or code.startswith("INSTANCE_") or any("CAPACITY" in item for item in details)


def terminate_cluster(emr: "EMRClient", cluster_id: str) -> None:
    """Request termination of a cluster, even if it has termination protection.

    It does not call DescribeCluster first, because that permission may be missing when termination matters most.
    """
    try:
        emr.terminate_job_flows(JobFlowIds=[cluster_id])
    except ClientError as error:
        if error.response["Error"]["Code"] != "ValidationException":
            raise
        # Termination protection is the only reason why this request can be invalid.
        log.warning("cluster %s: %s; removing its termination protection", cluster_id, error)
        emr.set_termination_protection(JobFlowIds=[cluster_id], TerminationProtected=False)
        emr.terminate_job_flows(JobFlowIds=[cluster_id])
    log.info("cluster %s: termination requested", cluster_id)


def terminate_clusters_of_run(emr: "EMRClient", name: str, known_ids: Sequence[str]) -> list[str]:
    """Request termination of all clusters of a run: those with its cluster name, and `known_ids`.

    Returns:
        The ids of the clusters that may still be active.

    Raises:
        ExceptionGroup: EMR did not list the clusters, or did not terminate some of them. All others are terminating.
    """
    errors: list[Exception] = []
    ids = list(dict.fromkeys(known_ids))
    try:
        ids += [cluster["Id"] for cluster in clusters_named(emr, name, ACTIVE) if cluster["Id"] not in ids]
    except Exception as error:
        log.warning("cannot list the clusters named %s: %s", name, error)
        errors.append(error)
    for cluster_id in ids:
        try:
            terminate_cluster(emr, cluster_id)
        except Exception as error:
            log.warning("cannot terminate cluster %s: %s", cluster_id, error)
            errors.append(error)
    if errors:
        raise ExceptionGroup(f"clusters {ids} named {name} may still be active", errors)
    if not ids:
        log.info("no active cluster is named %s", name)
    return ids


def existing_clusters(emr: "EMRClient", name: str, ids: Collection[str]) -> dict[str, str]:
    """Return the state of each cluster of a run that has not terminated yet, by its id."""
    return {
        cluster["Id"]: cluster["Status"]["State"]
        for cluster in list_clusters(emr, EXISTING)
        if cluster["Id"] in ids or cluster["Name"] == name
    }
