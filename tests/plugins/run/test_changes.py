"""What a plan finds and writes, against a local AWS with real tables."""

import io
import json
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest
from pyiceberg.catalog import Catalog

from orchard.dataset.listing import NoImages
from orchard.errors import PermanentError
from orchard.run.changes import (
    DatasetEmptied,
    IncompletePublication,
    NoBasis,
    TooFewImages,
    TooManyLost,
    TooManyRejects,
)
from orchard.run.difference import IMAGE_INFO, INVENTORY, REJECTS
from orchard.run.names import run_id_of
from orchard.run.plan import Planned, plan_again, why_outdated
from orchard.run.plan_files import NoPlan
from orchard.settings import Settings
from orchard.storage import split_uri
from orchard.tables.catalog import TABLES, find_table
from orchard.tables.rows import arrow_schema
from tests.plugins.plans import DEFAULT_PARAMS, catalog_of, keys, metrics, plan, planned, put_images
from tests.plugins.published import BASE, PCA_MODEL, append, publish, publish_basis, run_row

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

OTHER = "20261122T010000-bbbbbb"


@pytest.fixture
def settings(released: Settings) -> Settings:
    return released


@pytest.fixture
def catalog(s3: "S3Client", settings: Settings) -> Catalog:
    return catalog_of(s3, settings)


def rows(s3: "S3Client", run: Planned, dataset: str) -> list[dict[str, Any]]:
    """Return the rows of the files that a plan lists. Each file has the rows and bytes that are listed."""
    found: list[dict[str, Any]] = []
    for file in metrics(s3, run)["files"][dataset]:
        bucket, key = split_uri(file["uri"])
        body = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        table = pq.read_table(io.BytesIO(body))
        assert (table.num_rows, len(body)) == (file["rows"], file["bytes"])
        found += table.to_pylist()
    return sorted(found, key=lambda row: str(row.get("path")))


def names(s3: "S3Client", run: Planned, dataset: str) -> list[str]:
    return [row["path"].rsplit("/", 1)[1] for row in rows(s3, run, dataset)]


COUNTS = ("listed", "new", "changed", "deleted", "unchanged", "images_kept", "rejects_kept", "nothing_to_do")


def counts(run: Planned) -> tuple[int, ...]:
    return tuple(run.changes[name] for name in COUNTS)


def planned_again(s3: "S3Client", catalog: Catalog, settings: Settings, run: Planned) -> dict[str, Any]:
    """Plan a run again, as `wait_turn` does, and return what has changed."""
    return plan_again(s3, catalog, settings, run.run, {"dataset_uri": settings.dataset_uri, **DEFAULT_PARAMS})


def put(s3: "S3Client", settings: Settings, name: str, body: bytes = b"other") -> None:
    s3.put_object(Bucket=settings.bucket, Key=f"images/Kiwi/{name}", Body=body)


def delete(s3: "S3Client", settings: Settings, name: str) -> None:
    s3.delete_object(Bucket=settings.bucket, Key=f"images/Kiwi/{name}")


def test_the_first_run_of_a_dataset_reads_everything(s3: "S3Client", settings: Settings) -> None:
    put_images(s3, settings.bucket, count=3)
    run = planned(s3, settings)
    assert counts(run) == (3, 3, 0, 0, 0, 0, 0, False)
    assert names(s3, run, "inventory") == ["1.jpg", "2.jpg", "3.jpg"]
    written = metrics(s3, run)
    assert {name: len(files) for name, files in written["files"].items()} == {
        "inventory": 3,
        "kept_images": 0,
        "kept_rejects": 0,
        "features": 0,
        "basis": 0,
    }
    release = run_row(s3, settings, BASE)
    assert {
        key: written[key] for key in written if key not in ("files", "seconds", "planned_at", "plan_id", *COUNTS)
    } == {
        "step": "plan",
        "run_id": run_id_of(run.run["run_uri"]),
        "dataset": settings.dataset_uri,
        "base_run_id": None,
        "base_is_complete": True,
        "release": settings.release,
        "model": release["model"],
        "decoder": release["decoder"],
        "n_components": 0.95,
        "pca_mode": "refit",
        "max_bytes": 67_108_864,
        "max_pixels": 50_000_000,
        "hold_minutes": 0,
        "instance_type": "m5.xlarge",
        "core_instances": 2,
        "task_instances": 0,
        "task_slots": 8,
        "bytes_to_read": 15,
        "estimate": {
            "core_instances": 2,
            "task_instances": 0,
            "minutes": 8.5,
            "usd": 0.1114,
            "usd_with_spot": [0.1114, 0.1114],
        },
        "bytes_listed": 15,
        "kept_reject_reasons": {},
        "ignored": {},
    }


