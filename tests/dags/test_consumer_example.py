"""The DAG in the README that is scheduled on the asset of the embeddings."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pyiceberg.catalog
import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import DAG, Asset
from airflow.sdk.api.datamodels._generated import AssetEventDagRunReference
from airflow.sdk.definitions.asset import AssetNameRef
from airflow.sdk.execution_time.comms import AssetEventDagRunReferenceResult
from airflow.sdk.execution_time.context import TriggeringAssetEventsAccessor
from airflow.serialization.serialized_objects import DagSerialization
from pyiceberg.utils.config import Config

from orchard.tables.catalog import open_catalog
from tests.plugins.deployed import Deployment, first_of, second_of, settings_of

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

ROOT = Path(__file__).parents[2]


def code_in_readme() -> str:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    (code,) = [block for block in blocks if "fruit_embeddings" in block]
    return str(code)


def load(folder: Path, code: str) -> DAG:
    file = folder / "use_embeddings.py"
    file.write_text(code)
    bag = DagBag(str(file))
    assert bag.import_errors == {}
    found: DAG = bag.dags["use_embeddings"]
    return found


@pytest.fixture(scope="module")
def fruit_features() -> DAG:
    bag = DagBag(str(ROOT / "dags/fruit_features.py"))
    found: DAG = bag.dags["fruit_features"]
    return found


def asset_of(dag: DAG) -> Asset:
    (asset,) = dag.get_task("publish").outlets
    assert isinstance(asset, Asset)
    return asset


def test_it_is_scheduled_on_the_asset_that_publish_updates(tmp_path: Path, fruit_features: DAG) -> None:
    dag = load(tmp_path, code_in_readme())
    assert dag.schedule == AssetNameRef(asset_of(fruit_features).name)
    scheduled: Any = DagSerialization.from_dict(DagSerialization.to_dict(dag)).timetable
    assert scheduled.asset_condition.name == "fruit_embeddings", "so the scheduler knows it, too"


def test_it_reads_the_embeddings_of_the_run_of_each_event(
    s3: "S3Client",
    bucket: str,
    tmp_path: Path,
    fruit_features: DAG,
    aws_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws_url)
    monkeypatch.setenv("PYICEBERG_CATALOG__GLUE__S3__ENDPOINT", aws_url)
    monkeypatch.setattr(pyiceberg.catalog, "_ENV_CONFIG", Config())
    settings = settings_of(bucket)
    deployed = Deployment(s3, open_catalog(boto3.Session(), settings), settings)
    first = first_of(bucket)
    runs = [first, second_of(first)]
    asset = asset_of(fruit_features)
    publish: Any = fruit_features.get_task("publish")
    keys: tuple[str, ...] = publish.python_callable.__globals__["EVENT_KEYS"]
    events = []
    for run in runs:
        summary = deployed.publish(run)
        extra = {key: summary[key] for key in keys} | {"cost_usd": 0.01}
        events.append(event(asset, extra))

    dag = load(tmp_path, code_in_readme().replace("orchard.embeddings", f"{settings.catalog_database}.embeddings"))
    task: Any = dag.get_task("read")
    accessor = TriggeringAssetEventsAccessor.build(events)
    task.python_callable(triggering_asset_events=accessor)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(first.dataset_uri)]
    assert [line.split()[1::3] for line in lines] == [[run.name, str(run.images)] for run in runs]


def event(asset: Asset, extra: dict[str, Any]) -> AssetEventDagRunReferenceResult:
    """Return an event as the API server returns it to a task, after a way through JSON."""
    reference = AssetEventDagRunReference.model_validate(
        {
            "asset": {"name": asset.name, "uri": asset.uri, "extra": {}},
            "extra": extra,
            "source_task_id": "publish",
            "source_dag_id": "fruit_features",
            "source_run_id": "scheduled",
            "source_map_index": -1,
            "source_aliases": [],
            "timestamp": datetime.now(UTC),
        }
    )
    reference = AssetEventDagRunReference.model_validate_json(reference.model_dump_json())
    return AssetEventDagRunReferenceResult.from_asset_event_dag_run_reference(reference)
