"""What a dataset's listing says that the tables do not: the objects that a run has to read, and what it may keep.

The listing and the rows of the published run are Parquet files on the local disk. DuckDB joins them with a limited
memory, and puts the rest on the disk. So the memory of a plan does not grow with the dataset.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from orchard.errors import PermanentError
from orchard.run.row_files import LocalFile, RowWriter, query_rows

# About 50 MB of Parquet.
KEPT_FILE_ROWS = 500_000

# The same as orchard_spark.schemas, which Airflow cannot import. A test compares them.
_OBJECT = [("path", pa.string()), ("label", pa.string()), ("etag", pa.string()), ("size", pa.int64())]
_MODIFIED = ("modified", pa.timestamp("us", tz="UTC"))
_REASON = [("reason", pa.string()), ("message", pa.string())]
INVENTORY = pa.schema([*_OBJECT, _MODIFIED, *_REASON])
NUMBERED = pa.schema([*INVENTORY, ("number", pa.int64())])
_CONTENT = [
    ("sha256", pa.string()),
    ("format", pa.string()),
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("features_run_id", pa.string()),
]
IMAGE_INFO = pa.schema([*_OBJECT, _MODIFIED, *_CONTENT])
REJECTS = pa.schema([*_OBJECT, *_REASON])
# The objects of the published run: an image has a sha256, a reject has a reason.
KNOWN = pa.schema([("path", pa.string()), ("etag", pa.string()), *_CONTENT, *_REASON])

# The object was not at rest while the earlier run read it.
TRANSIENT_REASONS = ("deleted", "changed")
# Only these objects can be archived without a sign of it in the listing.
TIERED = "INTELLIGENT_TIERING"

COMPARE = """
SELECT
    path, label, etag, size, modified, sha256, format, width, height, features_run_id,
    coalesce(listing_reason, if(state = 'kept_reject', known_reason, NULL)) AS reason,
    if(listing_reason IS NULL, if(state = 'kept_reject', known_message, NULL), listing_message) AS message,
    state
FROM (
    SELECT
        listed.* EXCLUDE (reason, message, storage_class), known.* EXCLUDE (path, etag, reason, message),
        listed.reason AS listing_reason, listed.message AS listing_message,
        known.reason AS known_reason, known.message AS known_message,
        CASE
            WHEN listed.path IS NULL THEN if(known.reason = 'deleted', 'vanished', 'deleted')
            WHEN known.path IS NULL THEN 'new'
            WHEN known.etag IS DISTINCT FROM listed.etag THEN 'changed'
            WHEN known.reason IS NULL THEN if(
                listed.reason IS NULL AND $keep_images AND known.width::BIGINT * known.height <= $max_pixels,
                'kept_image', 'changed')
            WHEN known.reason = listed.reason THEN 'kept_reject'
            WHEN listed.reason IS NULL AND $keep_rejects AND NOT list_contains($transient, known.reason)
                AND (known.reason <> 'archived' OR listed.storage_class IS NOT DISTINCT FROM $tiered) THEN 'kept_reject'
            ELSE 'changed'
        END AS state
    FROM read_parquet($listed) AS listed FULL JOIN read_parquet($known) AS known ON listed.path = known.path
)
"""


class TwoRowsOfOneObject(PermanentError):
    """The tables contain an object twice, so that the difference would contain it twice."""

    def __init__(self, listed: int, compared: int) -> None:
        super().__init__(
            f"{listed} objects are listed, but their comparison with the tables has {compared} rows: the tables have "
            "several rows for a path, which no publisher writes. Roll the tables back, or run the DAG forget_dataset "
            "for this dataset"
        )


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a run may take over from the published run.

    `keep_images` and `keep_rejects` say whether the images, and the rejects that only their content explains, are still
    what this run would find. An image of more than `max_pixels` is not.
    """

    keep_images: bool
    keep_rejects: bool
    max_pixels: int


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The listed objects of a dataset, by what a run does with them, and the number of those that are deleted.

    `inventory` has the `new` and `changed` objects. `listing_rejects` counts, by reason, those that are rejected
    regardless of their content. `bytes_to_read` is the size of all that the listing itself does not reject.
    """

    new: int
    changed: int
    deleted: int
    images_kept: int
    kept_reject_reasons: Mapping[str, int]
    listing_rejects: Mapping[str, int]
    bytes_to_read: int
    inventory: tuple[LocalFile, ...]
    kept_images: tuple[LocalFile, ...]
    kept_rejects: tuple[LocalFile, ...]

    @property
    def rejects_kept(self) -> int:
        """The number of objects that stay rejected without being read."""
        return sum(self.kept_reject_reasons.values())

    @property
    def unchanged(self) -> int:
        """The number of objects that this run takes over from the published run."""
        return self.images_kept + self.rejects_kept

    @property
    def rejects(self) -> Mapping[str, int]:
        """The number of objects that the run rejects without reading them, by reason."""
        return dict(Counter(self.kept_reject_reasons) + Counter(self.listing_rejects))

    @property
    def listed(self) -> int:
        """The number of listed objects."""
        return self.new + self.changed + self.unchanged

    @property
    def readable(self) -> int:
        """The number of images that the run has if it can decode every object that it reads."""
        return self.new + self.changed - sum(self.listing_rejects.values()) + self.images_kept

    def counts(self) -> dict[str, Any]:
        """Return the counts as the metrics of the plan have them."""
        names = ("listed", "new", "changed", "deleted", "unchanged", "images_kept", "rejects_kept")
        return {
            **{name: getattr(self, name) for name in names},
            "kept_reject_reasons": dict(self.kept_reject_reasons),
        }


def known_rows(batches: Iterable[pa.RecordBatch], run_id: str) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a run in `images` or `rejects`, which have a run_id, as rows of KNOWN.

    The tables change one after the other, so one of them may already have the rows of another run.
    """
    for batch in batches:
        rows = batch.filter(pc.equal(batch["run_id"], run_id))
        columns = [
            rows[field.name].cast(field.type) if field.name in rows.schema.names else pa.nulls(len(rows), field.type)
            for field in KNOWN
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=KNOWN)


