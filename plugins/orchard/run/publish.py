"""Publish a run: check that its steps agree, change the tables, write `summary.json`, delete the scratch folder."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.catalog import Catalog
from pyiceberg.table import Table

from orchard.errors import PermanentError
from orchard.run.names import run_id_of
from orchard.run.plan import RunPlan
from orchard.run.quality import (
    LabelChanges,
    PoorQuality,
    add_counts,
    beyond,
    count_labels,
    counts_of,
    figures,
    most_common,
    shorten,
)
from orchard.run.record import add_row, row_of_run, rows_of_run
from orchard.run.scratch import delete_scratch
from orchard.run.sentence import UNKNOWN, Spent, run_sentence
from orchard.run.step_files import Listed, check_files, data_files, read_files
from orchard.run.summary import Metrics, read_metrics, read_summary, summarise, write_summary
from orchard.settings import Settings
from orchard.tables.catalog import DATASET, RUN_ID, TABLES, open_table
from orchard.tables.commit import Change, commit, replacement, tasks_to_merge
from orchard.tables.features import Inferred, change_of_features, keys_of_features, keys_of_images
from orchard.tables.files import write_files
from orchard.tables.rows import OWNER, arrow_schema, owned_rows, stream_file, stream_rows, where
from orchard.tables.state import published_state, run_of_rows

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)


class DatasetChanged(PermanentError):
    """The tables show another state of the dataset than the one that the run was planned from."""

    def __init__(self, dataset: str, run: str, base: str | None, shown: str | None) -> None:
        def rows(run_id: str | None) -> str:
            return f"the rows of run {run_id}" if run_id else "no rows"

        super().__init__(
            f"run {run} of {dataset} is not published: it was planned when the tables had {rows(base)} of the dataset, "
            f"and now they have {rows(shown)}. Trigger a new run of the dataset: it reads only what has changed"
        )


class LostFeatures(PermanentError):
    """Rows of `features` that a run refers to have been removed since the run was planned."""

    def __init__(self, run_uri: str, new: int, kept: int) -> None:
        super().__init__(
            f"{run_uri} is not published: since the run was planned, the table features has lost the rows of {new} of "
            f"its new images and of {kept} others, by forget_dataset or a rollback. Trigger a new run of the dataset"
            + (" with full_refresh" if kept else "")
        )


@dataclass(frozen=True)
class Publication:
    """A run with what it needs to be published. All files have been checked."""

    s3: "S3Client"
    settings: Settings
    tables: Mapping[str, Table]
    plan: RunPlan
    metrics: Metrics
    summary: dict[str, Any]

    @property
    def dataset(self) -> str:
        """The value of the column `dataset`."""
        return self.plan["dataset_uri"]

    @property
    def run_id(self) -> str:
        """The value of the column `run_id`."""
        return run_id_of(self.plan["run_uri"])


def publish_run(
    s3: "S3Client",
    catalog: Catalog,
    settings: Settings,
    plan: RunPlan,
    cluster_id: str | None,
    spent: Spent = UNKNOWN,
) -> dict[str, Any]:
    """Make a run visible to readers: change the tables, then write and return its `summary.json`.

    `spent` is what the run has taken so far, for the line about it in the summary: `sentence`.

    The tables change one after the other, `runs` last. Each change is one commit, after which the table shows the run
    completely. Publishing a run again changes nothing, unless steps of the run were redone. In that case, the rows of
    the run are replaced by those of its new files.

    Raises:
        PoorQuality: a figure of the run is beyond a threshold that stops. No table has changed.
        InconsistentRun: the steps or their files disagree about the number of images. No table has changed.
        DatasetChanged: since the plan, another run of the dataset was published, or the tables were rolled back.
        LostFeatures: features that the run refers to have been removed since the plan.
        WrongWarehouse: the tables of the database are in another bucket.
        OldLayout: a table has the columns of an earlier release.
        SharedFile: a data file has rows of several datasets.
        CannotCommit: other publishers changed a table during each attempt.
    """
    summary = read_summary(s3, plan["run_uri"])
    if summary is not None and is_published(catalog, settings, summary):
        log.info("%s is published already", plan["run_uri"])
    else:
        metrics = read_metrics(s3, plan["run_uri"])
        summary = summarise(plan, metrics, cluster_id)
        tables = {name: open_table(catalog, settings, name) for name in TABLES}
        summary["sentence"] = run_sentence(summary, spent)
        summary["database"] = settings.catalog_database
        summary["tables"] = change_tables(Publication(s3, settings, tables, plan, metrics, summary))
        write_summary(s3, summary)
        log.info("published %s: %s", plan["run_uri"], json.dumps(shorten(summary)))
    delete_scratch(s3, settings, plan["scratch_uri"], now=datetime.now(UTC))
    return summary


def is_published(catalog: Catalog, settings: Settings, summary: Mapping[str, Any]) -> bool:
    """Return whether the tables show the run of a summary completely."""
    state = published_state(catalog, settings, str(summary["dataset_uri"]))
    return state is not None and state.is_complete and state.run_id == summary["run_id"]


def change_tables(run: Publication) -> dict[str, dict[str, Any]]:
    """Make the tables show a run. Return the snapshot of each table, and the number of its rows that are of the run.

    All that can be checked is checked before the first change.
    """
    tables, metrics = run.tables, run.metrics
    shown = check_base(run, tables["images"])
    io = tables["images"].io
    kept_images, new_images = metrics.files("plan", "kept_images"), metrics.files("features", "new_images")
    kept_rejects, rejects = metrics.files("plan", "kept_rejects"), metrics.files("ingest", "rejects")
    fitted = metrics.files("pca", "pca_model")
    check_files(io, [*kept_images, *new_images, *kept_rejects, *rejects, *fitted])
    features = data_files(tables["features"], metrics.files("features", "features"))
    compacted = data_files(tables["features"], metrics.files("pca", "compacted"))
    embeddings = data_files(tables["embeddings"], metrics.files("pca", "embeddings"), run.dataset)
    basis = list(read_files(io, fitted, arrow_schema(TABLES["pca_models"])))
    replaced = metrics.files("pca", "replaced")
    check_features(run)
    check_quality(run, shown)

    images = write_files(run.s3, tables["images"], rows_of_dataset(run, "images", [*kept_images, *new_images]))
    refused = write_files(run.s3, tables["rejects"], rows_of_dataset(run, "rejects", [*kept_rejects, *rejects]))
    inferred = Inferred(
        run.run_id, metrics.steps["features"]["model"], features, compacted, [file["uri"] for file in replaced]
    )
    properties = {RUN_ID: run.run_id, DATASET: run.dataset}
    snapshots: dict[str, int] = {}

    def change(name: str, find_change: Callable[[Table], Change]) -> None:
        snapshots[name] = commit(tables[name], run.plan["run_uri"], find_change, properties)

    def replace_images(table: Table) -> Change:
        # Again, because meanwhile another run may have been published, and another dataset may have been forgotten.
        check_base(run, table)
        check_features(run)
        return replacement(table, run.dataset, images)

    def change_if_shown(name: str, find_change: Callable[[Table], Change]) -> None:
        """Change a table only while `images` shows the run: this process may have been paused for hours."""

        def checked(table: Table) -> Change:
            check_base(run, tables["images"].refresh(), run.run_id)
            return find_change(table)

        change(name, checked)

    change("features", lambda table: change_of_features(run.s3, table, inferred))
    change("pca_models", lambda table: change_of_pca_models(run, table, basis))
    change("images", replace_images)
    change_if_shown("rejects", lambda table: replacement(table, run.dataset, refused))
    change_if_shown("embeddings", lambda table: replacement(table, run.dataset, embeddings))
    change_if_shown("runs", lambda table: add_row(run.s3, table, row_of_run(metrics.plan, run.summary, snapshots)))
    rows = {
        "features": run.summary["inferences"],
        "images": run.summary["images_ingested"],
        "rejects": run.summary["images_rejected"],
        "embeddings": run.summary["embeddings_rows"],
        "pca_models": sum(batch.num_rows for batch in basis),
        "runs": 1,
    }
    # As text, because browsers and jq round numbers of this size.
    return {name: {"snapshot_id": str(snapshots[name]), "rows": rows[name]} for name in tables}


def check_base(run: Publication, images: Table, *accepted: str) -> str | None:
    """Check that the tables show one of the accepted runs: by default the run's base, or the run itself. Return it.

    Raises:
        DatasetChanged: they do not.
    """
    base, shown = run.metrics.plan["base_run_id"], run_of_rows(images, run.dataset)
    if shown not in (accepted or (base, run.run_id)):
        raise DatasetChanged(run.dataset, run.run_id, base, shown)
    return shown


def check_features(run: Publication) -> None:
    """Check that the table `features` still has the features of other runs that the images of a run refer to.

    Raises:
        LostFeatures: it does not.
    """
    table, metrics = run.tables["features"].refresh(), run.metrics
    present = {task.file.file_path for task in table.scan().plan_files() if not task.delete_files}
    listed = {file["uri"] for file in metrics.files("plan", "features")}
    compacted = {file["uri"] for file in metrics.files("pca", "compacted")}
    if compacted and compacted <= present:
        # An earlier attempt has swapped the files. These have the same rows.
        listed = (listed - {file["uri"] for file in metrics.files("pca", "replaced")}) | compacted
    if listed <= present:
        return
    found = keys_of_features(table)

    def lost(images: Listed, *own: str) -> int:
        schema = arrow_schema(TABLES["images"], ["sha256", "features_run_id"])
        of_others = (
            batch.filter(pc.invert(pc.is_in(batch["features_run_id"], value_set=pa.array(own, pa.string()))))
            for batch in read_files(table.io, images, schema)
        )
        wanted = keys_of_images(of_others)
        return len(wanted) - (pc.sum(pc.is_in(wanted, value_set=found)).as_py() or 0)

    # The features that the run has inferred itself come with it.
    new = lost(metrics.files("features", "new_images"), run.run_id)
    kept = lost(metrics.files("plan", "kept_images"))
    if new or kept:
        raise LostFeatures(run.plan["run_uri"], new, kept)


def check_quality(run: Publication, shown: str | None) -> None:
    """Check the figures of a run, and add its labels and the warnings to its summary. `shown` is the run in the tables.

    Raises:
        PoorQuality: a figure is beyond a threshold that stops.
    """
    summary, counts, before = run.summary, labels_of_run(run), labels_before(run, shown)
    changes = before and LabelChanges.between(before[0], counts, are_all=before[1])
    found = figures(summary, float(run.metrics.plan["n_components"]), changes)
    stops = beyond(found, run.settings, "stop")
    # If the tables show a part of the run already, its publication was broken off, and has to be completed.
    is_broken_off = shown == run.run_id and not rows_of_run(run.tables["runs"], run.dataset, run.run_id)
    if stops and not is_broken_off:
        raise PoorQuality(run.dataset, run.run_id, shown, list(stops.values()))
    texts = beyond(found, run.settings, "warn") | stops
    warnings = [texts[figure.name] for figure in found if figure.name in texts]
    for warning in warnings:
        log.warning("publish: %s: %s", run.plan["run_uri"], warning)
    summary["labels"], summary["label_count"] = most_common(counts), counts.num_rows
    summary["labels_changed"] = changes and changes.largest()
    summary["warnings"] = warnings


def labels_of_run(run: Publication) -> pa.Table:
    """Return how many images each label has in a run, as a table of COUNTS. Only the labels of the images are read."""
    schema, io = arrow_schema(TABLES["images"], ["label"]), run.tables["images"].io

    def count(file: Mapping[str, Any]) -> pa.Table:
        return count_labels(batch["label"] for batch in read_files(io, [file], schema))

    with ThreadPoolExecutor() as pool:
        files = [*run.metrics.files("plan", "kept_images"), *run.metrics.files("features", "new_images")]
        return add_counts(pool.map(count, files))


def labels_before(run: Publication, shown: str | None) -> tuple[pa.Table, bool] | None:
    """Return how many images each label had in the base of a run, and whether these are all of its labels.

    Return None without a base. A row of an earlier release has no labels: then the images in the tables are counted, if
    they still are those of the base.
    """
    base = run.metrics.plan["base_run_id"]
    row = next(iter(rows_of_run(run.tables["runs"], run.dataset, base)), {}) if base else {}
    labels = row.get("labels")
    if labels is not None:
        return counts_of(dict(labels)), sum(dict(labels).values()) == row["images"]
    if base is None or shown != base:
        return None
    images = stream_rows(run.tables["images"], where(dataset=run.dataset), ["label"])
    return count_labels(batch["label"] for batch in images), True


def rows_of_dataset(run: Publication, name: str, files: Listed) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a table that the listed files describe: the same columns, with the dataset and the run."""
    schema = arrow_schema(TABLES[name])
    read = pa.schema([field for field in schema if field.name not in OWNER])
    for batch in read_files(run.tables[name].io, files, read):
        columns = dict(zip(read.names, batch.columns, strict=True))
        yield from owned_rows(schema, columns, batch.num_rows, dataset=run.dataset, run_id=run.run_id)


def change_of_pca_models(run: Publication, table: Table, basis: Sequence[pa.RecordBatch]) -> Change:
    """Return the change that adds the fitted basis of a run, unless the table has it: its name tells its content."""
    new = [
        batch
        for batch in basis
        if not any(stream_rows(table, where(dataset=run.dataset, pca_model=batch["pca_model"][0].as_py()), ["run_id"]))
    ]
    small = tasks_to_merge(table, run.dataset) if new else []
    merged = [batch for task in small for batch in stream_file(table, task)]
    return Change(write_files(run.s3, table, [*merged, *new]), [task.file for task in small])
