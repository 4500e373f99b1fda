import json
import multiprocessing
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

import boto3
import pytest

from orchard.run.hold import start_hold
from orchard.run.plan import RunPlan
from orchard.run.run_queue import RunKey
from orchard.run.turn import LOCKS, Turn, dataset_queue
from orchard.settings import Settings
from sandbox import aws
from tests.plugins import plans

if TYPE_CHECKING:
    from mypy_boto3_emr import EMRClient
    from mypy_boto3_s3 import S3Client

Plan: TypeAlias = Callable[..., RunPlan]
Start: TypeAlias = Callable[[RunPlan], str]
GetTurn: TypeAlias = Callable[..., Turn]
NOW = datetime(2026, 11, 22, 2, tzinfo=UTC)


@dataclass
class Runs:
    """What Airflow knows: every run is running, except for those named here."""

    states: dict[str, str | None] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def state(self, dag_id: str, run_id: str) -> str | None:
        assert dag_id == plans.DAG_ID
        self.asked.append(run_id)
        return self.states.get(run_id, "running")


@pytest.fixture
def settings(released: Settings, role: str) -> Settings:
    return Settings(bucket=released.bucket, release=released.release, service_role=role, instance_profile=role)


@pytest.fixture
def plan(s3: "S3Client", settings: Settings) -> Plan:
    """Plans a run of a dataset that has two images."""

    def planned(run_id: str, prefix: str = "images/") -> RunPlan:
        plans.put_images(s3, settings.bucket, prefix)
        return plans.plan(s3, settings, run_id, dataset_uri=f"s3://{settings.bucket}/{prefix}")

    return planned


@pytest.fixture
def emr(aws_url: str) -> Iterator["EMRClient"]:
    """EMR in a region in which no other test has clusters. All are terminated after the test."""
    client = boto3.client("emr", endpoint_url=aws_url, region_name="eu-west-3")
    yield client
    client.terminate_job_flows(JobFlowIds=[cluster["Id"] for cluster in client.list_clusters()["Clusters"]])


@pytest.fixture
def start(emr: "EMRClient") -> Start:
    """Creates the cluster of a run, without its bootstrap action."""

    def started(run: RunPlan) -> str:
        return emr.run_job_flow(**{**run["cluster"], "BootstrapActions": []})["JobFlowId"]

    return started


@pytest.fixture
def runs() -> Runs:
    return Runs()


@pytest.fixture
def turn(s3: "S3Client", emr: "EMRClient", settings: Settings, runs: Runs) -> GetTurn:
    """Returns the turn of a run on a dataset."""

    def of(run_id: str, prefix: str = "images/", **changed: Any) -> Turn:
        uri = f"s3://{settings.bucket}/{prefix}"
        return Turn(s3, emr, replace(settings, **changed), uri, RunKey(plans.DAG_ID, run_id), runs.state)

    return of


def locks(s3: "S3Client", settings: Settings) -> list[str]:
    """Return the keys of the slots and of the tickets."""
    listed = s3.list_objects_v2(Bucket=settings.bucket, Prefix=f"{LOCKS}/{settings.deployment}/")
    return [item["Key"] for item in listed.get("Contents", [])]


def test_a_single_run_does_not_wait(turn: GetTurn) -> None:
    assert turn("manual__1").take(NOW) == []


def test_a_run_keeps_its_turn_however_often_it_confirms_it(s3: "S3Client", settings: Settings, turn: GetTurn) -> None:
    for minute in range(3):
        assert turn("manual__1").take(NOW + timedelta(minutes=minute)) == []
    assert [key.rpartition("/")[2] for key in locks(s3, settings)] == ["1.json", "1.json"]


def test_a_second_run_of_a_dataset_waits_until_the_first_gives_its_turn_back(
    s3: "S3Client", settings: Settings, turn: GetTurn
) -> None:
    first, second = turn("manual__1"), turn("manual__2")
    assert first.take(NOW) == []
    assert second.take(NOW) == [
        f"this run waits for dataset s3://{settings.bucket}/images/, used by run 'manual__1' of fruit_features; "
        "next is this run"
    ]
    first.release()
    assert second.take(NOW) == []
    second.release()
    assert locks(s3, settings) == []


