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
    Param,
    XComArg,
    chain,
    dag,
    task,
    task_group,
)
from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert

from orchard.airflow.alerts import FailedRunAlert, alert_late_run, record_cause
from orchard.airflow.costs import find_cost
from orchard.airflow.deadline import RunAfterDeadline
from orchard.airflow.identity import airflow_identity
from orchard.airflow.links import link_tasks_to_run
from orchard.airflow.operators import CLEAR_NUMBER, AddStepOperator, CreateClusterOperator, TerminateClustersOperator
from orchard.airflow.planning import SUMMARY, confirm_plan, listing_client, log_nothing_to_do, open_tables
from orchard.airflow.retries import retry_args
from orchard.airflow.sensors import ClusterReadySensor, ClustersGoneSensor, StepEndSensor, VerdictSensor
from orchard.airflow.turns import end_earlier_round, take_dataset, take_turn
from orchard.cluster.instances import INSTANCE_TYPES
from orchard.dataset.uri import DATASET_URI_PATTERN
from orchard.preflight.checks import Clients, check
from orchard.run.params import (
    DEFAULT_MAX_BYTES,
    DEFAULT_MAX_PIXELS,
    DEFAULT_TARGET_MINUTES,
    LARGEST_MAX_BYTES,
    MAX_COMPONENTS,
    MAX_CORE_INSTANCES,
    PCA_MODES,
    REFIT,
)
from orchard.run.steps import STEPS, step_timeout
from orchard.settings import Settings

SETTINGS = Settings.from_env(os.environ, airflow_identity())
EMBEDDINGS = Asset(name="fruit_embeddings", uri=f"{SETTINGS.warehouse_uri}/embeddings", group="orchard")
EVENT_KEYS = (
    *("dataset_uri", "run_id", "run_uri", "new", "changed", "deleted", "inferences"),
    *("images_ingested", "images_rejected", "features_rows", "embeddings_rows", "tables"),
)

PARAMS = {
    "dataset_uri": Param(
        SETTINGS.dataset_uri,
        type="string",
        pattern=DATASET_URI_PATTERN,
        title="Dataset prefix",
        description="Folder of images on S3, with one folder per label. Ends in /, without empty parts, . or ..",
    ),
    "n_components": Param(
        0.95,
        type="number",
        exclusiveMinimum=0,
        maximum=MAX_COMPONENTS,
        anyOf=[{"exclusiveMaximum": 1}, {"multipleOf": 1}],
        title="PCA components",
        description="As in scikit-learn: a whole number of components, or the share of variance to keep (0.95).",
    ),
    "pca_mode": Param(
        REFIT,
        type="string",
        enum=list(PCA_MODES),
        title="PCA mode",
        description="refit: fit the PCA to all images. frozen: use the last basis of the dataset, so that vectors stay "
        "comparable with earlier ones; PCA components is not used.",
    ),
    "max_reject_ratio": Param(
        0.05,
        type="number",
        minimum=0,
        maximum=1,
        title="Tolerated share of broken images",
        description="The run fails if a larger share of the objects cannot be read as images.",
    ),
    "max_lost_ratio": Param(
        0.5,
        type="number",
        minimum=0,
        maximum=1,
        title="Tolerated share of lost images",
        description="The run fails if the dataset has lost a larger share of the images that are published.",
    ),
    "max_bytes": Param(
        DEFAULT_MAX_BYTES,
        type="integer",
        minimum=1,
        maximum=LARGEST_MAX_BYTES,
        title="Largest object, in bytes",
        description="A larger object is rejected without being read.",
    ),
    "max_pixels": Param(
        DEFAULT_MAX_PIXELS,
        type="integer",
        minimum=1,
        title="Largest image, in pixels",
        description="An image whose width times height is larger is rejected without being decoded.",
    ),
    "retry_rejects": Param(
        False,
        type="boolean",
        title="Retry rejects",
        description="Read objects again that an earlier run rejected, although they have not changed.",
    ),
    "full_refresh": Param(
        False,
        type="boolean",
        title="Full refresh",
        description="Read all objects again, although they have not changed. Known contents are not inferred again.",
    ),
    "instance_type": Param(
        "m5.xlarge",
        type="string",
        enum=list(INSTANCE_TYPES),
        title="Instance type",
        description="EC2 instance type of the workers. The primary node has the smallest type of the same family.",
    ),
    "core_instances": Param(
        None,
        type=["null", "integer"],
        minimum=1,
        maximum=MAX_CORE_INSTANCES,
        title="Workers",
        description="Number of On-Demand core instances, in addition to the primary node. Empty: as many workers as "
        "the target needs, all but one on Spot.",
    ),
    "target_minutes": Param(
        DEFAULT_TARGET_MINUTES,
        type="number",
        exclusiveMinimum=0,
        title="Target, in minutes",
        description="If Workers is empty: the run gets as many workers as it needs to finish within this time.",
    ),
    "max_cost_usd": Param(
        None,
        type=["null", "number"],
        exclusiveMinimum=0,
        title="Cost limit, in USD",
        description="A run whose estimated price is higher is refused before anything exists. Empty: no limit.",
    ),
}