def test_a_run_reads_what_is_new_or_changed_and_keeps_the_rest(
    s3: "S3Client", settings: Settings, catalog: Catalog, caplog: pytest.LogCaptureFixture
) -> None:
    put_images(s3, settings.bucket, count=4)
    put(s3, settings, "broken.jpg")
    publish(s3, catalog, settings, {"broken.jpg": "undecodable"})
    put(s3, settings, "new.jpg")
    put(s3, settings, "2.jpg")
    delete(s3, settings, "3.jpg")
    put(s3, settings, "notes.txt")
    caplog.set_level(logging.INFO, "orchard")
    run = planned(s3, settings, max_reject_ratio=0.5)
    assert counts(run) == (5, 1, 1, 1, 3, 2, 1, False)
    assert names(s3, run, "inventory") == ["2.jpg", "new.jpg"]
    assert names(s3, run, "kept_images") == ["1.jpg", "4.jpg"]
    assert names(s3, run, "kept_rejects") == ["broken.jpg"]
    assert rows(s3, run, "kept_rejects")[0]["message"] == f"run {BASE} says undecodable"
    assert rows(s3, run, "kept_images")[0]["features_run_id"] == BASE
    written = metrics(s3, run)
    assert (written["base_run_id"], written["ignored"]) == (BASE, {".txt": 1})
    assert written["kept_reject_reasons"] == {"undecodable": 1}
    assert (
        f"5 images below {settings.dataset_uri}: 1 new, 1 changed, 1 deleted, 3 unchanged; compared with run {BASE}"
        in (caplog.text)
    )
    assert "1 objects are ignored, 5 are images: 1 .txt" in caplog.text


def test_everything_is_new_after_a_run_whose_publication_was_broken_off(
    s3: "S3Client", settings: Settings, catalog: Catalog
) -> None:
    put_images(s3, settings.bucket, count=4)
    publish(s3, catalog, settings, images=5)  # as `runs` says; `images` and `embeddings` have 4 rows
    run = planned(s3, settings)
    assert counts(run) == (4, 4, 0, 0, 0, 0, 0, False)
    assert (metrics(s3, run)["base_run_id"], metrics(s3, run)["base_is_complete"]) == (BASE, False)


def test_a_plan_made_while_another_run_was_being_published_is_outdated(
    s3: "S3Client", settings: Settings, catalog: Catalog
) -> None:
    put_images(s3, settings.bucket, count=4)
    publish(s3, catalog, settings, has_run=False)
    run = planned(s3, settings)
    assert why_outdated(s3, catalog, settings, run.run) == ""
    rows_of_run = {"images": 4, "rejects": []}
    append(catalog, settings, "runs", [{**run_row(s3, settings, BASE), **rows_of_run}])
    assert "was not yet published completely when this run was planned" in why_outdated(s3, catalog, settings, run.run)
    again = planned_again(s3, catalog, settings, run)
    assert again["nothing_to_do"]


def test_a_frozen_run_waits_for_the_run_that_is_being_published(
    s3: "S3Client", settings: Settings, catalog: Catalog
) -> None:
    put_images(s3, settings.bucket, count=4)
    publish(s3, catalog, settings, has_run=False)
    with pytest.raises(IncompletePublication, match=f"run {BASE} of .* is not published completely"):
        planned(s3, settings, pca_mode="frozen")
    assert not issubclass(IncompletePublication, PermanentError)


def test_an_object_that_vanished_while_the_last_run_read_it_is_no_work(
    s3: "S3Client", settings: Settings, catalog: Catalog
) -> None:
    put_images(s3, settings.bucket, count=4)
    publish(s3, catalog, settings, {"4.jpg": "deleted"})
    delete(s3, settings, "4.jpg")
    run = planned(s3, settings)
    assert counts(run)[1:4] == (0, 0, 0)
    assert run.changes["nothing_to_do"]


