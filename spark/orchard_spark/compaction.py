"""Rewrite the small files of the table `features` that a dataset needs, so that their number does not grow for ever."""

import logging
from collections.abc import Iterator, Sequence

import pyarrow as pa
from pyspark import Accumulator, SparkContext

from orchard_spark import parts, schemas
from orchard_spark.parts import Part, TaskUsage

SMALL_BYTES = 32 * 1024**2
MOST_SMALL_FILES = 200
TARGET_BYTES = 128 * 1024**2
BATCH_ROWS = 1024

log = logging.getLogger(__name__)


def small_files(needed: Sequence[Part], of_table: Sequence[Part]) -> list[Part]:
    """Return the small files of the table that a dataset needs, if there are so many that they should be rewritten."""
    uris = {part.uri for part in of_table}
    small = [part for part in needed if part.uri in uris and part.bytes < SMALL_BYTES]
    return small if len(small) > MOST_SMALL_FILES else []


def in_groups(files: Sequence[Part]) -> list[list[Part]]:
    """Return groups of files of about 128 MB, in order.

    >>> [len(group) for group in in_groups([Part("a", 1, 50 * 1024**2)] * 5)]
    [3, 2]
    """
    groups: list[list[Part]] = []
    group_bytes = TARGET_BYTES
    for part in files:
        if group_bytes >= TARGET_BYTES:
            groups.append([])
            group_bytes = 0
        groups[-1].append(part)
        group_bytes += part.bytes
    return groups


def rewrite(context: SparkContext, files: Sequence[Part], uri: str, usage: Accumulator[list[TaskUsage]]) -> list[Part]:
    """Write all rows of some files of FEATURES into files near 128 MB, and return these."""

    def read_group(group: Sequence[Part]) -> Iterator[pa.RecordBatch]:
        for part in group:
            for batch in parts.read(part, schemas.FEATURES.names, BATCH_ROWS):
                yield batch.select(schemas.FEATURES.names).cast(schemas.FEATURES)

    groups = in_groups(files)
    written = parts.write_dataset(context, groups, read_group, uri, schemas.FEATURES, usage)
    if files:
        log.info(
            "pca: rewrote %d small files of the table features with %d rows into %d files",
            len(files),
            parts.count_rows(files),
            len(written),
        )
    return written
