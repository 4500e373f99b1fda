import hashlib
from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import LeaveOneOut, cross_val_score
from sklearn.neighbors import KNeighborsClassifier

from orchard_spark import neighbours
from orchard_spark.neighbours import LabelAccuracy, Sample, label_accuracy, path_hashes

Matrix = np.ndarray[Any, np.dtype[np.float32]]
NOTHING = LabelAccuracy(None, 0, 0)


def accuracy(vectors: Any, labels: Sequence[str], contents: Sequence[str] | None = None) -> LabelAccuracy:
    """Return the label accuracy of images; each has its own content, unless given."""
    own = [str(number) for number in range(len(labels))]
    return label_accuracy(np.array(vectors, np.float32), pa.array(labels, pa.string()), pa.array(contents or own))


def clusters(images: int, labels: int, components: int) -> tuple[Matrix, list[str]]:
    """Return vectors that overlap between labels, and the labels."""
    rng = np.random.default_rng(7)
    label_of = rng.integers(0, labels, images)
    centres = rng.normal(size=(labels, components))
    vectors = centres[label_of] + rng.normal(size=(images, components))
    return vectors.astype(np.float32), [f"label {number}" for number in label_of]


def test_it_is_scikit_learns_leave_one_out_accuracy_of_the_nearest_neighbour() -> None:
    vectors, labels = clusters(700, 8, 6)  # more than a block of rows
    classifier = KNeighborsClassifier(1, metric="cosine", algorithm="brute")
    theirs = cross_val_score(classifier, vectors.astype(np.float64), labels, cv=LeaveOneOut()).mean()
    ours = accuracy(vectors, labels)
    assert 0.3 < theirs < 0.95
    assert ours == LabelAccuracy(pytest.approx(theirs, abs=1e-9), 700, 8)  # type: ignore[arg-type]


def brute_force(vectors: list[list[int]], labels: list[str], contents: list[str]) -> LabelAccuracy:
    """Return the same by the definition, image by image, in whole numbers: the order of cosines needs no root."""
    usable = [number for number, vector in enumerate(vectors) if any(vector)]

    def cosine(one: int, other: int) -> tuple[int, float]:
        product = sum(a * b for a, b in zip(vectors[one], vectors[other], strict=True))
        return (product > 0) - (product < 0), product**2 / sum(a * a for a in vectors[other])

    shares, found = [], set()
    for image in usable:
        others = [other for other in usable if contents[other] != contents[image]]
        if not any(labels[other] == labels[image] for other in others):
            continue
        rank = {other: sign * square for other in others for sign, square in [cosine(image, other)]}
        best = max(rank.values())
        nearest = [other for other in others if rank[other] >= best - 1e-9]
        shares.append(sum(labels[other] == labels[image] for other in nearest) / len(nearest))
        found.add(labels[image])
    if len({labels[image] for image in usable}) < 2 or not shares:
        return NOTHING
    return LabelAccuracy(sum(shares) / len(shares), len(shares), len(found))


@settings(max_examples=300, deadline=None)
@given(data=st.data(), components=st.integers(1, 3), images=st.integers(0, 12))
def test_it_is_what_its_definition_says_of_all_vectors_labels_and_contents(
    data: st.DataObject, components: int, images: int
) -> None:
    vector = st.lists(st.integers(-3, 3), min_size=components, max_size=components)
    vectors = data.draw(st.lists(vector, min_size=images, max_size=images))
    labels = data.draw(st.lists(st.sampled_from(["a", "b", "c\0", "c"]), min_size=images, max_size=images))
    contents = data.draw(st.lists(st.sampled_from("123456"), min_size=images, max_size=images))
    expected = brute_force(vectors, labels, contents)
    found = label_accuracy(
        np.array(vectors, np.float32).reshape(images, components),
        pa.array(labels, pa.string()),
        pa.array(contents, pa.string()),
    )
    assert (found.images, found.labels) == (expected.images, expected.labels)
    assert found.accuracy == (None if expected.accuracy is None else pytest.approx(expected.accuracy))


