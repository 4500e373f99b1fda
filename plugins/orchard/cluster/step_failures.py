"""Explain why a step failed: from the report that it wrote, from its logs, and from what EMR says."""

import gzip
import io
import json
import logging
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from orchard.cluster.emr_clusters import ACTIVE, describe_end
from orchard.storage import split_uri

if TYPE_CHECKING:
    from mypy_boto3_emr import EMRClient
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

LOG_TAIL_LINES = 50
# EMR uploads the logs of a step every five minutes, and once more after its end.
LOG_WAIT = timedelta(minutes=6)
# The log of the program that starts a step. It never contains the cause, and comes first.
STARTER_LOG = "controller"
# Logs of executors may be many and long: the newest, and the end of each, are enough.
MAX_LOG_FILES = 40
MAX_LOG_BYTES = 1024 * 1024
CHUNK_BYTES = 256 * 1024
# S3 counts modification times in whole seconds, and an upload may start a moment before EMR notes the end of the step.
CLOCK_MARGIN = timedelta(seconds=5)
# A step has several logs, which are uploaded one after the other.
UPLOAD_TIME = timedelta(seconds=10)
UNREADABLE = ("NoSuchKey", "NoSuchBucket", "AccessDenied", "InvalidObjectState")

_TRACEBACK = "Traceback (most recent call last):"
# Spark's exception for every Python program that fails.
_EXITED = "SparkUserAppException"
_QUALIFIED = r"(?:[\w$]+\.)*[\w$]+"
# Python prints the exceptions of a group behind a margin.
_GROUP_MARGIN = re.compile(r"^\s*[+|] ?")
# A frame of a JVM stack trace. The line before the first one is the exception.
_JVM_FRAME = re.compile(r"^\s+at [\w.$/<>@-]+\(.*\)\s*$")
_JVM_EXCEPTION = re.compile(r"^(?:Exception in thread \"[^\"]*\" |Caused by: )?(?:[\w$]+\.)+[\w$]+(?::.*)?$")
# A line that names an exception, without a stack trace.
_PLAIN = re.compile(rf"^(?:Exception in thread.*|{_QUALIFIED}(?:Error|Exception|Exit|Interrupt)\b.*)$")


@dataclass(frozen=True)
class Failure:
    """Why a step did not complete.

    `cause` is one line. `text` is for the log of the task. `is_final` is false if a better explanation may follow,
    because the logs have not been uploaded since the end of the step.
    """

    cause: str
    text: str
    is_final: bool


@dataclass(frozen=True)
class StepLog:
    """The end of a log file of a step, without the folder in its name."""

    name: str
    text: str
    modified: datetime


def explain_failure(
    emr: "EMRClient",
    s3: "S3Client",
    cluster_id: str,
    step: Mapping[str, Any],
    logs: str,
    report_uri: str,
    now: datetime,
) -> Failure:
    """Return why a step did not complete.

    Args:
        emr: a client for EMR.
        s3: a client for S3.
        cluster_id: the id of the step's cluster.
        step: the step as DescribeStep returns it.
        logs: the folder of the step's logs.
        report_uri: the report that the step writes when it fails. It may be missing.
        now: the present time. Logs are complete only some time after the first of them has appeared.
    """
    status, cluster = step["Status"], emr.describe_cluster(ClusterId=cluster_id)["Cluster"]
    details = status.get("FailureDetails", {})
    reason = status.get("StateChangeReason", {}).get("Message") or details.get("Reason", "EMR gives no reason")
    lines = [f"step {step['Name']} ({step['Id']}) is {status['State']}: {reason}"]
    end = "" if cluster["Status"]["State"] in ACTIVE else f"cluster {cluster_id} is {describe_end(cluster['Status'])}"
    if end:
        lines.append(end)
    report = read_report(s3, report_uri, status["Timeline"]["CreationDateTime"])
    if report is not None:
        cause, hint, tail = report
        lines += [cause, *([f"hint: {hint}"] if hint else []), *([f"end of {report_uri}:", *tail] if tail else [])]
        return Failure(cause, "\n".join([*lines, f"all logs: {logs}"]), is_final=True)
    ended = status["Timeline"].get("EndDateTime")
    uploaded = read_logs(s3, logs)
    files = [file for file in uploaded if file.text.strip()]
    message = details.get("Message", "")
    cause, file = find_cause(files)
    cause = cause or exception_in(message)[1]
    if end and status["State"] != "FAILED":
        cause = end  # the step was lost with its cluster, whatever its log contains
    is_in_tail = False
    if not cause:
        cause = next((line for line in reversed(message.splitlines()) if line.strip()), "")
        is_in_tail = file is not None and cause in file.text
    if cause and cause != end and not is_in_tail:
        lines.append(cause)
    if file is not None:
        lines += [f"end of {logs}{file.name}:", *file.text.rstrip().splitlines()[-LOG_TAIL_LINES:]]
    else:
        lines.append("the log is not uploaded yet: EMR uploads it every five minutes, and when the cluster terminates")
    fresh = [item for item in uploaded if ended is None or item.modified >= ended - CLOCK_MARGIN]
    # A step that never started has no logs, and those of a step that was lost with its cluster do not tell more.
    has_all_logs = "StartDateTime" not in status["Timeline"] or any(
        not is_starters(file) and now - file.modified >= UPLOAD_TIME for file in fresh
    )
    is_final = has_all_logs or (cause != "" and cause == end)
    return Failure(cause or lines[0], "\n".join([*lines, f"all logs: {logs}"]), is_final=is_final)


