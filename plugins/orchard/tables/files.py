"""Write rows as new data files of a table."""

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.io.pyarrow import parquet_file_to_data_file
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table

from orchard.storage import split_uri
from orchard.tables.rows import arrow_schema

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# A writer starts the next file when a file has this size.
FILE_BYTES = 128 * 1024**2
# How much a writer collects before it compresses.
ROW_GROUP_BYTES = 32 * 1024**2
# Columns with few distinct values, which a Parquet dictionary compresses.
REPETITIVE = ("dataset", "label", "format", "reason", "model", "pca_model", "features_run_id", "run_id")


def write_files(s3: "S3Client", table: Table, batches: Iterable[pa.RecordBatch]) -> list[DataFile]:
    """Write rows as data files of a table, which the table does not refer to yet. No rows give no files.

    A file is named for the hash of its content. So a retry that writes the same rows gets the same files.
    """
    schema = arrow_schema(table.schema())
    groups = _row_groups(batches, schema)
    return [_write_file(s3, table, schema, chain([first], groups)) for first in groups]


def _row_groups(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(each.nbytes for each in waiting) >= ROW_GROUP_BYTES:
            yield pa.Table.from_batches(waiting, schema)
            waiting = []
    if any(batch.num_rows for batch in waiting):
        yield pa.Table.from_batches(waiting, schema)


def _write_file(s3: "S3Client", table: Table, schema: pa.Schema, groups: Iterable[pa.Table]) -> DataFile:
    """Write row groups into one file until it is large enough."""
    with tempfile.TemporaryFile() as file:
        with pq.ParquetWriter(
            file,
            schema,
            compression="zstd",
            use_dictionary=[name for name in schema.names if name in REPETITIVE],
            write_statistics=[field.name for field in schema if not pa.types.is_nested(field.type)],
        ) as parquet:
            for group in groups:
                parquet.write_table(group)
                if file.tell() >= FILE_BYTES:
                    break
        file.seek(0)
        name = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        uri = f"{table.location()}/data/{name}.parquet"
        bucket, key = split_uri(uri)
        s3.put_object(Bucket=bucket, Key=key, Body=file)
    return parquet_file_to_data_file(table.io, table.metadata, uri)
