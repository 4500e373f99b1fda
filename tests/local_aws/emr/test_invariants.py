"""After any sequence of calls, ended clusters and steps do not change, and no process outlives its cluster."""

import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from tests.local_aws.user import ENDED, STEP_ENDED, User, bash, is_running, wait_until

ACTIONS = st.sampled_from(["CONTINUE", "CANCEL_AND_WAIT", "TERMINATE_CLUSTER"])
# A step writes its pid and the pid of its child, and then succeeds, fails, or runs for a minute.
LINES = st.sampled_from(["exit 0", "exit 1", "wait"])


class Clusters(RuleBasedStateMachine):
    """The calls of a user in random order."""

    clusters = Bundle("clusters")
    steps = Bundle("steps")
    user: User
    folder: Path

    def __init__(self) -> None:
        super().__init__()
        self.pids: dict[str, Path] = {}
        self.ended: dict[str, Any] = {}
        self.started = datetime.now(UTC) - timedelta(minutes=1)

    @rule(target=clusters, keep_alive=st.booleans(), protected=st.booleans())
    def start(self, keep_alive: bool, protected: bool) -> str:
        cluster_id = self.user.start(
            keep_alive=keep_alive,
            Instances={"TerminationProtected": protected, "KeepJobFlowAliveWhenNoSteps": keep_alive},
        )
        self.pids[cluster_id] = self.folder / f"pids-{cluster_id}"
        self.pids[cluster_id].touch()
        return cluster_id

    @rule(target=steps, cluster_id=clusters, line=LINES, on_failure=ACTIONS)
    def add(self, cluster_id: str, line: str, on_failure: str) -> tuple[str, str] | None:
        script = f"sleep 60 & echo $$ $! >> {self.pids[cluster_id]}; {line}"
        try:
            (step_id,) = self.user.add(cluster_id, bash(script, on_failure=on_failure))
        except ClientError as error:
            if "shutting down, terminated, or finished" not in str(error):
                raise
            return None
        return cluster_id, step_id

    @rule(step=steps)
    def cancel(self, step: tuple[str, str] | None) -> None:
        if step is not None:
            self.user.emr.cancel_steps(ClusterId=step[0], StepIds=[step[1]])

    @rule(cluster_id=clusters)
    def terminate(self, cluster_id: str) -> None:
        try:
            self.user.terminate(cluster_id)
        except ClientError as error:
            if "termination protected" not in str(error):
                raise

    @rule(cluster_id=clusters, protected=st.booleans())
    def protect(self, cluster_id: str, protected: bool) -> None:
        self.user.emr.set_termination_protection(JobFlowIds=[cluster_id], TerminationProtected=protected)

    @invariant()
    def what_has_ended_does_not_change_and_has_no_process(self) -> None:
        if not self.pids:
            return
        # One call reads all clusters, and one call per cluster reads its steps.
        pages = self.user.emr.get_paginator("list_clusters").paginate(CreatedAfter=self.started)
        clusters = {cluster["Id"]: cluster["Status"] for page in pages for cluster in page["Clusters"]}
        for cluster_id in self.pids:
            self.check(cluster_id, clusters[cluster_id], ENDED)
            steps = self.user.emr.list_steps(ClusterId=cluster_id)["Steps"]
            for step in steps:
                self.check(step["Id"], step["Status"], STEP_ENDED)
            if cluster_id in self.ended:
                self.check_that_no_process_outlives(cluster_id, [step["Status"]["State"] for step in steps])

    def check(self, name: str, status: Any, ends: tuple[str, ...]) -> None:
        if name in self.ended:
            assert status == self.ended[name]
        elif status["State"] in ends:
            self.ended[name] = status

    def check_that_no_process_outlives(self, cluster_id: str, step_states: list[str]) -> None:
        assert set(step_states) <= set(STEP_ENDED)
        pids = [int(pid) for pid in self.pids[cluster_id].read_text().split()]
        wait_until(lambda: not any(map(is_running, pids)), f"the end of {pids}", seconds=2)

    def teardown(self) -> None:
        for cluster_id in self.pids:
            self.protect(cluster_id, False)
            self.terminate(cluster_id)
        for cluster_id in self.pids:
            self.check(cluster_id, self.user.wait_for(cluster_id, *ENDED)["Status"], ENDED)
        self.what_has_ended_does_not_change_and_has_no_process()


def test_no_sequence_of_calls_breaks_the_invariants(user: User, tmp_path: Path) -> None:
    class Driven(Clusters):
        pass

    Driven.user, Driven.folder = user, tmp_path / uuid.uuid4().hex
    Driven.folder.mkdir()
    run_state_machine_as_test(
        Driven,
        settings=settings(
            max_examples=40,
            stateful_step_count=12,
            deadline=None,
            derandomize=True,  # the same sequences in each run; raise max_examples to search for others
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


@pytest.mark.parametrize("state", ENDED)
def test_the_invariant_detects_an_end_that_is_undone(state: str) -> None:
    clusters = Clusters()
    clusters.check("j-1", {"State": state}, ENDED)
    with pytest.raises(AssertionError):
        clusters.check("j-1", {"State": "RUNNING"}, ENDED)