def is_starters(file: StepLog) -> bool:
    """Return whether a log is of the program that starts the step."""
    return file.name.rpartition("/")[2].startswith(STARTER_LOG)


def read_report(s3: "S3Client", uri: str, created: datetime) -> tuple[str, str, list[str]] | None:
    """Return the cause, the hint and the last lines of the report that a step wrote before it failed.

    Return None if the report is missing, unreadable or older than the step: an earlier attempt wrote an older one.
    """
    bucket, key = split_uri(uri)
    try:
        answer = s3.get_object(Bucket=bucket, Key=key)
        content = json.loads(answer["Body"].read())
        if answer["LastModified"] < created.replace(microsecond=0):
            log.info("%s is older than the step: ignored", uri)
            return None
        name, message = str(content["type"]), str(content.get("message") or "")
        tail = content.get("last_lines") or []
        tail = tail.splitlines() if isinstance(tail, str) else [str(line) for line in tail]
        cause = " ".join(f"{name}: {message}".split()) if message else name
        return cause, str(content.get("hint") or ""), tail[-LOG_TAIL_LINES:]
    except ClientError as error:
        if error.response["Error"]["Code"] not in UNREADABLE:
            raise
        log.info("%s: %s", uri, error)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s is not a report: %s", uri, error)
    return None


def read_logs(s3: "S3Client", folder: str) -> list[StepLog]:
    """Return the end of each log file in a folder, whatever its name, plain or compressed."""
    bucket, prefix = split_uri(folder)
    found = []
    try:
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        items = [item for page in pages for item in page.get("Contents", [])]
    except ClientError as error:
        if error.response["Error"]["Code"] not in UNREADABLE:
            raise
        log.info("%s: %s", folder, error)
        return []
    newest = sorted(items, key=lambda item: item["LastModified"], reverse=True)[:MAX_LOG_FILES]
    for item in newest:
        try:
            body = s3.get_object(Bucket=bucket, Key=item["Key"])["Body"]
            text = end_of(body).decode(errors="replace")
        except ClientError as error:
            if error.response["Error"]["Code"] not in UNREADABLE:
                raise
            log.info("s3://%s/%s: %s", bucket, item["Key"], error)
            continue
        found.append(StepLog(item["Key"].removeprefix(prefix), text, item["LastModified"]))
    # stdout first: spark-submit redirects the standard error of a Python program to its standard output.
    return sorted(found, key=lambda file: (not file.name.startswith("stdout"), file.name))


def end_of(file: Any) -> bytes:
    """Return the end of a file that is plain or compressed. A file that is cut off counts as far as it can be read.

    >>> end_of(io.BytesIO(gzip.compress(b"one, ") + gzip.compress(b"two"))), end_of(io.BytesIO(b"one, two"))
    (b'one, two', b'one, two')
    """
    reader = io.BufferedReader(file)
    stream: Any = gzip.GzipFile(fileobj=reader) if reader.peek(2).startswith(b"\x1f\x8b") else reader
    end = b""
    try:
        while chunk := stream.read(CHUNK_BYTES):
            end = (end + chunk)[-MAX_LOG_BYTES:]
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        log.info("a log is cut off: %s", error)
    return end


def find_cause(files: list[StepLog]) -> tuple[str, StepLog | None]:
    """Return the line of the exception that ended a step, and the file in which it is.

    The end of a Python traceback is better than a JVM's stack trace, because the steps are Python programs, and Spark
    logs exceptions that it has handled. Both are better than a line that only looks like an exception. Without any, the
    file is the first that is not the starter's log.
    """
    ranked = [(*exception_in(file.text), file) for file in files]
    best = max(ranked, key=lambda found: found[0], default=None)
    if best is not None and best[0] > 0:
        return best[1], best[2]
    others = [file for file in files if not is_starters(file)]
    return "", next(iter(others or files), None)


def exception_in(text: str) -> tuple[int, str]:
    r"""Return the last exception in a text, as one line, with its rank: 3 for Python, 2 for a JVM, 1 for a plain line.

    >>> exception_in("Traceback (most recent call last):\n  File \"ingest.py\"\ningest.TooManyRejects: 2 of 3\nend")
    (3, 'ingest.TooManyRejects: 2 of 3')
    >>> exception_in("java.io.IOException: closed\n\tat org.apache.Spark.run(Spark.java:1)")
    (2, 'java.io.IOException: closed')
    >>> exception_in("all is well")
    (0, '')
    """
    lines = text.splitlines()
    python = jvm = plain = ""
    in_traceback = False
    for number, line in enumerate(lines):
        bare = _GROUP_MARGIN.sub("", line)
        if bare.rstrip().endswith(_TRACEBACK):
            in_traceback = True
        elif in_traceback and bare.strip() and not bare[0].isspace():
            python, in_traceback = bare.strip(), False
        if _PLAIN.match(line):
            plain = line.strip()
        before = lines[number - 1] if number else ""
        if _JVM_FRAME.match(line) and _JVM_EXCEPTION.match(before) and _EXITED not in before:
            jvm = before.strip()
    for rank, found in ((3, python), (2, jvm), (1, plain)):
        if found:
            return rank, found
    return 0, ""
