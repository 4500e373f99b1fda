"""# Fruit features

Turns a folder of images on S3 into MobileNetV2 features and PCA vectors, on an EMR cluster that exists only for the
run.

| task | what it does |
|---|---|
| `plan` | lists the images, names the run's folder, sizes the cluster |
| `preflight` | checks all that is needed, before money is spent; waits while another run works on the dataset |
| `create_cluster`, `cluster_ready` | makes the cluster, waits until it takes steps |
| `ingest` | reads and verifies the images; each ends in the run's `images/` or, with a reason, in its `rejects/` |
| `features` | MobileNetV2, 1280 numbers an image, into `features/` |
| `pca` | centred PCA, into `embeddings/` and `pca_model/` |
| `publish` | checks that the steps agree, commits the run to the tables, tells the asset `fruit_embeddings` |
| `terminate_cluster`, `cluster_gone` | ends the cluster, whether the run succeeded or failed |
| `verdict` | fails a run that was marked failed, which Airflow would call a success |

**By hand:** Trigger, and give another *dataset prefix*; all fields have good defaults.
**When a step failed:** the log of its `wait_step` ends with the exception, the last lines of the step's log, and the
folder of all its logs. To try again, clear the step's `add_step` *with downstream*: that makes a new cluster and redoes
this step and the later ones. More is in `docs/runbook.md`.
"""

import os
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.providers.amazon.aws.hooks.base_aws import AwsBaseHook
from airflow.sdk import (
    Asset,
    CronTriggerTimetable,
    ExceptionRetryPolicy,
    Param,
    RetryAction,
    RetryRule,
    chain,
    dag,
    task,
    task_group,
)
from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference

from orchard.alerts import tell_of_late_run
from orchard.cluster import INSTANCE_TYPES
from orchard.errors import WillNotHeal
from orchard.operators import (
    AddStepOperator,
    ClusterReadySensor,
    ClustersGoneSensor,
    CreateClusterOperator,
    StepEndSensor,
    TerminateClustersOperator,
)
from orchard.plan import plan_run
from orchard.preflight import Clients, check
from orchard.settings import Settings
from orchard.steps import Stage, spark_step, stages
from orchard.verdict import check_verdict

SETTINGS = Settings.from_env(os.environ)
EMBEDDINGS = Asset(name="fruit_embeddings", uri=f"{SETTINGS.warehouse_uri}/embeddings", group="orchard")
EVENT_KEYS = ("dataset_uri", "run_id", "run_uri", "images_rejected", "features_rows", "embeddings_rows", "tables")

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

CREATED_ID = "{{ ti.xcom_pull(task_ids='create_cluster') }}"
CLUSTER_ID = "{{ ti.xcom_pull(task_ids='cluster_ready') }}"
CLUSTER_NAME = "{{ ti.xcom_pull(task_ids='plan')['cluster']['Name'] }}"
RELEASE_URI = "{{ ti.xcom_pull(task_ids='plan')['release_uri'] }}"
CLUSTER_REQUEST = "{{ ti.xcom_pull(task_ids='plan')['cluster'] }}"
# Trying again would end in the same way.
RETRY_POLICY = ExceptionRetryPolicy([RetryRule(WillNotHeal, RetryAction.FAIL)])
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


@task.sensor(
    mode="reschedule",
    poke_interval=SETTINGS.poll_seconds,
    timeout=SETTINGS.max_cluster_hours * 60 * 60,  # seconds; no cluster that it could wait for lives longer
)
def preflight(*, ti: Any = None) -> bool:
    """Check everything that can be checked before money is spent; then wait for the run's turn, if it must."""
    clients = Clients(s3=aws("s3"), iam=aws("iam"), ec2=aws("ec2"), emr=aws("emr"))
    return not check(clients, SETTINGS, ti.xcom_pull(task_ids="plan"))


@task_group
def spark_stage(stage: Stage) -> None:
    """Submit one EMR step, then wait for it without holding a worker slot."""
    add_step = AddStepOperator(
        task_id="add_step",
        job_flow_id=CLUSTER_ID,
        step=spark_step(stage, release_uri=RELEASE_URI),
        region_name=SETTINGS.region,
    )
    StepEndSensor(
        task_id="wait_step",
        job_flow_id=CLUSTER_ID,
        step_id=add_step.output,
        region_name=SETTINGS.region,
        poke_interval=SETTINGS.poll_seconds,
        budget=stage.timeout,
        log_uri=SETTINGS.log_uri,
    )


