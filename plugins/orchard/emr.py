"""What a run asks of EMR, in a way that asking again does no harm: its cluster's name is the run's alone."""

import gzip
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from orchard.dataset import split_uri

if TYPE_CHECKING:
    from mypy_boto3_emr import EMRClient
    from mypy_boto3_emr.literals import ClusterStateType
    from mypy_boto3_emr.type_defs import ClusterSummaryTypeDef
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

READY: Sequence["ClusterStateType"] = ("RUNNING", "WAITING")
LIVE: Sequence["ClusterStateType"] = ("STARTING", "BOOTSTRAPPING", *READY)
NOT_GONE: Sequence["ClusterStateType"] = (*LIVE, "TERMINATING")
ENDED: Sequence["ClusterStateType"] = ("TERMINATED", "TERMINATED_WITH_ERRORS")
STEP_ACTIVE = ("PENDING", "RUNNING", "CANCEL_PENDING")
# The first and two more.
MAX_CLUSTERS = 3
LOG_LINES = 50
# The standard output first: where spark-submit sends what a Python program says to its standard error.
LOG_FILES = ("stdout.gz", "stderr.gz")
_EXCEPTION = re.compile(r"^(?:Exception in thread.*|(?:[\w$]+\.)*\w*(?:Error|Exception)\b.*)$", re.MULTILINE)


def list_clusters(
    emr: "EMRClient", states: Sequence["ClusterStateType"], created_after: datetime | None = None
) -> list["ClusterSummaryTypeDef"]:
    """All clusters of the account and region in some states, in no order."""
    since = {} if created_after is None else {"CreatedAfter": created_after}
    pages = emr.get_paginator("list_clusters").paginate(ClusterStates=states, **since)  # type: ignore[arg-type]
    return [cluster for page in pages for cluster in page["Clusters"]]


def clusters_named(
    emr: "EMRClient", name: str, states: Sequence["ClusterStateType"], created_after: datetime | None = None
) -> list[dict[str, Any]]:
    """The ClusterSummary of each cluster with a name, in some states, newest first."""
    found: list[Any] = [item for item in list_clusters(emr, states, created_after) if item["Name"] == name]
    # EMR lists them "in unsorted order".
    return sorted(found, key=lambda cluster: cluster["Status"]["Timeline"]["CreationDateTime"], reverse=True)


def create_cluster(emr: "EMRClient", request: Mapping[str, Any]) -> str:
    """Make the cluster of a run, or adopt the one that is there; return its id.

    `emr` must not repeat requests by itself: the answer that was lost may be that of a cluster.
    """
    live = clusters_named(emr, request["Name"], LIVE)
    if live:
        log.info("cluster %s %s is there already, adopted", live[0]["Id"], live[0]["Status"]["State"])
        return str(live[0]["Id"])
    cluster_id = emr.run_job_flow(**request)["JobFlowId"]
    log.info("cluster %s %s: created", cluster_id, request["Name"])
    return cluster_id


def end_of(status: Mapping[str, Any]) -> str:
    """A cluster's state with its reason, in a few words.

    >>> end_of({"State": "TERMINATED", "StateChangeReason": {"Code": "USER_REQUEST", "Message": "by hand"}})
    'TERMINATED (USER_REQUEST: by hand)'
    """
    reason = status.get("StateChangeReason", {})
    said = [f"{reason['Code']}: {reason.get('Message', '')}"] if "Code" in reason else []
    said += [
        f"{detail.get('ErrorCode', '')}: {detail.get('ErrorMessage', '')}" for detail in status.get("ErrorDetails", [])
    ]
    return f"{status['State']} ({'; '.join(said)})" if said else str(status["State"])


def can_heal(status: Mapping[str, Any]) -> bool:
    """Whether another cluster may come up where this one has not: a bootstrap action, an instance, the capacity.

    >>> can_heal({"StateChangeReason": {"Code": "VALIDATION_ERROR"}}), can_heal(
    ...     {"StateChangeReason": {"Code": "BOOTSTRAP_FAILURE"}}
    ... )
    (False, True)
    """
    code = status.get("StateChangeReason", {}).get("Code", "")
    details = [str(detail.get("ErrorCode", "")) for detail in status.get("ErrorDetails", [])]
    return code == "BOOTSTRAP_FAILURE" or code.startswith("INSTANCE_") or any("CAPACITY" in item for item in details)


def terminate_cluster(emr: "EMRClient", cluster_id: str) -> None:
    """Ask for a cluster's end; also of a protected one, and without a look at it first, which might be denied."""
    try:
        emr.terminate_job_flows(JobFlowIds=[cluster_id])
    except ClientError as error:
        if error.response["Error"]["Code"] != "ValidationException":
            raise
        # Only termination protection makes this request invalid.
        log.warning("cluster %s: %s; the protection is taken away", cluster_id, error)
        emr.set_termination_protection(JobFlowIds=[cluster_id], TerminationProtected=False)
        emr.terminate_job_flows(JobFlowIds=[cluster_id])
    log.info("cluster %s: termination asked for", cluster_id)


