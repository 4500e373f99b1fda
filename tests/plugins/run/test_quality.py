import json
from collections import Counter
from dataclasses import fields
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchard.run import quality
from orchard.run.quality import (
    LabelChanges,
    beyond,
    count_labels,
    counts_of,
    figures,
    most_common,
    shorten,
)
from orchard.settings import Settings, Threshold

COUNTS = st.dictionaries(st.sampled_from(["a", "b", "c", "d", ""]), st.integers(1, 20))
SUMMARY: dict[str, Any] = {
    "label_accuracy": 0.9,
    "label_sample": 50,
    "drift": {"new": 0.05, "fit": 0.04, "shift": 0.1},
    "explained_variance": 0.8,
    "n_components": 5,
    "pca_mode": "refit",
    "images_listed": 200,
    "images_rejected": 1,
    "reject_reasons": {"empty": 1},
}


def settings(**thresholds: float | None) -> Settings:
    off: dict[str, Any] = {field.name: None for field in fields(Settings) if field.type == Threshold}
    return Settings(bucket="fruits-data", release="1", **{**off, **thresholds})


def between(before: dict[str, int], now: dict[str, int], *, are_all: bool = True) -> LabelChanges:
    return LabelChanges.between(counts_of(before), counts_of(now), are_all=are_all)


@given(st.lists(st.lists(st.sampled_from(["a", "b", "ü", "", None]))))
def test_labels_are_counted_over_all_batches(batches: list[list[str | None]]) -> None:
    counts = most_common(count_labels(pa.array(batch, pa.string()) for batch in batches))
    assert counts == Counter(label or "" for batch in batches for label in batch)
    assert list(counts.values()) == sorted(counts.values(), reverse=True)


@given(before=COUNTS, now=COUNTS)
def test_the_changes_lead_from_the_labels_before_to_those_now(before: dict[str, int], now: dict[str, int]) -> None:
    changes = between(before, now)
    found = changes.largest()
    assert {label: before.get(label, 0) + found.get(label, 0) for label in {*before, *now, *found}} == {
        label: now.get(label, 0) for label in {*before, *now}
    }
    assert 0 not in found.values()
    assert list(map(abs, found.values())) == sorted(map(abs, found.values()), reverse=True)
    lost = [(before[label] - now.get(label, 0)) / before[label] for label in before if before[label] >= 10]
    assert changes.loss().value == pytest.approx(max(0, *lost, 0))
    assert between(before, now, are_all=False).largest() == {
        label: change for label, change in found.items() if label in before
    }


def test_the_label_with_the_largest_loss_is_named_with_its_images() -> None:
    figure = between({"a": 30, "b": 12, "c": 14, 'x"\n': 19}, {"a": 1, "c": 15, "d": 1}).loss()
    assert figure.value == 1
    assert figure.explanation.startswith(
        'label "x\\"\\n" has 0 of 19 images left; 3 labels have lost images, 2 of them all'
    )
    long = between({"x" * 1024: 10}, {}).loss().explanation
    assert len(long) < 250


def test_the_loss_of_a_label_with_few_images_does_not_count() -> None:
    assert between({"a": 9, "b": 100}, {"b": 99}).loss().value == 0.01
    assert between({"a": 10, "b": 100}, {"b": 99}).loss().value == 1


def test_of_very_many_labels_those_with_the_most_images_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "MOST_LABELS", 2)
    counts = {"a": 1, "b": 3, "c": 2, "d": 2}
    assert most_common(counts_of(counts)) == {"b": 3, "c": 2}
    assert between({}, counts).largest() == {"b": 3, "c": 2}


def test_of_200_000_labels_and_their_changes_10_000_are_kept() -> None:
    assert quality.MOST_LABELS == 10_000
    labels = pa.array([f"label {number}" for number in range(200_000)])
    counts = count_labels([labels, labels])
    assert counts.num_rows == 200_000
    changes = LabelChanges.between(count_labels([labels]), counts, are_all=True)
    assert len(changes.largest()) == len(most_common(counts)) == quality.MOST_LABELS


def test_a_log_and_an_xcom_have_the_20_largest() -> None:
    many = {f"label {number}": 100 - number for number in range(100)}
    summary = {"run_id": "r", "labels": many, "labels_changed": many, "label_count": 100}
    short = shorten(summary)
    assert short == {**summary, "labels": dict(list(many.items())[:20]), "labels_changed": short["labels"]}
    assert len(json.dumps(short)) < 2000
    earlier: dict[str, Any] = {"run_id": "r", "labels_changed": None}
    assert shorten(earlier) == earlier


NAMES = ["label_accuracy", "drift", "explained_variance", "label_loss", "reject_ratio"]


@pytest.mark.parametrize("kind", ["warn", "stop"])
@pytest.mark.parametrize(
    ("name", "within", "beyond_it"),
    [
        ("label_accuracy", 0.9, 0.91),
        ("drift", 0.1, 0.09),
        ("explained_variance", 0.8, 0.81),
        ("label_loss", 0.25, 0.24),
        ("reject_ratio", 0.005, 0.004),
    ],
)
def test_a_figure_may_be_equal_to_its_threshold_and_not_beyond(
    kind: str, name: str, within: float, beyond_it: float
) -> None:
    found = figures(SUMMARY, 5, between({"a": 40, "b": 1}, {"a": 30, "b": 2}))
    assert [figure.name for figure in found] == NAMES
    if (kind, name) == ("stop", "reject_ratio"):  # max_reject_ratio stops the run before
        assert beyond(found, settings(warn_reject_ratio=beyond_it), kind) == {}
        return
    assert beyond(found, settings(**{f"{kind}_{name}": within}), kind) == {}
    texts = beyond(found, settings(**{f"{kind}_{name}": beyond_it}), kind)
    side = "below" if beyond_it > within else "above"
    assert list(texts) == [name]
    assert texts[name].startswith(f"{name} is {within:g}, {side} ORCHARD_{kind.upper()}_{name.upper()} {beyond_it:g}: ")
    assert beyond(found, settings(), kind) == {}


@pytest.mark.parametrize(
    ("changed", "n_components", "name"),
    [
        ({"label_accuracy": None, "label_sample": None}, 5, "label_accuracy"),
        ({"label_sample": 49}, 5, "label_accuracy"),
        ({"drift": {"new": 0.9, "fit": 0.04, "shift": None}}, 5, "drift"),
        ({"drift": {"new": 0.9, "fit": 0.04}}, 5, "drift"),
        ({}, 0.7, "explained_variance"),
        ({"pca_mode": "frozen"}, 5, "explained_variance"),
    ],
)
def test_a_figure_that_does_not_exist_exceeds_no_threshold(
    changed: dict[str, Any], n_components: float, name: str
) -> None:
    strict = settings(
        stop_label_accuracy=1, stop_drift=0, stop_explained_variance=1, stop_label_loss=0, warn_reject_ratio=0
    )
    found = figures({**SUMMARY, **changed}, n_components, None)
    assert set(beyond(found, strict, "stop")) == {"label_accuracy", "drift", "explained_variance"} - {name}
    assert set(beyond(found, strict, "warn")) == {"reject_ratio"}
