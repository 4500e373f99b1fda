"""What tasks do when the plan of their run is outdated, or its files are deleted, against a local AWS."""

import logging
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException

from orchard.airflow.planning import (
    FIRST_STEP,
    SUMMARY,
    PlanOutdated,
    ScratchDeleted,
    confirm_plan,
    log_sentence,
    open_tables,
)
from orchard.airflow.turns import end_earlier_round
from orchard.errors import PermanentError
from orchard.storage import split_uri
from tests.local_aws.user import BUCKET, User
from tests.plugins.airflow.tasks import (
    NOT_CLEARED,
    SETTINGS,
    TaskInstance,
    add_step,
    cleared_run,
    clusters_of_run,
    create_cluster,
    execute,
    plan_of,
    step_config,
    take_turn,
    write_plan,
)
from tests.plugins.plans import DEFAULT_PARAMS
from tests.plugins.published import append

pytestmark = pytest.mark.usefixtures("local_aws")
OTHER = "20261122T010000-bbbbbb"
MODEL = {"model": "mobilenet", "decoder": "1", "pca_mode": "refit", "n_components": 0.95}
LIMITS = {"max_bytes": DEFAULT_PARAMS["max_bytes"], "max_pixels": DEFAULT_PARAMS["max_pixels"]}


def params_of(plan: dict[str, Any], **params: Any) -> dict[str, Any]:
    return {"dataset_uri": plan["dataset_uri"], **DEFAULT_PARAMS, **params}


def publish_other(user: User, plan: dict[str, Any], *, listed: int = 2) -> None:
    """Put two images into the dataset, and publish another run that has read some of them."""
    rows = []
    for number in range(1, 3):
        key = f"{split_uri(plan['dataset_uri'])[1]}Kiwi/{number}.jpg"
        etag = user.s3.put_object(Bucket=BUCKET, Key=key, Body=b"1")["ETag"].strip('"')
        rows.append(
            {
                "dataset": plan["dataset_uri"],
                "path": f"s3://{BUCKET}/{key}",
                "label": "Kiwi",
                "etag": etag,
                "size": 1,
                "sha256": key,
                "width": 1,
                "height": 1,
                "features_run_id": OTHER,
                "run_id": OTHER,
            }
        )
    catalog = open_tables(SETTINGS)
    for table in ("images", "embeddings"):
        append(catalog, SETTINGS, table, rows[:listed])
    run = {"run_id": OTHER, "dataset": plan["dataset_uri"], "images": listed, "rejects": []}
    append(catalog, SETTINGS, "runs", [{**run, **MODEL, **LIMITS}])


def test_a_plan_that_is_not_outdated_is_confirmed_without_listing_the_dataset(request_: dict[str, Any]) -> None:
    ti = TaskInstance()
    confirm_plan(ti, SETTINGS, plan_of(request_), {})
    assert SUMMARY not in ti.xcoms


def test_a_run_that_waited_reads_only_what_the_other_run_has_not_read(user: User, request_: dict[str, Any]) -> None:
    plan, ti = plan_of(request_), TaskInstance()
    publish_other(user, plan, listed=1)
    confirm_plan(ti, SETTINGS, plan, params_of(plan))
    summary = ti.xcoms[SUMMARY]
    assert (summary["base_run_id"], summary["new"], summary["unchanged"]) == (OTHER, 1, 1)
    again = TaskInstance()
    confirm_plan(again, SETTINGS, plan, params_of(plan))
    assert SUMMARY not in again.xcoms, "it was planned a third time"


def test_a_run_that_waited_is_skipped_if_the_other_run_has_read_everything(
    user: User, request_: dict[str, Any]
) -> None:
    plan, ti = plan_of(request_), TaskInstance()
    publish_other(user, plan)
    with pytest.raises(AirflowSkipException, match=f"nothing to do: 2 images .* run {OTHER} stays published"):
        confirm_plan(ti, SETTINGS, plan, params_of(plan))
    assert ti.xcoms[SUMMARY]["nothing_to_do"]


