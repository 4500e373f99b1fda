"""# Fruit features

Turns a folder of images on S3 into MobileNetV2 features and PCA vectors, on an EMR cluster that exists only for the
run.

| task | what it does |
|---|---|
| `plan` | lists the images, compares them with the tables, names the run, sizes its cluster, builds its requests |
| `preflight` | checks everything that can be checked before money is spent |
| `wait_turn` | waits while another run uses the dataset, and while the cluster limit is reached; the oldest is next |
| `create_cluster`, `cluster_ready` | creates the cluster, waits until it accepts steps |
| `ingest` | reads and verifies the new and changed images; each is accepted or rejected with a reason |
| `features` | computes MobileNetV2 features, 1280 numbers per image, of each content that no run has seen before |
| `pca` | fits a centred PCA to all images of the dataset, or uses the last one; computes all vectors |
| `publish` | checks the steps and the quality, commits the run to the tables, updates the asset `fruit_embeddings` |
| `hold_cluster` | with `hold_minutes`, keeps the cluster for so long after `publish`, to look around on it |
| `terminate_cluster`, `cluster_gone` | terminates the cluster, whether the run succeeded or failed |
| `verdict` | the last task: releases the run's turn, records what it has cost, and fails if it has failed |

**If nothing has changed** since the published run, the run succeeds after `plan`, and all other tasks are skipped. The
last line of the log of `plan` says so. The XCom `summary` of `plan` has the counts of every run. If another run of the
dataset was published while a run waited, `wait_turn` compares the dataset with the tables again, and is skipped if
nothing is left to do.

**To run it by hand,** trigger it with another *dataset prefix*. All fields have defaults. If the DAG is
paused, the trigger also unpauses it: from then on it runs every night at 02:00, Europe/Paris.
**When a step fails,** the log of its `wait_step` ends with the exception, the last lines of the step's log, and the
folder of all its logs. To retry, clear the failed task, with downstream or all failed tasks: that creates a new cluster
and redoes this step and the later ones. To redo a run that is published, clear `plan` with downstream, or trigger it
with *full refresh*. See `docs/runbook.md`.
"""

import os
from datetime import timedelta
from functools import partial
from typing import Any

from airflow.providers.amazon.aws.hooks.base_aws import AwsBaseHook
from airflow.sdk import (
    Asset,
    CronTriggerTimetable,
    XComArg,
    chain,
    dag,
    task,
    task_group,
)
from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert

from orchard.airflow.alerts import FailedRunAlert, SucceededRunAlert, alert_late_run, record_cause, run_link
from orchard.airflow.channels import Channels
from orchard.airflow.costs import spent_so_far
from orchard.airflow.deadline import RunAfterDeadline
from orchard.airflow.identity import airflow_identity
from orchard.airflow.links import link_tasks_to_run
from orchard.airflow.operators import CLEAR_NUMBER, AddStepOperator, CreateClusterOperator, TerminateClustersOperator
from orchard.airflow.planning import SUMMARY, confirm_plan, listing_client, log_sentence, open_tables
from orchard.airflow.retries import retry_args
from orchard.airflow.sensors import (
    ClusterReadySensor,
    ClustersGoneSensor,
    HoldClusterSensor,
    StepEndSensor,
    VerdictSensor,
)
from orchard.airflow.task_docs import first_paragraph
from orchard.airflow.trigger_form import run_params
from orchard.airflow.turns import end_earlier_round, take_dataset, take_turn
from orchard.preflight.checks import Clients, check
from orchard.run.steps import STEPS, step_timeout
from orchard.settings import Settings

SETTINGS = Settings.from_env(os.environ, airflow_identity())
EMBEDDINGS = Asset(name="fruit_embeddings", uri=f"{SETTINGS.warehouse_uri}/embeddings", group="orchard")
EVENT_KEYS = (
    *("dataset_uri", "run_id", "run_uri", "new", "changed", "deleted", "inferences"),
    *("images_ingested", "images_rejected", "features_rows", "embeddings_rows", "tables"),
)


def aws(service: str) -> Any:
    """Return a boto3 client for a service."""
    return AwsBaseHook(client_type=service, region_name=SETTINGS.region).conn