def test_the_files_have_the_schemas_that_the_steps_read_and_names_of_their_own(
    s3: "S3Client", settings: Settings, catalog: Catalog
) -> None:
    put_images(s3, settings.bucket, count=3)
    put(s3, settings, "broken.jpg")
    publish(s3, catalog, settings, {"broken.jpg": "undecodable"})
    publish_basis(s3, catalog, settings)
    put(s3, settings, "new.jpg")
    params: dict[str, Any] = {"max_reject_ratio": 0.5, "pca_mode": "frozen"}
    run, again = (planned(s3, settings, **params) for _ in range(2))
    uris = set()
    basis = arrow_schema(TABLES["pca_models"])
    for dataset, schema in {
        "inventory": INVENTORY,
        "kept_images": IMAGE_INFO,
        "kept_rejects": REJECTS,
        "basis": basis,
    }.items():
        for file in metrics(s3, again)["files"][dataset]:
            bucket, key = split_uri(file["uri"])
            found = pq.read_schema(io.BytesIO(s3.get_object(Bucket=bucket, Key=key)["Body"].read()))
            assert found == schema, dataset
            assert file["uri"].startswith(f"{run.run['scratch_uri']}/{dataset}/")
            uris.add(key)
    # Both plans are of one run. The files of the first one remain, and are not listed any more.
    assert len(keys(s3, run.run["scratch_uri"])) == 2 * len(uris) == 8
    assert keys(s3, run.run["run_uri"]) == [split_uri(f"{run.run['run_uri']}/plan.metrics.json")[1]]


def test_the_files_of_the_table_features_are_listed(s3: "S3Client", settings: Settings, catalog: Catalog) -> None:
    put_images(s3, settings.bucket)
    append(catalog, settings, "features", [{"sha256": "a", "model": "m", "features": [1.0], "run_id": BASE}])
    table = find_table(catalog, settings, "features")
    assert table is not None
    (task,) = table.scan().plan_files()
    (file,) = metrics(s3, planned(s3, settings))["files"]["features"]
    assert file == {"uri": task.file.file_path, "rows": 1, "bytes": task.file.file_size_in_bytes}


def test_nothing_is_to_be_done_and_nothing_is_written_if_nothing_has_changed(
    s3: "S3Client", settings: Settings, catalog: Catalog
) -> None:
    put_images(s3, settings.bucket, count=9)
    put(s3, settings, "broken.jpg")
    publish(s3, catalog, settings, {"broken.jpg": "undecodable"})
    run = planned(s3, settings, max_reject_ratio=0.1)
    assert counts(run) == (10, 0, 0, 0, 10, 9, 1, True)
    assert run.changes["why"] == (
        f"nothing to do: 10 images below {settings.dataset_uri}, of which 1 stay rejected, 0 new, 0 changed, "
        f"0 deleted; run {BASE} stays published"
    )
    assert run.changes["sentence"] == (f"nothing to do: 10 images below {settings.dataset_uri}, 1 rejected, no changes")
    assert keys(s3, run.run["run_uri"]) == keys(s3, run.run["scratch_uri"]) == []


def test_what_has_changed_fits_into_an_xcom(s3: "S3Client", settings: Settings) -> None:
    put_images(s3, settings.bucket)
    changes = planned(s3, settings).changes
    assert json.loads(json.dumps(changes)) == changes
    assert str(changes["sentence"]).startswith("2 images, all new; 2 workers, about ")
    assert "files" not in changes


# What the run before had in `runs`, by what has changed since.
CHANGES: dict[str, dict[str, Any]] = {
    "deleted": {},
    "another model": {"model": "another"},
    "another number of components": {"n_components": 2.0},
    "a frozen basis before": {"pca_mode": "frozen"},
    "full refresh": {},
}


@pytest.mark.parametrize("change", CHANGES)
def test_there_is_something_to_do_if_the_result_would_differ(
    s3: "S3Client", settings: Settings, catalog: Catalog, change: str
) -> None:
    put_images(s3, settings.bucket, count=4)
    publish(s3, catalog, settings, **CHANGES[change])
    if change == "deleted":
        delete(s3, settings, "4.jpg")
    run = planned(s3, settings, full_refresh=change == "full refresh")
    everything = change in ("another model", "full refresh")
    listed = 3 if change == "deleted" else 4
    read = listed if everything else 0
    deleted = 1 if change == "deleted" else 0
    assert counts(run) == (listed, 0, read, deleted, listed - read, listed - read, 0, False)
    assert len(rows(s3, run, "inventory")) == read
    assert len(rows(s3, run, "kept_images")) == listed - read


