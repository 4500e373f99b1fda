from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pyiceberg.catalog import Catalog

from orchard.report import run_rows
from orchard.report.run_rows import (
    Variance,
    explained_variance,
    rejects_of_run,
    runs_over_time,
)
from orchard.report.snapshots import RunNotPublished, SnapshotExpired
from orchard.settings import Settings
from orchard.tables.catalog import TABLES
from orchard.tables.expiry import Retention, expire_snapshots
from orchard.tables.rows import stream_file
from tests.plugins.deployed import Deployment, other_of
from tests.plugins.published import append
from tests.plugins.runs import Run

DATASET = "s3://fruits-data/images/"
START = datetime(2026, 11, 1, tzinfo=UTC)


def append_runs(catalog: Catalog, settings: Settings, nights: list[int], dataset: str = DATASET) -> None:
    """Add a row of `runs` for each night, in one file."""
    rows = [
        {"dataset": dataset, "run_id": f"run-{night:03d}", "published_at": START + timedelta(days=night)}
        for night in nights
    ]
    append(catalog, settings, "runs", rows)


def test_a_row_of_an_earlier_release_lacks_columns(catalog: Catalog, empty: Settings) -> None:
    append_runs(catalog, empty, [0])
    table = catalog.load_table((empty.catalog_database, "runs"))
    with table.update_schema(allow_incompatible_changes=True) as update:
        for name in ("labels", "cost_usd", "drift"):
            update.delete_column(name)
    (figures,) = runs_over_time(catalog, empty)
    assert (figures.seconds, figures.rejects, figures.cost_usd, figures.step_seconds) == (None, None, None, {})


def test_the_runs_over_time_are_in_the_order_of_their_publication(
    deployed: Deployment, catalog: Catalog, settings: Settings, first: Run, second: Run
) -> None:
    other = other_of(first.bucket)
    found = runs_over_time(catalog, settings)
    assert [(run.run_id, run.dataset) for run in found] == [
        (run.name, run.dataset_uri) for run in (first, other, second)
    ]
    assert [run.run_id for run in runs_over_time(catalog, settings, first.dataset_uri)] == [first.name, second.name]
    last = found[-1]
    assert (last.images, last.rejects, last.new, last.explained_variance, last.drift) == (7, 2, 5, 0.96, 0.125)
    assert last.label_accuracy == 0.75
    planned_at = datetime(2026, 11, 22, 2, 0, 3, 250_000, UTC)
    assert last.seconds == (last.published_at - planned_at).total_seconds()
    assert last.step_seconds["pca"] == 2.5