def test_the_run_that_has_waited_for_longest_is_next(turn: GetTurn) -> None:
    first, second, third = turn("manual__1"), turn("scheduled__0"), turn("manual__2")
    assert first.take(NOW) == []
    for minute in range(1, 4):
        assert second.take(NOW + timedelta(minutes=minute))
        assert third.take(NOW + timedelta(minutes=minute, seconds=1))
    first.release()
    (reason,) = third.take(NOW)
    assert reason.endswith("; next is run 'scheduled__0' of fruit_features")
    assert second.take(NOW) == []
    second.release()
    assert third.take(NOW) == []


def test_a_run_that_is_cleared_gets_in_line_again(turn: GetTurn) -> None:
    first, second, third = (turn(f"manual__{number}") for number in (1, 2, 3))
    assert first.take(NOW) == []
    assert second.take(NOW)
    assert third.take(NOW + timedelta(minutes=1))
    second.release()  # it was marked failed while it waited
    assert second.take(NOW + timedelta(minutes=2))
    first.release()
    assert second.take(NOW)
    assert third.take(NOW) == []


@pytest.mark.parametrize("state", ["success", "failed", None])
def test_the_turn_is_taken_from_a_run_that_has_finished_or_is_unknown(
    turn: GetTurn, runs: Runs, state: str | None
) -> None:
    assert turn("manual__1").take(NOW) == []
    assert turn("manual__2").take(NOW)
    runs.states["manual__1"] = state
    assert turn("manual__2").take(NOW) == []


@pytest.mark.parametrize("state", ["success", "failed", None])
def test_nobody_waits_for_a_run_in_line_that_has_finished_or_is_unknown(
    s3: "S3Client", settings: Settings, turn: GetTurn, runs: Runs, state: str | None
) -> None:
    assert turn("manual__1").take(NOW) == []
    assert turn("manual__2").take(NOW)
    assert turn("manual__3").take(NOW + timedelta(minutes=1))
    runs.states["manual__2"] = state
    turn("manual__1").release()
    assert turn("manual__3").take(NOW) == []
    turn("manual__3").release()
    assert locks(s3, settings) == []


@pytest.mark.parametrize("state", ["running", "queued"])
def test_the_turn_is_not_taken_from_an_active_run(turn: GetTurn, runs: Runs, state: str) -> None:
    assert turn("manual__1").take(NOW) == []
    runs.states["manual__1"] = state
    assert turn("manual__2").take(NOW)


def test_the_turn_is_not_taken_while_airflow_does_not_answer(turn: GetTurn) -> None:
    assert turn("manual__1").take(NOW) == []

    def no_answer(dag_id: str, run_id: str) -> str | None:
        raise ConnectionError("Airflow is down")

    with pytest.raises(ConnectionError):
        replace(turn("manual__2"), state_of_run=no_answer).take(NOW)
    assert turn("manual__1").take(NOW) == []


def test_a_run_that_is_cleared_while_another_takes_its_turn_keeps_it(turn: GetTurn) -> None:
    """The other run asks Airflow, which says that the run has failed. Then a user clears the run, and it continues."""
    first = turn("manual__1")
    assert first.take(NOW) == []

    def clear_meanwhile(dag_id: str, run_id: str) -> str:
        if not cleared:
            cleared.append(run_id)
            assert first.take(NOW) == []
            return "failed"
        return "running"

    cleared: list[str] = []
    assert replace(turn("manual__2"), state_of_run=clear_meanwhile).take(NOW)
    assert first.take(NOW) == []


def test_a_run_whose_turn_was_taken_before_it_was_cleared_waits(turn: GetTurn, runs: Runs) -> None:
    assert turn("manual__1").take(NOW) == []
    runs.states["manual__1"] = "failed"
    assert turn("manual__2").take(NOW) == []
    runs.states["manual__1"] = "running"
    assert turn("manual__1").take(NOW)


def test_a_run_gives_back_only_its_own_turn(turn: GetTurn, runs: Runs) -> None:
    assert turn("manual__1").take(NOW) == []
    runs.states["manual__1"] = "failed"
    assert turn("manual__2").take(NOW) == []
    turn("manual__1").release()
    runs.states["manual__3"] = "running"
    assert turn("manual__3").take(NOW)
    assert turn("manual__2").take(NOW) == []


def test_a_run_that_has_ended_but_whose_cluster_works_is_waited_for_and_the_reason_names_the_cluster(
    emr: "EMRClient", settings: Settings, plan: Plan, start: Start, turn: GetTurn, runs: Runs
) -> None:
    runs.states["manual__1"] = "failed"
    cluster_id = start(plan("manual__1"))
    (reason,) = turn("manual__2").take(NOW)
    state = emr.describe_cluster(ClusterId=cluster_id)["Cluster"]["Status"]["State"]
    assert reason == (
        f"cluster {cluster_id} ({state}) of run 'manual__1' processes the same dataset, "
        f"s3://{settings.bucket}/images/: this run waits until it terminates"
    )
    emr.terminate_job_flows(JobFlowIds=[cluster_id])
    assert turn("manual__2").take(NOW) == []