@pytest.mark.parametrize("of_base", [{"n_components": 2.0}, {"pca_mode": "frozen"}, {"pca_mode": "refit"}])
def test_nothing_is_to_be_done_with_a_frozen_basis_whatever_the_run_before_did(
    s3: "S3Client", settings: Settings, catalog: Catalog, of_base: dict[str, Any]
) -> None:
    put_images(s3, settings.bucket, count=4)
    publish(s3, catalog, settings, **of_base)
    assert planned(s3, settings, pca_mode="frozen").changes["nothing_to_do"]


def test_a_whole_number_of_components_is_compared_with_what_the_table_has(
    s3: "S3Client", settings: Settings, catalog: Catalog
) -> None:
    put_images(s3, settings.bucket, count=4)
    publish(s3, catalog, settings, n_components=2.0)
    assert planned(s3, settings, n_components=2).changes["nothing_to_do"]


LIMITS: list[tuple[dict[str, Any], dict[str, Any], int]] = [
    ({}, {}, 1),
    ({"decoder": "another"}, {}, 0),
    ({"max_bytes": 1000}, {}, 0),
    ({"max_pixels": 1000}, {}, 0),
    ({}, {"retry_rejects": True}, 0),
    ({}, {"full_refresh": True}, 0),
    ({"model": "another"}, {}, 1),
    ({"has_run": False}, {}, 0),
]


@pytest.mark.parametrize(("of_base", "params", "kept"), LIMITS)
def test_a_reject_is_read_again_with_another_decoder_with_other_limits_or_on_demand(
    s3: "S3Client", settings: Settings, catalog: Catalog, of_base: dict[str, Any], params: dict[str, Any], kept: int
) -> None:
    put_images(s3, settings.bucket, count=4)
    put(s3, settings, "broken.jpg")
    publish(s3, catalog, settings, {"broken.jpg": "undecodable"}, **of_base)
    put(s3, settings, "new.jpg")
    run = planned(s3, settings, max_reject_ratio=0.5, **params)
    assert run.changes["rejects_kept"] == kept
    assert ("broken.jpg" in names(s3, run, "inventory")) == (not kept)


def test_a_larger_max_bytes_reads_what_was_too_large(s3: "S3Client", settings: Settings, catalog: Catalog) -> None:
    put_images(s3, settings.bucket, count=4)
    put(s3, settings, "large.jpg", b"x" * 11)
    publish(s3, catalog, settings, {"large.jpg": "too_many_bytes"}, max_bytes=10)
    assert planned(s3, settings, max_bytes=10, max_reject_ratio=0.5).changes["nothing_to_do"]
    run = planned(s3, settings, max_bytes=11, max_reject_ratio=0.5)
    assert names(s3, run, "inventory") == ["large.jpg"]


def test_a_smaller_max_bytes_rejects_an_image_without_reading_it(
    s3: "S3Client", settings: Settings, catalog: Catalog
) -> None:
    put_images(s3, settings.bucket, count=4)
    put(s3, settings, "large.jpg", b"x" * 11)
    publish(s3, catalog, settings)
    run = planned(s3, settings, max_bytes=10, max_reject_ratio=0.5)
    (row,) = rows(s3, run, "inventory")
    assert (row["reason"], row["message"]) == ("too_many_bytes", "11 bytes, over 10")


def test_rejects_that_are_kept_count_for_the_tolerated_share(
    s3: "S3Client", settings: Settings, catalog: Catalog
) -> None:
    put_images(s3, settings.bucket, count=7)
    put(s3, settings, "broken.jpg")
    put(s3, settings, "archived.jpg")
    publish(s3, catalog, settings, {"broken.jpg": "undecodable"})
    s3.put_object(Bucket=settings.bucket, Key="images/Kiwi/archived.jpg", Body=b"1", StorageClass="GLACIER")
    put(s3, settings, "empty.jpg", b"")
    assert planned(s3, settings, max_reject_ratio=0.3).changes["listed"] == 10
    with pytest.raises(TooManyRejects) as error:
        planned(s3, settings, max_reject_ratio=0.29)
    assert isinstance(error.value, PermanentError)
    assert str(error.value) == (
        f"3 of 10 images below {settings.dataset_uri} cannot be read, a ratio of 0.300, over max_reject_ratio 0.29: "
        "1 archived (restore them, or copy them to another storage class); "
        "1 empty (upload them again, or delete them); "
        "1 undecodable (rejected by an earlier run; replace them, or set retry_rejects). "
        "Or set a higher max_reject_ratio"
    )


