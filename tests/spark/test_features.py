import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from py4j.protocol import Py4JJavaError

import features
from orchard_spark import contents, mobilenet, objects, parts, schemas, step
from orchard_spark.parts import Part
from tests.spark.ingested import (
    RunFolders,
    digest,
    inventory_of,
    write_features,
    write_ingested,
    write_metrics,
    write_plan,
    write_tables,
)


def by_image(folders: RunFolders) -> dict[str, np.ndarray]:
    """Return the features by label and file name."""
    of_content = {row["sha256"]: np.array(row["features"], np.float32) for row in folders.read("features").to_pylist()}
    images = folders.read("new_images").to_pylist()
    return {"/".join(row["path"].rsplit("/", 2)[1:]): of_content[row["sha256"]] for row in images}


@pytest.fixture(scope="module")
def featurised(tmp_path_factory: pytest.TempPathFactory, rendered: Path, model_file: Path) -> RunFolders:
    """A run whose features step has finished, that no test changes."""
    folders = RunFolders.below(f"file://{tmp_path_factory.mktemp('featurised')}")
    write_ingested(folders, rendered)
    folders.featurise(model_file)
    return folders


def test_each_content_has_features_from_one_inference(featurised: RunFolders, model_file: Path) -> None:
    metrics, table = step.read_metrics(featurised.run_uri, "features"), featurised.read("features")
    assert (metrics["rows_in"], metrics["rows_out"], metrics["inferences"]) == (24, 24, 24)
    assert (metrics["known"], metrics["duplicates"]) == (0, 0)
    assert table.schema.remove_metadata().equals(schemas.FEATURES)
    assert sorted(table["sha256"].to_pylist()) == sorted(featurised.read("images")["sha256"].to_pylist())
    assert {len(values) for values in table["features"].to_pylist()} == {1280}
    assert set(table["model"].to_pylist()) == {model_file.stem}
    assert set(table["run_id"].to_pylist()) == {"run-1"}
    assert {part.uri.rsplit("/", 1)[0] for part in featurised.parts("features")} == {
        f"{featurised.warehouse_uri}/features/data"
    }


def test_each_image_is_described_with_the_run_that_has_its_features(featurised: RunFolders) -> None:
    table, images = featurised.read("new_images"), featurised.read("images")
    assert table.schema.remove_metadata().equals(schemas.IMAGE_INFO)
    assert table.drop_columns("features_run_id").sort_by("path") == images.drop_columns("content").sort_by("path")
    assert set(table["features_run_id"].to_pylist()) == {"run-1"}


def test_real_photographs_have_the_features_that_keras_computes(
    shared_data: Path, folders: RunFolders, model_file: Path
) -> None:
    write_plan(folders, inventory_of(shared_data / "fruits-360-small"))
    folders.ingest()
    folders.featurise(model_file)
    ours = by_image(folders)
    with np.load(shared_data / "fruits-360-small-features.npz") as reference:
        assert sorted(ours) == sorted(reference["path"])
        for path, keras in zip(reference["path"], reference["features"], strict=True):
            assert np.linalg.norm(ours[path] - keras) / np.linalg.norm(keras) <= 1e-4


def test_contents_that_another_run_has_inferred_are_not_inferred_again(
    featurised: RunFolders, model_file: Path, tmp_path: Path, rendered: Path
) -> None:
    later = RunFolders.below(f"file://{tmp_path}", "run-2")
    write_ingested(later, rendered)
    add_image(later, content=b"another content, which no image of run-1 has", path="new.jpg", like=featurised)
    write_plan(later, of_table=featurised.parts("features"))
    metrics = later.featurise(model_file)
    assert (metrics["rows_in"], metrics["inferences"], metrics["known"]) == (25, 1, 24)
    runs = {row["path"].rsplit("/", 1)[1]: row["features_run_id"] for row in later.read("new_images").to_pylist()}
    assert runs.pop("new.jpg") == "run-2"
    assert set(runs.values()) == {"run-1"}


def add_image(folders: RunFolders, content: bytes, path: str, like: RunFolders) -> None:
    """Add an image to what the ingest step has written: the picture of another one, with other bytes behind it."""
    row = like.read("images").to_pylist()[0]
    file = row["content"] + content
    row |= {"path": f"file:///{path}", "content": file, "sha256": digest(len(file))}
    metrics = step.read_metrics(folders.run_uri, "ingest")
    added = pa.Table.from_pylist([row], schemas.IMAGES)
    metrics["files"]["images"] += write_tables(f"{folders.scratch_uri}/images", [added])
    write_metrics(folders, "ingest", metrics)


def test_a_content_with_two_paths_is_inferred_once(ingested: RunFolders, model_file: Path) -> None:
    metrics = json.loads(objects.read(f"{ingested.run_uri}/ingest.metrics.json"))
    metrics["files"]["images"] += metrics["files"]["images"][:1]
    write_metrics(ingested, "ingest", metrics)
    done = ingested.featurise(model_file)
    assert (done["rows_in"], done["rows_out"], done["inferences"], done["duplicates"]) == (36, 24, 24, 12)
    assert ingested.read("new_images").num_rows == 36
    assert len(set(ingested.read("features")["sha256"].to_pylist())) == 24


