from datetime import UTC, datetime, timedelta

import pytest
from pyiceberg.catalog import Catalog

from orchard.settings import Settings
from orchard.storage import split_uri
from orchard.tables.history import COLUMNS, HISTORY_DAYS, recent_runs
from tests.plugins.deployed import Deployment, second_of
from tests.plugins.runs import Run

NOW = datetime.now(UTC)


def test_without_tables_there_is_no_history(catalog: Catalog, settings: Settings) -> None:
    assert recent_runs(catalog, settings, NOW) == []


def test_the_runs_of_the_last_days_are_read_the_last_one_first(
    deployed: Deployment, catalog: Catalog, first: Run, caplog: pytest.LogCaptureFixture
) -> None:
    deployed.publish(first)
    deployed.publish(second_of(first))
    now = datetime.now(UTC)
    found = recent_runs(catalog, deployed.settings, now)
    assert [set(row) for row in found] == [set(COLUMNS)] * 2
    assert [(row["new"], row["images"], row["inferences"]) for row in found] == [(5, 7, 4), (6, 5, 4)]
    assert found[0]["step_seconds"] == {"plan": 2.5, "ingest": 2.5, "features": 2.5, "pca": 2.5}
    assert found[0]["published_at"] >= found[1]["published_at"]
    assert recent_runs(catalog, deployed.settings, now + timedelta(days=HISTORY_DAYS, minutes=1)) == []
    assert recent_runs(catalog, deployed.settings, now + timedelta(days=HISTORY_DAYS, minutes=-1)) == found

    lost = next(iter(deployed.paths("runs")))
    bucket, key = split_uri(lost)
    deployed.s3.put_object(Bucket=bucket, Key=key, Body=b"no Parquet")
    assert recent_runs(catalog, deployed.settings, now) == []
    deployed.s3.delete_object(Bucket=bucket, Key=key)
    assert recent_runs(catalog, deployed.settings, now) == []
    assert caplog.text.count("the earlier runs cannot be read, so that estimates use default rates") == 2