def test_kept_images_count_for_the_number_of_components(s3: "S3Client", settings: Settings, catalog: Catalog) -> None:
    put_images(s3, settings.bucket, count=3)
    publish(s3, catalog, settings)
    put(s3, settings, "new.jpg")
    assert planned(s3, settings, n_components=4).changes["listed"] == 4
    with pytest.raises(TooFewImages, match="has 4 readable images, but n_components is 5: use at most 4"):
        planned(s3, settings, n_components=5)


@pytest.mark.parametrize(
    ("changed", "listed"), [({}, 1), ({"model": "another"}, 0), ({"pca_model": "pca-of-old"}, 0)], ids=repr
)
def test_a_new_basis_is_compared_with_that_of_the_published_run_if_it_fits(
    s3: "S3Client", settings: Settings, catalog: Catalog, changed: dict[str, Any], listed: int
) -> None:
    put_images(s3, settings.bucket, count=3)
    publish(s3, catalog, settings, **changed)
    publish_basis(s3, catalog, settings)
    put(s3, settings, "new.jpg")
    run = planned(s3, settings)
    assert len(metrics(s3, run)["files"]["basis"]) == listed
    assert [row["pca_model"] for row in rows(s3, run, "basis")] == [PCA_MODEL] * listed


def test_a_run_that_fits_a_basis_needs_no_readable_basis_of_an_earlier_run(
    s3: "S3Client", settings: Settings, catalog: Catalog, caplog: pytest.LogCaptureFixture
) -> None:
    put_images(s3, settings.bucket, count=3)
    publish(s3, catalog, settings)
    publish_basis(s3, catalog, settings)
    put(s3, settings, "new.jpg")
    table = find_table(catalog, settings, "pca_models")
    assert table is not None
    (task,) = table.scan().plan_files()
    bucket, key = split_uri(task.file.file_path)
    s3.delete_object(Bucket=bucket, Key=key)
    assert metrics(s3, planned(s3, settings))["files"]["basis"] == []
    assert f"the basis of run {BASE} cannot be read, so that there is no drift" in caplog.text
    with pytest.raises(FileNotFoundError):
        planned(s3, settings, pca_mode="frozen")


def test_a_frozen_basis_decides_about_the_number_of_components(
    s3: "S3Client", settings: Settings, catalog: Catalog
) -> None:
    put_images(s3, settings.bucket, count=3)
    publish(s3, catalog, settings)
    publish_basis(s3, catalog, settings)
    put(s3, settings, "new.jpg")
    run = planned(s3, settings, n_components=1280, pca_mode="frozen")
    (row,) = rows(s3, run, "basis")
    assert (row["pca_model"], row["components_"], row["mean_"]) == (PCA_MODEL, [[1.0, 0.0]], [0.5, 0.25])


@pytest.mark.parametrize(
    ("of_base", "fault"),
    [
        (None, "no run with a basis is published"),
        ({"model": "another"}, "its basis is of model another, not mobilenet"),
        ({"pca_model": "lost"}, "table pca_models has no row lost"),
    ],
)
def test_a_frozen_basis_that_does_not_exist_or_is_of_another_model_is_refused(
    s3: "S3Client", settings: Settings, catalog: Catalog, of_base: dict[str, Any] | None, fault: str
) -> None:
    put_images(s3, settings.bucket, count=3)
    publish_basis(s3, catalog, settings)
    if of_base is not None:
        publish(s3, catalog, settings, **of_base)
    put(s3, settings, "new.jpg")
    message = (
        f"pca_mode is frozen, but there is no basis for {settings.dataset_uri}: {fault}. Run once with pca_mode refit "
        "and full_refresh"
    )
    with pytest.raises(NoBasis, match=message) as error:
        planned(s3, settings, pca_mode="frozen")
    assert isinstance(error.value, PermanentError)


