"""The size of a run's cluster as a plan chooses it, and its price, against a local AWS with real tables."""

import logging
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING

import pytest
from pyiceberg.catalog import Catalog

from orchard.cluster.prices import read_prices
from orchard.cluster.sizing import Speed
from orchard.errors import PermanentError
from orchard.run import size
from orchard.run.plan import plan_again
from orchard.run.plan_files import write_plan
from orchard.run.size import TooExpensive
from orchard.settings import Settings
from tests.plugins.plans import DEFAULT_PARAMS, catalog_of, keys, metrics, planned, put_images
from tests.plugins.published import append, publish

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@pytest.fixture
def settings(released: Settings) -> Settings:
    return released


@pytest.fixture
def catalog(s3: "S3Client", settings: Settings) -> Catalog:
    return catalog_of(s3, settings)


def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an inference take four minutes, so that a few images need a large cluster."""
    monkeypatch.setattr(size, "Speed", lambda: Speed(inferences_per_second=1 / 240))


def test_a_run_has_as_many_workers_as_it_needs_for_its_target(
    s3: "S3Client",
    settings: Settings,
    catalog: Catalog,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    slow(monkeypatch)
    put_images(s3, settings.bucket, count=30)
    caplog.set_level(logging.INFO, "orchard")
    # 30 inferences of 4 minutes on 4 task slots per worker; a cluster takes 8.5 minutes beside its tasks.
    for target, workers, minutes in ((20, 3, 18.5), (60, 1, 38.5)):
        run = planned(s3, settings, core_instances=None, target_minutes=target)
        for counts in (run.changes, metrics(s3, run), run.changes["estimate"]):
            assert (counts["core_instances"], counts["task_instances"]) == (1, workers - 1), "all but one are on Spot"
        assert run.changes["estimate"]["minutes"] == pytest.approx(minutes, abs=0.1)
        _, *fleets = run.run["cluster"]["Instances"]["InstanceFleets"]
        capacities = [(fleet["TargetOnDemandCapacity"], fleet.get("TargetSpotCapacity", 0)) for fleet in fleets]
        assert capacities == ([(1, 0), (0, workers - 1)] if workers > 1 else [(1, 0)])
        defaults = run.run["cluster"]["Configurations"][0]["Properties"]
        assert int(defaults["spark.default.parallelism"]) == 4 * workers
        assert f"30 objects to read; cluster of 1 + {workers} m5.xlarge, about {minutes}" in caplog.text
    assert len(metrics(s3, run)["files"]["inventory"]) == 4, "a file per task slot"


def test_the_estimate_has_the_price_without_spot_and_the_range_with_spot(
    s3: "S3Client",
    settings: Settings,
    catalog: Catalog,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    slow(monkeypatch)
    put_images(s3, settings.bucket, count=30)
    caplog.set_level(logging.INFO, "orchard")
    run = planned(s3, settings, core_instances=None)
    found = run.changes["estimate"]
    assert found == metrics(s3, run)["estimate"]
    low, high = found["usd_with_spot"]
    hours = found["minutes"] / 60
    assert found["usd"] == pytest.approx(hours * 4 * 0.262, abs=0.01)
    # The cheapest and the most expensive Spot price of m5, m6i and m7i.
    assert low == pytest.approx(hours * (2 * 0.262 + 2 * (0.077 + 0.048)), abs=0.01)
    assert high == pytest.approx(hours * (2 * 0.262 + 2 * (0.1213 + 0.0504)), abs=0.01)
    assert low < high < found["usd"]
    prices = f"{found['usd']:.4f} USD at the On-Demand prices of eu-west-1, {low:.4f} to {high:.4f} USD with 2 workers"
    assert f"{prices} on Spot" in caplog.text
    caplog.clear()
    explicit = planned(s3, settings, core_instances=3).changes["estimate"]
    assert explicit["usd_with_spot"] == [explicit["usd"]] * 2 == [found["usd"]] * 2
    assert "Spot" not in caplog.text


def test_explicit_workers_and_few_images_have_no_other_size(
    s3: "S3Client", settings: Settings, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_images(s3, settings.bucket, count=3)
    assert planned(s3, settings, core_instances=None, target_minutes=0.1).changes["core_instances"] == 1
    slow(monkeypatch)
    assert planned(s3, settings, core_instances=7, target_minutes=60).changes["core_instances"] == 7


def test_a_run_above_its_cost_limit_is_refused_before_anything_exists(
    s3: "S3Client", settings: Settings, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow(monkeypatch)
    put_images(s3, settings.bucket, count=30)
    usd = planned(s3, settings, core_instances=None, max_cost_usd=1).changes["estimate"]["usd"]
    assert usd == pytest.approx(4 * 0.262 * 18.5 / 60, abs=0.01)
    for key in keys(s3, settings.bucket_uri):
        if key.startswith(("runs/", "scratch/")):
            s3.delete_object(Bucket=settings.bucket, Key=key)
    message = (
        rf"{settings.dataset_uri} with 30 objects to read is estimated at {usd:.4f} USD \(18.5 minutes on 1 \+ 3 "
        r"m5.xlarge\), above max_cost_usd 0.1. Set a higher max_cost_usd"
    )
    with pytest.raises(TooExpensive, match=message):
        planned(s3, settings, core_instances=None, max_cost_usd=0.1)
    assert not [key for key in keys(s3, settings.bucket_uri) if key.startswith(("runs/", "scratch/"))]
    assert issubclass(TooExpensive, PermanentError)


def test_a_hold_counts_towards_the_cost_limit_and_not_towards_the_target(
    s3: "S3Client", settings: Settings, catalog: Catalog, caplog: pytest.LogCaptureFixture
) -> None:
    put_images(s3, settings.bucket, count=3)
    limit = planned(s3, settings).changes["estimate"]["usd"] + 0.01
    message = r"\(\S+ minutes, of which 60 on hold, on 1 \+ 2 m5.xlarge\), .* or a shorter hold_minutes"
    with pytest.raises(TooExpensive, match=message):
        planned(s3, settings, hold_minutes=60, max_cost_usd=limit)
    caplog.clear()
    planned(s3, settings, hold_minutes=240, target_minutes=20)
    assert "longer than target_minutes" not in caplog.text


def test_the_cost_limit_is_compared_with_the_price_without_spot(
    s3: "S3Client", settings: Settings, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow(monkeypatch)
    put_images(s3, settings.bucket, count=30)
    found = planned(s3, settings, core_instances=None, max_cost_usd=1).changes["estimate"]
    limit = (found["usd_with_spot"][1] + found["usd"]) / 2
    assert found["usd_with_spot"][1] < limit < found["usd"]
    with pytest.raises(TooExpensive):
        planned(s3, settings, core_instances=None, max_cost_usd=limit)


def test_a_night_with_nothing_to_do_costs_nothing_whatever_the_limit(
    s3: "S3Client", settings: Settings, catalog: Catalog
) -> None:
    put_images(s3, settings.bucket, count=3)
    publish(s3, catalog, settings)
    run = planned(s3, settings, max_cost_usd=0.0001)
    assert run.changes["nothing_to_do"]
    assert "estimate" not in run.changes


def test_a_plan_that_is_made_again_keeps_the_size_of_the_cluster(
    s3: "S3Client", settings: Settings, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_images(s3, settings.bucket, count=3)
    run = planned(s3, settings, core_instances=None)
    slow(monkeypatch)
    put_images(s3, settings.bucket, count=30)
    params = {"dataset_uri": settings.dataset_uri, **DEFAULT_PARAMS, "core_instances": None}
    assert plan_again(s3, catalog, settings, run.run, params)["core_instances"] == 1


def test_a_plan_that_is_made_again_keeps_the_core_and_the_task_instances(
    s3: "S3Client", settings: Settings, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow(monkeypatch)
    put_images(s3, settings.bucket, count=30)
    run = planned(s3, settings, core_instances=None)
    params = {"dataset_uri": settings.dataset_uri, **DEFAULT_PARAMS, "core_instances": None}
    put_images(s3, settings.bucket, count=50)
    again = plan_again(s3, catalog, settings, run.run, params)
    for counts in (again, metrics(s3, run), again["estimate"]):
        assert (counts["core_instances"], counts["task_instances"]) == (1, 2)
    assert again["estimate"]["minutes"] > run.changes["estimate"]["minutes"]
    assert len(metrics(s3, run)["files"]["inventory"]) == 12, "a file per task slot of all workers"


def test_a_plan_of_an_earlier_release_that_is_made_again_keeps_its_core_instances(
    s3: "S3Client", settings: Settings, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow(monkeypatch)
    put_images(s3, settings.bucket, count=30)
    run = planned(s3, settings, core_instances=4)
    earlier = {key: value for key, value in metrics(s3, run).items() if key != "task_instances"}
    write_plan(s3, run.run["run_uri"], earlier)
    params = {"dataset_uri": settings.dataset_uri, **DEFAULT_PARAMS, "core_instances": None}
    again = plan_again(s3, catalog, settings, run.run, params)
    assert (again["core_instances"], again["task_instances"]) == (4, 0)


def test_prices_of_another_region_and_old_ones_are_a_warning(
    s3: "S3Client",
    settings: Settings,
    catalog: Catalog,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put_images(s3, settings.bucket, count=3)
    old = replace(read_prices(), read_on=date(2020, 1, 1))
    monkeypatch.setattr(size, "read_prices", lambda: old)
    planned(s3, replace(settings, region="eu-central-1"))
    assert "the prices are of eu-west-1, not of eu-central-1, so that the estimate may be wrong" in caplog.text
    assert "days old, of 2020-01-01" in caplog.text


def test_a_plan_learns_from_the_earlier_runs_of_all_datasets(
    s3: "S3Client", settings: Settings, catalog: Catalog, caplog: pytest.LogCaptureFixture
) -> None:
    put_images(s3, settings.bucket, count=3)
    before = planned(s3, settings).changes["estimate"]["minutes"]
    row = {"dataset": "s3://other/images/", "published_at": datetime.now(UTC), "ready_seconds": 120.0}
    append(catalog, settings, "runs", [row | {"run_id": str(number)} for number in range(3)])
    caplog.set_level(logging.INFO, "orchard")
    # A default of 420 s until a cluster is ready.
    assert planned(s3, settings).changes["estimate"]["minutes"] == pytest.approx(before - 5, abs=0.1)
    assert "plan: 3 earlier runs show {'ready_seconds': '120'}" in caplog.text


def test_large_images_take_more_workers(s3: "S3Client", settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(size, "Speed", lambda: Speed(decoded_bytes_per_second=1 / 60))
    put_images(s3, settings.bucket, count=30)  # of 5 bytes
    run = planned(s3, settings, core_instances=None)
    assert run.changes["bytes_to_read"] == 150
    assert run.changes["task_slots"] == 4 * (1 + run.changes["task_instances"]) > 4
