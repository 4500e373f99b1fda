from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchard.report import suspects as suspects_module
from orchard.report.points import Points
from orchard.report.suspects import Suspect, suspects
from tests.plugins.report.test_points import ODD_LABELS, points_of
from tests.plugins.runs import sha256


@pytest.fixture(scope="module")
def photographs(shared_data: Path) -> tuple[npt.NDArray[Any], list[str]]:
    """The vectors of 300 photographs of 10 fruits [300, k], as a run computes them, and their labels."""
    with np.load(shared_data / "fruits-360-small-features.npz") as reference:
        features, paths = reference["features"].astype(np.float64), reference["path"]
    centred = features - features.mean(axis=0)
    _, values, components = np.linalg.svd(centred, full_matrices=False)
    count = int(np.searchsorted(np.cumsum(values**2) / np.sum(values**2), 0.95)) + 1
    return centred @ components[:count].T, [str(path).split("/")[0] for path in paths]


def clusters(sizes: Sequence[int], spread: float = 0.3, seed: int = 7) -> tuple[npt.NDArray[Any], list[str]]:
    """Vectors of 32 components around a centre for each label, and their labels."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(len(sizes), 32))
    vectors = [centre + spread * generator.normal(size=(size, 32)) for centre, size in zip(centres, sizes, strict=True)]
    return np.concatenate(vectors), [f"fruit {number}" for number, size in enumerate(sizes) for _ in range(size)]


def indices(found: Sequence[Suspect]) -> list[int]:
    return [suspect.index for suspect in found]


@pytest.mark.parametrize("seed", range(3))
def test_photographs_with_wrong_labels_come_first(photographs: tuple[npt.NDArray[Any], list[str]], seed: int) -> None:
    vectors, labels = photographs
    before = {suspect.index for suspect in suspects(points_of(vectors, labels))}
    assert len(before) <= 5  # of 300: some apples of the data set look like pomegranates
    generator = np.random.default_rng(seed)
    planted = sorted(generator.choice(sorted(set(range(300)) - before), 8, replace=False).tolist())
    wrong = list(labels)
    for index in planted:
        wrong[index] = str(generator.choice([name for name in sorted(set(labels)) if name != labels[index]]))
    found = suspects(points_of(vectors, wrong))
    assert set(planted) <= set(indices(found[:10]))
    assert len(found) <= 15
    named = [suspect for suspect in found if suspect.index in planted and suspect.kind == "neighbours"]
    assert len(named) >= 7  # the neighbours of one of them have several labels
    for suspect in named:
        assert suspect.label == labels[suspect.index]
        assert suspect.other is not None
        assert wrong[suspect.other] == suspect.label
        assert suspect.reason.endswith(f" of 10 nearest neighbours are labelled {suspect.label}")


def test_a_label_with_one_misspelt_image_is_found(photographs: tuple[npt.NDArray[Any], list[str]]) -> None:
    vectors, labels = photographs
    wrong, index = list(labels), labels.index("Kiwi")
    wrong[index] = "Kwii"
    first = suspects(points_of(vectors, wrong))[0]
    assert (first.index, first.label) == (index, "Kiwi")


def test_clean_clusters_and_small_classes_have_no_suspects() -> None:
    assert suspects(points_of(*clusters([40, 40, 30, 12, 4, 3, 2, 1, 1]))) == []


def test_an_image_between_all_classes_is_far_from_its_own() -> None:
    vectors, labels = clusters([40, 40, 40])
    for label in ("fruit 0", "fruit 2"):
        (found,) = suspects(points_of([*vectors, -vectors[:40].mean(axis=0)], [*labels, label]))
        assert (found.index, found.kind, found.label) == (120, "centre", None)
        assert found.reason == f"far from the other images labelled {label}"
        assert 0 < found.score < 1


def test_an_image_of_another_kind_is_found_where_all_have_one_label() -> None:
    vectors, labels = clusters([200])
    assert suspects(points_of(vectors, labels)) == []
    found = suspects(points_of([*vectors, *clusters([1], seed=8)[0]], [*labels, "fruit 0"]))
    assert [(suspect.index, suspect.kind) for suspect in found] == [(200, "centre")]


def test_a_class_of_two_clusters_is_no_reason_for_suspicion() -> None:
    vectors, _ = clusters([90, 30, 60])
    assert suspects(points_of(vectors, ["Lemon"] * 120 + ["Orange"] * 60)) == []


@pytest.mark.parametrize("wrong", [100, 101, 102])
def test_equal_images_with_different_labels_come_first(wrong: int) -> None:
    """Three copies of an image of fruit 0, one with another label, and a wrong label of another kind."""
    vectors, labels = clusters([40, 40])
    labels[5] = "fruit 1"
    copies = [*vectors, *[vectors[0]] * 20, *[vectors[1]] * 3]
    names = [*labels, *["fruit 0"] * 20, *["fruit 0"] * 3]
    names[wrong] = "fruit 1"
    contents = [sha256(number) for number in range(80)] + [sha256(0)] * 20 + [sha256(1)] * 3
    points = points_of(copies, names, contents)
    found = suspects(points)
    assert [(suspect.index, suspect.kind) for suspect in found] == [(wrong, "content"), (5, "neighbours")]
    assert found[0].other == 1
    assert found[0].reason == f"same content as {points.paths[1]}, labelled fruit 0"


@pytest.mark.parametrize("wrong", [3, 80])
def test_of_two_equal_images_the_one_with_other_neighbours_is_wrong(wrong: int) -> None:
    vectors, labels = clusters([40, 40])
    names = [*labels, "fruit 0"]
    names[wrong] = "fruit 1"
    contents = [sha256(number) for number in range(80)] + [sha256(3)]
    found = suspects(points_of([*vectors, vectors[3]], names, contents))
    assert [(suspect.index, suspect.label, suspect.other) for suspect in found] == [(wrong, "fruit 0", 83 - wrong)]


def test_vectors_of_many_components_are_compared_by_the_first_ones() -> None:
    vectors, labels = clusters([40, 40])
    labels[5] = "fruit 1"
    last = np.random.default_rng(8).normal(size=(80, 500)) * 1e-3
    assert indices(suspects(points_of(np.hstack([vectors, last]), labels))) == [5]
    only_last = np.hstack([np.zeros((80, suspects_module.COMPONENTS)), vectors])
    assert suspects(points_of(only_last, labels)) == []


def test_rows_without_a_hash_are_not_equal() -> None:
    vectors, labels = clusters([40, 40])
    assert suspects(points_of(vectors, labels, [""] * 80)) == []


def test_of_many_images_a_sample_is_compared_but_equal_ones_are_all_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suspects_module, "SAMPLE_IMAGES", 100)
    vectors, labels = clusters([400, 400])
    names = [*labels, "fruit 1"]
    contents = [sha256(number) for number in range(800)] + [sha256(0)]
    points = points_of([*vectors, vectors[0]], names, contents)
    assert indices(suspects(points)) == [800]


def test_at_most_as_many_suspects_as_asked_for_are_found(photographs: tuple[npt.NDArray[Any], list[str]]) -> None:
    vectors, labels = photographs
    points = points_of(vectors, labels[150:] + labels[:150], [sha256(number // 2) for number in range(300)])
    everything = suspects(points, 1000)
    assert suspects(points, 7) == everything[:7]
    assert suspects(points, 0) == []


def test_labels_with_markup_are_plain_text_in_reasons() -> None:
    vectors, labels = clusters([40, 40])
    names = {"fruit 0": ODD_LABELS[0], "fruit 1": ODD_LABELS[1]}
    labels[5] = "fruit 1"
    (found,) = suspects(points_of(vectors, [names[label] for label in labels]))
    assert found.reason == f"10 of 10 nearest neighbours are labelled {ODD_LABELS[0]}"


def test_the_order_of_the_rows_does_not_matter(photographs: tuple[npt.NDArray[Any], list[str]]) -> None:
    vectors, labels = photographs
    points = points_of(vectors, [*labels[10:], *labels[:10]])
    order = np.random.default_rng(7).permutation(300)
    shuffled = replace(
        points,
        paths=[points.paths[index] for index in order],
        sha256=[points.sha256[index] for index in order],
        label_codes=points.label_codes[order],
        vectors=points.vectors[order],
        lengths=points.lengths[order],
    )
    expected = [(points.paths[suspect.index], suspect.reason) for suspect in suspects(points)]
    assert [(shuffled.paths[suspect.index], suspect.reason) for suspect in suspects(shuffled)] == expected


@st.composite
def any_points(draw: st.DrawFn) -> Points:
    size = draw(st.integers(0, 30))
    numbers = st.integers(-2, 2)
    vectors = draw(st.lists(st.lists(numbers, min_size=2, max_size=2), min_size=size, max_size=size))
    labels = draw(st.lists(st.sampled_from("abc"), min_size=size, max_size=size))
    contents = draw(st.lists(st.sampled_from(["", "x", "y", "z"]), min_size=size, max_size=size))
    return points_of(np.array(vectors, np.float32).reshape(size, 2), labels, contents)


@settings(max_examples=200, deadline=None)
@given(any_points())
def test_any_points_can_be_examined(points: Points) -> None:
    found = suspects(points)
    assert len(set(indices(found))) == len(found)
    for suspect in found:
        assert 0 <= suspect.score <= 1
        if suspect.label is not None:
            assert suspect.other is not None
            assert suspect.label == points.label(suspect.other) != points.label(suspect.index)