def test_copies_of_an_image_are_no_neighbours_of_it() -> None:
    vectors, labels = clusters(60, 12, 2)
    once = accuracy(vectors, labels)
    assert once.accuracy is not None
    twice = accuracy(np.repeat(vectors, 2, axis=0), np.repeat(labels, 2).tolist(), np.repeat(range(60), 2).tolist())
    assert twice == LabelAccuracy(pytest.approx(once.accuracy), 120, once.labels)  # type: ignore[arg-type]
    assert once.accuracy < 0.9


def test_an_image_with_the_only_content_of_its_label_does_not_count_but_is_a_neighbour() -> None:
    vectors = [[1, 0], [0.9, 0.1], [1, 0.05]]
    assert accuracy(vectors, ["a", "a", "b"]) == LabelAccuracy(0, 2, 1)
    assert accuracy([*vectors, [0, 1]], ["a", "a", "b", "b"], ["0", "1", "2", "2"]).images == 2


@pytest.mark.parametrize(
    ("vectors", "labels"),
    [
        ([], []),
        ([[1, 2]], ["a"]),
        ([[1, 2], [2, 1], [1, 1]], ["a", "a", "a"]),
        ([[1, 2], [2, 1], [1, 1]], ["a", "b", "c"]),
        ([[0, 0], [2, 1], [0, 0]], ["a", "b", "a"]),
        ([[np.nan, 1], [np.inf, 1], [1, 1], [1, 2]], ["a", "b", "a", "a"]),
    ],
    ids=["no image", "one image", "one label", "one image per label", "no direction", "no numbers"],
)
def test_without_anything_to_compare_there_is_no_accuracy(vectors: list[list[float]], labels: list[str]) -> None:
    matrix = np.array(vectors, np.float32).reshape(len(labels), 2)
    assert accuracy(matrix, labels) == NOTHING


def test_the_length_of_a_vector_does_not_matter() -> None:
    vectors, labels = clusters(50, 4, 3)
    lengths = np.random.default_rng(1).uniform(1e-12, 1e12, (50, 1))
    assert accuracy(vectors * lengths, labels) == accuracy(vectors, labels)


def images_of(numbers: Sequence[int], labels: Sequence[str]) -> pa.Table:
    return pa.table(
        {
            "path": [f"s3://bucket/images/{number}.jpg" for number in numbers],
            "label": [labels[number] for number in numbers],
            "sha256": [hashlib.sha256(str(number).encode()).hexdigest() for number in numbers],
        }
    )


def test_the_sample_has_the_smallest_hashes_however_the_images_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "SAMPLE_IMAGES", 200)
    vectors, labels = clusters(5000, 5, 4)
    hashes = path_hashes(images_of(range(5000), labels)["path"])
    smallest = np.argsort(hashes)[:200]
    expected = accuracy(vectors[smallest], [labels[number] for number in smallest])

    def sample(shares: Sequence[Any]) -> Sample:
        samples = [Sample.of(5000) for _ in shares]
        for one, share in zip(samples, shares, strict=True):
            one.add(images_of(share, labels), vectors[share])
        return reduce(add, samples)

    order = np.random.default_rng(3).permutation(5000)
    for shares in ([np.arange(5000)], np.array_split(order, 7)):
        found = sample(shares)
        assert 200 <= sum(len(of_task) for of_task, _, _ in found.candidates) < 400, "few more than needed are sent"
        assert found.label_accuracy() == LabelAccuracy(pytest.approx(expected.accuracy), 200, 5)  # type: ignore[arg-type]


@pytest.mark.parametrize("images", [0, 1, 4999, 5000, 5001])
def test_all_images_of_a_small_dataset_are_in_its_sample(images: int) -> None:
    vectors, labels = clusters(images, 5, 2)
    sample = Sample.of(images)
    if images:
        sample.add(images_of(range(images), labels), vectors)
    assert sum(len(hashes) for hashes, _, _ in sample.candidates) == images
    assert sample.label_accuracy().images == (min(images, neighbours.SAMPLE_IMAGES) if images > 1 else 0)
