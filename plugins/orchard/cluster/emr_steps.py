"""Add and cancel a step on EMR, and explain why it failed."""

import gzip
import logging
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from orchard.cluster.emr_clusters import ACTIVE, describe_end
from orchard.storage import split_uri

if TYPE_CHECKING:
    from mypy_boto3_emr import EMRClient
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

UNFINISHED = ("PENDING", "RUNNING", "CANCEL_PENDING")
LOG_TAIL_LINES = 50
# stdout first: spark-submit redirects the standard error of a Python program to its standard output.
LOG_FILES = ("stdout.gz", "stderr.gz")
_TRACEBACK_END = re.compile(r"^Traceback \(most recent call last\):\n(?:(?:[ \t].*)?\n)+(\S.*)$", re.MULTILINE)
_EXCEPTION = re.compile(r"^(?:Exception in thread.*|(?:[\w$]+\.)*\w*(?:Error|Exception)\b.*)$", re.MULTILINE)


def add_step(emr: "EMRClient", cluster_id: str, step: Mapping[str, Any]) -> str:
    """Add a step, or adopt a step of the same name that is pending, running or completed. Return its id.

    `emr` must not retry requests: if the response to AddJobFlowSteps was lost, the step exists, and a retry would add a
    second one.
    """
    pages = emr.get_paginator("list_steps").paginate(
        ClusterId=cluster_id, StepStates=["PENDING", "RUNNING", "COMPLETED"]
    )
    for found in (item for page in pages for item in page["Steps"]):
        if found["Name"] == step["Name"]:
            log.info("step %s %s exists (%s): adopted", found["Id"], step["Name"], found["Status"]["State"])
            return found["Id"]
    (step_id,) = emr.add_job_flow_steps(JobFlowId=cluster_id, Steps=[step])["StepIds"]  # type: ignore[list-item]
    log.info("step %s %s: added to cluster %s", step_id, step["Name"], cluster_id)
    return step_id


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


def explain_failure(emr: "EMRClient", s3: "S3Client", cluster_id: str, step: Mapping[str, Any], logs: str) -> str:
    """Return why a step did not complete: EMR's reason, the exception, the end of the log, and the folder of all logs.

    `logs` is the folder of the step's logs.
    """
    status, cluster = step["Status"], emr.describe_cluster(ClusterId=cluster_id)["Cluster"]
    failure = status.get("FailureDetails", {})
    reason = status.get("StateChangeReason", {}).get("Message") or failure.get("Reason", "EMR gives no reason")
    lines = [f"step {step['Name']} ({step['Id']}) is {status['State']}: {reason}"]
    if cluster["Status"]["State"] not in ACTIVE:
        lines.append(f"cluster {cluster_id} is {describe_end(cluster['Status'])}")
    text, file = _failure_log(s3, logs)
    message = failure.get("Message", "")
    exceptions = exceptions_in(text) or exceptions_in(message)
    lines += exceptions[-1:] or [line for line in message.splitlines()[-1:] if line not in text]
    if text:
        tail = text.rstrip().splitlines()[-LOG_TAIL_LINES:]
        lines += [f"end of {logs}{file}:", *tail]
    else:
        lines.append("the log is not uploaded yet: EMR uploads it every five minutes, and when the cluster terminates")
    return "\n".join([*lines, f"all logs: {logs}"])


def exceptions_in(text: str) -> list[str]:
    """Return the lines of a log that name an exception, in order: the ends of Python tracebacks, or else Java's.

    A Python exception can have any name, for example TooManyRejects: it is the first line after the indented frames.
    If a task failed, its traceback follows the driver's, so the last line is the cause.
    """
    return _TRACEBACK_END.findall(text) or _EXCEPTION.findall(text)


def _failure_log(s3: "S3Client", folder: str) -> tuple[str, str]:
    """Return the text and the name of the first log with an exception, or else of the first log that is not empty."""
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
    for pattern in (_TRACEBACK_END, _EXCEPTION):
        for name, text in texts.items():
            if pattern.search(text):
                return text, name
    return next(((text, name) for name, text in texts.items() if text.strip()), ("", ""))