def compare(
    folder: Path, listed: RowWriter, known: RowWriter, rules: Rules, listing_reasons: Mapping[str, int]
) -> Difference:
    """Compare a listing with the objects of the published run. The files of the result are in a local folder.

    `listed` and `known` have written rows of orchard.dataset.listing.LISTED, and of KNOWN. `listing_reasons` counts the
    listed objects that are rejected regardless of their content.

    Raises:
        TwoRowsOfOneObject: the tables have several rows for a path.
    """
    states: Counter[str] = Counter()
    kept_reasons: Counter[str] = Counter()
    marked: Counter[str] = Counter()
    bytes_to_read = numbered = 0
    parameters = {
        "listed": listed.paths(),
        "known": known.paths(),
        "keep_images": rules.keep_images,
        "keep_rejects": rules.keep_rejects,
        "max_pixels": rules.max_pixels,
        "transient": list(TRANSIENT_REASONS),
        "tiered": TIERED,
    }
    with (
        RowWriter(folder, "inventory", NUMBERED) as inventory,
        RowWriter(folder, "kept_images", IMAGE_INFO, KEPT_FILE_ROWS) as kept_images,
        RowWriter(folder, "kept_rejects", REJECTS, KEPT_FILE_ROWS) as kept_rejects,
        query_rows(folder, COMPARE, parameters) as batches,
    ):
        for batch in batches:
            states.update(batch["state"].to_pylist())
            fresh = _in_state(batch, "new", "changed")
            marked.update(_count_reasons(fresh))
            bytes_to_read += pc.sum(fresh.filter(pc.is_null(fresh["reason"]))["size"]).as_py() or 0
            numbers = pa.array(range(numbered, numbered + fresh.num_rows), pa.int64())
            inventory.write(fresh.append_column("number", numbers))
            numbered += fresh.num_rows
            kept_images.write(_in_state(batch, "kept_image"))
            rejects = _in_state(batch, "kept_reject")
            kept_reasons.update(_count_reasons(rejects))
            kept_rejects.write(rejects)
    # Not all of them are marked in the listing: `ingest` itself rejects some.
    expected = Counter(listing_reasons) - kept_reasons
    found = Difference(
        new=states["new"],
        changed=states["changed"],
        deleted=states["deleted"],
        images_kept=states["kept_image"],
        kept_reject_reasons=dict(kept_reasons),
        listing_rejects=dict(marked | expected),
        bytes_to_read=bytes_to_read,
        inventory=inventory.files,
        kept_images=kept_images.files,
        kept_rejects=kept_rejects.files,
    )
    if found.listed != listed.rows:
        raise TwoRowsOfOneObject(listed.rows, found.listed)
    return found


def _in_state(batch: pa.RecordBatch, *states: str) -> pa.RecordBatch:
    return batch.filter(pc.is_in(batch["state"], pa.array(states)))


def _count_reasons(batch: pa.RecordBatch) -> Counter[str]:
    return Counter(batch["reason"].drop_null().to_pylist())