def test_of_many_runs_only_the_files_of_the_last_ones_are_read(
    catalog: Catalog, empty: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for nights in ([0, 1, 2], [3], [5, 4], [8], [6, 7]):
        append_runs(catalog, empty, nights)
    append_runs(catalog, empty, [3, 9], "s3://fruits-data/other/")
    read: list[str] = []

    def counted(table: Any, task: Any, *arguments: Any) -> Any:
        read.append(task.file.file_path)
        return stream_file(table, task, *arguments)

    monkeypatch.setattr(run_rows, "stream_file", counted)
    for limit, files in ((1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (6, 4), (9, 5), (100, 5)):
        read.clear()
        found = [run.run_id for run in runs_over_time(catalog, empty, DATASET, limit=limit)]
        assert found == [f"run-{night:03d}" for night in range(9)][-limit:]
        assert len(read) == files, limit
    assert len(runs_over_time(catalog, empty, limit=100)) == 11
    assert [run.run_id for run in runs_over_time(catalog, empty, limit=2)] == ["run-008", "run-009"]
    assert runs_over_time(catalog, empty, limit=0) == []


def test_rows_that_another_program_has_added_without_a_time_are_left_out(catalog: Catalog, empty: Settings) -> None:
    append_runs(catalog, empty, [0, 1])
    append(catalog, empty, "runs", [{"dataset": DATASET, "run_id": "run-x"}])
    append(catalog, empty, "runs", [{"dataset": DATASET, "published_at": START}])
    assert [run.run_id for run in runs_over_time(catalog, empty, DATASET)] == ["run-000", "run-001"]
    assert [run.run_id for run in runs_over_time(catalog, empty, DATASET, limit=1)] == ["run-001"]


def test_the_rejects_of_an_earlier_run_stay_until_its_snapshot_expires(
    deployed: Deployment, catalog: Catalog, settings: Settings, first: Run, second: Run
) -> None:
    (earlier, later) = (rejects_of_run(catalog, settings, first.dataset_uri, run.name) for run in (first, second))
    assert (earlier.totals, later.totals) == ({"undecodable": 1}, {"undecodable": 2})
    assert [reject.path for reject in earlier.shown] == first.rows("rejects")["path"].to_pylist()
    assert earlier.shown[0].message == f"rejected by {first.name}"
    runs = [run for run in deployed.runs() if run.run_id == second.name]
    expire_snapshots(deployed.table("rejects"), Retention(runs, datetime.now(UTC)))
    with pytest.raises(SnapshotExpired, match="ORCHARD_KEPT_RUNS"):
        rejects_of_run(catalog, settings, first.dataset_uri, first.name)


def test_a_run_without_rejects_has_none(catalog: Catalog, empty: Settings) -> None:
    row = {"dataset": DATASET, "run_id": "run", "rejects": [], "snapshots": [("rejects", 1)]}
    append(catalog, empty, "runs", [row])
    found = rejects_of_run(catalog, empty, DATASET, "run")
    assert (found.shown, found.totals, found.total) == ([], {}, 0)


def test_a_deployment_without_tables_has_no_runs(catalog: Catalog, empty: Settings) -> None:
    assert runs_over_time(catalog, empty) == []
    assert explained_variance(catalog, empty, DATASET, "pca-1") is None
    with pytest.raises(RunNotPublished):
        rejects_of_run(catalog, empty, DATASET, "run")


def test_of_many_rejects_some_of_each_reason_are_shown(catalog: Catalog, empty: Settings) -> None:
    reasons = ["undecodable"] * 400 + ["<b>empty</b>"] * 30 + [None] * 2
    rows = [
        {"dataset": DATASET, "run_id": "run", "path": f"{DATASET}{number:03d}.jpg", "reason": reason, "size": number}
        for number, reason in enumerate(reasons)
    ]
    append(catalog, empty, "rejects", rows[::-1])
    found = rejects_of_run(catalog, empty, DATASET, "run", most=50)
    assert found.totals == {"undecodable": 400, "<b>empty</b>": 30, "": 2}
    assert list(found.totals) == ["undecodable", "<b>empty</b>", ""]
    assert found.total == 432
    assert len(found.shown) == 50
    of_reason = {reason: [row for row in found.shown if row.reason == reason] for reason in found.totals}
    assert {reason: len(rows) for reason, rows in of_reason.items()} == {"undecodable": 41, "<b>empty</b>": 7, "": 2}
    assert [reject.size for reject in of_reason["undecodable"]] == list(range(41))
    assert (of_reason[""][0].message, of_reason[""][0].label) == ("", "")


def test_the_variance_of_a_run_is_that_of_its_basis(
    deployed: Deployment, catalog: Catalog, settings: Settings, first: Run
) -> None:
    expected = Variance(first.pca_model, [0.5, 0.46], 5, first.name)
    assert explained_variance(catalog, settings, first.dataset_uri, first.pca_model) == expected
    assert explained_variance(catalog, settings, first.dataset_uri, "pca-2-other") is None
    assert explained_variance(catalog, settings, "s3://other/images/", first.pca_model) is None


def test_the_maps_of_the_table_are_listed() -> None:
    assert {field.name for field in TABLES["runs"].fields if field.field_type.is_struct or "map" in str(field)} == set(
        run_rows.MAPS
    )
