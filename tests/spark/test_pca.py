import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyspark import SparkContext
from sklearn.decomposition import PCA

import pca
from orchard_spark import compaction, locations, objects, parts, schemas
from orchard_spark.moments import CannotFit, Moments
from orchard_spark.neighbours import label_accuracy
from orchard_spark.parts import Part
from tests.spark.ingested import (
    DATASET,
    RunFolders,
    digest,
    image_info,
    write_features,
    write_featurised,
    write_plan,
)

Matrix = np.ndarray[tuple[int, int], np.dtype[np.float32]]


def matrix(rows: int) -> Matrix:
    rng = np.random.default_rng(5)
    return np.maximum(
        rng.normal(size=(rows, 20)) @ rng.normal(size=(20, 1280)) + rng.normal(size=(rows, 1280)), 0
    ).astype(np.float32)


def write_run(folders: RunFolders, values: Matrix, files: int = 3) -> None:
    """Write a run over new images, each with its own content."""
    write_plan(folders)
    shares = np.array_split(np.arange(len(values)), min(files, len(values)))
    written = [write_features(folders, list(values[share]), first=share[0]) for share in shares]
    write_featurised(folders, [image_info(number) for number in range(len(values))], written)


def vectors_by_row(table: pa.Table) -> Matrix:
    rows = {int(row["path"].rsplit("/", 1)[1][:-4]): row["vector"] for row in table.to_pylist()}
    return np.array([rows[number] for number in range(len(rows))], np.float32)


def assert_close(vectors: Matrix, expected: Any, tolerance: float = 1e-4) -> None:
    assert np.linalg.norm(vectors - expected) / np.linalg.norm(expected) <= tolerance


@pytest.mark.parametrize("n_components", [7, 0.9])
def test_embeddings_and_model_equal_scikit_learns(folders: RunFolders, n_components: float) -> None:
    values = matrix(300)
    write_run(folders, values)
    metrics = folders.reduce(n_components)
    theirs = PCA(n_components, svd_solver="full").fit(values.astype(np.float64))
    embeddings = folders.read("embeddings")
    (model,) = folders.read("pca_model").to_pylist()

    assert embeddings.schema.remove_metadata().equals(schemas.EMBEDDINGS)
    assert_close(vectors_by_row(embeddings), theirs.transform(values.astype(np.float64)))
    np.testing.assert_allclose(model["explained_variance_ratio_"], theirs.explained_variance_ratio_, atol=1e-6)
    np.testing.assert_allclose(model["explained_variance_"], theirs.explained_variance_, rtol=1e-6)
    np.testing.assert_allclose(model["components_"], theirs.components_, atol=1e-6)
    np.testing.assert_allclose(model["mean_"], theirs.mean_, rtol=1e-6)
    assert model["n_components_"] == theirs.n_components_ == metrics["n_components"]
    assert (model["n_samples_"], model["dataset"], model["model"]) == (300, DATASET, "m")
    assert metrics["explained_variance"] == pytest.approx(theirs.explained_variance_ratio_.sum())
    assert set(embeddings["pca_model"].to_pylist()) == {model["pca_model"]}
    assert metrics["drift"]["shift"] is None, "no run before"
    assert metrics["label_accuracy"] == {"accuracy": None, "images": 0, "labels": 0}, "all images have the same label"


def test_images_that_the_plan_keeps_are_reduced_with_the_new_ones(folders: RunFolders) -> None:
    values = matrix(50)
    old = write_features(folders, list(values[:30]), run_id="run-0")
    new = write_features(folders, list(values[30:]), first=30)
    kept = [image_info(number, run_id="run-0") for number in range(30)]
    write_plan(folders, kept_images=kept, of_table=[old])
    write_featurised(folders, [image_info(number) for number in range(30, 50)], [new])
    metrics = folders.reduce(5)
    theirs = PCA(5, svd_solver="full").fit_transform(values.astype(np.float64))
    assert (metrics["rows_in"], metrics["rows_out"]) == (50, 50)
    assert_close(vectors_by_row(folders.read("embeddings")), theirs)


def test_contents_of_deleted_images_and_of_other_datasets_have_no_part_in_it(folders: RunFolders) -> None:
    values = matrix(50)
    write_plan(folders, of_table=[write_features(folders, list(values), run_id="run-0")])
    write_featurised(folders, [image_info(number, run_id="run-0") for number in range(0, 50, 2)])
    folders.reduce(5)
    table = folders.read("embeddings")
    theirs = PCA(5, svd_solver="full").fit_transform(values[::2].astype(np.float64))
    by_path = [row["vector"] for row in sorted(table.to_pylist(), key=lambda row: str(row["path"]))]
    assert_close(np.array(by_path, np.float32), theirs)