# Without a result, all other tasks are skipped, the teardown too, because its setups are skipped.
@task.short_circuit(multiple_outputs=True, on_success_callback=log_sentence)
def plan(*, params: Any = None, dag_run: Any = None, ti: Any = None) -> dict[str, Any]:
    """List the images, compare them with the tables, name the run, build the requests to EMR."""
    # Imported here because pyiceberg and DuckDB take longer to import than the rest of Orchard. At the top of the file
    # they would slow down every parse.
    from orchard.run.plan import plan_run

    run: dict[str, Any] = {"dag_id": dag_run.dag_id, "run_id": dag_run.run_id, "run_after": dag_run.run_after}
    if dag_run.clear_number:
        run["end_earlier_round"] = partial(end_earlier_round, ti, SETTINGS)
    planned = plan_run(listing_client(SETTINGS), open_tables(SETTINGS), SETTINGS, params, **run)
    ti.xcom_push(SUMMARY, dict(planned.changes))
    return {} if planned.changes["nothing_to_do"] else dict(planned.run)


@task
def preflight(plan: Any) -> None:
    """Check everything that can be checked before money is spent."""
    check(Clients(**{service: aws(service) for service in ("s3", "iam", "ec2", "emr", "glue", "sns")}), SETTINGS, plan)


@task.sensor(
    task_display_name="wait_turn: wait for the dataset and for a free cluster",
    mode="reschedule",
    poke_interval=SETTINGS.poll_seconds,
    timeout=SETTINGS.max_cluster_hours * 60 * 60,  # in seconds; the clusters that it waits for do not run longer
)
def wait_turn(plan: Any, *, params: Any = None, ti: Any = None) -> bool:
    """Wait while another run uses the dataset, and while the cluster limit is reached."""
    is_its_turn = take_turn(ti, SETTINGS, plan)
    if is_its_turn:
        confirm_plan(ti, SETTINGS, plan, params)
    return is_its_turn


@task_group
def spark_step(name: str, plan: Any, cluster_id: Any) -> None:
    """Add one EMR step, then wait for it without holding a worker slot."""
    step: dict[str, Any] = {"step": plan[f"{name}_step"], "plan": plan, "settings": SETTINGS}
    add_step = AddStepOperator(
        task_id="add_step",
        doc_md=first_paragraph(AddStepOperator),
        job_flow_id=cluster_id,
        region_name=SETTINGS.region,
        **step,
    )
    StepEndSensor(
        task_id="wait_step",
        doc_md=first_paragraph(StepEndSensor),
        job_flow_id=cluster_id,
        step_id=add_step.output,
        clear_number=XComArg(add_step, CLEAR_NUMBER),
        region_name=SETTINGS.region,
        poke_interval=SETTINGS.poll_seconds,
        step_timeout=step_timeout(SETTINGS, name),
        **step,
    )


@task(outlets=[EMBEDDINGS], on_success_callback=log_sentence)
def publish(
    plan: Any, cluster_id: str, *, ti: Any = None, dag_run: Any = None, outlet_events: Any = None
) -> dict[str, Any]:
    """Check that the steps agree, commit the run to the tables, write its summary, update the asset."""
    from orchard.report.file import write_report
    from orchard.run.publish import publish_run
    from orchard.run.quality import shorten

    take_dataset(ti, SETTINGS, plan)  # if only failed tasks were cleared, `wait_turn` has not run again
    spent = spent_so_far(SETTINGS, plan, dag_run)
    s3, tables = aws("s3"), open_tables(SETTINGS)
    summary = publish_run(s3, tables, SETTINGS, plan, cluster_id, spent)
    write_report(s3, tables, SETTINGS, summary, spent.usd, run_link(ti.dag_id, ti.run_id))
    outlet_events[EMBEDDINGS].extra = {**{key: summary[key] for key in EVENT_KEYS}, "cost_usd": spent.usd}
    ti.xcom_push(SUMMARY, shorten(summary))
    return shorten(summary)