def test_features_of_another_model_do_not_count(featurised: RunFolders, ingested: RunFolders, model_file: Path) -> None:
    table = featurised.read("features")
    other = table.set_column(1, "model", pa.array(["another-model"] * table.num_rows))
    write_plan(ingested, of_table=[parts.write_table(f"{ingested.warehouse_uri}/features/data", other)])
    metrics = ingested.featurise(model_file)
    assert (metrics["inferences"], metrics["known"]) == (24, 0)


def test_of_two_runs_that_inferred_a_content_at_the_same_time_the_first_one_counts(
    featurised: RunFolders, ingested: RunFolders, model_file: Path
) -> None:
    table = featurised.read("features")

    def inferred_by(run_id: str) -> Part:
        of_run = table.set_column(3, "run_id", pa.array([run_id] * table.num_rows))
        return parts.write_table(f"{ingested.warehouse_uri}/features/data", of_run)

    write_plan(ingested, of_table=[inferred_by(run_id) for run_id in ("run-c", "run-b", "run-d")])
    assert ingested.featurise(model_file)["known"] == 24
    assert set(ingested.read("new_images")["features_run_id"].to_pylist()) == {"run-b"}


def test_a_run_without_new_images_infers_nothing(folders: RunFolders, model_file: Path) -> None:
    write_plan(folders, of_table=[write_features(folders, [np.zeros(1280)] * 3)])
    write_metrics(folders, "ingest", {"files": {"images": [], "rejects": []}})
    metrics = folders.featurise(model_file)
    assert (metrics["rows_in"], metrics["rows_out"], metrics["inferences"], metrics["known"]) == (0, 0, 0, 0)
    assert (folders.parts("features"), folders.parts("new_images")) == ([], [])


def shares(counts: list[int], known: int = 0, task_slots: int = 4) -> list[int]:
    """Return the number of rows in each share of files with this number of different contents."""
    of_part, first = [], 0
    for count in counts:
        of_part.append(contents.digests(pa.array([digest(first + number) for number in range(count)])))
        first += count
    distinct = np.unique(np.concatenate(of_part))
    runs = np.full(len(distinct), contents.NOT_FOUND)
    runs[:known] = 0
    of_images = [Part(str(number), count, 1) for number, count in enumerate(counts)]
    found = features.Contents(of_part, distinct, runs, ["run-0"])
    divided = features.shares_to_infer(found, of_images, task_slots)
    rows = {(one.part.uri, int(row)) for share in divided for one in share for row in one.rows}
    assert len(rows) == len(distinct) - known
    return [sum(len(one.rows) for one in share) for share in divided]


@pytest.mark.parametrize(
    ("counts", "known", "expected"),
    [
        ([10, 10], 0, [5, 5, 5, 5]),
        ([1] * 40, 0, [10, 10, 10, 10]),  # large photographs: one in each file
        ([3], 0, [1, 1, 1]),
        ([10, 10], 18, [1, 1]),
        ([10, 10], 20, []),
    ],
)
def test_the_inferences_are_divided_equally_among_the_task_slots(
    counts: list[int], known: int, expected: list[int]
) -> None:
    assert shares(counts, known) == expected


def test_many_inferences_are_divided_into_files_that_are_not_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "FILE_ROWS", 10)
    assert shares([30, 51], task_slots=2) == [9, 8, 8, 8, 8, 8, 8, 8, 8, 8]


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


def test_a_file_that_is_not_a_model_is_refused(ingested: RunFolders, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.tflite"
    wrong.write_bytes(b"not a model")
    with pytest.raises(mobilenet.WrongModel, match="not a LiteRT model"):
        ingested.featurise(wrong)


def test_the_error_names_the_file_and_all_missing_columns(folders: RunFolders, model_file: Path) -> None:
    write_plan(folders)
    written = write_tables(f"{folders.scratch_uri}/images", [pa.table({"sha256": [digest(1)], "label": ["Kiwi"]})])
    write_metrics(folders, "ingest", {"files": {"images": written, "rejects": []}})
    with pytest.raises(Py4JJavaError, match=r"images/part-.*\.parquet has no column content, path"):
        folders.featurise(model_file)


def test_images_of_an_unfinished_ingest_step_are_not_read(ingested: RunFolders, model_file: Path) -> None:
    objects.delete(f"{ingested.run_uri}/ingest.metrics.json")
    with pytest.raises(step.StepUnfinished, match=r"ingest\.metrics\.json does not exist: the step ingest has to"):
        ingested.featurise(model_file)


def test_a_file_that_the_ingest_step_does_not_list_is_not_read(ingested: RunFolders, model_file: Path) -> None:
    leftover = pa.table({"sha256": ["of an attempt that failed"]})
    parts.write_table(f"{ingested.scratch_uri}/images", leftover)
    assert ingested.featurise(model_file)["rows_out"] == 24