@task(outlets=[EMBEDDINGS])
def publish(*, ti: Any = None, outlet_events: Any = None) -> dict[str, Any]:
    """Check that the steps agree, commit the run to the tables, write its summary, tell the asset."""
    # Imported here, as each parse of this file would pay for it: pyiceberg takes longer than all the rest of ours.
    from orchard.catalog import open_catalog
    from orchard.publish import publish_run

    session = AwsBaseHook(client_type="glue", region_name=SETTINGS.region).get_session()
    run, cluster_id = ti.xcom_pull(task_ids="plan"), ti.xcom_pull(task_ids="cluster_ready")
    summary = publish_run(aws("s3"), open_catalog(session, SETTINGS), SETTINGS, run, cluster_id)
    outlet_events[EMBEDDINGS].extra = {key: summary[key] for key in EVENT_KEYS}
    return summary


@task
def verdict(*, ti: Any = None) -> None:
    """Fail a run that was marked failed, which Airflow would call a success for its teardown."""
    check_verdict(ti.get_task_states(dag_id=ti.dag_id, run_ids=[ti.run_id])[ti.run_id])


@dag(
    schedule=CronTriggerTimetable("0 2 * * *", timezone="Europe/Paris"),
    start_date=datetime(2026, 11, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=4,  # each has a cluster and a folder of its own; a long run by hand must not delay the nightly one
    # An alert, not dagrun_timeout: that would skip the teardown. With DAGRUN_QUEUED_AT no run could be cleared
    # (https://github.com/apache/airflow/issues/70368).
    deadline=DeadlineAlert(
        reference=DeadlineReference.DAGRUN_LOGICAL_DATE,
        interval=timedelta(hours=SETTINGS.deadline_hours),
        callback=AsyncCallback(
            tell_of_late_run,
            {"hours": SETTINGS.deadline_hours, "topic_arn": SETTINGS.alert_topic_arn, "region": SETTINGS.region},
        ),
    ),
    doc_md=__doc__,
    tags=["emr", "fruits", "orchard"],
    params=PARAMS,
    default_args={
        "owner": SETTINGS.owner,
        # What can heal is tried for a quarter of an hour and more; what cannot, not again.
        "retries": 6,
        "retry_delay": timedelta(seconds=SETTINGS.poll_seconds),
        "retry_exponential_backoff": 2,
        "max_retry_delay": timedelta(minutes=5),
        "retry_policy": RETRY_POLICY,
    },
)
def fruit_features() -> None:
    """Wire the tasks."""
    create_cluster = CreateClusterOperator(
        task_id="create_cluster", job_flow_overrides=CLUSTER_REQUEST, region_name=SETTINGS.region
    )
    cluster_ready = ClusterReadySensor(
        task_id="cluster_ready",
        job_flow_id=CREATED_ID,
        request=CLUSTER_REQUEST,
        region_name=SETTINGS.region,
        poke_interval=SETTINGS.poll_seconds,
        timeout=timedelta(minutes=SETTINGS.ready_timeout_minutes),
    )
    spark_stages = [spark_stage.override(group_id=stage.name)(stage) for stage in STAGES]
    terminate_cluster = TerminateClustersOperator(
        task_id="terminate_cluster",
        cluster_name=CLUSTER_NAME,
        known_ids=[CREATED_ID, CLUSTER_ID],
        region_name=SETTINGS.region,
    )
    cluster_gone = ClustersGoneSensor(
        task_id="cluster_gone",
        cluster_name=CLUSTER_NAME,
        known_ids=[CREATED_ID, CLUSTER_ID],
        region_name=SETTINGS.region,
        poke_interval=SETTINGS.poll_seconds,
        timeout=timedelta(minutes=SETTINGS.ready_timeout_minutes),
    )
    ready_to_create: Any = preflight()

    # `publish` stays a leaf beside the teardown: with the teardown as the only leaf, a failed run would end green.
    chain(plan(), ready_to_create, create_cluster, cluster_ready, *spark_stages, [publish(), terminate_cluster])
    teardown = (terminate_cluster, cluster_gone, verdict())
    chain(*teardown)
    # `preflight` is a setup, too, so that a cluster whose creation has failed halfway is looked for and ended; and
    # `cluster_ready`, so that clearing a step makes a cluster and waits for it.
    for end in teardown:
        end.as_teardown(setups=[ready_to_create, create_cluster, cluster_ready], on_failure_fail_dagrun=True)


fruit_features()
