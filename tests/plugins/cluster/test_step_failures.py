"""Why a step failed, from what steps, Spark and EMR leave on S3."""

import gzip
import json
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from orchard.cluster.step_failures import LOG_TAIL_LINES, MAX_LOG_BYTES, Failure, exception_in, explain_failure
from tests.plugins.answers import answering, failing

if TYPE_CHECKING:
    from mypy_boto3_emr import EMRClient
    from mypy_boto3_s3 import S3Client

OURS = """\
26/11/22 02:00:00 INFO SparkContext: running
Traceback (most recent call last):
  File "ingest.py", line 241, in <module>
    sys.exit(main())
  File "ingest.py", line 200, in run
    raise TooManyRejects(summary)
          ^^^^^^^^^^^^^^^^^^^^^^^
__main__.TooManyRejects: 2 of 12 objects rejected
26/11/22 02:00:09 INFO ShutdownHookManager: Shutdown hook called
"""
UNRELATED = """\
26/11/22 02:00:08 WARN Utils: cannot delete a folder
java.io.IOException: Failed to delete: /tmp/spark-1
\tat org.apache.spark.network.util.JavaUtils.deleteRecursively(JavaUtils.java:147)
\tat java.base/java.lang.Thread.run(Thread.java:840)
Exception in thread "main" org.apache.spark.SparkUserAppException: User application exited with 1
\tat org.apache.spark.deploy.PythonRunner$.main(PythonRunner.scala:103)
"""
WORKER = """\
Traceback (most recent call last):
  File "features.py", line 138, in <module>
py4j.protocol.Py4JJavaError: An error occurred while calling o41.collect.
: org.apache.spark.SparkException: Job aborted due to stage failure: Lost task 0.3 in stage 1.0 (TID 7) (ip-10-0-0-7
executor 1): org.apache.spark.api.python.PythonException: Traceback (most recent call last):
  File "/opt/orchard/venv/lib/python3.11/site-packages/pyspark/worker.py", line 1247, in main
    process()
orchard_spark.parts.LostRows: part 3 has 5 rows of 6

\tat org.apache.spark.api.python.BasePythonRunner$ReaderIterator.handlePythonException(PythonRunner.scala:572)
"""
JVM = """\
26/11/22 02:00:08 ERROR Executor: Exception in task 0.0
Exception in thread "main" org.apache.spark.SparkException: Application failed
\tat org.apache.spark.deploy.yarn.Client.run(Client.scala:1365)
Caused by: com.example.QuotaReached: no more disks
\tat com.example.Disks.add(Disks.java:7)
\t... 8 more
"""
GROUP = """\
  + Exception Group Traceback (most recent call last):
  |   File "ingest.py", line 3, in <module>
  |     raise ExceptionGroup("two faults", faults)
  | ExceptionGroup: two faults (1 sub-exception)
  +-+---------------- 1 ----------------
    | Traceback (most recent call last):
    |   File "ingest.py", line 1, in <module>
    | objects.CannotRead: s3://b/1.jpg
    +------------------------------------
"""
CHAINED = """\
Traceback (most recent call last):
  File "pca.py", line 1, in <module>
KeyError: 'features'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "pca.py", line 2, in <module>
__main__.CannotFit
"""


class Step:
    """A failed step: what it and EMR leave on S3."""

    def __init__(self, s3: "S3Client", emr: "EMRClient", bucket: str) -> None:
        self.s3 = s3
        self.emr = emr
        self.bucket = bucket
        self.created = datetime.now(UTC) - timedelta(minutes=10)
        self.ended = datetime.now(UTC)
        self.started = True
        self.state = "FAILED"
        self.folder = f"logs/j-1/steps/s-{uuid.uuid4().hex[:8]}/"
        self.details: dict[str, str] = {}
        self.report_uri = f"s3://{bucket}/runs/images/1/ingest.error.json"

    def put_log(self, name: str, text: str, *, plain: bool = False, cut: int = 0) -> None:
        content = text.encode() if plain else gzip.compress(text.encode())
        self.s3.put_object(Bucket=self.bucket, Key=self.folder + name, Body=content[: len(content) - cut])

    def put_report(self, content: Mapping[str, Any] | str) -> None:
        text = content if isinstance(content, str) else json.dumps(content)
        self.s3.put_object(Bucket=self.bucket, Key="runs/images/1/ingest.error.json", Body=text.encode())

    @property
    def logs(self) -> str:
        return f"s3://{self.bucket}/{self.folder}"

    def explain(self, cluster_state: str = "WAITING", later: timedelta = timedelta(minutes=1)) -> Failure:
        """Explain the failure some time after the logs were uploaded."""
        timeline = {"CreationDateTime": self.created, "EndDateTime": self.ended}
        if self.started:
            timeline["StartDateTime"] = self.created
        status = {"State": self.state, "Timeline": timeline, "FailureDetails": self.details}
        step = {"Id": "s-1", "Name": "ingest", "Status": status}
        cluster = {"Id": "j-1", "Status": {"State": cluster_state, "StateChangeReason": {"Code": "USER_REQUEST"}}}
        with answering(self.emr, "DescribeCluster", {"Cluster": cluster}):
            return explain_failure(
                self.emr, self.s3, "j-1", step, self.logs, self.report_uri, datetime.now(UTC) + later
            )


