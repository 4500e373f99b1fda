"""Expire snapshots of a deployment's tables, and delete the files that nothing refers to any more."""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pyiceberg.catalog.glue import GlueCatalog
from pyiceberg.manifest import clear_manifest_cache
from pyiceberg.table.statistics import StatisticsFile

from orchard.run.forget import forget_dataset
from orchard.run.maintenance import files_of_unfinished_runs, maintain_tables, shortest_age
from orchard.run.summary import InconsistentRun
from orchard.storage import split_uri
from orchard.tables import maintenance as maintenance_module
from orchard.tables import unreferenced as unreferenced_module
from orchard.tables.catalog import TABLES, WrongWarehouse, open_table
from orchard.tables.commit import commit, replacement
from orchard.tables.expiry import Retention, expire_snapshots
from orchard.tables.files import write_files
from orchard.tables.state import feature_files
from tests.plugins.answers import answering
from tests.plugins.deployed import REPLACED, Deployment, compaction, in_order, other_of
from tests.plugins.proxy import Proxy
from tests.plugins.published import append
from tests.plugins.runs import Run

# The objects of a test are as old as the test, so its present is in the future.
LATER = datetime.now(UTC) + timedelta(days=30)


def maintain(
    deployed: Deployment, kept_runs: int = 2, *, dry_run: bool = False, now: datetime = LATER, days: float = 3
) -> dict[str, Any]:
    assert isinstance(deployed.catalog, GlueCatalog)
    report = maintain_tables(
        deployed.s3,
        deployed.catalog,
        deployed.settings,
        kept_runs=kept_runs,
        min_age=timedelta(days=days),
        now=now,
        dry_run=dry_run,
    )
    tables: dict[str, Any] = report["tables"]
    return tables


def objects(deployed: Deployment, prefix: str = "") -> dict[str, int]:
    """Return the sizes of the objects in the bucket, by key."""
    pages = deployed.s3.get_paginator("list_objects_v2").paginate(Bucket=deployed.settings.bucket, Prefix=prefix)
    return {item["Key"]: item["Size"] for page in pages for item in page.get("Contents", [])}


def put(deployed: Deployment, key: str, body: bytes = b"12345") -> str:
    deployed.s3.put_object(Bucket=deployed.settings.bucket, Key=key, Body=body)
    return key


def nights(first: Run, count: int) -> list[Run]:
    """Return runs of one dataset, each of which takes over images of the one before and brings one."""
    runs = [first]
    for number in range(1, count):
        base = runs[-1]
        name = f"202611{22 + number}T020000-bbbbbb"
        runs.append(Run(first.bucket, name, first.dataset_uri, images=base.images + 1, base=base, kept=base.images - 1))
    return runs


def night(deployed: Deployment, number: int, folder: str = "images") -> Run:
    """Publish a run in the tables `images` and `runs` alone, in a fraction of the time of all six."""
    name, bucket = f"202611{number:02d}T020000-aaaaaa", deployed.settings.bucket
    run = Run(bucket, name, f"s3://{bucket}/{folder}/", images=number, folder=folder)
    files = write_files(
        deployed.s3, open_table(deployed.catalog, deployed.settings, "images"), run.rows("images").to_batches()
    )
    snapshot_id = commit(deployed.table("images"), name, lambda table: replacement(table, run.dataset_uri, files), {})
    row = {"run_id": name, "dataset": run.dataset_uri, "published_at": datetime.now(UTC)}
    append(deployed.catalog, deployed.settings, "runs", [{**row, "snapshots": [("images", snapshot_id)]}])
    return run


def holds(deployed: Deployment, run: Run, snapshot_id: int | None = None) -> bool:
    """Return whether the table `images` has exactly the images of a run, of its dataset."""
    return deployed.rows("images", run, snapshot_id) == in_order(run.rows("images"))


