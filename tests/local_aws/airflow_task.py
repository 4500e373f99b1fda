"""Run operators as Airflow's worker and triggerer do, without its database and scheduler."""

import asyncio
import json
from contextlib import aclosing
from typing import Any

import pytest
from airflow.sdk.bases.operator import BaseOperator
from airflow.sdk.exceptions import TaskDeferred

from tests.local_aws.user import DEADLINE_SECONDS, User

# Poll quickly: the default intervals of Airflow are too long for tests.
POLLING: dict[str, Any] = {"waiter_delay": 0.2, "waiter_max_attempts": 150}


def point_airflow_at(endpoint_url: str, monkeypatch: pytest.MonkeyPatch, **emr_defaults: Any) -> None:
    """Set the connections of Airflow; `emr_default` holds default values for RunJobFlow."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint_url)
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", "aws://")
    monkeypatch.setenv("AIRFLOW_CONN_EMR_DEFAULT", json.dumps({"conn_type": "emr", "extra": emr_defaults}))


class TaskInstance:
    """The part of a task instance that the provider's operators and sensors use."""

    def __init__(self) -> None:
        self.xcoms: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.xcoms[key] = value

    def get_first_reschedule_date(self, context: Any) -> None:
        """Return None: it has never been rescheduled."""


def failing_action(user: User) -> str:
    """Upload a bootstrap action that fails, and return its URI."""
    return user.put("airflow/fail.sh", "#!/bin/bash\nexit 7\n")


def execute(operator: BaseOperator, task_instance: TaskInstance | None = None) -> Any:
    """Execute an operator, and return its result."""
    return operator.execute({"ti": task_instance or TaskInstance()})  # type: ignore[typeddict-item]


def defer(operator: BaseOperator) -> TaskDeferred:
    """Execute an operator that must defer, and return the deferral."""
    with pytest.raises(TaskDeferred) as deferred:
        execute(operator)
    return deferred.value


def fire(deferred: TaskDeferred) -> dict[str, Any]:
    """Run the trigger, and return the payload of its first event."""

    async def first() -> dict[str, Any]:
        async with aclosing(deferred.trigger.run()) as events:
            payload: dict[str, Any] = (await anext(events)).payload
            return payload

    return asyncio.run(asyncio.wait_for(first(), DEADLINE_SECONDS))


def resume(operator: BaseOperator, deferred: TaskDeferred, event: dict[str, Any]) -> Any:
    """Resume a deferred operator with an event, and return its result."""
    return operator.resume_execution(deferred.method_name, {"event": event}, {})
