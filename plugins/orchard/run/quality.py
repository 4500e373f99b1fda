"""The figures of a run's quality, and the thresholds of the settings that warn, or stop before the run is published.

| figure | what it is | range |
|---|---|---|
| label_accuracy | the share of a sample of images whose nearest other image has the same label | 0 to 1 |
| drift | the distance between the mean features and the mean of the last basis, in standard deviations | from 0 |
| explained_variance | the share of the variance that the vectors keep, if n_components is a whole number | 0 to 1 |
| label_loss | the largest share of its images that a label has lost since the published run; 1 is all | 0 to 1 |
| reject_ratio | the share of the objects that are rejected | 0 to 1 |

A figure that does not exist, for instance the drift of a first run, exceeds no threshold.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from orchard.errors import PermanentError
from orchard.run.params import REFIT
from orchard.settings import PREFIX, Settings

# A label has at most 1,024 bytes, like the key of an object. So the labels of a run are at most 10 MB in its
# `summary.json` and in its row of the table `runs`.
MOST_LABELS = 10_000
# In logs and XComs.
MOST_SHOWN = 20
MOST_CHARACTERS = 100
# The accuracy of a smaller sample, and the loss of a smaller label, say little.
FEWEST_SAMPLED = 50
FEWEST_IMAGES_OF_LABEL = 10
COUNTS = pa.schema([("label", pa.string()), ("images", pa.int64())])


class PoorQuality(PermanentError):
    """Figures of a run are beyond the thresholds that stop its publication."""

    def __init__(self, dataset: str, run: str, shown: str | None, faults: Sequence[str]) -> None:
        still = f"run {shown}" if shown else "no run of it"
        super().__init__(
            f"run {run} of {dataset} is not published: {'; '.join(faults)}. Nothing has changed in the tables: they "
            f"still show {still}. Look at the images. If they are as intended, change the threshold and clear "
            "`publish`; otherwise correct them and trigger a new run"
        )


@dataclass(frozen=True)
class Figure:
    """A figure of a run. `is_good_if_large` says on which side of its thresholds it should be."""

    name: str
    value: float | None
    is_good_if_large: bool
    explanation: str


def count_labels(columns: Iterable[pa.Array]) -> pa.Table:
    """Return how many images each label has, as a table of COUNTS, from columns with the labels of images."""
    counted = []
    for column in columns:
        values, counts = pc.value_counts(pc.fill_null(column, "")).flatten()
        counted.append(pa.table([values, counts], schema=COUNTS))
    return add_counts(counted)


def add_counts(counts: Iterable[pa.Table]) -> pa.Table:
    """Return the sums of tables of COUNTS."""
    whole = pa.concat_tables([COUNTS.empty_table(), *counts])
    found = whole.group_by("label").aggregate([("images", "sum")])
    return pa.table([found["label"], found["images_sum"]], schema=COUNTS)


def counts_of(labels: Mapping[str, int]) -> pa.Table:
    """Return a table of COUNTS with these labels."""
    return pa.table([list(labels.keys()), list(labels.values())], schema=COUNTS)


def most_common(counts: pa.Table) -> dict[str, int]:
    """Return the labels with the most images, at most MOST_LABELS, in this order.

    >>> most_common(counts_of({"Kiwi": 2, "Apple": 3}))
    {'Apple': 3, 'Kiwi': 2}
    """
    first = counts.sort_by([("images", "descending"), ("label", "ascending")]).slice(0, MOST_LABELS)
    return dict(zip(first["label"].to_pylist(), first["images"].to_pylist(), strict=True))


@dataclass(frozen=True)
class LabelChanges:
    """What has changed in the labels since an earlier run: a table (label, change, before) of those that changed."""

    changed: pa.Table

    @classmethod
    def between(cls, before: pa.Table, now: pa.Table, *, are_all: bool) -> "LabelChanges":
        """Compare two tables of COUNTS. If `before` does not have all labels, those that it lacks are unknown."""
        rows = [
            (before, pc.negate(before["images"]), before["images"]),
            (now, now["images"], pa.nulls(len(now), pa.int64())),
        ]
        schema = pa.schema([("label", pa.string()), ("change", pa.int64()), ("before", pa.int64())])
        both = pa.concat_tables([pa.table([of["label"], *columns], schema=schema) for of, *columns in rows])
        found = both.group_by("label").aggregate([("change", "sum"), ("before", "sum")])
        columns = [found["label"], found["change_sum"], pc.fill_null(found["before_sum"], 0)]
        changes = pa.table(columns, schema=schema).filter(pc.not_equal(found["change_sum"], 0))
        return cls(changes if are_all else changes.filter(pc.greater(changes["before"], 0)))

    def largest(self) -> dict[str, int]:
        """Return the largest changes of the number of images, at most MOST_LABELS, in this order."""
        sized = self.changed.append_column("size", pc.abs(self.changed["change"]))
        first = sized.sort_by([("size", "descending"), ("label", "ascending")]).slice(0, MOST_LABELS)
        return dict(zip(first["label"].to_pylist(), first["change"].to_pylist(), strict=True))

    def loss(self) -> Figure:
        """Return the largest share of its images that a label has lost which had at least FEWEST_IMAGES_OF_LABEL."""
        had_enough = pc.greater_equal(self.changed["before"], FEWEST_IMAGES_OF_LABEL)
        lost = self.changed.filter(pc.and_(pc.less(self.changed["change"], 0), had_enough))
        share = pc.divide(pc.cast(pc.negate(lost["change"]), pa.float64()), lost["before"])
        order = [("share", "descending"), ("before", "descending"), ("label", "ascending")]
        worst = lost.append_column("share", share).sort_by(order).slice(0, 1).to_pylist()
        if not worst:
            return Figure("label_loss", 0.0, False, "no label has lost images")
        label, change, before = (worst[0][name] for name in ("label", "change", "before"))
        vanished = pc.sum(pc.equal(share, 1)).as_py()
        return Figure(
            "label_loss",
            worst[0]["share"],
            False,
            f"label {shown(label)} has {before + change} of {before} images left; {lost.num_rows} labels have lost "
            f"images, {vanished} of them all. Look for deleted or renamed folders",
        )


def shown(label: str) -> str:
    """Return a label, which is untrusted text, for a message.

    >>> shown("Kiwi")
    '"Kiwi"'
    """
    return json.dumps(label if len(label) <= MOST_CHARACTERS else f"{label[:MOST_CHARACTERS]}…")


def shorten(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return a summary for a log or an XCom: of the labels, and of their changes, it has the 20 largest."""
    first = {
        name: dict(list(summary[name].items())[:MOST_SHOWN])
        for name in ("labels", "labels_changed")
        if summary.get(name) is not None
    }
    return {**summary, **first}