def shown(deployed: Deployment, run_id: str) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of all tables in the snapshots that show a run."""
    (run,) = [found for found in deployed.runs() if found.run_id == run_id]
    return {name: deployed.rows(name, snapshot_id=run.snapshots[name]) for name in run.snapshots}


def data_files(deployed: Deployment, run_id: str) -> dict[str, set[str]]:
    """Return the data files of each table in the snapshots that show a run."""
    (run,) = [found for found in deployed.runs() if found.run_id == run_id]
    return {
        name: {task.file.file_path for task in deployed.table(name).scan(snapshot_id=snapshot_id).plan_files()}
        for name, snapshot_id in run.snapshots.items()
    }


def test_the_last_runs_stay_readable_in_all_tables_and_the_files_of_the_others_are_deleted(
    deployed: Deployment, first: Run
) -> None:
    runs = nights(first, 3)
    summaries = []
    for number, run in enumerate(runs):
        swap = compaction(deployed) if number == 1 else {}
        summaries.append(deployed.publish(run, **swap))
    before = {run.name: shown(deployed, run.name) for run in runs[1:]}
    files = {run.name: data_files(deployed, run.name) for run in runs}
    exclusive = {
        path
        for name in (*REPLACED, "features")
        for path in files[runs[0].name][name] - files[runs[1].name][name] - files[runs[2].name][name]
    }
    assert len(exclusive) > 5
    present, metadata = objects(deployed), deployed.versions()

    planned = maintain(deployed, dry_run=True)
    assert objects(deployed) == present
    assert deployed.versions() == metadata, "a dry run changes nothing"
    done = maintain(deployed)
    assert planned == done, "a dry run reports what happens"

    for run, summary in zip(runs[1:], summaries[1:], strict=True):
        assert shown(deployed, run.name) == before[run.name]
        for name, table in summary["tables"].items():
            rows = deployed.table(name).scan(snapshot_id=int(table["snapshot_id"])).to_arrow()
            assert rows.num_rows >= table["rows"], f"{name} at the snapshot of the event"
    assert deployed.shows(runs[-1])
    expired = deployed.runs()[0].snapshots
    assert all(deployed.table(name).snapshot_by_id(expired[name]) is None for name in REPLACED)
    left = objects(deployed)
    assert not {split_uri(path)[1] for path in exclusive} & left.keys()
    gone = present.keys() - left.keys()
    assert len(gone) == sum(table["deleted"]["files"] for table in done.values())
    assert sum(present[key] for key in gone) == sum(table["deleted"]["bytes"] for table in done.values())
    assert {key.split("/")[0] for key in gone} == {"warehouse"}
    assert all(done[name]["expired_snapshots"] for name in TABLES)

    versions = deployed.versions()
    again = maintain(deployed)
    assert [table["expired_snapshots"] for table in again.values()] == [0] * len(TABLES)
    assert [table["deleted"]["files"] for table in again.values()] == [0] * len(TABLES)
    assert deployed.versions() == versions
    assert objects(deployed) == left


@pytest.mark.slow
def test_the_next_run_is_published_as_before(deployed: Deployment, first: Run) -> None:
    runs = nights(first, 3)
    for run in runs[:2]:
        deployed.publish(run)
    maintain(deployed, 1)
    deployed.publish(runs[2], **compaction(deployed))
    assert deployed.shows(runs[2])
    maintain(deployed, 0)
    assert deployed.shows(runs[2])


def test_the_runs_of_each_dataset_are_counted_for_themselves(deployed: Deployment) -> None:
    runs = [night(deployed, 1, "apples"), *(night(deployed, number) for number in (2, 3, 4))]
    snapshots = [run.snapshots["images"] for run in deployed.runs()]
    maintain(deployed, 2)
    assert all(holds(deployed, runs[number], snapshots[number]) for number in (0, 2, 3))
    assert deployed.table("images").snapshot_by_id(snapshots[1]) is None


def test_the_report_counts_what_is_there_before_and_after(
    deployed: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    night(deployed, 1)
    second = night(deployed, 2)
    lost = put(deployed, "warehouse/images/data/lost.parquet")
    location = deployed.table("images").location()
    everything = sum(objects(deployed, "warehouse/images/").values())
    with caplog.at_level(logging.INFO):
        report = maintain(deployed, 1)["images"]
    content, before, after = (report[name] for name in ("content", "before", "after"))
    files = [task.file for task in deployed.table("images").scan().plan_files()]
    assert content == {
        "data_files": len(files),
        "rows": second.images,
        "bytes": sum(file.file_size_in_bytes for file in files),
    }
    assert (before["snapshots"], after["snapshots"], report["expired_snapshots"]) == (2, 1, 1)
    assert before["unreferenced_old"] == {"files": 1, "bytes": 5}
    assert before["referenced"]["bytes"] + 5 == everything
    assert after["unreferenced_old"] == {"files": 0, "bytes": 0}
    assert after["referenced"]["bytes"] == everything - report["deleted"]["bytes"]
    assert f"s3://{deployed.settings.bucket}/{lost}" in report["examples"]
    assert all(example.startswith(location) for example in report["examples"])
    lines = [message for message in caplog.messages if message.startswith("images: shows ")]
    assert len(lines) == 1
    assert "snapshots: 2, then 1" in lines[0]
    assert lost in lines[0]


def test_files_are_deleted_by_their_age_and_place(deployed: Deployment) -> None:
    night(deployed, 1)
    kept = [
        "warehouse/images-2/data/1.parquet",
        "warehouse/images/readme.txt",
        "warehouse/images/data",
        "warehouse/images/data/",
        "warehouse/images/metadata/version-hint.text",
        "warehouse/images/database/1.parquet",
        "warehouse/other/data/1.parquet",
        "images/data/1.parquet",
    ]
    lost = [
        "warehouse/images/data/lost.parquet",
        "warehouse/images/data/dataset=a/deep/1 %3A+#?.parquet",
        "warehouse/images/metadata/lost.metadata.json",
        "warehouse/images/metadata/lost.avro",
    ]
    for key in (*kept, *lost):
        put(deployed, key)
    present = objects(deployed)
    young = maintain(deployed, now=datetime.now(UTC))["images"]
    assert (young["deleted"]["files"], young["after"]["unreferenced_young"]["files"]) == (0, len(lost))
    assert objects(deployed) == present
    done = maintain(deployed)["images"]
    assert done["deleted"] == {"files": len(lost), "bytes": 5 * len(lost)}
    assert present.keys() - objects(deployed).keys() == set(lost)


@pytest.mark.parametrize("moment", ["list_files", "referenced_files"])
def test_a_publication_in_the_meantime_loses_nothing(
    deployed: Deployment, first: Run, second: Run, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Its steps have written its files before. No snapshot referred to them when they were listed."""
    deployed.publish(first)
    second.write(deployed.s3, features=feature_files(deployed.catalog, deployed.settings))
    look = getattr(unreferenced_module, moment)
    done: list[Any] = []

    def publish_meanwhile(*arguments: Any) -> Any:
        found = look(*arguments)
        if not done:
            done.append(deployed.publish(second, write=False))
        return found

    monkeypatch.setattr(maintenance_module, moment, publish_meanwhile)
    maintain(deployed, 1)
    assert done
    assert deployed.shows(second)


