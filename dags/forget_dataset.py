"""# Forget dataset

Removes a dataset from the tables: its rows in `images`, `rejects`, `embeddings`, `pca_models` and `runs`, and the
features that its runs inferred. Nothing else ever removes a dataset.

| what | after this DAG |
|---|---|
| rows of the dataset in all tables | removed |
| features that only images of the dataset have | removed |
| features that images of other datasets have, too | kept |
| the objects of the dataset, and the folders of its runs | kept |
| earlier snapshots of the tables | readable until `table_maintenance` expires them |

**To delete the rows from S3, too,** trigger `table_maintenance` three days later, with *kept runs* 0 and without *dry
run*. Then only the current state of all datasets, and snapshots with a tag, can be read. If its report has *reserved*
files of `features`, first delete the folders in `scratch/` of runs that were not published.
**To run it,** trigger it with the *dataset URI*. It waits while a run uses the dataset, and fails if that takes too
long: clear it when the run has finished. A run that was planned before is refused by its task `publish`.
**Results:** the XCom of `forget` has the number of removed rows of each table.
"""

import os
from datetime import timedelta
from typing import Any

from airflow.providers.amazon.aws.hooks.base_aws import AwsBaseHook
from airflow.sdk import dag, task

from orchard.airflow.identity import airflow_identity
from orchard.airflow.planning import open_tables
from orchard.airflow.retries import retry_args
from orchard.airflow.trigger_form import dataset_field
from orchard.airflow.turns import take_dataset, turn_of
from orchard.settings import Settings

SETTINGS = Settings.from_env(os.environ, airflow_identity())

PARAMS = {
    "dataset_uri": dataset_field(
        SETTINGS,
        title="Dataset URI",
        description="The dataset whose rows are removed from the tables, such as s3://your-bucket/images/.",
    ),
}


@task(execution_timeout=timedelta(hours=1))
def forget(*, params: Any = None, ti: Any = None) -> dict[str, int]:
    """Remove the dataset from the tables. Return the number of removed rows of each table."""
    # Imported here because pyiceberg takes longer to import than the rest of Orchard.
    from orchard.run.forget import forget_dataset

    dataset = {"dataset_uri": params["dataset_uri"]}
    take_dataset(ti, SETTINGS, dataset)
    try:
        s3 = AwsBaseHook(client_type="s3", region_name=SETTINGS.region).conn
        return forget_dataset(s3, open_tables(SETTINGS), SETTINGS, params["dataset_uri"])
    finally:
        turn_of(ti, SETTINGS, dataset).release()


@dag(
    schedule=None,
    catchup=False,
    max_active_runs=1,
    dag_display_name="Forget dataset",
    doc_md=__doc__,
    tags=["orchard"],
    params=PARAMS,
    default_args={"owner": SETTINGS.owner, **retry_args(SETTINGS)},
)
def forget_dataset() -> None:
    """Define the DAG, which has one task."""
    forget()


forget_dataset()
