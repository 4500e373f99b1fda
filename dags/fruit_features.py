"""# Fruit features

Turns a folder of images on S3 into MobileNetV2 features and PCA vectors, on an EMR cluster that exists only for the
run.

| task | what it does |
|---|---|
| `plan` | lists the images, names the run's folder, sizes the cluster |
| `preflight` | checks the release and the roles, before money is spent |
| `create_cluster`, `cluster_ready` | makes the cluster, waits until it takes steps |
| `ingest` | reads and verifies the images; each ends in the run's `images/` or, with a reason, in its `rejects/` |
| `features` | MobileNetV2, 1280 numbers an image, into `features/` |
| `pca` | centred PCA, into `embeddings/` and `pca_model/` |
| `publish` | checks that the steps agree, writes `summary.json`, tells the asset `fruit_embeddings` |
| `terminate_cluster`, `cluster_gone` | ends the cluster, whether the run succeeded or failed |

**By hand:** Trigger, and give another *dataset prefix*; all fields have good defaults.
**When a step failed:** the log of its `wait_step` names the folder of its logs; the traceback is in `stdout.gz` there.
To try again, clear the step's `add_step` *with downstream*: that makes a new cluster and redoes this step and the later
ones.
"""

import os
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.providers.amazon.aws.hooks.base_aws import AwsBaseHook
from airflow.providers.amazon.aws.operators.emr import EmrCreateJobFlowOperator, EmrTerminateJobFlowOperator
from airflow.providers.amazon.aws.sensors.emr import EmrJobFlowSensor
from airflow.sdk import Asset, CronTriggerTimetable, Param, chain, dag, task, task_group

from orchard.catalog import publish_run
from orchard.cluster import INSTANCE_TYPES
from orchard.operators import EmrAddStepOperator, EmrStepEndSensor
from orchard.plan import plan_run
from orchard.preflight import check
from orchard.settings import Settings
from orchard.steps import Stage, spark_step, stages

SETTINGS = Settings.from_env(os.environ)
EMBEDDINGS = Asset(name="fruit_embeddings", uri=f"{SETTINGS.bucket_uri}/runs", group="orchard")

PARAMS = {
    "dataset_uri": Param(
        SETTINGS.dataset_uri,
        type="string",
        pattern="^s3://[a-z0-9][a-z0-9.-]+/(.*/)?$",
        title="Dataset prefix",
        description="Folder of images on S3, with a folder per label. Ends in /.",
    ),
    "n_components": Param(
        0.95,
        type="number",
        exclusiveMinimum=0,
        anyOf=[{"exclusiveMaximum": 1}, {"multipleOf": 1}],
        title="PCA components",
        description="As in scikit-learn: a whole number of components, or the share of the variance to keep (0.95).",
    ),
    "max_reject_ratio": Param(
        0.05,
        type="number",
        minimum=0,
        maximum=1,
        title="Tolerated share of broken images",
        description="The run fails when a larger share of the files is not a readable image.",
    ),
    "instance_type": Param(
        "m5.xlarge",
        type="string",
        enum=list(INSTANCE_TYPES),
        title="Instance type",
        description="Of the primary node and of the workers.",
    ),
    "core_instances": Param(
        2,
        type="integer",
        minimum=1,
        maximum=20,
        title="Workers",
        description="Number of core instances, beside the one primary node.",
    ),
}

CLUSTER_ID = "{{ ti.xcom_pull(task_ids='create_cluster') }}"
RELEASE_URI = "{{ ti.xcom_pull(task_ids='plan')['release_uri'] }}"
CLUSTER_REQUEST = "{{ ti.xcom_pull(task_ids='plan')['cluster'] }}"
STAGES = stages(
    SETTINGS,
    input_uri="{{ params.dataset_uri }}",
    run_uri="{{ ti.xcom_pull(task_ids='plan')['run_uri'] }}",
    model_uri="{{ ti.xcom_pull(task_ids='plan')['model_uri'] }}",
)


def aws(service: str) -> Any:
    """A boto3 client for a service."""
    return AwsBaseHook(client_type=service, region_name=SETTINGS.region).conn


@task
def plan(*, params: Any = None, dag_run: Any = None) -> dict[str, Any]:
    """List the images, name the run, size the cluster."""
    return plan_run(
        aws("s3"), SETTINGS, params, dag_id=dag_run.dag_id, run_id=dag_run.run_id, run_after=dag_run.run_after
    )