def test_duplicates_count_as_scikit_learn_counts_rows(folders: RunFolders) -> None:
    values = matrix(40)
    contents = [*range(40), *[3] * 10, 5, 5]
    write_plan(folders)
    images = [image_info(number, content) for number, content in enumerate(contents)]
    write_featurised(folders, images, [write_features(folders, list(values))])
    metrics = folders.reduce(5)
    rows = values[contents].astype(np.float64)
    assert (metrics["rows_in"], metrics["rows_out"], metrics["duplicates"]) == (52, 52, 12)
    assert_close(vectors_by_row(folders.read("embeddings")), PCA(5, svd_solver="full").fit_transform(rows))


@pytest.mark.slow
def test_a_content_of_very_many_images_is_reduced_in_batches(
    folders: RunFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = matrix(9)
    contents = [*range(9), *[4] * 500]
    write_plan(folders)
    images = [image_info(number, content) for number, content in enumerate(contents)]
    write_featurised(folders, images, [write_features(folders, list(values))])
    folders.reduce(3)
    rows = values[contents].astype(np.float64)
    assert_close(vectors_by_row(folders.read("embeddings")), PCA(3, svd_solver="full").fit_transform(rows))


def test_each_image_has_the_features_of_the_run_that_it_refers_to(folders: RunFolders) -> None:
    values = matrix(20)
    other = write_features(folders, list(np.zeros((20, 1280), np.float32)), run_id="run-of-another-dataset")
    write_plan(folders, of_table=[other, write_features(folders, list(values), run_id="run-0")])
    write_featurised(folders, [image_info(number, run_id="run-0") for number in range(20)])
    folders.reduce(3)
    theirs = PCA(3, svd_solver="full").fit_transform(values.astype(np.float64))
    assert_close(vectors_by_row(folders.read("embeddings")), theirs)


def test_a_row_of_features_that_is_in_two_files_counts_once(folders: RunFolders) -> None:
    values = matrix(20)
    twice = [write_features(folders, list(values)) for _ in range(2)]
    write_plan(folders)
    write_featurised(folders, [image_info(number) for number in range(20)], twice)
    assert folders.reduce(3)["rows_out"] == 20


def test_images_without_features_are_reported_with_an_example(folders: RunFolders) -> None:
    write_plan(folders)
    images = [image_info(number) for number in range(12)]
    write_featurised(folders, images, [write_features(folders, list(matrix(10)))])
    with pytest.raises(locations.NoFeatures, match="2 of 12 contents have no features in the 1 files") as error:
        folders.reduce(3)
    assert digest(10) in str(error.value) or digest(11) in str(error.value)


@dataclass(frozen=True)
class Earlier:
    """A run of 60 images with 20 components, that later runs with a frozen basis use, and no test changes."""

    folders: RunFolders
    values: Matrix
    pca_model: str

    @property
    def theirs(self) -> PCA:
        return PCA(20, svd_solver="full").fit(self.values.astype(np.float64))


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Earlier:
    folders, values = RunFolders.below(f"file://{tmp_path_factory.mktemp('earlier')}"), matrix(60)
    write_run(folders, values)
    return Earlier(folders, values, folders.reduce(20)["pca_model"])


def test_each_embedding_has_the_path_the_label_and_the_content_of_its_image(earlier: Earlier) -> None:
    rows = sorted(earlier.folders.read("embeddings").to_pylist(), key=lambda row: str(row["path"]))
    expected = [image_info(number) for number in range(60)]
    for row, image in zip(rows, expected, strict=True):
        assert {key: row[key] for key in ("path", "label", "sha256")} == {
            key: image[key] for key in ("path", "label", "sha256")
        }
        assert (row["dataset"], row["run_id"]) == (DATASET, "run-1")


def test_with_a_frozen_basis_old_images_keep_their_vectors(folders: RunFolders, earlier: Earlier) -> None:
    values = np.concatenate([earlier.values, matrix(80)[60:]])
    before = earlier.folders
    kept = [image_info(number) for number in range(60)]
    new = write_features(folders, list(values[60:]), first=60)
    write_plan(folders, kept_images=kept, of_table=before.parts("features"), basis=before.parts("pca_model"))
    write_featurised(folders, [image_info(number) for number in range(60, 80)], [new])
    metrics = folders.reduce(9, "frozen")
    now = vectors_by_row(folders.read("embeddings"))
    np.testing.assert_array_equal(now[:60], vectors_by_row(before.read("embeddings")))
    assert_close(now[60:], earlier.theirs.transform(values[60:].astype(np.float64)))
    assert (metrics["pca_model"], metrics["n_components"], metrics["pca_mode"]) == (earlier.pca_model, 20, "frozen")
    assert folders.parts("pca_model") == []
    assert metrics["drift"]["shift"] == pytest.approx(shift(values, earlier), rel=1e-6)


def shift(values: Matrix, earlier: Earlier) -> float:
    """Return how far the mean has moved, in standard deviations of the earlier run."""
    before = earlier.values.astype(np.float64)
    deviation = np.sqrt(before.var(axis=0, ddof=1).sum())
    return float(np.linalg.norm(values.astype(np.float64).mean(axis=0) - before.mean(axis=0)) / deviation)


def test_a_fit_is_compared_with_the_run_before_and_its_vectors_with_the_labels(
    folders: RunFolders, earlier: Earlier, caplog: pytest.LogCaptureFixture
) -> None:
    """The images 60 to 79 are new, and their content differs. Five more have the content of image 3."""
    values = np.concatenate([earlier.values, matrix(80)[60:] + np.float32(0.5)])
    contents = [*range(80), *[3] * 5]
    labels = [f"label {content % 4}" if content % 9 else "Kiwi" for content in contents]
    images = [image_info(number, content) for number, content in enumerate(contents)]
    images = [{**image, "label": label} for image, label in zip(images, labels, strict=True)]
    before = earlier.folders
    new = write_features(folders, list(values[60:]), first=60)
    write_plan(folders, kept_images=images[:60], of_table=before.parts("features"), basis=before.parts("pca_model"))
    write_featurised(folders, images[60:], [new])
    with caplog.at_level(logging.INFO, "pca"):
        metrics = folders.reduce(6)
    assert metrics["pca_model"] != earlier.pca_model, "the basis of the run before is only compared"
    assert metrics["drift"]["shift"] == pytest.approx(shift(values[contents], earlier), rel=1e-6)
    vectors = vectors_by_row(folders.read("embeddings"))
    expected = label_accuracy(vectors, pa.array(labels), pa.array([str(content) for content in contents]))
    assert expected.accuracy is not None
    assert metrics["label_accuracy"] == {
        "accuracy": pytest.approx(expected.accuracy),
        "images": expected.images,
        "labels": expected.labels,
    }
    assert any(
        f"label accuracy {expected.accuracy:.4f}: of 85 sampled images of 5 labels" in m for m in caplog.messages
    )


def test_a_frozen_run_without_a_basis_is_refused(folders: RunFolders) -> None:
    write_run(folders, matrix(5))
    with pytest.raises(CannotFit, match="pca_mode is frozen, but the plan lists no basis"):
        folders.reduce(2, "frozen")


def drift_of(
    folders: RunFolders, earlier: Earlier, new: Matrix, caplog: pytest.LogCaptureFixture
) -> tuple[Any, list[str]]:
    """Return the drift of images beside the basis of an earlier run, and the warnings."""
    before = earlier.folders
    write_plan(folders, of_table=before.parts("features"), basis=before.parts("pca_model"))
    written = write_features(folders, list(new), first=100)
    write_featurised(folders, [image_info(100 + number) for number in range(len(new))], [written])
    with caplog.at_level(logging.WARNING, "pca"):
        metrics = folders.reduce(2, "frozen")
    return metrics["drift"], [record.message for record in caplog.records if "outside of the basis" in record.message]


def test_the_drift_is_the_share_of_the_new_images_variance_outside_of_the_basis(
    folders: RunFolders, earlier: Earlier, caplog: pytest.LogCaptureFixture
) -> None:
    new, theirs = earlier.values[:9], earlier.theirs
    drift, warnings = drift_of(folders, earlier, new, caplog)
    centred = new - theirs.mean_
    kept = np.square(theirs.transform(new.astype(np.float64))).sum() / np.square(centred).sum()
    assert drift["new"] == pytest.approx(1 - kept, abs=1e-6)
    assert drift["fit"] == pytest.approx(1 - theirs.explained_variance_ratio_.sum(), abs=1e-6)
    assert warnings == []


def test_a_large_drift_is_a_warning(folders: RunFolders, earlier: Earlier, caplog: pytest.LogCaptureFixture) -> None:
    drift, warnings = drift_of(folders, earlier, np.random.default_rng(1).random((9, 1280), np.float32), caplog)
    assert drift["new"] > drift["fit"] + 0.1
    assert len(warnings) == 1
    assert "of the 9 new images lies outside of the basis" in warnings[0]


def test_without_new_images_there_is_no_drift(folders: RunFolders) -> None:
    values = matrix(20)
    write_plan(
        folders,
        kept_images=[image_info(number) for number in range(20)],
        of_table=[write_features(folders, list(values))],
    )
    write_featurised(folders)
    assert folders.reduce(2)["drift"]["new"] is None


def select(values: Sequence[Matrix], folders: RunFolders) -> list[locations.Selection]:
    """Write files of features, and select all their rows."""
    selections, first = [], 0
    for rows in values:
        part = write_features(folders, list(rows), first=first)
        numbers = np.arange(len(rows))
        selections.append(locations.Selection(part, numbers, first + numbers, np.ones(len(rows), np.int64)))
        first += len(rows)
    return selections


def test_many_files_are_added_up_reproducibly_by_one_task_per_slot(folders: RunFolders, context: SparkContext) -> None:
    values = matrix(40)
    selections, usage = select(np.array_split(values, 18), folders), parts.task_usage(context)
    sums, again = (pca.moments(context, selections, usage) for _ in range(2))
    whole = Moments.of(values)
    assert sums.n == 40
    assert len(usage.value) == 2 * context.defaultParallelism
    np.testing.assert_allclose(sums.gram, whole.gram, rtol=1e-12)
    np.testing.assert_array_equal(sums.gram, again.gram)
    np.testing.assert_array_equal(sums.total, again.total)


def test_the_driver_receives_only_a_few_sums(context: SparkContext) -> None:
    one = Moments.of(matrix(2)[:, :40])
    sums = context.parallelize([(number, one) for number in range(18)], 18)
    merged = pca.merge(sums, 18).collect()
    assert len(merged) <= pca.FAN_IN
    assert sum(moments.n for _, moments in merged) == 36


@pytest.mark.parametrize(("rows", "n_components"), [(0, 1), pytest.param(1, 1, marks=pytest.mark.slow), (3, 50)])
def test_too_few_images_fail_without_a_metrics_file(folders: RunFolders, rows: int, n_components: int) -> None:
    write_plan(folders)
    written = [write_features(folders, list(matrix(rows)))] if rows else []
    write_featurised(folders, [image_info(number) for number in range(rows)], written)
    with pytest.raises(CannotFit):
        folders.reduce(n_components)
    with pytest.raises(FileNotFoundError):
        objects.read(f"{folders.run_uri}/pca.metrics.json")


@pytest.mark.parametrize(
    "value", ["0", "-3", "1.5", "many", "nan", "inf", "-1", "1.0000000000000002", "0.99999999999999999"]
)
def test_an_impossible_number_of_components_is_refused(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        pca.main(["--run-uri", "x", "--warehouse-uri", "y", f"--n-components={value}"])
    assert "--n-components" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "value"), [("1", 1), ("1.0", 1), ("50.0", 50), ("1e3", 1000), ("0.9999999999999999", 0.9999999999999999)]
)
def test_whole_numbers_and_shares_are_read_as_they_are_written(text: str, value: float) -> None:
    assert pca.n_components(text) == value


