import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import botocore.session
import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.providers.standard.operators.python import ShortCircuitOperator
from airflow.sdk import DAG, BaseSensorOperator, RetryAction
from airflow.sdk.exceptions import ParamValidationError
from airflow.serialization.serialized_objects import DagSerialization
from airflow.timetables.base import TimeRestriction

from infra import release
from local_aws.emr.checks import check_parameters
from orchard.airflow.operators import CreateClusterOperator, TerminateClustersOperator
from orchard.airflow.sensors import ClustersGoneSensor, StepEndSensor
from orchard.dataset.listing import NoImages
from orchard.run.params import PARAMS
from orchard.run.plan import RunPlan, plan_run
from orchard.run.steps import STEPS
from orchard.settings import Settings
from orchard_spark import images
from tests.dags.schedule import next_run
from tests.plugins.dataset_uris import ACCEPTED_URIS, REFUSED_URIS
from tests.plugins.plans import catalog_of, put_images

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

DAGS = Path(__file__).parents[2] / "dags"


@pytest.fixture(scope="module")
def bag() -> DagBag:
    found = DagBag(str(DAGS))
    assert found.dags, f"no DAG in {DAGS}"
    return found


@pytest.fixture(scope="module")
def dag(bag: DagBag) -> DAG:
    found: DAG = bag.dags["fruit_features"]
    return found


def sensors(dag: DAG) -> list[Any]:
    return [task for task in dag.tasks if isinstance(task, BaseSensorOperator)]


def test_every_file_in_dags_is_imported_without_an_error(bag: DagBag) -> None:
    assert bag.import_errors == {}
    assert {Path(dag.fileloc).name for dag in bag.dags.values()} == {file.name for file in DAGS.glob("*.py")}


def test_every_dag_is_named_after_its_file_and_has_documentation_tags_and_an_owner(bag: DagBag) -> None:
    for dag_id, dag in bag.dags.items():
        assert dag_id == Path(dag.fileloc).stem
        assert dag.doc_md, f"{dag_id}: write a docstring and pass it as doc_md"
        assert "orchard" in dag.tags
        assert dag.dag_display_name.lower() == dag_id.replace("_", " ")
        assert {task.owner for task in dag.tasks} == {"fruits"}


def test_no_dag_has_a_cycle(bag: DagBag) -> None:
    for dag in bag.dags.values():
        dag.check_cycle()


def test_the_tasks_are_in_pipeline_order(dag: DAG) -> None:
    ordered = [task.task_id for task in dag.topological_sort()]  # type: ignore[no-untyped-call]
    expected = ["plan", "preflight", "wait_turn", "create_cluster", "cluster_ready"]
    for step in STEPS:
        expected += [f"{step}.add_step", f"{step}.wait_step"]
    assert ordered[: len(expected)] == expected
    assert set(ordered[len(expected) :]) == {"publish", "hold_cluster", "terminate_cluster", "cluster_gone", "verdict"}


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ("2026-01-14T12:00", "2026-01-15T02:00+01:00"),
        ("2026-07-14T12:00", "2026-07-15T02:00+02:00"),
        # The clocks change on 29 March, from 02:00 to 03:00, and on 25 October, from 03:00 to 02:00.
        ("2026-03-29T12:00", "2026-03-30T02:00+02:00"),
        ("2026-10-25T12:00", "2026-10-26T02:00+01:00"),
    ],
)
def test_it_runs_at_two_in_paris_in_summer_and_winter(dag: DAG, after: str, expected: str) -> None:
    assert next_run(dag, datetime.fromisoformat(f"{after}+00:00")) == datetime.fromisoformat(expected)


def test_it_never_catches_up(dag: DAG) -> None:
    assert dag.catchup is False


def test_a_manual_run_does_not_delay_the_nightly_run(dag: DAG) -> None:
    assert dag.max_active_runs > 1


def test_no_dag_has_a_dagrun_timeout_because_that_would_skip_the_teardown(bag: DagBag) -> None:
    assert {dag.dagrun_timeout for dag in bag.dags.values()} == {None}


