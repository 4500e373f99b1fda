from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from pyspark import SparkContext
from sklearn.decomposition import PCA

import pca
from orchard_spark import objects, parts, schemas, step
from orchard_spark.moments import CannotFit, Moments
from tests.spark.ingested import write_files

Read = Callable[[str], pa.Table]
Matrix = np.ndarray[tuple[int, int], np.dtype[np.float32]]


def matrix(rows: int) -> Matrix:
    rng = np.random.default_rng(5)
    return np.maximum(
        rng.normal(size=(rows, 20)) @ rng.normal(size=(20, 1280)) + rng.normal(size=(rows, 1280)), 0
    ).astype(np.float32)


def write_features(run_uri: str, values: Matrix, files: int = 3) -> None:
    tables = []
    for part in np.array_split(np.arange(len(values)), min(files, len(values))):
        columns = {
            "path": [f"s3://b/Kiwi/{row}.jpg" for row in part],
            "label": ["Kiwi"] * len(part),
            "etag": ["e"] * len(part),
            "sha256": ["s"] * len(part),
            "features": [values[row] for row in part],
            "model": ["m"] * len(part),
            "run_id": ["run-1"] * len(part),
        }
        tables.append(pa.table(columns, schema=schemas.FEATURES))
    write_files(run_uri, "features", "features", tables, model="m")


def vectors_by_row(table: pa.Table) -> Matrix:
    rows = {int(row["path"].rsplit("/", 1)[1][:-4]): row["vector"] for row in table.to_pylist()}
    return np.array([rows[number] for number in range(len(rows))], np.float32)


@pytest.mark.parametrize("n_components", [7, 0.9])
def test_embeddings_and_model_equal_scikit_learns(run_uri: str, read: Read, n_components: float) -> None:
    values = matrix(300)
    write_features(run_uri, values)
    metrics = pca.run(run_uri, n_components)
    theirs = PCA(n_components, svd_solver="full").fit(values.astype(np.float64))
    embeddings = read(f"{run_uri}/embeddings")
    (model,) = read(f"{run_uri}/pca_model").to_pylist()

    assert embeddings.schema.remove_metadata().equals(schemas.EMBEDDINGS)
    expected = theirs.transform(values.astype(np.float64))
    assert np.linalg.norm(vectors_by_row(embeddings) - expected) / np.linalg.norm(expected) <= 1e-4
    np.testing.assert_allclose(model["explained_variance_ratio_"], theirs.explained_variance_ratio_, atol=1e-6)
    np.testing.assert_allclose(model["explained_variance_"], theirs.explained_variance_, rtol=1e-6)
    np.testing.assert_allclose(model["components_"], theirs.components_, atol=1e-6)
    np.testing.assert_allclose(model["mean_"], theirs.mean_, rtol=1e-6)
    assert model["n_components_"] == theirs.n_components_ == metrics["n_components"]
    assert model["n_samples_"] == 300
    assert metrics["tasks"] == 2 + 3  # the fit has one task per task slot, the embeddings one per file
    assert metrics["explained_variance"] == pytest.approx(theirs.explained_variance_ratio_.sum())
    assert set(embeddings["pca_model"].to_pylist()) == {model["pca_model"]}


def test_many_files_are_added_up_reproducibly_by_one_task_per_slot(run_uri: str, context: SparkContext) -> None:
    values = matrix(40)
    write_features(run_uri, values, files=18)
    found = step.files_of(step.read_metrics(run_uri, "features"), "features")
    usage = parts.task_usage(context)
    sums, again = (pca.moments(context, found, usage) for _ in range(2))
    whole = Moments.of(values)
    assert sums.n == 40
    assert len(usage.value) == 2 * context.defaultParallelism
    np.testing.assert_allclose(sums.gram, whole.gram, rtol=1e-12)
    np.testing.assert_array_equal(sums.gram, again.gram)
    np.testing.assert_array_equal(sums.total, again.total)


def test_the_driver_receives_only_a_few_sums(context: SparkContext) -> None:
    one = Moments.of(matrix(2))
    sums = context.parallelize([(number, one) for number in range(18)], 18)
    merged = pca.merge(sums, 18).collect()
    assert len(merged) <= pca.FAN_IN
    assert sum(moments.n for _, moments in merged) == 36


@pytest.mark.parametrize(("rows", "n_components"), [(1, 1), (3, 50)])
def test_too_few_images_fail_without_a_metrics_file(run_uri: str, rows: int, n_components: int) -> None:
    write_features(run_uri, matrix(rows))
    with pytest.raises(CannotFit):
        pca.run(run_uri, n_components)
    with pytest.raises(FileNotFoundError):
        objects.read(f"{run_uri}/pca.metrics.json")


@pytest.mark.parametrize(
    "value", ["0", "-3", "1.5", "many", "nan", "inf", "-1", "1.0000000000000002", "0.99999999999999999"]
)
def test_an_impossible_number_of_components_is_refused(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        pca.main(["--run-uri", "x", f"--n-components={value}"])
    assert "--n-components" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "value"), [("1", 1), ("1.0", 1), ("50.0", 50), ("1e3", 1000), ("0.9999999999999999", 0.9999999999999999)]
)
def test_whole_numbers_and_shares_are_read_as_they_are_written(text: str, value: float) -> None:
    assert pca.n_components(text) == value