def compact(folders: RunFolders, files: int, monkeypatch: pytest.MonkeyPatch) -> Matrix:
    """Reduce a dataset whose features are in this many small files, where 3 are too many, and return the features."""
    monkeypatch.setattr(compaction, "MOST_SMALL_FILES", 3)
    monkeypatch.setattr(compaction, "TARGET_BYTES", 30_000)
    values = matrix(4 * files)
    of_table = [write_features(folders, list(values[4 * n : 4 * n + 4]), first=4 * n) for n in range(files)]
    write_plan(folders, kept_images=[image_info(number) for number in range(4 * files)], of_table=of_table)
    write_featurised(folders)
    folders.reduce(2)
    return values


def test_many_small_files_of_the_table_are_rewritten(folders: RunFolders, monkeypatch: pytest.MonkeyPatch) -> None:
    values = compact(folders, 6, monkeypatch)
    assert len(folders.parts("replaced")) == 6
    assert 1 <= len(folders.parts("compacted")) < 6
    assert {part.uri for part in folders.parts("compacted")}.isdisjoint(part.uri for part in folders.parts("replaced"))
    rows = {row["sha256"]: row for row in folders.read("compacted").to_pylist()}
    assert len(rows) == 24
    for number in range(24):
        np.testing.assert_array_equal(np.array(rows[digest(number)]["features"], np.float32), values[number])
        assert (rows[digest(number)]["run_id"], rows[digest(number)]["model"]) == ("run-1", "m")


@pytest.mark.slow
def test_a_few_small_files_are_not_rewritten(folders: RunFolders, monkeypatch: pytest.MonkeyPatch) -> None:
    compact(folders, 3, monkeypatch)
    assert (folders.parts("replaced"), folders.parts("compacted")) == ([], [])


def test_only_small_files_of_the_table_that_the_dataset_needs_are_rewritten() -> None:
    small, large = Part("s", 1, compaction.SMALL_BYTES - 1), Part("l", 1, compaction.SMALL_BYTES)
    many = [Part(f"s{number}", 1, 1) for number in range(compaction.MOST_SMALL_FILES)]
    assert compaction.small_files([*many, large, small], [*many, large]) == []
    assert compaction.small_files([*many, large, small], [*many, large, small]) == [*many, small]