def hold(emr: "EMRClient", settings: Settings, cluster_id: str) -> None:
    """Hold a cluster that is ready."""
    emr.get_waiter("cluster_running").wait(ClusterId=cluster_id, WaiterConfig={"Delay": 1, "MaxAttempts": 60})
    start_hold(emr, settings, cluster_id, NOW)


def test_nobody_waits_for_the_dataset_of_a_held_cluster_but_it_counts_towards_the_cluster_limit(
    emr: "EMRClient", settings: Settings, plan: Plan, start: Start, turn: GetTurn
) -> None:
    limit = {"max_running_clusters": 1}
    assert turn("manual__1").take(NOW) == []
    cluster_id = start(plan("manual__1"))
    hold(emr, settings, cluster_id)
    turn("manual__1").release()
    (reason,) = turn("manual__2", **limit).take(NOW)
    assert reason.startswith("this run waits for one of 1 cluster slots")
    assert f"{cluster_id} (WAITING) of run 'manual__1'" in reason
    assert turn("manual__2").take(NOW) == []


def test_a_held_cluster_on_which_steps_of_its_run_are_redone_is_waited_for(
    emr: "EMRClient", settings: Settings, plan: Plan, start: Start, turn: GetTurn
) -> None:
    cluster_id = start(plan("manual__1"))
    hold(emr, settings, cluster_id)
    jar: Any = {"Jar": "command-runner.jar", "Args": ["bash", "-c", "sleep 60"]}
    emr.add_job_flow_steps(
        JobFlowId=cluster_id, Steps=[{"Name": "ingest", "ActionOnFailure": "CONTINUE", "HadoopJarStep": jar}]
    )
    deadline = time.monotonic() + 30
    while emr.describe_cluster(ClusterId=cluster_id)["Cluster"]["Status"]["State"] != "RUNNING":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (reason,) = turn("manual__2").take(NOW)
    assert f"cluster {cluster_id} (RUNNING) of run 'manual__1' processes the same dataset" in reason


def test_a_run_that_released_its_turn_for_a_hold_does_not_release_that_of_the_next_run(
    s3: "S3Client", settings: Settings, turn: GetTurn
) -> None:
    """`hold_cluster` releases the turn, and later `verdict` does."""
    assert turn("manual__1").take(NOW) == []
    turn("manual__1").release()
    assert turn("manual__2").take(NOW) == []
    before = locks(s3, settings)
    turn("manual__1").release()
    assert locks(s3, settings) == before
    assert turn("manual__3").take(NOW), "the second run has its turn"
    assert turn("manual__2").take(NOW) == []


@pytest.mark.parametrize("prefix", ["images/2/", "image/", "images/".ljust(300, "x") + "/", "lot#1/"])
def test_a_run_of_another_dataset_does_not_wait(plan: Plan, start: Start, turn: GetTurn, prefix: str) -> None:
    for number, other in enumerate(("images/", "images/".ljust(301, "x") + "/", "lot?1/")):
        assert turn(f"manual__{number}", other).take(NOW) == []
        start(plan(f"manual__{number}", other))
    assert turn("manual__9", prefix).take(NOW) == []


@pytest.mark.parametrize("prefix", ["lot#1/", "x" * 300 + "/"])
def test_a_dataset_whose_uri_is_not_a_valid_tag_is_recognised(
    plan: Plan, start: Start, turn: GetTurn, prefix: str
) -> None:
    start(plan("manual__1", prefix))
    assert len(turn("manual__2", prefix).take(NOW)) == 1


def test_a_run_does_not_wait_for_its_own_cluster(plan: Plan, start: Start, turn: GetTurn) -> None:
    assert turn("manual__1", max_running_clusters=1).take(NOW) == []
    start(plan("manual__1"))
    assert turn("manual__1", max_running_clusters=1).take(NOW) == []


def test_runs_that_have_a_turn_but_no_cluster_yet_count_towards_the_limit(turn: GetTurn) -> None:
    for number in range(4):
        assert turn(f"manual__{number}", f"lot{number}/").take(NOW) == []
    (reason,) = turn("manual__4", "lot4/").take(NOW)
    assert reason.startswith(
        "this run waits for one of 4 cluster slots (ORCHARD_MAX_RUNNING_CLUSTERS), used by run 'manual__0' of "
        "fruit_features, "
    )
    turn("manual__2", "lot2/").release()
    assert turn("manual__4", "lot4/").take(NOW) == []


