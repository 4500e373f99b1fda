import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from copy import deepcopy
from datetime import timedelta
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import DAG, BaseSensorOperator, CronTriggerTimetable, RetryAction
from airflow.sdk.exceptions import ParamValidationError

from local_aws.emr.checks import check_parameters
from orchard.cluster import ClusterSpec, run_job_flow_request
from orchard.dataset import NoImages
from orchard.operators import ClustersGoneSensor, CreateClusterOperator, StepEndSensor, TerminateClustersOperator
from orchard.plan import PARAMS
from orchard.settings import Settings

DAGS = Path(__file__).parents[2] / "dags"
STEPS = ("ingest", "features", "pca")


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


def test_every_dag_has_an_id_like_its_file_and_says_what_and_whose_it_is(bag: DagBag) -> None:
    for dag_id, dag in bag.dags.items():
        assert dag_id == Path(dag.fileloc).stem
        assert dag.doc_md, f"{dag_id}: write a docstring and give it as doc_md"
        assert "orchard" in dag.tags
        assert {task.owner for task in dag.tasks} == {"fruits"}


def test_no_dag_has_a_cycle(bag: DagBag) -> None:
    for dag in bag.dags.values():
        dag.check_cycle()


def test_the_pipeline_has_its_tasks_in_their_order(dag: DAG) -> None:
    ordered = [task.task_id for task in dag.topological_sort()]  # type: ignore[no-untyped-call]
    expected = ["plan", "preflight", "create_cluster", "cluster_ready"]
    for step in STEPS:
        expected += [f"{step}.add_step", f"{step}.wait_step"]
    assert ordered[: len(expected)] == expected
    assert set(ordered[len(expected) :]) == {"publish", "terminate_cluster", "cluster_gone", "verdict"}


def test_it_runs_at_two_in_paris_and_never_catches_up(dag: DAG) -> None:
    assert isinstance(dag.timetable, CronTriggerTimetable)
    assert (dag.timetable.expression, str(dag.timetable.timezone)) == ("0 2 * * *", "Europe/Paris")
    assert dag.catchup is False


def test_a_run_by_hand_does_not_delay_the_nightly_one(dag: DAG) -> None:
    assert dag.max_active_runs > 1


def test_no_run_has_a_timeout_as_that_would_skip_the_teardown(bag: DagBag) -> None:
    assert {dag.dagrun_timeout for dag in bag.dags.values()} == {None}


def test_publish_tells_the_asset(dag: DAG) -> None:
    (asset,) = dag.get_task("publish").outlets
    assert (asset.name, asset.uri) == ("fruit_embeddings", "s3://fruits-data/warehouse/embeddings")


def test_every_param_has_a_title_a_description_and_a_valid_default(bag: DagBag) -> None:
    for dag in bag.dags.values():
        dag.params.validate()
        for name in dag.params:
            param = dag.params.get_param(name)
            assert param.description, f"{dag.dag_id}: param {name}"
            assert {"title", "type"} <= param.schema.keys(), f"{dag.dag_id}: param {name}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dataset_uri", "s3://fruits-data/images/2026 autumn/"),
        ("dataset_uri", "s3://fruits-data/"),
        ("n_components", 50),
        ("n_components", 0.9),
        ("max_reject_ratio", 0),
        ("instance_type", "c7i.xlarge"),
        ("core_instances", 20),
    ],
)
def test_a_sensible_param_is_taken(dag: DAG, name: str, value: Any) -> None:
    assert deepcopy(dag.params.get_param(name)).resolve(value) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dataset_uri", "fruits-data/images/"),
        ("dataset_uri", "s3://fruits-data/images"),
        ("n_components", 0),
        ("n_components", 1.5),
        ("n_components", "all"),
        ("max_reject_ratio", 1.01),
        ("instance_type", "m5.huge"),
        ("core_instances", 0),
        ("core_instances", 2.5),
    ],
)
def test_an_impossible_param_is_refused(dag: DAG, name: str, value: Any) -> None:
    with pytest.raises(ParamValidationError):
        deepcopy(dag.params.get_param(name)).resolve(value)