def test_every_task_links_to_its_run_and_those_of_other_dags_do_not(bag: DagBag) -> None:
    def links(dag_id: str) -> dict[str, set[str]]:
        """Return the links that the API server shows on each task."""
        serialized = DagSerialization.from_dict(DagSerialization.to_dict(bag.dags[dag_id]))
        return {task.task_id: set(task.extra_links) for task in serialized.tasks}

    found = links("fruit_features")
    every = {"Report", "Run Folder"}
    assert {task_id: names - every for task_id, names in found.items() if names != every} == {
        "create_cluster": {"EMR Cluster"},
        "cluster_ready": {"EMR Cluster"},
        **{f"{step}.add_step": {"EMR Cluster"} for step in STEPS},
        **{f"{step}.wait_step": {"EMR Cluster", "Step Logs", "Spark UI"} for step in STEPS},
        "hold_cluster": {"EMR Cluster"},
        "terminate_cluster": {"EMR Cluster"},
    }
    assert all(names >= every for names in found.values())
    for other in bag.dags.keys() - {"fruit_features"}:
        assert set().union(*links(other).values()) == set(), other


def test_publish_updates_the_asset(dag: DAG) -> None:
    (asset,) = dag.get_task("publish").outlets
    assert (asset.name, asset.uri) == ("fruit_embeddings", "s3://fruits-data/warehouse/embeddings")


def test_every_param_has_a_title_a_description_and_a_valid_default(bag: DagBag) -> None:
    for dag in bag.dags.values():
        for name in dag.params:
            param = dag.params.get_param(name)
            # What forget_dataset removes has no default. A param that may be empty has the default None.
            is_optional = "null" in param.schema["type"]
            assert param.has_value or is_optional or (dag.dag_id, name) == ("forget_dataset", "dataset_uri")
            if param.has_value:
                deepcopy(param).resolve()
            assert param.description, f"{dag.dag_id}: param {name}"
            assert {"title", "type"} <= param.schema.keys(), f"{dag.dag_id}: param {name}"


def test_every_task_says_in_one_paragraph_what_it_does(bag: DagBag) -> None:
    for dag in bag.dags.values():
        for task in dag.tasks:
            assert task.doc_md, f"{dag.dag_id}: {task.task_id}"
            assert "\n\n" not in task.doc_md
            assert len(task.doc_md) < 200


def test_the_name_of_a_task_that_people_see_begins_with_its_id(dag: DAG) -> None:
    names = {task.task_id: task.task_display_name for task in dag.tasks}
    assert all(name == task_id or name.startswith(f"{task_id}: ") for task_id, name in names.items())
    assert {task_id for task_id, name in names.items() if name != task_id} == {"wait_turn", "cluster_gone", "verdict"}


def test_a_run_that_succeeds_is_told_only_if_a_channel_is_on(dag: DAG) -> None:
    assert dag.on_failure_callback is not None
    assert dag.on_success_callback is None
    is_on = parse([("ORCHARD_ALERT_EMAIL", "team@example.com")])["told"]
    assert is_on == ["fruit_features"]


def test_the_url_of_the_webhook_is_not_in_what_airflow_stores() -> None:
    stored = parse([("ORCHARD_ALERT_WEBHOOK_URL", "https://example.com/s3cret"), ("ORCHARD_ALERT_EMAIL", "a@b.c")])
    assert stored["told"] == ["fruit_features"]
    assert "a@b.c" in stored["stored"]
    assert "s3cret" not in stored["stored"]


