"""The trigger of `wait_step` logs the progress of its step, and only that: the wait depends on nothing of it."""

import asyncio
import json
import re
import time
from collections.abc import Iterator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from local_aws.client import LocalAwsClient
from orchard.airflow import triggers
from orchard.airflow.triggers import StepEndTrigger
from orchard.storage import split_uri
from tests.local_aws.airflow_task import fire
from tests.local_aws.user import User, until
from tests.plugins.airflow.tasks import NO_PLAN, add_step, defer, execute, step_config, wait_step

pytestmark = pytest.mark.usefixtures("local_aws")


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triggers, "PROGRESS_SECONDS", 0.1)


@pytest.fixture
def go_on(tmp_path: Path) -> Iterator[Path]:
    """The file that the step of the test waits for."""
    yield tmp_path / "go-on"
    (tmp_path / "go-on").touch()


@pytest.fixture
def step(cluster_id: str, go_on: Path) -> dict[str, Any]:
    """A step that waits for a file. The step of each test has another name."""
    config = step_config(until(go_on))
    return {**config, "Id": execute(add_step(cluster_id, config))}


def trigger_of(cluster_id: str, step: dict[str, Any]) -> StepEndTrigger:
    """Return the trigger of the step's `wait_step`, as the triggerer gets it."""
    trigger: Any = defer(wait_step(cluster_id, step["Id"])).trigger
    path, arguments = trigger.serialize()
    assert path == "orchard.airflow.triggers.StepEndTrigger"
    return StepEndTrigger(**json.loads(json.dumps(arguments)))


def write(user: User, step: dict[str, Any], done: int = 7, content: str | None = None) -> None:
    progress = {
        "step": step["Name"],
        "done": done,
        "total": 9,
        "updated_at": datetime.now(UTC).isoformat(),
        "is_done": False,
    }
    key = f"{split_uri(NO_PLAN['run_uri'])[1]}/{step['Name']}.progress.json"
    user.put(key, json.dumps(progress) if content is None else content)


def wait(trigger: StepEndTrigger, *actions: Any) -> Any:
    """Run the trigger, and call the actions meanwhile, with time for some looks at the progress before each."""

    async def act() -> None:
        for action in actions:
            await asyncio.sleep(1)
            await asyncio.to_thread(action)

    async def run() -> Any:
        actor = asyncio.create_task(act())
        async with aclosing(trigger.run()) as events:  # type: ignore[type-var]  # as the provider declares it
            event = await anext(events)
        await actor
        return event.payload

    return asyncio.run(asyncio.wait_for(run(), 60))


def lines(capsys: pytest.CaptureFixture[str], step: dict[str, Any]) -> list[str]:
    """Return the lines of the trigger's log that are about the progress."""
    found = re.findall(r"\](.*) \[orchard\.airflow\.triggers\.StepEndTrigger\]", capsys.readouterr().out)
    return [line.strip().replace(step["Name"], "step").replace(step["Id"], "ID") for line in found]


def test_each_line_about_the_progress_is_logged_once(
    user: User, cluster_id: str, step: dict[str, Any], go_on: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trigger = trigger_of(cluster_id, step)
    event = wait(trigger, lambda: write(user, step), lambda: write(user, step, done=8), lambda: None, go_on.touch)
    assert event["status"] == "success"
    assert lines(capsys, step) == ["step: 7 of 9 images", "step: 8 of 9 images"]


def test_odd_content_is_not_logged(
    user: User, cluster_id: str, step: dict[str, Any], go_on: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(user, step, content='{"step": "')
    event = wait(trigger_of(cluster_id, step), lambda: write(user, step, content="x" * 100_000), go_on.touch)
    assert event["status"] == "success"
    assert lines(capsys, step) == []


def test_progress_that_airflow_may_not_read_is_one_warning_and_the_wait_goes_on(
    user: User,
    cluster_id: str,
    step: dict[str, Any],
    go_on: Path,
    capsys: pytest.CaptureFixture[str],
    local_aws: LocalAwsClient,
) -> None:
    write(user, step)
    local_aws.fail("s3", "AccessDenied")
    trigger = trigger_of(cluster_id, step)
    event = wait(trigger, local_aws.clear, go_on.touch)
    assert event["status"] == "success"
    denied, read = lines(capsys, step)
    assert denied.startswith("the progress of step ID cannot be read: An error occurred (AccessDenied)")
    assert read == "step: 7 of 9 images", "as soon as Airflow may read it"


def test_an_s3_that_does_not_answer_delays_nothing(
    user: User, cluster_id: str, step: dict[str, Any], go_on: Path, local_aws: LocalAwsClient
) -> None:
    write(user, step)
    local_aws.hang("s3", 30)
    trigger, started = trigger_of(cluster_id, step), time.monotonic()
    assert wait(trigger, go_on.touch)["status"] == "success"
    assert time.monotonic() - started < 15


def test_progress_that_is_older_than_the_step_is_of_an_earlier_attempt(
    user: User, cluster_id: str, step: dict[str, Any], go_on: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(user, step)
    trigger = trigger_of(cluster_id, step)
    assert trigger.progress_of is not None
    later = datetime.fromisoformat(trigger.progress_of["created"]) + timedelta(minutes=1)
    trigger.progress_of = {**trigger.progress_of, "created": later.isoformat()}
    wait(trigger, go_on.touch)
    assert lines(capsys, step) == []


def test_a_trigger_of_an_earlier_release_waits_without_progress(
    cluster_id: str, step: dict[str, Any], go_on: Path
) -> None:
    deferred = defer(wait_step(cluster_id, step["Id"]))
    trigger: Any = deferred.trigger
    arguments = trigger.serialize()[1]
    del arguments["progress_of"]
    deferred.trigger = StepEndTrigger(**arguments)
    assert "progress_of" not in deferred.trigger.serialize()[1]
    go_on.touch()
    assert fire(deferred)["status"] == "success"