def test_a_run_waits_at_the_cluster_limit_and_the_reason_names_the_active_clusters(
    emr: "EMRClient", settings: Settings, plan: Plan, start: Start, turn: GetTurn
) -> None:
    assert settings.max_running_clusters == 4
    ids = [start(plan(f"manual__{number}", f"lot{number}/")) for number in range(4)]
    (reason,) = turn("manual__5").take(NOW)
    for number, cluster_id in enumerate(ids):
        assert cluster_id in reason
        assert f"'manual__{number}'" in reason
    emr.terminate_job_flows(JobFlowIds=ids[:1])
    assert turn("manual__5").take(NOW) == []
    assert turn("manual__6", "lot6/").take(NOW)


def test_one_cluster_with_a_turn_counts_once(plan: Plan, start: Start, turn: GetTurn) -> None:
    assert turn("manual__1", "lot1/", max_running_clusters=2).take(NOW) == []
    start(plan("manual__1", "lot1/"))
    assert turn("manual__2", "lot2/", max_running_clusters=2).take(NOW) == []


def test_of_the_runs_at_the_limit_the_one_that_has_waited_for_longest_is_next(turn: GetTurn) -> None:
    limit = {"max_running_clusters": 1}
    assert turn("manual__1", "lot1/", **limit).take(NOW) == []
    assert turn("manual__3", "lot3/", **limit).take(NOW)
    assert turn("manual__2", "lot2/", **limit).take(NOW + timedelta(minutes=1))
    turn("manual__1", "lot1/", **limit).release()
    assert turn("manual__2", "lot2/", **limit).take(NOW)
    assert turn("manual__3", "lot3/", **limit).take(NOW) == []


@pytest.mark.parametrize("change", [{"Name": "another-program"}, {"Tags": []}])
def test_clusters_of_other_programs_do_not_count(
    plan: Plan, start: Start, turn: GetTurn, change: dict[str, Any]
) -> None:
    foreign = plan("manual__1")
    foreign["cluster"] |= change
    for _ in range(5):
        start(foreign)
    assert turn("manual__2").take(NOW) == []


def test_a_run_without_a_need_for_a_cluster_takes_only_its_dataset(turn: GetTurn) -> None:
    assert turn("manual__1", "lot1/", max_running_clusters=1).take(NOW) == []
    assert turn("manual__2", "lot2/", max_running_clusters=1).take_dataset(NOW) == []
    assert turn("manual__3", "lot2/", max_running_clusters=1).take_dataset(NOW)


def test_a_run_without_its_dataset_holds_no_cluster_slot(turn: GetTurn, runs: Runs) -> None:
    """The first run failed with both, and is cleared when another run has its dataset, but not yet a cluster slot."""
    limit = {"max_running_clusters": 1}
    assert turn("manual__1", **limit).take(NOW) == []
    runs.states["manual__1"] = "failed"
    assert turn("manual__2", **limit).take_dataset(NOW) == []
    runs.states["manual__1"] = "running"
    assert turn("manual__1", **limit).take(NOW)
    assert turn("manual__2", **limit).take(NOW) == []


def test_the_run_of_another_deployment_with_the_same_run_id_is_another_run(
    s3: "S3Client", emr: "EMRClient", settings: Settings, plan: Plan, start: Start, turn: GetTurn
) -> None:
    start(plan("scheduled__1"))
    assert turn("scheduled__1").take(NOW) == []
    turn("scheduled__1").release()
    (reason,) = turn("scheduled__1", deployment="other").take(NOW)
    assert "of run 'scheduled__1' processes the same dataset" in reason


def test_a_write_whose_response_was_lost_counts(turn: GetTurn, s3: "S3Client", monkeypatch: pytest.MonkeyPatch) -> None:
    """botocore sends the request again, and S3 refuses the second one, because the first has written the object."""
    put = s3.put_object

    def put_twice(**request: Any) -> Any:
        put(**request)
        return put(**request)

    monkeypatch.setattr(s3, "put_object", put_twice)
    assert turn("manual__1").take(NOW) == []
    assert turn("manual__1").take(NOW) == []
    monkeypatch.undo()
    assert turn("manual__2").take(NOW)


