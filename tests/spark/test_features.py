from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from py4j.protocol import Py4JJavaError

import features
import ingest
from orchard_spark import mobilenet, objects, parts, schemas, step
from tests.spark.ingested import write_files

Read = Callable[[str], pa.Table]


def by_image(table: pa.Table) -> dict[str, np.ndarray]:
    """Return the features by label and file name."""
    return {
        "/".join(row["path"].rsplit("/", 2)[1:]): np.array(row["features"], np.float32) for row in table.to_pylist()
    }


def test_each_image_has_features_from_one_inference(ingested: str, model_file: Path, read: Read) -> None:
    metrics = features.run(ingested, str(model_file))
    table = read(f"{ingested}/features")
    assert (metrics["rows_in"], metrics["rows_out"], metrics["inferences"]) == (24, 24, 24)
    assert metrics["tasks"] == 2
    assert table.schema.remove_metadata().equals(schemas.FEATURES)
    assert sorted(table["path"].to_pylist()) == sorted(read(f"{ingested}/images")["path"].to_pylist())
    assert {len(values) for values in table["features"].to_pylist()} == {1280}
    assert set(table["model"].to_pylist()) == {model_file.stem}
    assert set(table["run_id"].to_pylist()) == {"run-1"}


def test_real_photographs_have_the_features_that_keras_computes(
    shared_data: Path, run_uri: str, model_file: Path, read: Read
) -> None:
    ingest.run(str(shared_data / "fruits-360-small"), run_uri, max_reject_ratio=0, max_pixels=50_000)
    features.run(run_uri, str(model_file))
    ours = by_image(read(f"{run_uri}/features"))
    with np.load(shared_data / "fruits-360-small-features.npz") as reference:
        assert sorted(ours) == sorted(reference["path"])
        for path, keras in zip(reference["path"], reference["features"], strict=True):
            assert np.linalg.norm(ours[path] - keras) / np.linalg.norm(keras) <= 1e-4


def test_an_images_features_do_not_depend_on_its_batch(model_file: Path) -> None:
    model = mobilenet.load(model_file.read_bytes())
    pictures = list(np.random.default_rng(3).integers(0, 256, (11, 224, 224, 3), np.uint8))
    together = list(model.features(pictures))
    alone = [next(model.features([picture])) for picture in pictures]
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)


def test_no_images_yield_no_features(model_file: Path) -> None:
    assert list(mobilenet.load(model_file.read_bytes()).features([])) == []


def test_the_model_is_loaded_once_per_process(model_file: Path) -> None:
    content = model_file.read_bytes()
    assert mobilenet.load(content) is mobilenet.load(bytes(content))


def test_a_file_that_is_not_a_model_is_refused(ingested: str, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.tflite"
    wrong.write_bytes(b"not a model")
    with pytest.raises(mobilenet.WrongModel, match="not a LiteRT model"):
        features.run(ingested, str(wrong))


def test_the_error_names_the_file_and_all_missing_columns(run_uri: str, model_file: Path) -> None:
    write_files(run_uri, "ingest", "images", [pa.table({"path": ["a"], "content": [b"x"]})])
    with pytest.raises(Py4JJavaError, match=r"images/part-.*\.parquet has no column label, etag, sha256"):
        features.run(run_uri, str(model_file))


def test_images_of_an_unfinished_ingest_step_are_not_read(ingested: str, model_file: Path) -> None:
    objects.delete(f"{ingested}/ingest.metrics.json")
    with pytest.raises(step.StepUnfinished, match=r"ingest\.metrics\.json does not exist: the step ingest has to"):
        features.run(ingested, str(model_file))


def test_a_file_that_the_ingest_step_does_not_list_is_not_read(ingested: str, model_file: Path) -> None:
    leftover = pa.table({"sha256": ["of an attempt that failed"]})
    parts.write_table(f"{ingested}/images", leftover)
    assert features.run(ingested, str(model_file))["rows_out"] == 24