@pytest.mark.slow
def test_a_file_that_a_publisher_writes_again_is_not_deleted(
    deployed: Deployment, first: Run, second: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name of a file depends on its content, so that a retry of `publish` gives its files the same names."""
    deployed.publish(first)
    second.write(deployed.s3, features=feature_files(deployed.catalog, deployed.settings))
    before = objects(deployed, "warehouse/images/")
    with monkeypatch.context() as patch:
        patch.setattr("orchard.run.publish.commit", raise_error)
        with pytest.raises(RuntimeError, match="stopped"):
            deployed.publish(second, write=False)
    left_over = objects(deployed, "warehouse/images/").keys() - before.keys()
    assert left_over
    delete = unreferenced_module.delete_files

    def publish_meanwhile(s3: Any, table: Any, paths: set[str], *arguments: Any) -> Any:
        if table.name()[1] == "images":
            assert {f"warehouse/images/{path}" for path in paths} >= left_over
            deployed.publish(second, write=False)
            wait_until_old(deployed)
        return delete(s3, table, paths, *arguments)

    monkeypatch.setattr(maintenance_module, "delete_files", publish_meanwhile)
    now = wait_until_old(deployed)
    maintain(deployed, 9, now=now, days=0)
    assert deployed.shows(second)
    assert objects(deployed, "warehouse/images/").keys() >= left_over


def raise_error(*_: Any) -> Any:
    raise RuntimeError("stopped")


def wait_until_old(deployed: Deployment) -> datetime:
    """Return a time after which all present objects were modified: S3 gives their times in whole seconds."""
    key = put(deployed, "clock")
    written = deployed.s3.head_object(Bucket=deployed.settings.bucket, Key=key)["LastModified"]
    while True:
        put(deployed, key)
        now = deployed.s3.head_object(Bucket=deployed.settings.bucket, Key=key)["LastModified"]
        if now > written:
            return now


def test_snapshots_of_tags_branches_and_their_rules_stay(deployed: Deployment) -> None:
    runs = [night(deployed, number) for number in (1, 2, 3, 4)]
    snapshots = [run.snapshots["images"] for run in deployed.runs()]
    table = deployed.table("images")
    table.manage_snapshots().create_tag(snapshots[0], "audit").create_branch(
        snapshots[2], "mine", min_snapshots_to_keep=2
    ).commit()
    night(deployed, 5)
    maintain(deployed, 0)
    left = {snapshot.snapshot_id for snapshot in deployed.table("images").snapshots()}
    assert left == {*snapshots[:3], deployed.runs()[-1].snapshots["images"]}
    assert holds(deployed, runs[0], snapshots[0])
    assert holds(deployed, runs[1], snapshots[1])
    table.refresh().manage_snapshots().remove_tag("audit").remove_branch("mine").commit()
    maintain(deployed, 0)
    assert len(deployed.table("images").snapshots()) == 1


@pytest.mark.parametrize("change", ["tag", "rollback"])
def test_a_snapshot_that_is_tagged_or_shown_again_before_the_commit_stays(
    deployed: Deployment, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    first, second = night(deployed, 1), night(deployed, 2)
    old = deployed.runs()[0].snapshots["images"]
    commit_table = type(deployed.catalog).commit_table
    done: list[Any] = []

    def change_meanwhile(catalog: Any, table: Any, *arguments: Any) -> Any:
        if table.name()[1] == "images" and not done:
            done.append(None)
            snapshots = deployed.table("images").manage_snapshots()
            (snapshots.create_tag(old, "audit") if change == "tag" else snapshots.rollback_to_snapshot(old)).commit()
        return commit_table(catalog, table, *arguments)

    monkeypatch.setattr(type(deployed.catalog), "commit_table", change_meanwhile)
    report = maintain(deployed, 0)
    assert done
    assert report["images"]["expired_snapshots"] == (0 if change == "tag" else 1)
    assert holds(deployed, second if change == "tag" else first)
    assert holds(deployed, first, old)


def test_an_expiry_and_a_publication_that_meet_at_glue_both_succeed(
    deployed: Deployment, through_the_proxy: Deployment, proxy: Proxy
) -> None:
    runs = [night(deployed, number) for number in (1, 2)]
    third = replace(runs[1], name="20261103T020000-aaaaaa", images=3)
    old = deployed.runs()[0].snapshots["images"]
    files = write_files(deployed.s3, deployed.table("images"), third.rows("images").to_batches())
    tables = [through_the_proxy.table("images") for _ in range(2)]
    proxy.let_updates_meet(2)
    with ThreadPoolExecutor(2) as pool:
        expired = pool.submit(expire_snapshots, tables[0], Retention([], LATER))
        committed = pool.submit(
            commit, tables[1], third.name, lambda table: replacement(table, third.dataset_uri, files), {}
        )
    assert proxy.refused_updates == 1
    assert old in expired.result()
    table = deployed.table("images")
    current = table.current_snapshot()
    assert current is not None
    assert current.snapshot_id == committed.result()
    assert table.snapshot_by_id(old) is None
    assert holds(deployed, third)


def test_a_snapshot_that_was_current_lately_stays_for_a_run_that_is_being_published(deployed: Deployment) -> None:
    """Its row of `runs` may name a snapshot that is much older than its own snapshots."""
    for number in (1, 2):
        night(deployed, number)
    moment = deployed.table("images").metadata.snapshot_log[-1].timestamp_ms / 1000
    replaced = datetime.fromtimestamp(moment, UTC)
    report = maintain(deployed, 0, now=replaced, days=0)
    assert report["images"]["expired_snapshots"] == 0
    report = maintain(deployed, 0, now=replaced + timedelta(milliseconds=1), days=0)
    assert report["images"]["expired_snapshots"] == 1


def test_a_run_that_is_not_published_can_be_published_later(deployed: Deployment, first: Run, second: Run) -> None:
    deployed.publish(first)
    second.write(deployed.s3, features=feature_files(deployed.catalog, deployed.settings), **compaction(deployed))
    report = maintain(deployed, 0)
    assert report["features"]["reserved"]["files"] == 3
    assert report["embeddings"]["reserved"]["files"] == 2
    deployed.publish(second, write=False)
    assert deployed.shows(second)


def test_files_of_a_run_that_can_not_be_published_any_more_are_deleted_and_publish_says_what_to_do(
    deployed: Deployment, first: Run, second: Run
) -> None:
    deployed.publish(first)
    second.write(deployed.s3, features=feature_files(deployed.catalog, deployed.settings))
    listed = second.files(deployed.s3, "features", "features")
    assert {file["uri"] for file in listed} <= set(files_of_unfinished_runs(deployed.s3, deployed.settings))
    for key in objects(deployed, f"scratch/{second.folder}/{second.name}/"):
        deployed.s3.delete_object(Bucket=second.bucket, Key=key)
    assert maintain(deployed)["features"]["deleted"]["files"] >= len(listed)
    with pytest.raises(InconsistentRun, match="clear the task `plan`"):
        deployed.publish(second, write=False)
    assert deployed.shows(first)


@pytest.mark.slow
def test_a_dataset_that_was_forgotten_is_gone_from_s3_once_no_run_needs_its_snapshots(
    deployed: Deployment, first: Run, second: Run
) -> None:
    other = other_of(first.bucket)
    for run in (first, second, other):
        deployed.publish(run)
    forget_dataset(deployed.s3, deployed.catalog, deployed.settings, first.dataset_uri)
    maintain(deployed, 0)
    assert deployed.shows(other)
    files = {key for key in objects(deployed, "warehouse/") if key.endswith(".parquet")}
    assert files == {split_uri(path)[1] for name in TABLES for path in deployed.paths(name)}
    marker = f"s3://{first.bucket}/images/"
    assert not [key for key in files if marker.encode() in body(deployed, key)]


def body(deployed: Deployment, key: str) -> bytes:
    return deployed.s3.get_object(Bucket=deployed.settings.bucket, Key=key)["Body"].read()


def test_rows_of_runs_whose_snapshots_are_gone_do_no_harm(deployed: Deployment) -> None:
    runs = [night(deployed, number) for number in (1, 2, 3)]
    maintain(deployed, 0)
    assert [run.run_id for run in deployed.runs()] == [run.name for run in runs]
    assert maintain(deployed, 30)["images"]["expired_snapshots"] == 0
    assert holds(deployed, runs[-1])


@pytest.mark.slow
def test_after_a_rollback_the_state_that_is_shown_stays(deployed: Deployment, first: Run, second: Run) -> None:
    for run in (first, second):
        deployed.publish(run)
    for name in REPLACED:
        table = deployed.table(name)
        table.manage_snapshots().rollback_to_snapshot(deployed.runs()[0].snapshots[name]).commit()
    maintain(deployed, 0)
    assert all(deployed.rows(name) == in_order(first.rows(name)) for name in REPLACED)
    assert deployed.joins(first)


def test_without_tables_nothing_happens(deployed: Deployment) -> None:
    assert maintain(deployed) == {}


def test_without_the_table_runs_no_snapshot_expires(deployed: Deployment) -> None:
    for number in (1, 2):
        night(deployed, number)
    deployed.catalog.drop_table((deployed.settings.catalog_database, "runs"))
    report = maintain(deployed, 0)
    assert report.keys() == {"images"}
    assert (report["images"]["expired_snapshots"], report["images"]["deleted"]["files"]) == (0, 0)


def test_files_of_other_tables_in_the_same_folders_stay(deployed: Deployment) -> None:
    """Those of another deployment in the same bucket, and those that a migration has renamed."""
    first = night(deployed, 1)
    places = [(f"{deployed.settings.catalog_database}_2", "images"), (deployed.settings.catalog_database, "images_v1")]
    deployed.catalog.create_namespace(places[0][0])
    for place in places:
        deployed.catalog.register_table(place, deployed.table("images").metadata_location)
    second = night(deployed, 2)
    report = maintain(deployed, 0)["images"]
    assert report["reserved"]["files"] > 0
    for place in places:
        assert in_order(deployed.catalog.load_table(place).scan().to_arrow()) == in_order(first.rows("images"))
    for place in places:
        assert maintain(deployed, 0)["images"]["deleted"]["files"] == 0
        deployed.catalog.drop_table(place)
    assert maintain(deployed, 0)["images"]["deleted"] == report["reserved"]
    assert holds(deployed, second)


def test_a_table_in_the_same_folders_that_cannot_be_read_stops_the_deletion(deployed: Deployment) -> None:
    night(deployed, 1)
    place = (deployed.settings.catalog_database, "images_v1")
    deployed.catalog.register_table(place, deployed.table("images").metadata_location)
    night(deployed, 2)
    deployed.s3.delete_object(
        Bucket=deployed.settings.bucket, Key=split_uri(deployed.catalog.load_table(place).metadata_location)[1]
    )
    present = objects(deployed)
    with pytest.raises(ExceptionGroup, match=r"no file was deleted, because table .*images_v1 cannot be read"):
        maintain(deployed, 0)
    assert objects(deployed).items() >= present.items()


def test_a_table_of_another_bucket_stops_everything(deployed: Deployment) -> None:
    for number in (1, 2):
        night(deployed, number)
    settings = replace(deployed.settings, bucket="another-bucket")
    versions = deployed.versions()
    with pytest.raises(WrongWarehouse):
        maintain(Deployment(deployed.s3, deployed.catalog, settings), 0)
    assert deployed.versions() == versions


@pytest.mark.parametrize("kind", ["manifest_list", "manifest", "data"])
def test_a_table_with_a_missing_file_loses_no_other_and_the_other_tables_are_maintained(
    deployed: Deployment, kind: str
) -> None:
    for number in (1, 2):
        night(deployed, number)
    table = deployed.table("images")
    current = table.current_snapshot()
    assert current is not None
    manifest = current.manifests(table.io)[0]
    uri = {
        "manifest_list": current.manifest_list,
        "manifest": manifest.manifest_path,
        "data": manifest.fetch_manifest_entry(table.io)[0].data_file.file_path,
    }[kind]
    deployed.s3.delete_object(Bucket=deployed.settings.bucket, Key=split_uri(uri)[1])
    clear_manifest_cache()
    lost = {put(deployed, f"warehouse/{name}/data/lost.parquet") for name in ("images", "runs")}
    with pytest.raises(ExceptionGroup, match=r"images: no file .*was deleted"):
        maintain(deployed, 1)
    assert lost & objects(deployed).keys() == {"warehouse/images/data/lost.parquet"}


def test_files_are_recognised_whatever_the_scheme_of_their_uri(
    deployed: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spark writes s3a:// or s3n:// where pyiceberg writes s3://."""
    first = night(deployed, 1)
    files_of = unreferenced_module._files_of

    def as_spark_writes(*arguments: Any) -> Iterator[str]:
        return (uri.replace("s3://", "s3a://") for uri in files_of(*arguments))

    monkeypatch.setattr(unreferenced_module, "_files_of", as_spark_writes)
    assert sum(table["deleted"]["files"] for table in maintain(deployed).values()) == 0
    assert holds(deployed, first)


def test_if_names_of_files_differ_nothing_is_deleted(deployed: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    night(deployed, 1)
    present = objects(deployed)
    files_of = unreferenced_module._files_of

    def encoded(*arguments: Any) -> Iterator[str]:
        return (uri.replace("/data/", "/data/%2D") for uri in files_of(*arguments))

    monkeypatch.setattr(unreferenced_module, "_files_of", encoded)
    with pytest.raises(ExceptionGroup, match=r"images: no file .* was deleted: it refers to 1 files"):
        maintain(deployed)
    assert objects(deployed) == present


def test_statistics_and_earlier_versions_that_the_metadata_names_stay(deployed: Deployment) -> None:
    night(deployed, 1)
    with deployed.table("images").transaction() as change:
        change.set_properties({"write.metadata.previous-versions-max": "2"})
    add_statistics(deployed, deployed.runs()[0].snapshots["images"], "old")
    night(deployed, 2)
    add_statistics(deployed, deployed.runs()[1].snapshots["images"], "new")
    planned = maintain(deployed, 1, dry_run=True)["images"]
    assert maintain(deployed, 1)["images"] == planned
    left = objects(deployed, "warehouse/images/metadata/")
    table = deployed.table("images")
    assert len(table.metadata.metadata_log) == 2
    named = {*(entry.metadata_file for entry in table.metadata.metadata_log), table.metadata_location}
    assert {key for key in left if key.endswith(".metadata.json")} == {split_uri(uri)[1] for uri in named}
    assert {key for key in left if key.endswith(".puffin")} == {"warehouse/images/metadata/new.puffin"}


def add_statistics(deployed: Deployment, snapshot_id: int, name: str) -> None:
    uri = f"s3://{deployed.settings.bucket}/{put(deployed, f'warehouse/images/metadata/{name}.puffin')}"
    file = StatisticsFile.model_validate(
        {
            "snapshot-id": snapshot_id,
            "statistics-path": uri,
            "file-size-in-bytes": 5,
            "file-footer-size-in-bytes": 1,
            "blob-metadata": [],
        }
    )
    with deployed.table("images").update_statistics() as update:
        update.set_statistics(file)


def test_a_table_whose_user_forbids_it_is_left_alone(deployed: Deployment) -> None:
    for number in (1, 2):
        night(deployed, number)
    with deployed.table("images").transaction() as change:
        change.set_properties({"gc.enabled": "false"})
    lost = {put(deployed, f"warehouse/{name}/data/lost.parquet") for name in ("images", "runs")}
    report = maintain(deployed, 0)["images"]
    assert (report["expired_snapshots"], report["deleted"]["files"]) == (0, 0)
    assert report["after"]["unreferenced_old"]["files"] == 1
    assert lost & objects(deployed).keys() == {"warehouse/images/data/lost.parquet"}


@pytest.mark.slow
def test_more_files_than_one_request_can_name_are_deleted(deployed: Deployment) -> None:
    night(deployed, 1)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: put(deployed, f"warehouse/images/data/lost-{number}", b"1"), range(1003)))
    assert maintain(deployed)["images"]["deleted"] == {"files": 1003, "bytes": 1003}
    assert not [key for key in objects(deployed) if "lost-" in key]