def test_run_ids_with_any_character_and_of_any_length_can_wait(turn: GetTurn) -> None:
    names = ["manual__2026-11-22T02:00:00+00:00", "a/b", "é~#?%", "x" * 250]
    assert turn(names[0]).take(NOW) == []
    for minute, name in enumerate(names[1:]):
        assert turn(name).take(NOW + timedelta(minutes=minute))
    for before, name in pairwise(names):
        turn(before).release()
        assert turn(name).take(NOW) == []


def test_of_two_runs_that_see_a_free_slot_one_gets_it(turn: GetTurn) -> None:
    """Both have listed the slots before either has taken one."""
    own, other = turn("manual__1"), turn("manual__2")
    queue = dataset_queue(own.s3, own.settings, own.dataset_uri)
    assert queue.take_slot(own.run, [], 1, lambda _: False, NOW) is None
    reason = queue.take_slot(other.run, [], 1, lambda _: False, NOW)
    assert reason == "another run took the slot first; this run tries again at the next poll"
    assert own.take(NOW) == []


WORKERS = 6
TURNS = 4


def work(number: int, endpoint_url: str, settings: Settings, dataset_uri: str) -> list[str]:
    """Take turns with other processes, and return when another process worked at the same time."""
    s3, emr = aws.client("s3", endpoint_url), aws.client("emr", endpoint_url)
    faults = []
    for round_ in range(TURNS):
        run = RunKey(plans.DAG_ID, f"{number}-{round_}")
        own = Turn(s3, emr, settings, dataset_uri, run, lambda *_: "running")
        while own.take_dataset(datetime.now(UTC)):
            pass
        s3.put_object(Bucket=settings.bucket, Key=f"working/{number}", Body=b"")
        working = s3.list_objects_v2(Bucket=settings.bucket, Prefix="working/")["Contents"]
        faults += [f"{run} and {item['Key']}" for item in working if item["Key"] != f"working/{number}"]
        s3.delete_object(Bucket=settings.bucket, Key=f"working/{number}")
        own.release()
    return faults


def test_processes_never_work_on_a_dataset_at_the_same_time(aws_url: str, settings: Settings) -> None:
    uri = f"s3://{settings.bucket}/images/"
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(WORKERS, context) as pool:
        done = [pool.submit(work, number, aws_url, settings, uri) for number in range(WORKERS)]
        assert [fault for future in done for fault in future.result()] == []


@pytest.mark.parametrize("case", ["free", "of a run that has ended"])
def test_of_many_runs_that_ask_at_the_same_moment_one_gets_the_turn(turn: GetTurn, runs: Runs, case: str) -> None:
    for round_ in range(10):
        prefix = f"lot{round_}/"
        if case != "free":
            assert turn("ended", prefix).take_dataset(NOW) == []
            runs.states["ended"] = "failed"
        start = threading.Barrier(WORKERS)

        def ask(number: int) -> list[str]:
            start.wait()  # noqa: B023
            return turn(f"{round_}-{number}", prefix).take_dataset(datetime.now(UTC))  # noqa: B023

        with ThreadPoolExecutor(WORKERS) as pool:
            reasons = list(pool.map(ask, range(WORKERS)))
        assert sum(not reason for reason in reasons) <= 1
        # The first run in the queue gets it now, if it did not get it at once.
        having = [not turn(f"{round_}-{number}", prefix).take_dataset(NOW) for number in range(WORKERS)]
        assert Counter(having) == {True: 1, False: WORKERS - 1}


@pytest.mark.slow
def test_waiters_never_take_more_slots_than_the_limit(s3: "S3Client", turn: GetTurn, settings: Settings) -> None:
    limit = {"max_running_clusters": 3}
    for round_ in range(5):
        start = threading.Barrier(WORKERS)

        def ask(number: int) -> list[str]:
            start.wait()  # noqa: B023
            return turn(f"{round_}-{number}", f"lot{number}/", **limit).take(datetime.now(UTC))  # noqa: B023

        with ThreadPoolExecutor(WORKERS) as pool:
            for _ in range(3):
                granted = sum(not reasons for reasons in pool.map(ask, range(WORKERS)))
        assert granted == 3
        slots = [key for key in locks(s3, settings) if "/clusters/slots/" in key]
        assert len(slots) == 3
        holders = {json.loads(s3.get_object(Bucket=settings.bucket, Key=key)["Body"].read())["run_id"] for key in slots}
        assert len(holders) == 3
        for number in range(WORKERS):
            turn(f"{round_}-{number}", f"lot{number}/", **limit).release()