@pytest.fixture
def step(s3: "S3Client", emr: "EMRClient", bucket: str) -> Step:
    return Step(s3, emr, bucket)


REPORT = {
    "step": "ingest",
    "type": "TooManyRejects",
    "message": "2 of 12 objects rejected",
    "hint": "look at rejects/",
    "last_lines": ["Traceback (most recent call last):", "TooManyRejects: 2 of 12 objects rejected"],
    "failed_at": "2026-11-22T02:00:00+00:00",
}


def test_the_report_of_a_step_is_the_cause_and_no_log_is_waited_for(step: Step) -> None:
    step.put_report(REPORT)
    failure = step.explain()
    assert failure.is_final
    assert failure.cause == "TooManyRejects: 2 of 12 objects rejected"
    assert failure.text.splitlines() == [
        "step ingest (s-1) is FAILED: EMR gives no reason",
        "TooManyRejects: 2 of 12 objects rejected",
        "hint: look at rejects/",
        f"end of {step.report_uri}:",
        *REPORT["last_lines"],
        f"all logs: {step.logs}",
    ]


def test_the_report_is_better_than_any_log(step: Step) -> None:
    step.put_report({"type": "LostRows", "message": "", "hint": None, "last_lines": "one\ntwo"})
    step.put_log("stdout.gz", OURS)
    assert step.explain().cause == "LostRows"
    assert step.explain().text.splitlines()[2:5] == [f"end of {step.report_uri}:", "one", "two"]


def test_a_report_of_an_earlier_attempt_is_ignored(step: Step) -> None:
    step.put_report(REPORT)
    step.created = datetime.now(UTC) + timedelta(seconds=2)
    failure = step.explain()
    assert "TooManyRejects" not in failure.text
    assert not failure.is_final


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"message": "no type"}', '"text"'])
def test_a_report_that_is_none_is_ignored(step: Step, content: str) -> None:
    step.put_report(content)
    step.put_log("stdout.gz", OURS)
    assert step.explain().cause == "__main__.TooManyRejects: 2 of 12 objects rejected"


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (OURS, "__main__.TooManyRejects: 2 of 12 objects rejected"),
        (WORKER, "orchard_spark.parts.LostRows: part 3 has 5 rows of 6"),
        (JVM, "Caused by: com.example.QuotaReached: no more disks"),
        (GROUP, "objects.CannotRead: s3://b/1.jpg"),
        (CHAINED, "__main__.CannotFit"),
        ("26/11/22 INFO start\nValueError: no such fruit\nbye", "ValueError: no such fruit"),
        (OURS + UNRELATED, "__main__.TooManyRejects: 2 of 12 objects rejected"),
        (UNRELATED, "java.io.IOException: Failed to delete: /tmp/spark-1"),
    ],
)
def test_the_exception_that_ended_the_step_is_found_whatever_its_name(step: Step, text: str, cause: str) -> None:
    step.put_log("stdout.gz", text)
    assert step.explain().cause == cause
    assert cause in step.explain().text.splitlines()


@pytest.mark.parametrize("names", [("stdout.gz", "stderr.gz"), ("stderr.gz", "stdout.gz"), ("a.gz", "stderr")])
def test_our_exception_wins_over_an_unrelated_one_in_another_file(step: Step, names: tuple[str, str]) -> None:
    step.put_log(names[0], OURS)
    step.put_log(names[1], UNRELATED, plain=not names[1].endswith(".gz"))
    failure = step.explain()
    assert failure.cause == "__main__.TooManyRejects: 2 of 12 objects rejected"
    assert f"end of {step.logs}{names[0]}:" in failure.text


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("name", ["stdout.gz", "stdout", "stderr-1.gz", "containers/c-1/driver.log", "syslog"])
def test_logs_of_any_name_are_read_plain_or_compressed(step: Step, name: str, plain: bool) -> None:
    step.put_log("controller.gz", "INFO startExec 'hadoop jar command-runner.jar'\njava.lang.Exception: starter")
    step.put_log(name, OURS, plain=plain)
    failure = step.explain()
    assert failure.cause == "__main__.TooManyRejects: 2 of 12 objects rejected"
    assert failure.is_final


def test_a_log_that_is_cut_off_is_read_as_far_as_possible(step: Step) -> None:
    noise = "".join(f"line {uuid.uuid4().hex}\n" for _ in range(20_000))
    step.put_log("stdout.gz", OURS + noise, cut=1000)
    assert step.explain().cause == "__main__.TooManyRejects: 2 of 12 objects rejected"


def test_only_the_end_of_a_long_log_is_read_and_reported(step: Step) -> None:
    step.put_log("stdout.gz", "x" * 5 * MAX_LOG_BYTES + "\n" + "\n".join(f"line {n}" for n in range(80)) + "\n" + OURS)
    lines = step.explain().text.splitlines()
    start = lines.index(f"end of {step.logs}stdout.gz:")
    assert len(lines[start + 1 : -1]) == LOG_TAIL_LINES
    assert lines[-2] == OURS.splitlines()[-1]