def terminate_run(emr: "EMRClient", name: str, known_ids: Sequence[str]) -> list[str]:
    """Ask for the end of all clusters of a run, those in `known_ids` even if EMR does not list them.

    Returns:
        The ids of all that may still live.

    Raises:
        ExceptionGroup: EMR refused to end some, or to list them; the others have been asked to end.
    """
    errors: list[Exception] = []
    ids = list(dict.fromkeys(known_ids))
    try:
        ids += [cluster["Id"] for cluster in clusters_named(emr, name, LIVE) if cluster["Id"] not in ids]
    except Exception as error:
        log.warning("cannot list the clusters named %s: %s", name, error)
        errors.append(error)
    for cluster_id in ids:
        try:
            terminate_cluster(emr, cluster_id)
        except Exception as error:
            log.warning("cannot end cluster %s: %s", cluster_id, error)
            errors.append(error)
    if errors:
        raise ExceptionGroup(f"clusters {ids} named {name} may still live", errors)
    if not ids:
        log.info("no cluster named %s lives", name)
    return ids


def still_there(emr: "EMRClient", name: str, ids: Collection[str]) -> dict[str, str]:
    """Which of a run's clusters have not ended yet, with their states."""
    return {
        cluster["Id"]: cluster["Status"]["State"]
        for cluster in list_clusters(emr, NOT_GONE)
        if cluster["Id"] in ids or cluster["Name"] == name
    }


def add_step(emr: "EMRClient", cluster_id: str, step: Mapping[str, Any]) -> str:
    """Add a step, or adopt the one of its name that is to run, runs or has completed; return its id.

    `emr` must not repeat requests by itself: the answer that was lost may be that of a step.
    """
    pages = emr.get_paginator("list_steps").paginate(
        ClusterId=cluster_id, StepStates=["PENDING", "RUNNING", "COMPLETED"]
    )
    for found in (item for page in pages for item in page["Steps"]):
        if found["Name"] == step["Name"]:
            log.info("step %s %s %s is there already, adopted", found["Id"], step["Name"], found["Status"]["State"])
            return found["Id"]
    (step_id,) = emr.add_job_flow_steps(JobFlowId=cluster_id, Steps=[step])["StepIds"]  # type: ignore[list-item]
    log.info("step %s %s: added to cluster %s", step_id, step["Name"], cluster_id)
    return step_id


def cancel_step(emr: "EMRClient", cluster_id: str, step_id: str) -> None:
    """Kill a step; one that is over stays as it is."""
    (answer,) = emr.cancel_steps(ClusterId=cluster_id, StepIds=[step_id], StepCancellationOption="TERMINATE_PROCESS")[
        "CancelStepsInfoList"
    ]
    log.info("step %s: cancelling: %s %s", step_id, answer["Status"], answer.get("Reason", ""))


def step_logs(log_uri: str, cluster_id: str, step_id: str) -> str:
    """The folder in which EMR puts the logs of a step, some minutes late; `log_uri` is the cluster's LogUri.

    >>> step_logs("s3://bucket/logs/", "j-1", "s-1")
    's3://bucket/logs/j-1/steps/s-1/'
    """
    return f"{log_uri.rstrip('/')}/{cluster_id}/steps/{step_id}/"


def explain_failure(emr: "EMRClient", s3: "S3Client", cluster_id: str, step: Mapping[str, Any], logs: str) -> str:
    """Why a step has not completed: EMR's reason, the exception, the last lines of its log, where the rest is.

    `logs` is the folder of its logs.
    """
    status, cluster = step["Status"], emr.describe_cluster(ClusterId=cluster_id)["Cluster"]
    failure = status.get("FailureDetails", {})
    reason = status.get("StateChangeReason", {}).get("Message") or failure.get("Reason", "no reason given")
    lines = [f"step {step['Name']} ({step['Id']}) is {status['State']}: {reason}"]
    if cluster["Status"]["State"] not in LIVE:
        lines.append(f"cluster {cluster_id} is {end_of(cluster['Status'])}")
    text, file = _log_of_failure(s3, logs)
    said = failure.get("Message", "")
    exceptions = _EXCEPTION.findall(text) or _EXCEPTION.findall(said)
    lines += exceptions[-1:] or [line for line in said.splitlines()[-1:] if line not in text]
    if text:
        tail = text.rstrip().splitlines()[-LOG_LINES:]
        lines += [f"the last {len(tail)} lines of {logs}{file}:", *tail]
    else:
        lines.append("its log is not there yet: EMR writes it every five minutes, and when the cluster ends")
    return "\n".join([*lines, f"all logs: {logs}"])


def _log_of_failure(s3: "S3Client", folder: str) -> tuple[str, str]:
    """The log that has an exception in it, else the first that has anything, and its name."""
    bucket, prefix = split_uri(folder)
    texts = {}
    for name in LOG_FILES:
        try:
            body = s3.get_object(Bucket=bucket, Key=prefix + name)["Body"].read()
        except ClientError as error:
            if error.response["Error"]["Code"] not in ("NoSuchKey", "NoSuchBucket", "AccessDenied"):
                raise
            log.info("%s%s: %s", folder, name, error)
            continue
        texts[name] = gzip.decompress(body).decode(errors="replace")
    for name, text in texts.items():
        if _EXCEPTION.search(text):
            return text, name
    return next(((text, name) for name, text in texts.items() if text.strip()), ("", ""))