@dag(
    # Without a start date, because the last due run would otherwise start when somebody unpauses the DAG for the first
    # time, for instance with a trigger in the UI. The margin is for a scheduler that is late.
    schedule=CronTriggerTimetable("0 2 * * *", timezone="Europe/Paris", run_immediately=timedelta(minutes=5)),
    catchup=False,
    max_active_runs=4,  # each has its own cluster and folder; a long manual run must not delay the nightly one
    # An alert instead of dagrun_timeout, which would skip the teardown.
    deadline=DeadlineAlert(
        reference=RunAfterDeadline(),
        interval=timedelta(hours=SETTINGS.deadline_hours),
        callback=AsyncCallback(
            alert_late_run,
            # Without the URL of the webhook: Airflow stores the arguments.
            {
                "hours": SETTINGS.deadline_hours,
                "topic_arn": SETTINGS.alert_topic_arn,
                "region": SETTINGS.region,
                "email": list(SETTINGS.alert_email),
            },
        ),
    ),
    on_failure_callback=FailedRunAlert(SETTINGS),
    on_success_callback=SucceededRunAlert(SETTINGS) if Channels.of(SETTINGS) else None,
    dag_display_name="Fruit features",
    doc_md=__doc__,
    tags=["emr", "fruits", "orchard"],
    params=run_params(SETTINGS),
    default_args={
        "owner": SETTINGS.owner,
        "on_failure_callback": record_cause,
        **retry_args(SETTINGS),
    },
)
def fruit_features() -> None:
    """Wire the tasks."""
    planned: Any = plan()
    checked: Any = preflight(planned)
    taken: Any = wait_turn(planned)
    run: dict[str, Any] = {"plan": planned, "settings": SETTINGS}
    create_cluster = CreateClusterOperator(
        task_id="create_cluster", job_flow_overrides=planned["cluster"], region_name=SETTINGS.region, **run
    )
    created_id: Any = create_cluster.output
    cluster_ready = ClusterReadySensor(
        task_id="cluster_ready",
        job_flow_id=created_id,
        request=planned["cluster"],
        region_name=SETTINGS.region,
        poke_interval=SETTINGS.poll_seconds,
        launch_timeout=timedelta(minutes=SETTINGS.ready_timeout_minutes),
        **run,
    )
    cluster_id: Any = cluster_ready.output
    spark_steps: list[Any] = [spark_step.override(group_id=name)(name, planned, cluster_id) for name in STEPS]
    # If `create_cluster` or `cluster_ready` failed, its id is None: Airflow resolves a missing XCom to None.
    run_clusters: dict[str, Any] = {
        "cluster_name": planned["cluster_name"],
        "known_ids": [created_id, cluster_id],
        "region_name": SETTINGS.region,
    }
    gone: dict[str, Any] = {
        "poke_interval": SETTINGS.poll_seconds,
        "timeout": timedelta(minutes=SETTINGS.ready_timeout_minutes),
        **run_clusters,
    }
    terminate_cluster = TerminateClustersOperator(task_id="terminate_cluster", **run_clusters)
    cluster_gone = ClustersGoneSensor(
        task_id="cluster_gone", task_display_name="cluster_gone: wait until no cluster is active", **gone
    )
    # Without ids: an edge from `create_cluster` would make that a setup of `verdict`. The name identifies the clusters.
    verdict = VerdictSensor(
        task_id="verdict",
        task_display_name="verdict: success or failure of the run",
        **run,
        **gone | {"known_ids": []},
    )
    # The cluster of the last step: a cleared `wait_step` may have used another than `cluster_ready` returned.
    last_cluster_id: Any = XComArg(spark_steps[-1].children[f"{STEPS[-1]}.wait_step"])
    published = publish(planned, last_cluster_id)
    # It waits for `publish` by its state, not by an edge: without a hold, the cluster terminates while `publish` runs.
    # And with an edge, clearing `publish` with downstream would clear this task, and create a cluster for it.
    hold_cluster = HoldClusterSensor(
        task_id="hold_cluster",
        job_flow_id=last_cluster_id,
        region_name=SETTINGS.region,
        poke_interval=SETTINGS.poll_seconds,
        timeout=timedelta(hours=SETTINGS.max_cluster_hours),  # of the wait for `publish`
        **run,
    )
    for operator in (create_cluster, cluster_ready, hold_cluster, terminate_cluster, cluster_gone, verdict):
        operator.doc_md = first_paragraph(type(operator))
    chain(planned, checked, taken, create_cluster, cluster_ready, *spark_steps, [published, hold_cluster])
    chain(hold_cluster, terminate_cluster, cluster_gone, verdict)
    chain(published, verdict)
    # `preflight` is also a setup, so that the teardown looks for a cluster whose creation failed halfway. So is
    # `cluster_ready`, so that clearing a step creates a cluster and waits for it.
    for end in (terminate_cluster, cluster_gone):
        end.as_teardown(setups=[checked, create_cluster, cluster_ready], on_failure_fail_dagrun=True)
    # `wait_turn` is a setup of `verdict` alone, so that clearing `publish` takes the turn but creates no cluster. So is
    # `preflight`, so that `verdict` also judges a run that was marked failed before its turn.
    verdict.as_teardown(setups=[checked, taken], on_failure_fail_dagrun=True)


link_tasks_to_run(fruit_features(), SETTINGS.region)