def aws(service: str) -> Any:
    """Return a boto3 client for a service."""
    return AwsBaseHook(client_type=service, region_name=SETTINGS.region).conn


# Without a result, all other tasks are skipped, the teardown too, because its setups are skipped.
@task.short_circuit(multiple_outputs=True, on_success_callback=log_nothing_to_do)
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
    check(Clients(s3=aws("s3"), iam=aws("iam"), ec2=aws("ec2"), emr=aws("emr")), SETTINGS, plan)


@task.sensor(
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
    add_step = AddStepOperator(task_id="add_step", job_flow_id=cluster_id, region_name=SETTINGS.region, **step)
    StepEndSensor(
        task_id="wait_step",
        job_flow_id=cluster_id,
        step_id=add_step.output,
        clear_number=XComArg(add_step, CLEAR_NUMBER),
        region_name=SETTINGS.region,
        poke_interval=SETTINGS.poll_seconds,
        step_timeout=step_timeout(SETTINGS, name),
        **step,
    )


@task(outlets=[EMBEDDINGS])
def publish(
    plan: Any, cluster_id: str, *, ti: Any = None, dag_run: Any = None, outlet_events: Any = None
) -> dict[str, Any]:
    """Check that the steps agree, commit the run to the tables, write its summary, update the asset."""
    from orchard.run.publish import publish_run
    from orchard.run.quality import shorten

    take_dataset(ti, SETTINGS, plan)  # if only failed tasks were cleared, `wait_turn` has not run again
    summary = publish_run(aws("s3"), open_tables(SETTINGS), SETTINGS, plan, cluster_id)
    cost = find_cost(SETTINGS, plan, dag_run.run_after)  # so far: the cluster is still active
    outlet_events[EMBEDDINGS].extra = {**{key: summary[key] for key in EVENT_KEYS}, "cost_usd": cost and cost.usd}
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
            {"hours": SETTINGS.deadline_hours, "topic_arn": SETTINGS.alert_topic_arn, "region": SETTINGS.region},
        ),
    ),
    on_failure_callback=FailedRunAlert(SETTINGS.alert_topic_arn, SETTINGS.region),
    doc_md=__doc__,
    tags=["emr", "fruits", "orchard"],
    params=PARAMS,
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
    cluster_gone = ClustersGoneSensor(task_id="cluster_gone", **gone)
    # Without ids: an edge from `create_cluster` would make that a setup of `verdict`. The name identifies the clusters.
    verdict = VerdictSensor(task_id="verdict", **run, **gone | {"known_ids": []})

    # The cluster of the last step: a cleared `wait_step` may have used another than `cluster_ready` returned.
    last_cluster_id: Any = XComArg(spark_steps[-1].children[f"{STEPS[-1]}.wait_step"])
    published = publish(planned, last_cluster_id)
    chain(planned, checked, taken, create_cluster, cluster_ready, *spark_steps, [published, terminate_cluster])
    chain(terminate_cluster, cluster_gone, verdict)
    chain(published, verdict)
    # `preflight` is also a setup, so that the teardown looks for a cluster whose creation failed halfway. So is
    # `cluster_ready`, so that clearing a step creates a cluster and waits for it.
    for end in (terminate_cluster, cluster_gone):
        end.as_teardown(setups=[checked, create_cluster, cluster_ready], on_failure_fail_dagrun=True)
    # `wait_turn` is a setup of `verdict` alone, so that clearing `publish` takes the turn but creates no cluster. So is
    # `preflight`, so that `verdict` also judges a run that was marked failed before its turn.
    verdict.as_teardown(setups=[checked, taken], on_failure_fail_dagrun=True)


link_tasks_to_run(fruit_features(), SETTINGS.region)