def test_the_largest_images_are_by_default_those_of_the_steps(dag: DAG) -> None:
    assert dag.params.dump()["max_pixels"] == images.DEFAULT_MAX_PIXELS


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("dataset_uri", uri) for uri in ACCEPTED_URIS),
        ("n_components", 50),
        ("n_components", 50.0),
        ("n_components", 1280),
        ("n_components", 0.9),
        ("max_reject_ratio", 0),
        ("max_lost_ratio", 1),
        ("max_bytes", 1),
        ("max_bytes", 2.0**27),
        ("max_pixels", 1),
        ("pca_mode", "frozen"),
        ("retry_rejects", True),
        ("full_refresh", True),
        ("instance_type", "c7i.xlarge"),
        ("core_instances", 20),
        ("core_instances", 2.0),
        ("core_instances", None),
        ("target_minutes", 0.5),
        ("max_cost_usd", 2),
        ("max_cost_usd", None),
        ("hold_minutes", 0),
        ("hold_minutes", 240),
        ("hold_minutes", 60.0),
    ],
)
def test_a_valid_param_is_accepted(dag: DAG, name: str, value: Any) -> None:
    assert deepcopy(dag.params.get_param(name)).resolve(value) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("dataset_uri", uri) for uri in REFUSED_URIS),
        ("n_components", 0),
        ("n_components", 1.5),
        ("n_components", 1281),
        ("n_components", True),
        ("n_components", "all"),
        ("max_reject_ratio", 1.01),
        ("max_lost_ratio", -0.1),
        ("max_bytes", 0),
        ("max_bytes", 0.5),
        ("max_bytes", "64 MiB"),
        ("max_pixels", 0),
        ("max_pixels", 1.5),
        ("max_pixels", True),
        ("pca_mode", "thaw"),
        ("retry_rejects", "yes"),
        ("full_refresh", 1),
        ("instance_type", "m5.huge"),
        ("core_instances", 0),
        ("core_instances", 2.5),
        ("target_minutes", 0),
        ("target_minutes", None),
        ("max_cost_usd", 0),
        ("max_cost_usd", "2 USD"),
        ("hold_minutes", -1),
        ("hold_minutes", 241),
        ("hold_minutes", 0.5),
        ("hold_minutes", None),
    ],
)
def test_an_invalid_param_is_refused(dag: DAG, name: str, value: Any) -> None:
    with pytest.raises(ParamValidationError):
        deepcopy(dag.params.get_param(name)).resolve(value)


def test_every_created_cluster_is_terminated_and_its_termination_awaited(bag: DagBag) -> None:
    pairs = [(dag, task) for dag in bag.dags.values() for task in dag.tasks]
    creates = [(dag, task) for dag, task in pairs if isinstance(task, CreateClusterOperator)]
    assert creates
    for dag, create in creates:
        assert create.is_setup
        teardowns = [dag.get_task(name) for name in create.downstream_task_ids if dag.get_task(name).is_teardown]
        assert any(isinstance(task, TerminateClustersOperator) for task in teardowns)
        assert any(isinstance(task, ClustersGoneSensor) for task in teardowns)
        assert all(task.on_failure_fail_dagrun for task in teardowns), "or nobody notices an active cluster"


def test_a_failed_step_fails_the_run_because_the_verdict_is_its_only_leaf_and_judges_every_task(dag: DAG) -> None:
    """`tests/plugins/run/test_verdict.py` tests that it fails then."""
    (leaf,) = dag.leaves
    assert leaf.task_id == "verdict"
    assert leaf.on_failure_fail_dagrun
    assert leaf.get_flat_relative_ids(upstream=True) == set(dag.task_ids) - {"verdict"}
    assert {"publish", "cluster_gone"} <= leaf.upstream_task_ids


def test_the_cluster_is_held_after_the_last_step_and_terminated_after_the_hold_whatever_publish_does(dag: DAG) -> None:
    """If the hold were downstream of `publish`, clearing `publish` with downstream would create a cluster for it."""
    hold = dag.get_task("hold_cluster")
    assert f"{STEPS[-1]}.wait_step" in hold.upstream_task_ids
    assert hold.downstream_task_ids == {"terminate_cluster"}
    assert "publish" not in hold.get_flat_relative_ids(upstream=True)
    assert "publish" not in hold.get_flat_relative_ids(upstream=False)
    assert "hold_cluster" not in cleared_with_downstream(dag, "publish")
    assert {"hold_cluster", "terminate_cluster"} <= cleared_with_downstream(dag, f"{STEPS[-1]}.add_step")


def cleared_with_downstream(dag: DAG, task_id: str) -> set[str]:
    """Return the tasks that Airflow clears when a user clears a task with downstream."""
    serialized = DagSerialization.from_dict(DagSerialization.to_dict(dag))
    return set(serialized.partial_subset([task_id], include_downstream=True, include_upstream=False).task_dict)


def setups(dag: DAG, name: str) -> set[str]:
    return {task_id for task_id in dag.get_task(name).upstream_task_ids if dag.get_task(task_id).is_setup}


@pytest.mark.parametrize("name", ["terminate_cluster", "cluster_gone"])
def test_the_teardown_also_runs_when_the_creation_failed(dag: DAG, name: str) -> None:
    assert setups(dag, name) == {"preflight", "create_cluster", "cluster_ready"}


