"""Read the rows of a table in bounded memory."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.expressions import AlwaysTrue, And, BooleanExpression, EqualTo, In, Reference
from pyiceberg.io import FileIO
from pyiceberg.io.pyarrow import ArrowScan, schema_to_pyarrow
from pyiceberg.manifest import FileFormat
from pyiceberg.schema import Schema
from pyiceberg.table import FileScanTask, Table

log = logging.getLogger(__name__)

# Of a narrow table, a batch has about 20 MB.
BATCH_ROWS = 65_536
ALL_ROWS = AlwaysTrue()
# The columns that say whose rows these are.
OWNER = ("dataset", "run_id")


class MissingColumns(ValueError):
    """A Parquet file lacks columns."""


def where(**values: str) -> BooleanExpression:
    """Return the filter for the rows that have these values in these columns."""
    equal: Any = EqualTo  # typed as if it took other arguments
    found: BooleanExpression = reduce(And, (equal(Reference(name), value) for name, value in values.items()))
    return found


def one_of(name: str, values: Iterable[str]) -> BooleanExpression:
    """Return the filter for the rows that have one of these values in a column."""
    is_in: Any = In
    found: BooleanExpression = is_in(Reference(name), set(values))
    return found


def arrow_schema(schema: Schema, columns: Sequence[str] | None = None) -> pa.Schema:
    """Return the PyArrow schema of columns of a table, in the order of the arguments; of all columns without them."""
    whole = schema_to_pyarrow(schema, include_field_ids=False)
    names = whole.names if columns is None else columns
    return pa.schema([(name, _small(whole.field(name).type)) for name in names])


def _small(kind: pa.DataType) -> pa.DataType:
    """Return a type without 64-bit offsets, which pyiceberg uses and the steps' files do not."""
    if pa.types.is_large_string(kind):
        return pa.string()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_small(kind.value_type))
    if pa.types.is_map(kind):
        return pa.map_(_small(kind.key_type), _small(kind.item_type))
    return kind


def owned_rows(
    schema: pa.Schema, columns: Mapping[str, Any], rows: int, *, dataset: str, run_id: str
) -> list[pa.RecordBatch]:
    """Return rows of a table that belong to a dataset and a run. `columns` are the other columns."""
    owner = {"dataset": dataset, "run_id": run_id}
    arrays = [
        pa.repeat(pa.scalar(owner[name], pa.string()), rows) if name in OWNER else columns[name]
        for name in schema.names
    ]
    batches: list[pa.RecordBatch] = pa.Table.from_arrays(arrays, names=schema.names).cast(schema).to_batches()
    return batches


def read_parquet(
    io: FileIO, uri: str, columns: Sequence[str], batch_rows: int = BATCH_ROWS
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a Parquet file, in order, with the given columns.

    Raises:
        FileNotFoundError: there is no such file.
        MissingColumns: the file lacks a column.
    """
    with io.new_input(uri).open() as source, pq.ParquetFile(source, pre_buffer=True) as parquet:
        missing = sorted(set(columns) - set(parquet.schema_arrow.names))
        if missing:
            raise MissingColumns(f"{uri} has no column {', '.join(missing)}")
        for batch in parquet.iter_batches(batch_rows, columns=list(columns)):
            yield batch.select(columns)


def stream_rows(
    table: Table,
    row_filter: BooleanExpression = ALL_ROWS,
    columns: Sequence[str] | None = None,
    batch_rows: int = BATCH_ROWS,
    *,
    snapshot_id: int | None = None,
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a table that match a filter, in batches of at most `batch_rows`, with the given columns.

    The rows are those of a snapshot, by default of the current one.
    """
    scan = table.scan(row_filter=row_filter, snapshot_id=snapshot_id)
    for task in scan.plan_files():
        yield from stream_file(table, task, row_filter, columns, batch_rows)


def stream_file(
    table: Table,
    task: FileScanTask,
    row_filter: BooleanExpression = ALL_ROWS,
    columns: Sequence[str] | None = None,
    batch_rows: int = BATCH_ROWS,
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of one file of a table that match a filter, in batches of at most `batch_rows`."""
    schema = arrow_schema(table.schema(), columns)
    wants_all = isinstance(row_filter, AlwaysTrue) or isinstance(task.residual, AlwaysTrue)
    if wants_all and not task.delete_files and task.file.file_format == FileFormat.PARQUET:
        # pyiceberg's own scan reads whole files, several at a time.
        try:
            for batch in read_parquet(table.io, task.file.file_path, schema.names, batch_rows):
                yield batch.cast(schema)
        except MissingColumns:
            log.debug("%s has other names of columns: pyiceberg maps them", task.file.file_path)
        else:
            return
    scan = table.scan(row_filter=row_filter, selected_fields=tuple(schema.names))
    reader = ArrowScan(table.metadata, table.io, scan.projection(), row_filter)
    for batch in reader.to_record_batches([task]):
        whole = batch.select(schema.names).cast(schema)
        for start in range(0, whole.num_rows, batch_rows):
            yield whole.slice(start, batch_rows)