def test_files_that_s3_refuses_to_delete_are_named_and_the_next_run_deletes_them(deployed: Deployment) -> None:
    night(deployed, 1)
    lost = put(deployed, "warehouse/images/data/lost.parquet")
    refused = {"Errors": [{"Key": lost, "Code": "AccessDenied", "Message": "Access Denied"}]}
    with (
        answering(deployed.s3, "DeleteObjects", refused),
        pytest.raises(ExceptionGroup, match=r"images: .*not deleted: 1 objects: .*lost.parquet: Access Denied"),
    ):
        maintain(deployed)
    assert lost in objects(deployed)
    assert maintain(deployed)["images"]["deleted"]["files"] == 1
    assert lost not in objects(deployed)


def test_a_versioned_bucket_keeps_what_was_deleted(deployed: Deployment) -> None:
    night(deployed, 1)
    deployed.s3.put_bucket_versioning(Bucket=deployed.settings.bucket, VersioningConfiguration={"Status": "Enabled"})
    lost = put(deployed, "warehouse/images/data/lost.parquet")
    maintain(deployed)
    found = deployed.s3.list_object_versions(Bucket=deployed.settings.bucket, Prefix=lost)
    assert (len(found["Versions"]), len(found["DeleteMarkers"])) == (1, 1)


def test_nothing_younger_than_a_cluster_can_be_is_deleted(deployed: Deployment) -> None:
    settings = replace(deployed.settings, max_cluster_hours=100)
    assert shortest_age(settings, 3) == timedelta(hours=100)
    assert shortest_age(settings, 5) == timedelta(days=5)