def test_the_turn_is_given_back_even_if_the_run_fails(dag: DAG) -> None:
    assert setups(dag, "verdict") == {"preflight", "wait_turn"}


CREATION = {"create_cluster", "cluster_ready"}
TURN = {"preflight", "wait_turn", "terminate_cluster", "cluster_gone", "verdict"}


@pytest.mark.parametrize(
    ("task_id", "also_cleared"),
    [("pca.wait_step", CREATION | TURN), ("pca.add_step", CREATION | TURN), ("publish", TURN)],
)
def test_clearing_a_task_takes_the_turn_again_and_creates_a_cluster_only_for_a_step(
    dag: DAG, task_id: str, also_cleared: set[str]
) -> None:
    serialized = DagSerialization.from_dict(DagSerialization.to_dict(dag))
    cleared = serialized.partial_subset([task_id], include_downstream=False, include_upstream=False).task_dict
    assert set(cleared) == {task_id} | also_cleared


def test_requests_that_create_something_are_sent_once_and_retried_only_by_the_task(dag: DAG) -> None:
    for task_id in ("create_cluster", *(f"{step}.add_step" for step in STEPS)):
        task: Any = dag.get_task(task_id)
        assert task.botocore_config == {"retries": {"total_max_attempts": 1}}
        assert task.retries > 0


def test_a_permanent_error_is_not_retried(dag: DAG) -> None:
    for task in dag.tasks:
        policy: Any = task.retry_policy
        assert policy.evaluate(NoImages("s3://b/images/", {}), 1, 7).action is RetryAction.FAIL
        assert policy.evaluate(OSError("no route"), 1, 7).action is not RetryAction.FAIL


def test_a_late_run_raises_an_alert_and_continues(dag: DAG) -> None:
    alerts: Any = dag.deadline
    (alert,) = alerts
    assert alert.interval == timedelta(hours=8)
    assert alert.callback.path == "orchard.airflow.alerts.alert_late_run"
    assert alert.reference.reference_name != "DagRunQueuedAtDeadline", "otherwise Airflow 3.3 cannot clear runs"


def test_no_sensor_holds_a_worker_and_each_has_a_timeout(bag: DagBag) -> None:
    found = [sensor for dag in bag.dags.values() for sensor in sensors(dag)]
    assert found
    for sensor in found:
        if isinstance(sensor, StepEndSensor):
            assert sensor.deferrable
            timeout = sensor.step_timeout
        else:
            assert sensor.mode == "reschedule", f"{sensor.task_id} holds a worker while it waits"
            timeout = timedelta(seconds=sensor.timeout)
        assert timedelta(0) < timeout <= timedelta(hours=12), f"{sensor.task_id} may wait {timeout}"


def test_the_timeout_of_a_step_is_a_setting(dag: DAG) -> None:
    steps: dict[str, Any] = {step: dag.get_task(f"{step}.wait_step") for step in STEPS}
    hours = {step: sensor.step_timeout / timedelta(hours=1) for step, sensor in steps.items()}
    assert hours == {"ingest": 2, "features": 6, "pca": 1}


class Xcoms:
    """The part of `ti` that resolves XComs. As in Airflow, a task that has pushed nothing resolves to the default."""

    def __init__(self, **values: Any) -> None:
        self._values = values

    def xcom_pull(self, task_ids: str, key: str, default: Any, **_: Any) -> Any:
        if task_ids not in self._values:
            return default
        return self._values[task_ids] if key == "return_value" else self._values[task_ids][key]


@pytest.fixture
def planned(dag: DAG, s3: "S3Client", bucket: str, parts: Path) -> RunPlan:
    """The plan of a run with the default params, except for its dataset."""
    settings = Settings(bucket=bucket, release=release.upload(s3, bucket, release.collect(parts)))
    put_images(s3, bucket)
    params = {**dag.params.dump(), "dataset_uri": settings.dataset_uri}
    when = datetime(2026, 11, 22, 2, tzinfo=UTC)
    catalog = catalog_of(s3, settings)
    return plan_run(s3, catalog, settings, params, dag_id="fruit_features", run_id="run", run_after=when).run