def test_one_image_is_enough_for_a_frozen_basis(s3: "S3Client", settings: Settings, catalog: Catalog) -> None:
    put_images(s3, settings.bucket, count=2)
    publish(s3, catalog, settings)
    publish_basis(s3, catalog, settings)
    delete(s3, settings, "2.jpg")
    assert planned(s3, settings, pca_mode="frozen").changes["listed"] == 1
    with pytest.raises(TooFewImages, match="has 1 readable images, but a PCA needs at least 2"):
        planned(s3, settings)


def test_a_dataset_without_images_that_the_tables_still_show_names_the_way_to_delete_it(
    s3: "S3Client", settings: Settings, catalog: Catalog
) -> None:
    put_images(s3, settings.bucket)
    publish(s3, catalog, settings)
    for number in (1, 2):
        delete(s3, settings, f"{number}.jpg")
    with pytest.raises(
        DatasetEmptied, match=f"images of run {BASE}: to remove them, run the DAG forget_dataset"
    ) as error:
        planned(s3, settings)
    assert isinstance(error.value, NoImages)


def test_another_dataset_of_the_same_tables_is_not_compared_with(
    s3: "S3Client", settings: Settings, catalog: Catalog
) -> None:
    put_images(s3, settings.bucket)
    publish(s3, catalog, settings)
    put_images(s3, settings.bucket, "autumn/")
    run = planned(s3, settings, dataset_uri=f"s3://{settings.bucket}/autumn/")
    assert counts(run) == (2, 2, 0, 0, 0, 0, 0, False)


def publish_other(s3: "S3Client", catalog: Catalog, settings: Settings) -> None:
    """Publish another run of the dataset in the place of the first."""
    for name in ("images", "rejects", "embeddings"):
        table = find_table(catalog, settings, name)
        if table is not None:
            table.delete()
    publish(s3, catalog, settings, run_id=OTHER)


def test_a_plan_is_outdated_when_another_run_of_the_dataset_was_published(
    s3: "S3Client", settings: Settings, catalog: Catalog
) -> None:
    put_images(s3, settings.bucket, count=3)
    publish(s3, catalog, settings)
    put(s3, settings, "new.jpg")
    run = planned(s3, settings)
    assert why_outdated(s3, catalog, settings, run.run) == ""
    publish_other(s3, catalog, settings)
    assert why_outdated(s3, catalog, settings, run.run) == (
        f"the tables show run {OTHER} of {settings.dataset_uri}, but this run was planned after run {BASE}"
    )
    put(s3, settings, "newer.jpg")
    first = metrics(s3, run)
    again = planned_again(s3, catalog, settings, run)
    assert (again["new"], again["unchanged"], again["base_run_id"]) == (1, 4, OTHER)
    assert names(s3, run, "inventory") == ["newer.jpg"]
    assert first["files"]["inventory"] != metrics(s3, run)["files"]["inventory"]
    assert why_outdated(s3, catalog, settings, run.run) == ""


def test_nothing_is_left_to_do_when_the_other_run_has_done_it(
    s3: "S3Client", settings: Settings, catalog: Catalog
) -> None:
    put_images(s3, settings.bucket, count=3)
    run = planned(s3, settings)
    publish(s3, catalog, settings)
    assert why_outdated(s3, catalog, settings, run.run).endswith("but this run was planned after none")
    again = planned_again(s3, catalog, settings, run)
    assert again["nothing_to_do"]


def test_a_plan_is_outdated_when_the_dataset_was_removed_from_the_tables(
    s3: "S3Client", settings: Settings, catalog: Catalog
) -> None:
    put_images(s3, settings.bucket, count=3)
    publish(s3, catalog, settings)
    put(s3, settings, "new.jpg")
    run = planned(s3, settings)
    catalog.load_table((settings.catalog_database, "images")).delete()
    assert why_outdated(s3, catalog, settings, run.run) == (
        f"the tables show no run of {settings.dataset_uri}, but this run was planned after run {BASE}"
    )


