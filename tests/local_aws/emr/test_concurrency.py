import time
from pathlib import Path

from local_aws.emr.life import Timings
from local_aws.server import LocalAws
from tests.local_aws.user import User, bash, until, wait_until


def meets(folder: Path, name: str, other: str) -> str:
    """A line of shell that ends when the other one runs at the same time."""
    return f"touch {folder / name}; {until(folder / other)}"


def test_as_many_steps_run_at_once_as_the_cluster_allows(user: User, tmp_path: Path) -> None:
    steps = [bash(meets(tmp_path, "a", "b")), bash(meets(tmp_path, "b", "a"))]
    cluster_id = user.run(*steps, StepConcurrencyLevel=2)
    assert user.step_states(cluster_id) == ["COMPLETED", "COMPLETED"]


def test_no_more_steps_run_than_the_cluster_allows(user: User, tmp_path: Path) -> None:
    go = tmp_path / "go"
    cluster_id = user.start(*[bash(until(go))] * 3, StepConcurrencyLevel=2)
    wait_until(lambda: user.step_states(cluster_id)[:2] == ["RUNNING", "RUNNING"], "two running steps")
    assert user.step_states(cluster_id)[2] == "PENDING"
    go.touch()
    user.wait_for(cluster_id, "TERMINATED")
    assert user.step_states(cluster_id) == ["COMPLETED"] * 3


def test_all_running_steps_end_with_their_cluster(user: User, tmp_path: Path) -> None:
    cluster_id = user.start(*[bash("sleep 60")] * 2, StepConcurrencyLevel=2)
    wait_until(lambda: user.step_states(cluster_id) == ["RUNNING", "RUNNING"], "two running steps")
    user.terminate(cluster_id)
    user.wait_for(cluster_id, "TERMINATED")
    assert user.step_states(cluster_id) == ["CANCELLED", "CANCELLED"]


def test_a_cluster_stays_in_its_states_as_long_as_it_is_told_to(tmp_path: Path) -> None:
    with LocalAws(tmp_path, timings=Timings(0.4, 0.4, 0.4)) as server:
        user = User(server.endpoint_url)
        began = time.monotonic()
        cluster_id = user.start()
        seen = [user.state(cluster_id)]
        while seen[-1] != "TERMINATED":
            state = user.state(cluster_id)
            if state != seen[-1]:
                seen.append(state)
        assert seen == ["STARTING", "BOOTSTRAPPING", "TERMINATING", "TERMINATED"]
        assert time.monotonic() - began >= 1.2


def test_a_server_that_stops_does_not_wait_for_slow_clusters(tmp_path: Path) -> None:
    began = time.monotonic()
    with LocalAws(tmp_path, timings=Timings(60, 0, 60)) as server:
        user = User(server.endpoint_url)
        user.terminate(user.start())
        user.start()
    assert time.monotonic() - began < 20