@pytest.fixture
def rendered(dag: DAG, planned: RunPlan) -> dict[str, Any]:
    """The requests as the tasks send them, with the XComs of a plan and of a cluster."""
    context: Any = {"ti": Xcoms(plan=planned, create_cluster="j-1", cluster_ready="j-2")}
    create: Any = dag.get_task("create_cluster")
    steps: list[Any] = [dag.get_task(f"{step}.add_step") for step in STEPS]
    return {
        "RunJobFlow": create.render_template(create.job_flow_overrides, context),
        "AddJobFlowSteps": {
            "JobFlowId": steps[0].render_template(steps[0].job_flow_id, context),
            "Steps": [config for task in steps for config in task.render_template(task.steps, context)],
        },
    }


@pytest.mark.parametrize("operation", ["RunJobFlow", "AddJobFlowSteps"])
def test_the_requests_are_valid_by_botocores_model_of_emr(rendered: dict[str, Any], operation: str) -> None:
    model = botocore.session.get_session().get_service_model("emr").operation_model(operation)
    check_parameters(model, rendered[operation])


def test_each_step_gets_its_own_config_from_the_plan(rendered: dict[str, Any], planned: RunPlan) -> None:
    assert rendered["AddJobFlowSteps"] == {
        "JobFlowId": "j-2",
        "Steps": [planned["ingest_step"], planned["features_step"], planned["pca_step"]],
    }


def test_the_configs_contain_the_params_and_the_run(rendered: dict[str, Any], planned: RunPlan) -> None:
    steps = {step["Name"]: step["HadoopJarStep"]["Args"] for step in rendered["AddJobFlowSteps"]["Steps"]}
    assert tuple(steps) == STEPS

    def value(step: str, option: str) -> str:
        found: str = steps[step][steps[step].index(option) + 1]
        return found

    assert {value(step, "--run-uri") for step in STEPS} == {planned["run_uri"]}
    assert {value(step, "--scratch-uri") for step in ("ingest", "features")} == {planned["scratch_uri"]}
    assert value("ingest", "--max-reject-ratio") == "0.05"
    assert steps["ingest"][3].endswith("/spark/ingest.py")
    assert value("features", "--model-uri").endswith("/model/mobilenet.tflite")
    assert (value("pca", "--n-components"), value("pca", "--pca-mode")) == ("0.95", "refit")


@pytest.mark.parametrize(
    ("pushed", "known_ids"),
    [
        ({}, [None, None]),
        ({"create_cluster": "j-1"}, ["j-1", None]),
        ({"create_cluster": "j-1", "cluster_ready": "j-2"}, ["j-1", "j-2"]),
    ],
)
@pytest.mark.parametrize("task_id", ["terminate_cluster", "cluster_gone"])
def test_the_teardown_gets_the_name_and_the_ids_that_were_pushed(
    dag: DAG, planned: RunPlan, task_id: str, pushed: dict[str, str], known_ids: list[str | None]
) -> None:
    task: Any = dag.get_task(task_id)
    context: Any = {"ti": Xcoms(plan=planned, **pushed)}
    assert task.render_template(task.cluster_name, context) == planned["cluster"]["Name"]
    assert task.render_template(task.known_ids, context) == known_ids


PARSE = """
import json, socket, sys, time
from airflow.dag_processing.dagbag import DagBag
from airflow.providers.standard.operators.python import ShortCircuitOperator
from airflow.serialization.serialized_objects import DagSerialization
import airflow.providers.amazon.aws.operators.emr, airflow.providers.amazon.aws.sensors.emr

contacts = []

def note(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        contacts.append(str(arguments[1:]))

sys.addaudithook(note)
began = time.perf_counter()
bag = DagBag(sys.argv[1])
seconds = time.perf_counter() - began
deferrable = [task.task_id for dag in bag.dags.values() for task in dag.tasks if getattr(task, "deferrable", False)]
slow = [name for name in ("duckdb", "pyarrow", "pyiceberg") if name in sys.modules]
result = {"dags": sorted(bag.dags), "deferrable": sorted(deferrable), "contacts": contacts, "seconds": seconds}
result["slow"] = slow
result["told"] = [dag.dag_id for dag in bag.dags.values() if dag.on_success_callback]
result["stored"] = json.dumps([DagSerialization.to_dict(dag) for dag in bag.dags.values()])
print("RESULT", json.dumps(result))
"""