@pytest.mark.parametrize(("state", "is_outdated"), [("success", True), ("failed", False), (None, False)])
def test_a_run_whose_first_step_has_worked_on_the_outdated_plan_fails(
    user: User, request_: dict[str, Any], state: str | None, is_outdated: bool
) -> None:
    plan, ti = plan_of(request_), TaskInstance(task_states={FIRST_STEP: state})
    publish_other(user, plan, listed=1)
    if not is_outdated:
        confirm_plan(ti, SETTINGS, plan, params_of(plan))
        return
    message = f"the tables show run {OTHER} of .*, and its first step has finished: clear `plan` with downstream"
    with pytest.raises(PlanOutdated, match=message) as error:
        confirm_plan(ti, SETTINGS, plan, params_of(plan))
    assert isinstance(error.value, PermanentError)


def test_a_cleared_run_confirms_its_plan_before_it_creates_a_cluster(user: User, request_: dict[str, Any]) -> None:
    write_plan(user, plan_of(request_), base_run_id=OTHER)
    ti = TaskInstance(task_states={FIRST_STEP: "success"})
    for task in (create_cluster(request_), add_step("j-0", step_config("exit 0"), plan_of(request_))):
        with pytest.raises(PlanOutdated, match="the tables show no run of"):
            execute(task, ti, cleared_run())
    assert clusters_of_run(user, request_) == []


def test_a_run_that_was_not_cleared_does_not_read_the_tables_again(user: User, request_: dict[str, Any]) -> None:
    """Its `wait_turn` has just done so."""
    write_plan(user, plan_of(request_), base_run_id=OTHER)
    created = execute(create_cluster(request_), dag_run=NOT_CLEARED)
    user.terminate(created)


def test_a_cleared_run_whose_files_are_deleted_creates_no_cluster(user: User, request_: dict[str, Any]) -> None:
    plan = plan_of(request_)
    user.s3.delete_object(Bucket=BUCKET, Key=f"{split_uri(plan['scratch_uri'])[1]}/inventory/part-1.parquet")
    message = f"{plan['scratch_uri']} is empty, because .*: clear `plan` with downstream, or trigger a new run"
    with pytest.raises(ScratchDeleted, match=message) as error:
        execute(create_cluster(request_), dag_run=cleared_run())
    assert isinstance(error.value, PermanentError)
    assert clusters_of_run(user, request_) == []


def test_a_cleared_run_with_nothing_to_do_releases_its_turn_and_terminates_its_cluster(
    user: User, request_: dict[str, Any]
) -> None:
    ti = TaskInstance("first")
    created = execute(create_cluster(request_), ti)
    assert take_turn(request_, TaskInstance("second", {"first": "running"})) != []
    end_earlier_round(ti, SETTINGS, plan_of(request_))
    user.wait_for(created, "TERMINATED")
    assert take_turn(request_, TaskInstance("second", {"first": "running"})) == []


class Planner(TaskInstance):
    """The task instance of `plan`, with its XComs."""

    task_id = "plan"

    def xcom_pull(self, task_ids: str, key: str, run_id: str) -> Any:
        assert (task_ids, run_id) == ("plan", self.run_id)
        return self.xcoms.get(key)


@pytest.mark.parametrize(
    ("summary", "logged"),
    [
        ({"sentence": "nothing to do: 3 images"}, ["plan: nothing to do: 3 images"]),
        ({"listed": 3}, []),
        (None, []),
    ],
)
def test_the_last_line_of_the_log_of_a_task_is_the_one_that_a_person_reads(
    caplog: pytest.LogCaptureFixture, summary: dict[str, Any] | None, logged: list[str]
) -> None:
    ti = Planner()
    if summary is not None:
        ti.xcom_push(SUMMARY, summary)
    caplog.set_level(logging.INFO, "orchard")
    log_sentence({"ti": ti})
    assert caplog.messages == logged