def test_a_dataset_that_has_lost_most_of_its_images_does_not_replace_them(
    s3: "S3Client", settings: Settings, catalog: Catalog
) -> None:
    put_images(s3, settings.bucket, count=9)
    publish(s3, catalog, settings)
    for number in range(1, 6):
        delete(s3, settings, f"{number}.jpg")
    message = rf"too few images: 4 below {settings.dataset_uri} of the 9 that run {BASE} has published, a loss of 0.556"
    with pytest.raises(TooManyLost, match=message + ", over max_lost_ratio 0.5"):
        planned(s3, settings)
    for params in ({"max_lost_ratio": 0.55}, {"full_refresh": True}, {"pca_mode": "frozen"}):
        with pytest.raises(TooManyLost):
            planned(s3, settings, **params)
    assert counts(planned(s3, settings, max_lost_ratio=0.56))[3] == 5
    assert issubclass(TooManyLost, PermanentError)


@pytest.mark.parametrize("left", [8, 7])
def test_objects_that_the_listing_rejects_are_lost_images_too(
    s3: "S3Client", settings: Settings, catalog: Catalog, left: int
) -> None:
    put_images(s3, settings.bucket, count=9)
    publish(s3, catalog, settings)
    for number in range(left + 1, 10):
        put(s3, settings, f"{number}.jpg", b"")
    if left == 8:
        planned(s3, settings, max_lost_ratio=0.2, max_reject_ratio=1)
    else:
        with pytest.raises(TooManyLost, match="too few images: 7 below"):
            planned(s3, settings, max_lost_ratio=0.2, max_reject_ratio=1)


def test_renamed_images_are_not_lost(s3: "S3Client", settings: Settings, catalog: Catalog) -> None:
    put_images(s3, settings.bucket, count=4)
    publish(s3, catalog, settings)
    for number in range(1, 5):
        delete(s3, settings, f"{number}.jpg")
    put_images(s3, settings.bucket, "images/renamed/", count=4)
    assert counts(planned(s3, settings, max_lost_ratio=0))[1:4] == (4, 0, 4)


def test_a_plan_is_not_outdated_by_the_run_itself(s3: "S3Client", settings: Settings, catalog: Catalog) -> None:
    put_images(s3, settings.bucket, count=3)
    run = planned(s3, settings)
    publish(s3, catalog, settings, run_id=run_id_of(run.run["run_uri"]))
    assert why_outdated(s3, catalog, settings, run.run) == ""


def test_a_plan_is_made_again_with_the_release_of_the_run(s3: "S3Client", settings: Settings, catalog: Catalog) -> None:
    put_images(s3, settings.bucket, count=3)
    run = planned(s3, settings)
    publish(s3, catalog, settings, model="a later release")
    gone = replace(settings, release="gone")
    again = planned_again(s3, catalog, gone, run)
    assert (again["changed"], again["model"]) == (3, run.changes["model"])


def test_a_run_without_a_plan_cannot_be_confirmed(s3: "S3Client", settings: Settings, catalog: Catalog) -> None:
    put_images(s3, settings.bucket)
    run = plan(s3, settings)
    bucket, prefix = split_uri(run["run_uri"])
    s3.delete_object(Bucket=bucket, Key=f"{prefix}/plan.metrics.json")
    with pytest.raises(NoPlan, match=r"plan.metrics.json does not exist. Clear `plan` with downstream") as error:
        why_outdated(s3, catalog, settings, run)
    assert isinstance(error.value, PermanentError)


def test_another_plan_makes_the_results_of_the_steps_invalid_unless_there_is_nothing_to_do(
    s3: "S3Client", settings: Settings, catalog: Catalog
) -> None:
    put_images(s3, settings.bucket, count=3)
    run = planned(s3, settings)
    bucket, prefix = split_uri(run.run["run_uri"])
    results = [
        f"{prefix}/{name}"
        for name in (
            *(f"{step}.{kind}.json" for step in ("features", "ingest", "pca") for kind in ("metrics", "progress")),
            "summary.json",
        )
    ]
    for key in results:
        s3.put_object(Bucket=bucket, Key=key, Body=b"{}")
    publish(s3, catalog, settings, run_id=run_id_of(run.run["run_uri"]))
    plan_of_run = f"{prefix}/plan.metrics.json"
    assert planned(s3, settings).changes["nothing_to_do"]
    assert keys(s3, run.run["run_uri"]) == sorted([*results, plan_of_run])
    put(s3, settings, "new.jpg")
    assert not planned(s3, settings).changes["nothing_to_do"]
    assert keys(s3, run.run["run_uri"]) == [plan_of_run]
