"""Publish a run that is interrupted at any point, or at the same time as another."""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import boto3
import pytest

from orchard.run.publish import DatasetChanged
from orchard.tables.catalog import TABLES, open_catalog
from orchard.tables.state import feature_files
from tests.plugins.deployed import (
    REPLACED,
    Deployment,
    compaction,
    in_order,
)
from tests.plugins.proxy import Proxy, impatient
from tests.plugins.runs import Run


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 8])
def test_if_publish_stops_before_any_of_its_changes_readers_see_the_old_or_the_new_run_and_a_retry_completes_it(
    deployed: Deployment, through_the_proxy: Deployment, proxy: Proxy, bucket: str, record_property: Any, every: int
) -> None:
    def run(number: int, base: Run | None) -> Run:
        kept = min(base.images, 2) if base else 0
        name = f"20261122T02{number // 60:02d}{number % 60:02d}-000000"
        made = Run(bucket, name, f"s3://{bucket}/images/", 2 + number % 5, base=base, kept=kept)
        listed = feature_files(deployed.catalog, deployed.settings)
        swap = compaction(deployed) if base else {}
        made.write(deployed.s3, features=listed, **swap)
        return made

    old, new, verified = None, run(0, None), [""] * len(TABLES)
    seen: set[tuple[bool, ...]] = set()
    for change in itertools.count(1, every):
        proxy.shut_at(change)
        try:
            through_the_proxy.publish(new, write=False)
        except Exception:
            proxy.reopen()
        else:
            break
        versions = deployed.versions()
        changed = tuple(before != now for before, now in zip(verified, versions, strict=True))
        if not any(changed) or "" in versions:
            continue  # no table has changed: the next round is the retry
        if old is not None and changed not in seen:
            for name in REPLACED:
                whole = (in_order(old.rows(name)), in_order(new.rows(name)))
                assert deployed.rows(name) in whole, f"{name}, stopped at change {change}"
            assert deployed.joins(old) or deployed.joins(new), f"stopped at change {change}"
        deployed.publish(new, write=False)
        if changed not in seen:
            assert deployed.shows(new), f"stopped at change {change}"
            features = [(row["sha256"], row["run_id"]) for row in deployed.rows("features")]
            assert len(features) == len(set(features)), f"stopped at change {change}"
        seen.add(changed)
        old, new, verified = new, run(change, new), deployed.versions()
    assert deployed.shows(new)
    assert change > 25
    if every == 1:
        assert len(seen) >= len(TABLES), "it was stopped after each number of commits"
        record_property("publish was stopped before each of its changes", change - 1)


def publish_at_once(session: boto3.Session, deployed: Deployment, url: str, runs: list[Run]) -> list[Any]:
    """Publish each run from its own thread with its own clients. Return the summaries, or the errors."""
    start = threading.Barrier(len(runs))

    def publish_one(own: Deployment, run: Run) -> Any:
        start.wait(timeout=30)
        try:
            return own.publish(run, write=False)
        except DatasetChanged as error:
            return error

    for run in runs:
        run.write(deployed.s3)
    settings = deployed.settings
    # A session may be used by one thread only, but its clients by any.
    publishers = [Deployment(impatient("s3", url), open_catalog(session, settings), settings) for _ in runs]
    with ThreadPoolExecutor(len(runs)) as pool:
        return list(pool.map(publish_one, publishers, runs))


@pytest.mark.parametrize(
    ("same_dataset", "tables_are_there"),
    [
        pytest.param(False, False, id="two-datasets-first-ever"),
        pytest.param(False, True, id="two-datasets-later", marks=pytest.mark.slow),
        pytest.param(True, False, id="one-dataset-first-ever", marks=pytest.mark.slow),
        pytest.param(True, True, id="one-dataset-later"),
    ],
)
def test_of_two_runs_that_are_published_at_the_same_time_both_land_or_one_of_the_same_dataset_is_refused(
    deployed: Deployment,
    through_the_proxy: Deployment,
    proxy: Proxy,
    session: boto3.Session,
    bucket: str,
    same_dataset: bool,
    tables_are_there: bool,
) -> None:
    uris = [f"s3://{bucket}/images/", f"s3://{bucket}/{'images' if same_dataset else 'apples'}/"]
    bases: dict[str, Run | None] = dict.fromkeys(uris)
    if tables_are_there:
        bases = {uri: Run(bucket, "20261121T020000-bbbbbb", uri, folder=uri.split("/")[3]) for uri in uris}
        for base in bases.values():
            assert base is not None
            deployed.publish(base)
    runs = [Run(bucket, f"20261122T02000{n}-aaaaaa", uri, images=3 + n, base=bases[uri]) for n, uri in enumerate(uris)]
    proxy.let_updates_meet(2)
    outcomes = publish_at_once(session, through_the_proxy, proxy.url, runs)
    assert proxy.refused_updates >= 1
    refused = [isinstance(outcome, DatasetChanged) for outcome in outcomes]
    assert sum(refused) == same_dataset
    for run, is_refused in zip(runs, refused, strict=True):
        assert deployed.shows(run) != is_refused
