from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyiceberg.catalog import Catalog

from orchard.report import points as points_module
from orchard.report.points import (
    LEAST_OF_LABEL,
    Points,
    lengths_of,
    load_points,
    nearest,
    sample_by_label,
)
from orchard.report.snapshots import RunNotPublished, SnapshotExpired
from orchard.settings import Settings
from orchard.tables.expiry import Retention, expire_snapshots
from orchard.tables.state import MixedRuns
from tests.plugins.deployed import Deployment
from tests.plugins.published import append
from tests.plugins.runs import Run, sha256

RUN_ID = "20261122T020000-aaaaaa"
DATASET = "s3://fruits-data/images/"
ODD_LABELS = ["<img src=x onerror=alert(1)>", "Früchte ミカン 🍏", 'it\'s "quoted"', "{{ 7 * 7 }}", ""]


def points_of(
    vectors: Any, labels: Sequence[str] | None = None, contents: Sequence[str] | None = None, total: int | None = None
) -> Points:
    """Points whose paths are numbered, in the order of the vectors."""
    rows = np.asarray(vectors, np.float32)
    of_rows = list(labels) if labels is not None else ["Kiwi"] * len(rows)
    counts = Counter(of_rows)
    names = sorted(counts, key=lambda name: (-counts[name], name))
    return Points(
        DATASET,
        RUN_ID,
        [f"{DATASET}{number:06d}.jpg" for number in range(len(rows))],
        list(contents) if contents is not None else [sha256(number) for number in range(len(rows))],
        names,
        np.array([counts[name] for name in names]),
        np.array([names.index(name) for name in of_rows], np.int32),
        rows,
        lengths_of(rows),
        len(rows) if total is None else total,
    )


def embeddings(labels: Sequence[str | None], vectors: Sequence[Any], **values: Any) -> list[dict[str, Any]]:
    """Return rows of the table embeddings, with paths that are numbered."""
    return [
        {
            "dataset": DATASET,
            "path": f"{DATASET}{number:06d}.jpg",
            "label": label,
            "sha256": sha256(number),
            "vector": vector,
            "run_id": RUN_ID,
            **values,
        }
        for number, (label, vector) in enumerate(zip(labels, vectors, strict=True))
    ]


def test_the_points_of_a_run_are_its_embeddings(catalog: Catalog, settings: Settings, first: Run) -> None:
    points = load_points(catalog, settings, first.dataset_uri, first.name)
    rows = {row["path"]: row for row in first.rows("embeddings").to_pylist()}
    assert sorted(points.paths) == sorted(rows)
    assert points.labels == ["Kiwi"]
    assert points.label_totals.tolist() == [5]
    for index, path in enumerate(points.paths):
        assert points.label(index) == rows[path]["label"]
        assert points.sha256[index] == rows[path]["sha256"]
        assert points.vectors[index].tolist() == rows[path]["vector"]
        assert points.lengths[index] == pytest.approx(np.linalg.norm(rows[path]["vector"]))
    assert (points.dataset, points.run_id, points.total) == (first.dataset_uri, first.name, 5)
    assert not points.is_sample
    assert points.left_out == 0


def test_the_points_of_an_earlier_run_stay_until_its_snapshot_expires(
    deployed: Deployment, catalog: Catalog, settings: Settings, first: Run, second: Run
) -> None:
    (earlier, later) = (load_points(catalog, settings, first.dataset_uri, run.name) for run in (first, second))
    assert (len(earlier.paths), len(later.paths)) == (5, 7)
    assert earlier.vectors[0][0] == first.rows("embeddings")["vector"][0].as_py()[0] != later.vectors[0][0]
    runs = [run for run in deployed.runs() if run.run_id == second.name]
    expire_snapshots(deployed.table("embeddings"), Retention(runs, datetime.now(UTC)))
    with pytest.raises(SnapshotExpired, match=r"embeddings has no rows of run .*aaaaaa .*report\.html"):
        load_points(catalog, settings, first.dataset_uri, first.name)
    assert len(load_points(catalog, settings, first.dataset_uri, second.name).paths) == 7


def test_a_run_that_the_tables_have_never_shown_is_not_published(
    catalog: Catalog, settings: Settings, empty: Settings, first: Run
) -> None:
    with pytest.raises(RunNotPublished):
        load_points(catalog, empty, first.dataset_uri, first.name)
    for dataset, run_id in (
        (first.dataset_uri, "20261122T020000-ffffff"),
        ("s3://other/images/", first.name),
        (first.dataset_uri.removesuffix("/"), first.name),
    ):
        with pytest.raises(RunNotPublished, match="is not published: the table runs has no row of it"):
            load_points(catalog, settings, dataset, run_id)