def test_every_cluster_that_is_created_is_terminated_and_its_end_awaited(bag: DagBag) -> None:
    pairs = [(dag, task) for dag in bag.dags.values() for task in dag.tasks]
    creates = [(dag, task) for dag, task in pairs if isinstance(task, CreateClusterOperator)]
    assert creates
    for dag, create in creates:
        assert create.is_setup
        teardowns = [dag.get_task(name) for name in create.downstream_task_ids if dag.get_task(name).is_teardown]
        assert any(isinstance(task, TerminateClustersOperator) for task in teardowns)
        assert any(isinstance(task, ClustersGoneSensor) for task in teardowns)
        assert all(task.on_failure_fail_dagrun for task in teardowns), "else a cluster that lives on goes unnoticed"


def test_a_failed_step_fails_the_run_as_a_work_task_is_a_leaf_beside_the_teardown(dag: DAG) -> None:
    leaves = [task for task in dag.leaves if not task.is_teardown]
    assert [task.task_id for task in leaves] == ["publish"]


def test_the_teardown_also_runs_when_the_creation_has_failed_and_only_then_if_there_was_one(dag: DAG) -> None:
    for name in ("terminate_cluster", "cluster_gone", "verdict"):
        setups = {task_id for task_id in dag.get_task(name).upstream_task_ids if dag.get_task(task_id).is_setup}
        assert setups == {"preflight", "create_cluster", "cluster_ready"}


def test_calls_that_create_something_are_sent_once_and_looked_for_before_they_are_sent_again(dag: DAG) -> None:
    for task_id in ("create_cluster", *(f"{step}.add_step" for step in STEPS)):
        task: Any = dag.get_task(task_id)
        assert task.botocore_config == {"retries": {"total_max_attempts": 1}}
        assert task.retries > 0


def test_what_cannot_heal_is_not_tried_again(dag: DAG) -> None:
    for task in dag.tasks:
        policy: Any = task.retry_policy
        assert policy.evaluate(NoImages("s3://b/images/", 0), 1, 7).action is RetryAction.FAIL
        assert policy.evaluate(OSError("no route"), 1, 7).action is not RetryAction.FAIL


def test_somebody_is_told_when_a_run_is_late_and_the_run_goes_on(dag: DAG) -> None:
    alerts: Any = dag.deadline
    (alert,) = alerts
    assert alert.interval == timedelta(hours=8)
    assert alert.callback.path == "orchard.alerts.tell_of_late_run"
    assert alert.reference.reference_name != "DagRunQueuedAtDeadline", "else Airflow 3.3 can clear no run"


def test_no_sensor_holds_a_worker_and_each_has_a_budget_of_its_own(bag: DagBag) -> None:
    found = [sensor for dag in bag.dags.values() for sensor in sensors(dag)]
    assert len(found) == 6
    for sensor in found:
        if isinstance(sensor, StepEndSensor):
            assert sensor.deferrable
            budget = sensor.budget
        else:
            assert sensor.mode == "reschedule", f"{sensor.task_id} holds a worker while it waits"
            budget = timedelta(seconds=sensor.timeout)
        assert timedelta(0) < budget <= timedelta(hours=12), f"{sensor.task_id} may wait {budget}"


def test_the_budget_of_a_step_is_a_setting(dag: DAG) -> None:
    budgets: dict[str, Any] = {step: dag.get_task(f"{step}.wait_step") for step in STEPS}
    hours = {step: sensor.budget / timedelta(hours=1) for step, sensor in budgets.items()}
    assert hours == {"ingest": 2, "features": 6, "pca": 1}


class Xcoms:
    """What `ti` is in a template."""

    def __init__(self, **values: Any) -> None:
        self._values = values

    def xcom_pull(self, task_ids: str) -> Any:
        return self._values[task_ids]


@pytest.fixture(scope="module")
def rendered(dag: DAG) -> dict[str, Any]:
    """The requests as the tasks send them: their templates rendered with a plan and the default params."""
    settings = Settings.from_env(os.environ)
    spec = ClusterSpec(name="orchard", instance_type="m5.xlarge", core_instances=2, tags={"orchard:owner": "me"})
    planned = {
        "release_uri": settings.release_uri,
        "cluster": run_job_flow_request(spec, settings),
        "run_uri": "s3://b/runs/1",
        "model_uri": "s3://b/m.tflite",
    }
    context: Any = {"ti": Xcoms(plan=planned, create_cluster="j-1", cluster_ready="j-2"), "params": dag.params.dump()}
    create: Any = dag.get_task("create_cluster")
    steps: list[Any] = [dag.get_task(f"{step}.add_step") for step in STEPS]
    return {
        "RunJobFlow": ast.literal_eval(create.render_template(create.job_flow_overrides, context)),
        "AddJobFlowSteps": {
            "JobFlowId": steps[0].render_template(steps[0].job_flow_id, context),
            "Steps": [config for task in steps for config in task.render_template(task.steps, context)],
        },
    }


