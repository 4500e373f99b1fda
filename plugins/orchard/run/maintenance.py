"""Maintain all tables of a deployment: keep the snapshots of the last runs, and the files that unfinished runs need."""

import logging
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from pyiceberg.catalog.glue import GlueCatalog

from orchard.run.plan_files import PLAN
from orchard.run.scratch import folders_in
from orchard.run.steps import STEPS
from orchard.run.summary import read_summary
from orchard.settings import Settings
from orchard.storage import find_json
from orchard.tables.catalog import TABLES, find_table
from orchard.tables.expiry import Retention, last_runs
from orchard.tables.maintenance import Rules, maintain_table
from orchard.tables.unreferenced import other_tables

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)


def shortest_age(settings: Settings, days: float) -> timedelta:
    """Return the age from which snapshots may expire and files may be deleted.

    A step that runs has written files that nothing names yet. Its cluster terminates after `max_cluster_hours`.
    """
    return max(timedelta(days=days), timedelta(hours=settings.max_cluster_hours))


def maintain_tables(
    s3: "S3Client",
    catalog: GlueCatalog,
    settings: Settings,
    *,
    kept_runs: int,
    min_age: timedelta,
    now: datetime,
    dry_run: bool,
) -> dict[str, Any]:
    """Expire snapshots of all tables, and delete files that nothing refers to. Return a report as JSON.

    The last `kept_runs` published runs of each dataset stay readable, in all tables. Snapshots that were current within
    `min_age`, and files that are younger, stay. A dry run changes nothing, and reports the same.

    Raises:
        WrongWarehouse: a table of the database is in another bucket. Nothing has changed.
        OldLayout: a table has the columns of an earlier release. Nothing has changed.
        ExceptionGroup: some tables could not be maintained. All others are.
    """
    found = {name: find_table(catalog, settings, name) for name in TABLES}
    runs = last_runs(catalog, settings, kept_runs)
    if runs is None:
        log.info("there is no table runs, which tells which snapshots runs need: no snapshot expires")
    else:
        log.info("%d runs of %d datasets stay readable", len(runs), len({run.dataset for run in runs}))
    since = now - min_age
    rules = Rules(
        retention=Retention(runs, since),
        modified_before=since,
        others=other_tables(catalog, settings),
        needed=lambda: set(files_of_unfinished_runs(s3, settings)),
    )
    reports: dict[str, Any] = {}
    failed: dict[str, Exception] = {}
    for name, table in found.items():
        if table is None:
            continue
        try:
            reports[name] = asdict(maintain_table(s3, catalog, table, rules, dry_run=dry_run))
        except Exception as error:
            log.exception("table %s: failed", name)
            failed[name] = error
    if failed:
        faults = "; ".join(f"{name}: {error}" for name, error in failed.items())
        raise ExceptionGroup(f"tables that are not maintained completely: {faults}", list(failed.values()))
    return {"dry_run": dry_run, "kept_runs": kept_runs, "tables": reports}


def files_of_unfinished_runs(s3: "S3Client", settings: Settings) -> Iterator[str]:
    """Yield the URIs of the files of runs that have not been published, and still can be.

    The steps write files of `features` and `embeddings` into the warehouse before a snapshot refers to them. A run that
    has failed can be cleared days later. `publish` refuses a run without its plan, or without its scratch folder, which
    exists for at least seven days.
    """
    scratch, runs = (f"{settings.bucket_uri}/{name}" for name in ("scratch", "runs"))
    for dataset in folders_in(s3, scratch):
        for name in folders_in(s3, f"{scratch}/{dataset}"):
            run_uri = f"{runs}/{dataset}/{name}"
            plan = find_json(s3, f"{run_uri}/{PLAN}")
            if plan is None or read_summary(s3, run_uri) is not None:
                continue
            for metrics in (plan, *(find_json(s3, f"{run_uri}/{step}.metrics.json") for step in STEPS)):
                for files in (metrics or {}).get("files", {}).values():
                    yield from (file["uri"] for file in files)