def parse(variables: Iterable[tuple[str, str]] = ()) -> dict[str, Any]:
    """Parse the DAGs in a subprocess."""
    env = {**os.environ, **dict(variables), "PYTHONPATH": str(DAGS.parent / "plugins")}
    command = [sys.executable, "-c", PARSE, str(DAGS)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    result: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
    return {**result, "log": done.stdout + done.stderr}


def test_parsing_makes_no_network_calls(record_property: Callable[[str, object], None]) -> None:
    result = parse()
    assert "fruit_features" in result["dags"]
    assert result["contacts"] == []
    record_property("parsing dags/, once Airflow and its provider are imported", f"{result['seconds']:.2f} s")


def test_parsing_imports_no_library_that_takes_long_to_import() -> None:
    assert parse()["slow"] == []


def test_airflows_default_deferrable_setting_changes_nothing() -> None:
    assert parse([("AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE", "True")])["deferrable"] == [
        f"{step}.wait_step" for step in sorted(STEPS)
    ]


def test_the_params_are_the_ones_that_a_plan_needs(dag: DAG) -> None:
    assert set(dag.params) == set(PARAMS)


def test_invalid_settings_are_an_import_error_that_names_them() -> None:
    result = parse([("ORCHARD_POLL_SECONDS", "soon")])
    assert result["dags"] == []
    assert re.search(r"BadSettings: ORCHARD_POLL_SECONDS is 'soon': use a whole number", result["log"])


def test_a_run_waits_for_its_turn_as_long_as_a_cluster_can_run(dag: DAG) -> None:
    wait_turn: Any = dag.get_task("wait_turn")
    settings = Settings.from_env(os.environ)
    assert wait_turn.timeout == settings.max_cluster_hours * 3600
    assert wait_turn.poke_interval == settings.poll_seconds


def test_plan_skips_every_other_task_if_there_is_nothing_to_do(dag: DAG) -> None:
    """Airflow skips a teardown when all of its setups are skipped."""
    plan: Any = dag.get_task("plan")
    assert isinstance(plan, ShortCircuitOperator)
    assert plan.ignore_downstream_trigger_rules
    below = {task.task_id for task in plan.get_flat_relatives(upstream=False)}
    assert below == set(dag.task_ids) - {"plan"}
    for name in ("terminate_cluster", "cluster_gone", "verdict"):
        assert setups(dag, name)
        assert "plan" not in setups(dag, name)


def test_preflight_checks_the_plan_once(dag: DAG, monkeypatch: pytest.MonkeyPatch) -> None:
    preflight: Any = deepcopy(dag.get_task("preflight"))
    assert not isinstance(preflight, BaseSensorOperator)
    calls: list[Any] = []

    def check(clients: Any, settings: Settings, run: Any) -> None:
        calls.append(([client.meta.service_model.service_name for client in vars(clients).values()], settings, run))

    monkeypatch.setitem(preflight.python_callable.__globals__, "check", check)
    planned = {"run_uri": "s3://b/runs/1"}
    preflight.op_args = [planned]
    preflight.execute({})
    assert calls == [(["s3", "iam", "ec2", "emr", "glue", "sns"], Settings.from_env(os.environ), planned)]


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ("2026-11-24T00:59:50", "2026-11-24T01:00:00"),
        ("2026-11-24T01:00:01", "2026-11-24T01:00:00"),  # a scheduler that is a second late still starts it
        ("2026-11-24T03:00:00", "2026-11-25T01:00:00"),
        ("2026-11-24T23:00:00", "2026-11-25T01:00:00"),
    ],
)
def test_unpausing_the_dag_for_the_first_time_starts_no_run_that_was_due_earlier(
    dag: DAG, monkeypatch: pytest.MonkeyPatch, now: str, expected: str
) -> None:
    assert (dag.start_date, {task.start_date for task in dag.tasks}) == (None, {None})
    monkeypatch.setattr("airflow.timetables.trigger.utcnow", lambda: datetime.fromisoformat(f"{now}+00:00"))
    timetable = DagSerialization.from_dict(DagSerialization.to_dict(dag)).timetable
    info = timetable.next_dagrun_info(
        last_automated_data_interval=None,
        restriction=TimeRestriction(earliest=None, latest=None, catchup=False),
    )
    assert info is not None
    assert info.run_after == datetime.fromisoformat(f"{expected}+00:00")