def figures(summary: Mapping[str, Any], n_components: float, changes: LabelChanges | None) -> list[Figure]:
    """Return the figures of a run, from its summary, the param `n_components`, and the changes of the labels."""
    has_number = n_components >= 1 and summary["pca_mode"] == REFIT
    rejected, listed = summary["images_rejected"], summary["images_listed"]
    reasons = ", ".join(f"{count} {reason}" for reason, count in summary["reject_reasons"].items())
    loss = Figure("label_loss", None, False, "") if changes is None else changes.loss()
    return [
        Figure(
            "label_accuracy",
            summary["label_accuracy"] if (summary["label_sample"] or 0) >= FEWEST_SAMPLED else None,
            True,
            f"the share of {summary['label_sample']} sampled images whose nearest other image has the same label. Look "
            "for images in wrong folders",
        ),
        Figure(
            "drift",
            summary["drift"].get("shift"),
            False,
            "the distance between the mean features and the mean of the last basis, in standard deviations. Compare "
            "the new images with the earlier ones",
        ),
        Figure(
            "explained_variance",
            summary["explained_variance"] if has_number else None,
            True,
            f"the vectors have {summary['n_components']} components. Use a larger n_components",
        ),
        loss,
        Figure(
            "reject_ratio", rejected / listed if listed else None, False, f"{rejected} of {listed} images: {reasons}"
        ),
    ]


def beyond(found: Sequence[Figure], settings: Settings, kind: str) -> dict[str, str]:
    """Return a message for each figure that is beyond its threshold, by its name. `kind` is "warn" or "stop".

    There is no threshold for rejects that stops: the param `max_reject_ratio` stops the run before.
    """
    texts = {}
    for figure in found:
        limit = getattr(settings, f"{kind}_{figure.name}", None)
        if figure.value is None or limit is None:
            continue
        if figure.value < limit if figure.is_good_if_large else figure.value > limit:
            side = "below" if figure.is_good_if_large else "above"
            setting = f"{PREFIX}{kind}_{figure.name}".upper()
            texts[figure.name] = (
                f"{figure.name} is {figure.value:.6g}, {side} {setting} {limit:g}: {figure.explanation}"
            )
    return texts
