"""What a run changes in the table `features`: it adds the vectors that it inferred, and may replace small files."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.manifest import DataFile
from pyiceberg.table import FileScanTask, Table

from orchard.errors import PermanentError
from orchard.tables.commit import Change
from orchard.tables.files import write_files
from orchard.tables.rows import arrow_schema, read_parquet, stream_file, stream_rows, where

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

# 10 MB of vectors.
VECTOR_ROWS = 2048
SEPARATOR = pa.scalar("/", pa.large_string())


class OtherModel(PermanentError):
    """The features of a run were published with another model."""

    def __init__(self, run_id: str, published: str, model: str) -> None:
        super().__init__(
            f"the features of run {run_id} were published with model {published}, and its steps have now used {model}. "
            "Published features never change: trigger a new run"
        )


@dataclass(frozen=True)
class Inferred:
    """The files of `features` that a run wrote. `compacted` has the rows of the files `replaced`, by URI."""

    run_id: str
    model: str
    files: Sequence[DataFile]
    compacted: Sequence[DataFile]
    replaced: Sequence[str]


def change_of_features(s3: "S3Client", table: Table, inferred: Inferred) -> Change:
    """Return the change that adds the features of a run to the table, and replaces small files by larger ones.

    Features that the table has already, because the run was published before, are not added again. The files are
    replaced only if all of them are still in the table.

    Raises:
        OtherModel: the table has features of the run by another model.
    """
    present = {task.file.file_path: task for task in table.scan().plan_files()}
    added = _files_to_add(s3, table, inferred, present)
    compacted, removed = _files_to_swap(inferred, present)
    return Change([*added, *compacted], removed)


def _files_to_add(
    s3: "S3Client", table: Table, inferred: Inferred, present: Mapping[str, FileScanTask]
) -> Sequence[DataFile]:
    new = [file for file in inferred.files if file.file_path not in present]
    if not new:
        return []
    batches = list(stream_rows(table, where(run_id=inferred.run_id), ["sha256", "model"]))
    if not batches:
        return new
    published = pa.Table.from_batches(batches)
    for model in pc.unique(published["model"]).to_pylist():
        if model != inferred.model:
            raise OtherModel(inferred.run_id, model, inferred.model)
    known = published["sha256"].combine_chunks()
    return write_files(s3, table, _without(table, new, known))


def _without(table: Table, files: Iterable[DataFile], known: pa.Array) -> Iterator[pa.RecordBatch]:
    schema = arrow_schema(table.schema())
    for file in files:
        for batch in read_parquet(table.io, file.file_path, schema.names, batch_rows=VECTOR_ROWS):
            rest = batch.cast(schema).filter(pc.invert(pc.is_in(batch["sha256"], value_set=known)))
            if rest.num_rows:
                yield rest


def _files_to_swap(
    inferred: Inferred, present: Mapping[str, FileScanTask]
) -> tuple[Sequence[DataFile], Sequence[DataFile]]:
    if not inferred.compacted or all(file.file_path in present for file in inferred.compacted):
        return [], []
    tasks = [present.get(uri) for uri in inferred.replaced]
    removed = [task.file for task in tasks if task is not None and not task.delete_files]
    if len(removed) < len(tasks):
        log.info(
            "features: the %d files that the run has compacted are not used, because %d of them have changed since",
            len(tasks),
            len(tasks) - len(removed),
        )
        return [], []
    return inferred.compacted, removed


def keys_of_features(table: Table) -> pa.ChunkedArray:
    """Return what identifies each row of `features`."""
    rows = stream_rows(table, columns=["sha256", "run_id"])
    return pa.chunked_array([_keys(batch["sha256"], batch["run_id"]) for batch in rows], pa.large_string())


def keys_of_images(images: Iterable[pa.RecordBatch]) -> pa.ChunkedArray:
    """Return what identifies the features of images, from their columns `sha256` and `features_run_id`."""
    keys = [_keys(batch["sha256"], batch["features_run_id"]) for batch in images]
    return pa.chunked_array(keys, pa.large_string())


def _keys(sha256: pa.Array, run_id: pa.Array) -> pa.Array:
    # An array of pa.string holds at most 2 GiB: the keys of 25 million images.
    return pc.binary_join_element_wise(*(column.cast(pa.large_string()) for column in (sha256, run_id)), SEPARATOR)


def change_without(
    s3: "S3Client",
    table: Table,
    run_ids: Iterable[str],
    images: Iterable[pa.RecordBatch],
    others: Iterable[pa.RecordBatch],
) -> Change:
    """Return the change that removes the features of a dataset: those that its runs inferred, or that its images have.

    Features that images of other datasets refer to stay. `images` and `others` are the images of the dataset and of
    the other datasets, with the columns `sha256` and `features_run_id`. A file in which only some rows are removed is
    rewritten.
    """
    of_runs = pa.array(sorted(run_ids), pa.string())
    of_images, referred = pc.unique(keys_of_images(images)), pc.unique(keys_of_images(others))

    def stays(batch: pa.RecordBatch) -> pa.Array:
        keys = _keys(batch["sha256"], batch["run_id"])
        is_removed = pc.or_(pc.is_in(batch["run_id"], value_set=of_runs), pc.is_in(keys, value_set=of_images))
        return pc.or_(pc.invert(is_removed), pc.is_in(keys, value_set=referred))

    def rest(task: FileScanTask) -> Iterator[pa.RecordBatch]:
        for batch in stream_file(table, task, batch_rows=VECTOR_ROWS):
            yield batch.filter(stays(batch))

    added: list[DataFile] = []
    removed: list[DataFile] = []
    for task in table.scan().plan_files():
        rows = stream_file(table, task, columns=["sha256", "run_id"])
        kept = sum(pc.sum(stays(batch)).as_py() or 0 for batch in rows)
        if kept < task.file.record_count:
            removed.append(task.file)
            added += write_files(s3, table, rest(task))
    return Change(added, removed)


def change_back(s3: "S3Client", table: Table, removed: Iterable[DataFile], images: Iterable[pa.RecordBatch]) -> Change:
    """Return the change that adds rows of removed files again to which images refer and which the table lacks."""
    schema = arrow_schema(table.schema())
    wanted = pc.unique(keys_of_images(images))
    wanted = wanted.filter(pc.invert(pc.is_in(wanted, value_set=keys_of_features(table))))
    found: list[pa.RecordBatch] = []
    for file in removed if len(wanted) else []:
        for batch in read_parquet(table.io, file.file_path, schema.names, batch_rows=VECTOR_ROWS):
            rows = batch.cast(schema)
            found.append(rows.filter(pc.is_in(_keys(rows["sha256"], rows["run_id"]), value_set=wanted)))
    return Change(write_files(s3, table, [batch for batch in found if batch.num_rows]))