@task
def preflight() -> None:
    """Check everything that can be checked before money is spent."""
    check(aws("s3"), aws("iam"), SETTINGS)


@task_group
def spark_stage(stage: Stage) -> None:
    """Submit one EMR step, then wait for it without holding a worker slot."""
    add_step = EmrAddStepOperator(
        task_id="add_step",
        job_flow_id=CLUSTER_ID,
        step=spark_step(stage, release_uri=RELEASE_URI),
        region_name=SETTINGS.region,
        retries=0,  # AddJobFlowSteps is not idempotent: a second call is a second step
    )
    EmrStepEndSensor(
        task_id="wait_step",
        job_flow_id=CLUSTER_ID,
        step_id=add_step.output,  # type: ignore[arg-type]  # the provider's annotation forgets XComs
        region_name=SETTINGS.region,
        deferrable=True,
        poke_interval=SETTINGS.poll_seconds,
        max_attempts=int(stage.timeout.total_seconds() // SETTINGS.poll_seconds),
    )


@task(outlets=[EMBEDDINGS])
def publish(*, ti: Any = None, outlet_events: Any = None) -> dict[str, Any]:
    """Check that the steps agree, write the run's summary, tell the asset."""
    summary = publish_run(aws("s3"), ti.xcom_pull(task_ids="plan"), ti.xcom_pull(task_ids="create_cluster"))
    outlet_events[EMBEDDINGS].extra = {key: summary[key] for key in ("run_uri", "dataset_uri", "embeddings_rows")}
    return summary


@dag(
    schedule=CronTriggerTimetable("0 2 * * *", timezone="Europe/Paris"),
    start_date=datetime(2026, 11, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=4,  # each has a cluster and a folder of its own; a long run by hand must not delay the nightly one
    doc_md=__doc__,
    tags=["emr", "fruits", "orchard"],
    params=PARAMS,
    default_args={
        "owner": SETTINGS.owner,
        "retries": 2,
        "retry_delay": timedelta(seconds=30),
        "deferrable": False,  # whatever Airflow's own default is; only wait_step can be deferred without harm
    },
)
def fruit_features() -> None:
    """Wire the tasks."""
    create_cluster = EmrCreateJobFlowOperator(
        task_id="create_cluster",
        emr_conn_id=None,  # "emr_default" would merge its extra into the request
        job_flow_overrides=CLUSTER_REQUEST,
        region_name=SETTINGS.region,
        retries=0,  # RunJobFlow is not idempotent: a second call is a second bill
    )
    cluster_ready = EmrJobFlowSensor(
        task_id="cluster_ready",
        job_flow_id=CLUSTER_ID,
        target_states=["RUNNING", "WAITING"],
        failed_states=["TERMINATING", "TERMINATED", "TERMINATED_WITH_ERRORS"],
        region_name=SETTINGS.region,
        mode="reschedule",  # deferred, it would ignore target_states and wait for the cluster's end
        poke_interval=SETTINGS.poll_seconds,
        timeout=timedelta(minutes=SETTINGS.ready_timeout_minutes),
    )
    spark_stages = [spark_stage.override(group_id=stage.name)(stage) for stage in STAGES]
    terminate_cluster = EmrTerminateJobFlowOperator(
        task_id="terminate_cluster",
        job_flow_id=CLUSTER_ID,
        region_name=SETTINGS.region,
        retries=5,
    ).as_teardown(setups=create_cluster, on_failure_fail_dagrun=True)
    cluster_gone = EmrJobFlowSensor(
        task_id="cluster_gone",
        job_flow_id=CLUSTER_ID,
        target_states=["TERMINATED", "TERMINATED_WITH_ERRORS"],
        region_name=SETTINGS.region,
        mode="reschedule",
        poke_interval=SETTINGS.poll_seconds,
        timeout=timedelta(minutes=SETTINGS.ready_timeout_minutes),
    ).as_teardown(setups=create_cluster, on_failure_fail_dagrun=True)

    # `publish` stays a leaf beside the teardown: with the teardown as the only leaf, a failed run would end green.
    chain(plan(), preflight(), create_cluster, cluster_ready, *spark_stages, [publish(), terminate_cluster])
    chain(terminate_cluster, cluster_gone)


fruit_features()
