"""`notebooks/explore.ipynb`, executed against tables in the local AWS."""

import json
from typing import TYPE_CHECKING, Any

import boto3
import nbformat
import numpy as np
import pyarrow as pa
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from orchard.tables.catalog import TABLES, open_catalog
from orchard.tables.rows import arrow_schema
from tests.conftest import ROOT
from tests.plugins.deployed import settings_of

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

NOTEBOOK = ROOT / "notebooks/explore.ipynb"
LABELS, PER_LABEL, COMPONENTS = ("Apple", "Pear", "Quince"), 20, 8
RUN_ID, PCA_MODEL, MODEL = "20261122T020000-aaaaaa", "pca-1", "mobilenet"


def image_rows(dataset: str) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of a run: groups of similar images, a PCA of them, and one image with the label of another."""
    generator = np.random.default_rng(1)
    centres = generator.normal(0, 1, (len(LABELS), 1280))
    features = np.repeat(centres, PER_LABEL, axis=0) + generator.normal(0, 0.2, (len(LABELS) * PER_LABEL, 1280))
    features = features.astype(np.float32)
    mean = features.mean(axis=0, dtype=np.float64)
    components = np.linalg.svd(features - mean, full_matrices=False)[2][:COMPONENTS]
    vectors = (features - mean) @ components.T
    labels = [label for label in LABELS for _ in range(PER_LABEL)]
    labels[0] = "Quince"  # it is an apple
    paths = [f"{dataset}{label}/{number}.jpg" for number, label in enumerate(labels)]
    hashes = [f"{number:064x}" for number in range(len(paths))]
    named = {"dataset": dataset, "run_id": RUN_ID}
    images = [
        {"path": path, "label": label, "sha256": name} for path, label, name in zip(paths, labels, hashes, strict=True)
    ]
    return {
        "features": [
            {"sha256": name, "model": MODEL, "features": row.tolist(), "run_id": RUN_ID}
            for name, row in zip(hashes, features, strict=True)
        ],
        "embeddings": [
            {**image, **named, "pca_model": PCA_MODEL, "vector": vector.tolist()}
            for image, vector in zip(images, vectors, strict=True)
        ],
        "pca_models": [{**named, "pca_model": PCA_MODEL, "mean_": mean.tolist(), "components_": components.tolist()}],
        "runs": [{**named, "model": MODEL, "pca_model": PCA_MODEL, "images": len(paths)}],
    }


@pytest.fixture
def variables(s3: "S3Client", bucket: str, aws_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of the dataset of a deployment with one run, whose environment is set."""
    settings = settings_of(bucket)
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws_url)
    monkeypatch.setenv("ORCHARD_CATALOG_DATABASE", settings.catalog_database)
    catalog, dataset = open_catalog(boto3.Session(), settings), f"s3://{bucket}/images/"
    catalog.create_namespace(settings.catalog_database)
    for name, rows in image_rows(dataset).items():
        table = catalog.create_table(
            (settings.catalog_database, name), TABLES[name], f"{settings.warehouse_uri}/{name}"
        )
        table.append(pa.Table.from_pylist(rows, arrow_schema(TABLES[name])))
    return dataset


def execute(*more: str) -> str:
    """Execute the notebook, and further cells, and return what they print."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells += [nbformat.v4.new_code_cell(text) for text in more]
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


def test_it_draws_finds_neighbours_and_wrong_labels_and_computes_vectors(variables: str) -> None:
    printed = execute(
        "print('suspects', suspicious['path'].tolist(), suspicious['neighbours'].tolist())",
        f"print('neighbours', sorted(set(neighbours('{variables}Pear/25.jpg')['label'])))",
        "print('difference', difference < 1e-4 * np.abs(vectors).max())",
    )
    assert "60 images, 8 components, 3 labels" in printed
    assert f"suspects ['{variables}Quince/0.jpg'] ['Apple']" in printed
    assert "neighbours ['Pear']" in printed
    assert "difference True" in printed


def test_a_dataset_without_a_run_is_an_error_that_lists_those_with_one(
    variables: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATASET_URI", "s3://plums/")
    with pytest.raises(
        CellExecutionError, match=f"no run of 's3://plums/' is published: use one of \\['{variables}'\\]"
    ):
        execute()


def test_it_is_stored_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []
