"""The turn of a run, as the tasks `wait_turn` and `publish` take it, against a local AWS."""

from typing import Any

import pytest

from orchard.airflow.turns import NotItsTurn, is_first_attempt, take_dataset, take_turn, was_cleared
from tests.plugins.airflow.tasks import SETTINGS, TaskInstance, context, create_cluster, plan_of, verdict

pytestmark = pytest.mark.usefixtures("local_aws")


def test_a_run_waits_while_another_uses_its_dataset_and_logs_why(
    request_: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    plan, second = plan_of(request_), TaskInstance("second", {"first": "running"})
    caplog.set_level("INFO", "orchard.airflow.turns")
    assert take_turn(TaskInstance("first"), SETTINGS, plan)
    assert [message for message in caplog.messages if message.startswith("turn: this run waits")] == []
    assert not take_turn(second, SETTINGS, plan)
    assert [message for message in caplog.messages if message.startswith("turn: this run waits")] == [
        f"turn: this run waits for dataset {plan['dataset_uri']}, used by run 'first' of fruit_features; "
        "next is this run"
    ]
    verdict(request_, TaskInstance("first", task_states={"publish": "success"}))
    assert take_turn(second, SETTINGS, plan)


def test_publish_fails_with_a_retry_while_another_run_uses_the_dataset(request_: dict[str, Any]) -> None:
    plan = plan_of(request_)
    assert take_turn(TaskInstance("first"), SETTINGS, plan)
    with pytest.raises(NotItsTurn, match="used by run 'first' of fruit_features"):
        take_dataset(TaskInstance("second", {"first": "running"}), SETTINGS, plan)
    take_dataset(TaskInstance("second", {"first": "failed"}), SETTINGS, plan)


@pytest.mark.parametrize(
    ("try_number", "max_tries", "is_first", "cleared"),
    [
        (1, 6, True, False),
        (3, 6, False, False),
        # A clear after the third attempt.
        (4, 9, True, True),
        (5, 9, False, True),
    ],
)
def test_the_attempts_of_a_task_are_counted_from_the_last_clear(
    request_: dict[str, Any], try_number: int, max_tries: int, is_first: bool, cleared: bool
) -> None:
    task, ti = create_cluster(request_), TaskInstance()
    task.retries = 6
    ti.try_number, ti.max_tries = try_number, max_tries
    assert (is_first_attempt(task, context(ti)), was_cleared(task, context(ti))) == (is_first, cleared)