@pytest.mark.parametrize("operation", ["RunJobFlow", "AddJobFlowSteps"])
def test_the_requests_are_valid_by_botocores_model_of_emr(rendered: dict[str, Any], operation: str) -> None:
    model = botocore.session.get_session().get_service_model("emr").operation_model(operation)
    check_parameters(model, rendered[operation])


def test_the_steps_get_the_params_and_what_was_planned(rendered: dict[str, Any]) -> None:
    steps = {step["Name"]: step["HadoopJarStep"]["Args"] for step in rendered["AddJobFlowSteps"]["Steps"]}
    assert tuple(steps) == STEPS

    def value(step: str, option: str) -> str:
        found: str = steps[step][steps[step].index(option) + 1]
        return found

    assert {value(step, "--run-uri") for step in STEPS} == {"s3://b/runs/1"}
    assert value("ingest", "--input-uri") == "s3://fruits-data/images/"
    assert value("ingest", "--max-reject-ratio") == "0.05"
    assert steps["ingest"][3] == "s3://fruits-data/releases/0123456789ab/spark/ingest.py"
    assert value("features", "--model-uri") == "s3://b/m.tflite"
    assert value("pca", "--n-components") == "0.95"


PARSE = """
import json, socket, sys, time
from airflow.dag_processing.dagbag import DagBag
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
result = {"dags": sorted(bag.dags), "deferrable": sorted(deferrable), "contacts": contacts, "seconds": seconds}
print("RESULT", json.dumps(result))
"""


def parse(variables: Iterable[tuple[str, str]] = ()) -> dict[str, Any]:
    """Parse the DAGs in a process of their own."""
    env = {**os.environ, **dict(variables), "PYTHONPATH": str(DAGS.parent / "plugins")}
    command = [sys.executable, "-c", PARSE, str(DAGS)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    result: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
    return {**result, "log": done.stdout + done.stderr}


def test_parsing_asks_nobody_over_the_network(record_property: Callable[[str, object], None]) -> None:
    result = parse()
    assert "fruit_features" in result["dags"]
    assert result["contacts"] == []
    record_property("parsing dags/, once Airflow and its provider are imported", f"{result['seconds']:.2f} s")


def test_a_default_of_deferrable_changes_nothing() -> None:
    assert parse([("AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE", "True")])["deferrable"] == [
        f"{step}.wait_step" for step in sorted(STEPS)
    ]


def test_the_params_are_those_that_a_plan_takes(dag: DAG) -> None:
    assert set(dag.params) == set(PARAMS)


def test_wrong_settings_are_an_import_error_that_names_them() -> None:
    result = parse([("ORCHARD_POLL_SECONDS", "soon")])
    assert result["dags"] == []
    assert re.search(r"BadSettings: ORCHARD_POLL_SECONDS is 'soon': give a whole number", result["log"])


def test_preflight_waits_for_its_turn_as_long_as_a_cluster_may_live(dag: DAG) -> None:
    preflight: Any = dag.get_task("preflight")
    settings = Settings.from_env(os.environ)
    assert preflight.timeout == settings.max_cluster_hours * 3600
    assert preflight.poke_interval == settings.poll_seconds


@pytest.mark.parametrize(("reasons", "ready"), [([], True), (["another run works on the dataset"], False)])
def test_preflight_checks_what_was_planned_and_looks_again_while_there_is_a_reason_to_wait(
    dag: DAG, monkeypatch: pytest.MonkeyPatch, reasons: list[str], ready: bool
) -> None:
    preflight: Any = dag.get_task("preflight")
    asked: list[Any] = []

    def check(clients: Any, settings: Settings, run: Any) -> list[str]:
        asked.append(([client.meta.service_model.service_name for client in vars(clients).values()], settings, run))
        return reasons

    monkeypatch.setitem(preflight.python_callable.__globals__, "check", check)
    planned = {"run_uri": "s3://b/runs/1"}
    assert bool(preflight.poke({"ti": Xcoms(plan=planned)})) is ready
    assert asked == [(["s3", "iam", "ec2", "emr"], Settings.from_env(os.environ), planned)]
