"""Add and cancel a step on EMR."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mypy_boto3_emr import EMRClient

log = logging.getLogger(__name__)

UNFINISHED = ("PENDING", "RUNNING", "CANCEL_PENDING")
CANCELLED = ("CANCEL_PENDING", "CANCELLED")
FAILED = ("FAILED", "INTERRUPTED", *CANCELLED)


def add_step(emr: "EMRClient", cluster_id: str, step: Mapping[str, Any]) -> tuple[str, bool]:
    """Add a step, or adopt a step of the same name that is pending, running or completed.

    Returns:
        The id of the step, and whether it is new.

    `emr` must not retry requests: if the response to AddJobFlowSteps was lost, the step exists, and a retry would add a
    second one.
    """
    pages = emr.get_paginator("list_steps").paginate(
        ClusterId=cluster_id, StepStates=["PENDING", "RUNNING", "COMPLETED"]
    )
    for found in (item for page in pages for item in page["Steps"]):
        if found["Name"] == step["Name"]:
            log.info("step %s %s exists (%s): adopted", found["Id"], step["Name"], found["Status"]["State"])
            return found["Id"], False
    (step_id,) = emr.add_job_flow_steps(JobFlowId=cluster_id, Steps=[step])["StepIds"]  # type: ignore[list-item]
    log.info("step %s %s: added to cluster %s", step_id, step["Name"], cluster_id)
    return step_id, True


def cancel_step(emr: "EMRClient", cluster_id: str, step_id: str) -> None:
    """Cancel a step and kill its process. A step that has finished does not change."""
    (answer,) = emr.cancel_steps(ClusterId=cluster_id, StepIds=[step_id], StepCancellationOption="TERMINATE_PROCESS")[
        "CancelStepsInfoList"
    ]
    log.info("step %s: cancellation %s %s", step_id, answer["Status"], answer.get("Reason", ""))


def step_log_uri(log_uri: str, cluster_id: str, step_id: str) -> str:
    """Return the folder of a step's logs below the cluster's LogUri. EMR uploads logs every five minutes.

    >>> step_log_uri("s3://bucket/logs/", "j-1", "s-1")
    's3://bucket/logs/j-1/steps/s-1/'
    """
    return f"{log_uri.rstrip('/')}/{cluster_id}/steps/{step_id}/"