def test_a_run_without_a_row_in_runs_is_found_while_the_tables_show_it(catalog: Catalog, empty: Settings) -> None:
    append(catalog, empty, "embeddings", embeddings(["Kiwi"], [[1.0]]))
    assert load_points(catalog, empty, DATASET, RUN_ID).labels == ["Kiwi"]


def test_a_run_of_an_empty_dataset_has_no_points(catalog: Catalog, empty: Settings) -> None:
    append(
        catalog, empty, "runs", [{"dataset": DATASET, "run_id": RUN_ID, "images": 0, "rejects": [], "snapshots": []}]
    )
    points = load_points(catalog, empty, DATASET, RUN_ID)
    assert (points.paths, points.labels, points.total, points.is_sample) == ([], [], 0, False)
    assert points.vectors.shape == (0, 0)
    assert sample_by_label(points).tolist() == []


def test_rows_of_two_runs_are_refused(catalog: Catalog, empty: Settings) -> None:
    runs = [RUN_ID, "20261121T020000-bbbbbb"]
    for run_id in runs:
        append(catalog, empty, "embeddings", embeddings(["Kiwi"], [[1.0]], run_id=run_id))
    errors = []
    for run_id in runs:
        with pytest.raises((MixedRuns, RunNotPublished)) as caught:
            load_points(catalog, empty, DATASET, run_id)
        errors.append(caught.value)
    # Which of the two the table shows depends on the order of its files.
    (mixed,) = [error for error in errors if isinstance(error, MixedRuns)]
    assert all(run_id in str(mixed) for run_id in runs)


def test_labels_are_plain_text(catalog: Catalog, empty: Settings) -> None:
    labels = [*ODD_LABELS, None]
    append(catalog, empty, "embeddings", embeddings(labels, [[1.0, 2.0]] * len(labels)))
    points = load_points(catalog, empty, DATASET, RUN_ID)
    assert points.labels == ["", *sorted(ODD_LABELS[:-1])]
    assert {path: points.label(index) for index, path in enumerate(points.paths)} == {
        f"{DATASET}{number:06d}.jpg": label or "" for number, label in enumerate(labels)
    }


