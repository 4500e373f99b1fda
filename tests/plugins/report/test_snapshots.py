from collections.abc import Callable

import pyarrow as pa
import pytest
from pyiceberg.catalog import Catalog

from orchard.report.snapshots import PublishedRows, RunNotPublished, SnapshotExpired, published_rows
from orchard.run.forget import forget_dataset
from orchard.settings import Settings
from orchard.tables.catalog import WrongWarehouse
from orchard.tables.rows import where
from orchard.tables.state import MixedRuns
from tests.plugins.deployed import REPLACED, Deployment, in_order
from tests.plugins.published import append
from tests.plugins.runs import SCHEMAS, Run

Rows = Callable[[str, Run], PublishedRows]


@pytest.fixture
def rows_of(catalog: Catalog, settings: Settings) -> Rows:
    return lambda name, run: published_rows(catalog, settings, name, run.dataset_uri, run.name)


def read(rows: PublishedRows, name: str) -> pa.Table:
    columns = [column for column in SCHEMAS[name].names if column != "dataset"]
    return pa.Table.from_batches(rows.stream(columns), pa.schema([SCHEMAS[name].field(column) for column in columns]))


@pytest.mark.parametrize("name", REPLACED)
def test_the_rows_of_a_run_are_found_before_and_after_the_next_one_and_a_rollback(
    deployed: Deployment, rows_of: Rows, first: Run, second: Run, name: str
) -> None:
    def check(run: Run, *, is_current: bool) -> None:
        rows = rows_of(name, run)
        assert (rows.snapshot_id is None) == is_current
        expected = run.rows(name).drop_columns("dataset")
        assert in_order(read(rows, name)) == in_order(expected)
        assert rows.count() == len(expected)

    check(first, is_current=False)
    check(second, is_current=True)
    earlier = next(run for run in deployed.runs() if run.run_id == first.name).snapshots[name]
    deployed.table(name).manage_snapshots().rollback_to_snapshot(earlier).commit()
    check(first, is_current=True)
    check(second, is_current=False)


def test_only_the_chosen_rows_are_read(rows_of: Rows, first: Run) -> None:
    path = first.rows("images")["path"][3].as_py()
    batches = list(rows_of("images", first).stream(["path"], where(path=path)))
    assert [row for batch in batches for row in batch["path"].to_pylist()] == [path]


def test_rows_of_another_run_in_a_snapshot_are_refused(
    deployed: Deployment, catalog: Catalog, settings: Settings, first: Run, second: Run
) -> None:
    row = next(row for row in deployed.rows("runs", first) if row["run_id"] == first.name)
    wrong = {**row, "run_id": "20261122T020000-ffffff"}
    append(catalog, settings, "runs", [wrong])
    rows = published_rows(catalog, settings, "images", first.dataset_uri, str(wrong["run_id"]))
    with pytest.raises(MixedRuns, match="aaaaaa, 20261122T020000-ffffff"):
        list(rows.stream(["path"]))


@pytest.mark.parametrize("snapshots", [None, [], [("images", 1)]])
def test_a_run_that_names_no_snapshot_has_expired(
    deployed: Deployment, catalog: Catalog, settings: Settings, first: Run, snapshots: list[tuple[str, int]] | None
) -> None:
    row = {"dataset": first.dataset_uri, "run_id": "20261101T020000-ffffff", "images": 5, "snapshots": snapshots}
    append(catalog, settings, "runs", [row])
    with pytest.raises(SnapshotExpired, match=r"images has no rows of run 20261101T020000-ffffff"):
        published_rows(catalog, settings, "images", first.dataset_uri, str(row["run_id"]))


def test_a_forgotten_dataset_is_not_shown_although_its_snapshots_exist(
    deployed: Deployment, settings: Settings, rows_of: Rows, first: Run, second: Run
) -> None:
    forget_dataset(deployed.s3, deployed.catalog, settings, first.dataset_uri)
    for name in REPLACED:
        for run in (first, second):
            with pytest.raises(RunNotPublished, match="If forget_dataset has removed the dataset"):
                rows_of(name, run)


def test_the_tables_of_another_deployment_are_refused(
    catalog: Catalog, settings: Settings, deployed: Deployment, first: Run
) -> None:
    other = Settings(bucket="other-bucket", release="1", catalog_database=settings.catalog_database)
    with pytest.raises(WrongWarehouse):
        published_rows(catalog, other, "images", first.dataset_uri, first.name)
