"""Where the features of the current images are: a join of narrow columns, so that no vector passes through the JVM.

An image's features are the row of FEATURES with its content and with the run that inferred it. Several images can have
one content, and several runs can have inferred one content.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyspark import Accumulator, SparkContext

from orchard_spark import contents, parts
from orchard_spark.contents import NOT_FOUND, Digests
from orchard_spark.parts import Indices, Part, TaskUsage

Result = TypeVar("Result")

RUN_BYTES = 4
# A file of embeddings should have at most about 128 MB.
GROUP_ROWS = 262_144
# An image, the position of its features in the selections of a group, and whether it is new in this run.
LOCATED = pa.schema(
    [
        ("position", pa.int64()),
        ("path", pa.string()),
        ("label", pa.string()),
        ("sha256", pa.string()),
        ("is_new", pa.bool_()),
    ]
)


class NoFeatures(RuntimeError):
    """Current images have no features in the table `features`."""


@dataclass(frozen=True)
class CurrentImages:
    """The current images of a dataset.

    `keys` has each content together with the run that inferred it once, sorted; `counts` how many images have it.
    `run_ids` numbers the runs.
    """

    kept: Sequence[Part]
    new: Sequence[Part]
    keys: Digests
    counts: Indices
    run_ids: Sequence[str]

    @property
    def images(self) -> int:
        """The number of images."""
        return int(self.counts.sum())

    @property
    def contents(self) -> int:
        """The number of different contents."""
        return len(np.unique(_digests_of(self.keys))) if len(self.keys) else 0


@dataclass(frozen=True)
class Selection:
    """The rows of a file of FEATURES that current images refer to: `keys` are their numbers in CurrentImages."""

    part: Part
    rows: Indices
    keys: Indices
    counts: Indices


def make_keys(digests: Digests, runs: npt.NDArray[np.uint32]) -> Digests:
    """Return digests with the number of a run behind each, as byte strings of 36 bytes."""
    keys = np.empty((len(digests), contents.DIGEST_BYTES + RUN_BYTES), np.uint8)
    keys[:, : contents.DIGEST_BYTES] = digests.view(np.uint8).reshape(len(digests), -1)
    keys[:, contents.DIGEST_BYTES :] = runs.astype(">u4").view(np.uint8).reshape(len(digests), -1)
    return keys.reshape(-1).view(f"S{contents.DIGEST_BYTES + RUN_BYTES}")


def number_runs(column: pa.Array, numbers: Mapping[str, int]) -> npt.NDArray[np.uint32]:
    """Return the number of the run in each row of a column, and 0, which no current image has, for other runs."""
    encoded = column.dictionary_encode()
    of_runs = np.array([numbers.get(run_id, 0) for run_id in encoded.dictionary.to_pylist()], np.uint32)
    found: npt.NDArray[np.uint32] = of_runs[encoded.indices.to_numpy()]
    return found


def _digests_of(keys: Digests) -> Digests:
    columns = keys.view(np.uint8).reshape(len(keys), -1)[:, : contents.DIGEST_BYTES]
    return np.ascontiguousarray(columns).reshape(-1).view(f"S{contents.DIGEST_BYTES}")


def find_current(
    context: SparkContext, kept: Sequence[Part], new: Sequence[Part], usage: Accumulator[list[TaskUsage]]
) -> CurrentImages:
    """Read the contents of the current images from files of IMAGE_INFO."""

    def read_part(part: Part) -> dict[str, Digests]:
        batches = parts.read(part, ["sha256", "features_run_id"], contents.NARROW_ROWS)
        return contents.by_run((contents.digests(batch["sha256"]), batch["features_run_id"]) for batch in batches)

    of_parts = parts.map_tasks(context, read_part, [*kept, *new], usage).collect()
    run_ids = sorted({run_id for found in of_parts for run_id in found})
    numbers = _number(run_ids)
    keys = [
        make_keys(digests, np.full(len(digests), numbers[run_id], np.uint32))
        for found in of_parts
        for run_id, digests in found.items()
    ]
    every = np.concatenate(keys) if keys else np.empty(0, f"S{contents.DIGEST_BYTES + RUN_BYTES}")
    distinct, counts = np.unique(every, return_counts=True)
    return CurrentImages(kept, new, distinct, counts, run_ids)


def _number(run_ids: Sequence[str]) -> dict[str, int]:
    """Return the numbers of runs, from 1."""
    return {run_id: number for number, run_id in enumerate(run_ids, 1)}


def locate(
    context: SparkContext,
    current: CurrentImages,
    of_features: Sequence[Part],
    model_name: str,
    usage: Accumulator[list[TaskUsage]],
) -> list[Selection]:
    """Find the rows of FEATURES of all current images by a model, each once, in the order of the files.

    Raises:
        NoFeatures: images have no features in any file.
    """
    wanted, numbers = context.broadcast(current.keys), _number(current.run_ids)

    def search_part(part: Part) -> tuple[Indices, Indices]:
        rows, keys = [], []
        first = 0
        for digests, batch in contents.read_keys(part):
            found = contents.search(make_keys(digests, number_runs(batch["run_id"], numbers)), wanted.value)
            of_model = pc.equal(batch["model"], model_name).to_numpy(False)
            of_batch = np.flatnonzero((found != NOT_FOUND) & of_model)
            rows.append(of_batch + first)
            keys.append(found[of_batch])
            first += batch.num_rows
        return np.concatenate(rows), np.concatenate(keys)

    is_missing = np.ones(len(current.keys), bool)
    selections = []
    found_in = parts.map_tasks(context, search_part, of_features if len(current.keys) else [], usage).collect()
    for part, (rows, keys) in zip(of_features, found_in, strict=False):
        # A row that is in two files, for instance after an interrupted compaction, counts once.
        keys, first = np.unique(keys, return_index=True)
        first, keys = first[is_missing[keys]], keys[is_missing[keys]]
        is_missing[keys] = False
        if len(keys):
            order = np.argsort(first)
            selections.append(Selection(part, rows[first[order]], keys[order], current.counts[keys[order]]))
    if is_missing.any():
        example = _digests_of(current.keys[is_missing][:1]).tobytes().hex()
        raise NoFeatures(
            f"{int(is_missing.sum())} of {len(current.keys)} contents have no features in the {len(of_features)} files "
            f"of the table, for example {example}. Trigger a run with full_refresh"
        )
    return selections


def in_groups(selections: Sequence[Selection], task_slots: int) -> list[list[Selection]]:
    """Divide selections into groups of about equal numbers of images, one per task, in order.

    A file of embeddings then has many rows, although the files of features may be small.
    """
    total = sum(int(selected.counts.sum()) for selected in selections)
    count = task_slots * max(1, -(-total // (GROUP_ROWS * task_slots)))
    groups: list[list[Selection]] = [[] for _ in range(count)]
    done = 0
    for selected in selections:
        groups[min(done * count // max(total, 1), count - 1)].append(selected)
        done += int(selected.counts.sum())
    return [group for group in groups if group]


def map_groups(
    context: SparkContext,
    current: CurrentImages,
    groups: Sequence[Sequence[Selection]],
    function: Callable[[Sequence[Selection], pa.Table], Result],
    usage: Accumulator[list[TaskUsage]],
) -> list[Result]:
    """Call a function with each group and its images, as a table of LOCATED, each in its own task."""
    group_of = np.empty(len(current.keys), np.int32)
    position_of = np.empty(len(current.keys), np.int64)
    for number, group in enumerate(groups):
        first = 0
        for selected in group:
            group_of[selected.keys] = number
            position_of[selected.keys] = first + np.arange(len(selected.keys))
            first += len(selected.keys)
    places = context.broadcast((current.keys, group_of, position_of))
    numbers = _number(current.run_ids)

    def send_images(item: tuple[Part, bool]) -> Iterator[tuple[int, bytes]]:
        part, is_new = item
        keys, groups_of_keys, positions = places.value
        for batch in parts.read(part, ["path", "label", "sha256", "features_run_id"], contents.NARROW_ROWS):
            runs = number_runs(batch["features_run_id"], numbers)
            found = contents.search(make_keys(contents.digests(batch["sha256"]), runs), keys)
            columns = [positions[found], batch["path"], batch["label"], batch["sha256"], [is_new] * len(found)]
            located = pa.RecordBatch.from_arrays([pa.array(column) for column in columns], schema=LOCATED)
            for number in np.unique(groups_of_keys[found]):
                yield int(number), serialise(located.filter(pa.array(groups_of_keys[found] == number)))

    def call(number: int, received: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Result]]:
        group, batches = [], []
        for _, content in received:
            if isinstance(content, bytes):
                batches.append(deserialise(content))
            else:
                group = content
        yield number, parts.timed(lambda: function(group, pa.Table.from_batches(batches, LOCATED)), usage)

    items = [*((part, False) for part in current.kept), *((part, True) for part in current.new)]
    sent: Any = context.parallelize(items, max(1, len(items))).flatMap(send_images)
    # Each group goes only to its task: together they have as many rows as the dataset has contents.
    numbered: Any = context.parallelize(list(enumerate(groups)), max(1, len(groups)))
    results = (
        sent.union(numbered).partitionBy(len(groups), int).mapPartitionsWithIndex(call).collect() if groups else []
    )
    return [result for _, result in sorted(results, key=lambda numbered: numbered[0])]


def serialise(batch: pa.RecordBatch) -> bytes:
    """Return a record batch of LOCATED as bytes."""
    content: bytes = batch.serialize().to_pybytes()
    return content


def deserialise(content: bytes) -> pa.RecordBatch:
    """Return the record batch of LOCATED from bytes."""
    return pa.ipc.read_record_batch(pa.py_buffer(content), LOCATED)