def test_rows_without_a_usable_vector_are_left_out(catalog: Catalog, empty: Settings) -> None:
    nan, inf = float("nan"), float("inf")
    vectors: list[Any] = [
        None, [], [1.0, 2.0], [1.0], [3.0, 4.0], [nan, 1.0], [1.0, inf], [None, 1.0], [0.0, 0.0], [3e38, 3e38],
        [1.0, 2.0, 3.0], [5.0, 6.0],
    ]  # fmt: skip
    append(catalog, empty, "embeddings", embeddings(["Kiwi"] * len(vectors), vectors))
    append(catalog, empty, "embeddings", embeddings(["Kiwi"], [[1.0, 2.0]], path=None))
    points = load_points(catalog, empty, DATASET, RUN_ID)
    assert sorted(points.vectors.tolist()) == [[0.0, 0.0], [1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    assert (points.total, points.left_out, points.is_sample) == (13, 9, False)
    for most in (4, 6, 12):
        assert sorted(load_points(catalog, empty, DATASET, RUN_ID, most=most).paths) == sorted(points.paths)


def test_a_table_of_unusable_vectors_has_no_points(catalog: Catalog, empty: Settings) -> None:
    append(catalog, empty, "embeddings", embeddings(["Kiwi"] * 2, [None, []]))
    points = load_points(catalog, empty, DATASET, RUN_ID)
    assert (points.paths, points.left_out, points.is_sample) == ([], 2, False)


def test_of_many_rows_a_sample_by_label_is_loaded(
    catalog: Catalog, empty: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(points_module, "BATCH_ROWS", 64)
    labels = ["Apple"] * 1500 + ["Kiwi"] * 490 + ["Pear"] * 8 + ["Plum"] * 2
    rows = embeddings(labels, [[float(number), 1.0] for number in range(2000)])
    mixed = [rows[number * 7 % 2000] for number in range(2000)]
    append(catalog, empty, "embeddings", mixed[:1200])
    append(catalog, empty, "embeddings", mixed[1200:])
    whole = load_points(catalog, empty, DATASET, RUN_ID)
    assert (len(whole.paths), whole.is_sample) == (2000, False)
    points = load_points(catalog, empty, DATASET, RUN_ID, most=200)
    assert (len(points.paths), points.total, points.is_sample) == (200, 2000, True)
    assert points.labels == ["Apple", "Kiwi", "Pear", "Plum"]
    assert points.label_totals.tolist() == [1500, 490, 8, 2]
    counts = np.bincount(points.label_codes).tolist()
    assert counts[3] == 2
    assert counts[2] >= LEAST_OF_LABEL
    assert counts[0] == pytest.approx(3 * counts[1], rel=0.1)
    for index, path in enumerate(points.paths):
        assert points.vectors[index, 0] == int(path[-10:-4])
    assert set(points.paths) == {whole.paths[index] for index in sample_by_label(whole, 200)}
    assert load_points(catalog, empty, DATASET, RUN_ID, most=200).paths == points.paths


def test_of_more_labels_than_rows_a_sample_has_some(catalog: Catalog, empty: Settings) -> None:
    append(catalog, empty, "embeddings", embeddings([f"label {n}" for n in range(50)], [[1.0]] * 50))
    points = load_points(catalog, empty, DATASET, RUN_ID, most=20)
    assert len(points.paths) == len(points.labels) == 20


@given(st.lists(st.integers(0, 12), max_size=300), st.integers(1, 320), st.randoms(use_true_random=False))
def test_a_sample_has_a_fair_share_of_each_label_in_any_order(codes: list[int], most: int, random: Any) -> None:
    points = points_of(np.ones((len(codes), 1)), [f"label {code}" for code in codes])
    chosen = sample_by_label(points, most)
    assert len(chosen) == min(most, len(codes))
    assert sorted(set(chosen.tolist())) == chosen.tolist()
    counts, of_sample = np.bincount(points.label_codes), np.bincount(points.label_codes[chosen], minlength=13)
    least = min(LEAST_OF_LABEL, most // max(1, len(points.labels)))
    for code, count in enumerate(counts):
        assert min(count, least) <= of_sample[code] <= count
        if most < len(codes):
            assert abs(of_sample[code] - count * most / len(codes)) <= LEAST_OF_LABEL * 13
    assert np.all(np.diff(of_sample[: len(counts)]) <= 1)  # the labels have descending counts
    order = list(range(len(codes)))
    random.shuffle(order)
    shuffled = replace(points, paths=[points.paths[index] for index in order], label_codes=points.label_codes[order])
    assert {shuffled.paths[index] for index in sample_by_label(shuffled, most)} == {
        points.paths[index] for index in chosen
    }


def test_the_nearest_points_are_those_of_the_largest_cosines() -> None:
    vectors = np.random.default_rng(7).normal(size=(500, 16)).astype(np.float32)
    vectors[13] = 0
    points = points_of(vectors)
    units = vectors.astype(np.float64) / np.maximum(np.linalg.norm(vectors, axis=1), 1e-9)[:, np.newaxis]
    for index in (0, 250, 499):
        cosines = units @ units[index]
        expected = [other for other in np.argsort(-cosines) if other not in (index, 13)]
        found = nearest(points, index, 20)
        assert [each.index for each in found] == expected[:20]
        assert [each.similarity for each in found] == pytest.approx(cosines[expected[:20]])
        assert [each.index for each in nearest(points, index, 1000)] == expected
    assert nearest(points, 13) == []
    assert nearest(points, 0, 0) == []
    for index in (-1, 500):
        with pytest.raises(IndexError, match="there is no point"):
            nearest(points, index)


def test_equally_near_points_are_ordered_by_their_paths() -> None:
    vector = np.random.default_rng(7).normal(size=64)
    copies = np.stack([vector * (1 + number % 3) for number in range(1001)])
    points = points_of(np.concatenate([-copies[:1], copies]))
    points = replace(points, paths=points.paths[::-1])
    found = nearest(points, 1, 5)
    assert [each.index for each in found] == [1001, 1000, 999, 998, 997]
    assert [each.similarity for each in found] == [1.0] * 5
    assert nearest(points, 1, 1001)[-1] == points_module.Neighbour(0, -1.0)


def test_a_point_alone_has_no_neighbours() -> None:
    assert nearest(points_of([[1.0, 2.0]]), 0) == []
    assert nearest(points_of([[1.0, 2.0], [0.0, 0.0]]), 0) == []