def test_a_step_without_any_log_yet_is_not_final(step: Step) -> None:
    failure = step.explain()
    assert not failure.is_final
    assert "the log is not uploaded yet" in failure.text
    assert failure.cause == "step ingest (s-1) is FAILED: EMR gives no reason"


def test_the_starters_log_and_logs_from_before_the_end_of_the_step_are_not_final(step: Step) -> None:
    step.put_log("controller.gz", "INFO start")
    assert not step.explain().is_final
    step.put_log("stdout.gz", "still running\n")
    step.ended = datetime.now(UTC) + timedelta(minutes=4)
    failure = step.explain()
    assert not failure.is_final
    assert "still running" in failure.text


def test_a_log_that_was_just_uploaded_is_not_final_because_another_may_follow(step: Step) -> None:
    step.put_log("stderr.gz", UNRELATED)
    assert not step.explain(later=timedelta(seconds=5)).is_final
    step.put_log("stdout.gz", OURS)
    failure = step.explain(later=timedelta(seconds=15))
    assert failure.is_final
    assert failure.cause == "__main__.TooManyRejects: 2 of 12 objects rejected"


def test_an_empty_log_is_final(step: Step) -> None:
    step.put_log("stdout.gz", "")
    failure = step.explain()
    assert failure.is_final
    assert f"end of {step.logs}" not in failure.text


def test_no_log_of_a_step_that_never_started_is_waited_for(step: Step) -> None:
    step.started = False
    assert step.explain().is_final


def test_the_message_of_emr_is_the_cause_if_no_log_has_an_exception(step: Step) -> None:
    step.details = {"Reason": "Unknown Error.", "Message": "Container killed by YARN\nexit code 137\n"}
    step.put_log("stdout.gz", "working\n")
    failure = step.explain("TERMINATED")
    assert failure.cause == "exit code 137"
    assert failure.text.splitlines()[:3] == [
        "step ingest (s-1) is FAILED: Unknown Error.",
        "cluster j-1 is TERMINATED (USER_REQUEST: )",
        "exit code 137",
    ]


def test_a_step_that_is_lost_with_its_cluster_is_reported_with_the_end_of_the_cluster(step: Step) -> None:
    step.state = "CANCELLED"
    step.put_log("stderr.gz", UNRELATED)
    failure = step.explain("TERMINATED_WITH_ERRORS", later=timedelta(0))
    assert failure.cause == "cluster j-1 is TERMINATED_WITH_ERRORS (USER_REQUEST: )"
    assert failure.text.count(failure.cause) == 1
    assert failure.is_final


@pytest.mark.parametrize("operation", ["ListObjectsV2", "GetObject"])
def test_logs_that_airflow_may_not_read_are_not_fatal(step: Step, operation: str) -> None:
    step.put_log("stdout.gz", OURS)
    step.details = {"Message": "exit code 1"}
    with failing(step.s3, operation, "AccessDenied", 403):
        assert step.explain().cause == "exit code 1"


def test_a_log_folder_without_a_bucket_is_not_fatal(step: Step) -> None:
    step.s3 = boto3.client("s3", endpoint_url=step.s3.meta.endpoint_url, region_name="eu-west-1")
    step.bucket = f"gone-{uuid.uuid4().hex[:8]}"
    assert not step.explain().is_final


FRAMES = 'Traceback (most recent call last):\n  File "ingest.py", line 9, in run\n    raise error\n'
JAVA = "26/11/23 02:00:00 WARN Shutdown: java.io.IOException: Failed to delete\n\tat org.apache.spark.Main.main\n"


@pytest.mark.parametrize(
    "line",
    [
        "ingest.TooManyRejects: 30 of 300 objects were rejected",
        "orchard_spark.moments.CannotFit: PCA needs at least 2 images",
        "orchard_spark.step.LostRows: 300 features, but 299 embeddings",
        "ValueError: no such fruit: pear",
        "KeyboardInterrupt",
    ],
)
def test_the_line_that_ends_a_traceback_names_the_exception_whatever_its_name(line: str) -> None:
    assert exception_in(f"{JAVA}{FRAMES}{line}\n{JAVA}") == (3, line)


def test_the_exception_of_a_task_follows_that_of_the_driver() -> None:
    text = f"{FRAMES}py4j.protocol.Py4JJavaError: An error occurred\n{JAVA}{FRAMES}features.UndecodableImage: a.jpg\n"
    assert exception_in(text)[1] == "features.UndecodableImage: a.jpg"


def test_a_traceback_with_empty_lines_between_its_frames_is_read_to_its_end() -> None:
    text = 'Traceback (most recent call last):\n  File "a.py"\n\n    raise error\na.NotReady: wait\n'
    assert exception_in(text) == (3, "a.NotReady: wait")


@pytest.mark.parametrize("text", ["", "all is well\n", "Traceback (most recent call last):\n  File x"])
def test_a_log_without_the_end_of_a_traceback_names_no_exception(text: str) -> None:
    assert exception_in(text) == (0, "")
