"""`make demo-nights` as users run it: six nights of one dataset, whose tables equal those of a run from scratch."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow.parquet as pq
import pytest

from demo import nights
from orchard.cluster.prices import read_prices
from orchard.settings import Settings
from orchard.tables.catalog import open_catalog
from sandbox import aws, pictures
from sandbox.folders import ROOT
from sandbox.processes import free_port
from tests.e2e.processes import left_running

# tests/faults also has runs with nothing to do, and runs that have waited.
pytestmark = pytest.mark.slow

IMAGES = 48
# The least and the most minutes of cluster time that a night is charged for. A local cluster is ready immediately. With
# --like-emr, a cluster takes 5.5 minutes more to start and to terminate.
CLUSTER_MINUTES = (5.5, 20) if aws.is_like_emr() else (1, 10)
TABLES = ("features", "images", "rejects", "embeddings", "pca_models", "runs")


@dataclass(frozen=True)
class Finished:
    """Six nights that have ended."""

    folder: Path
    code: int
    output: str

    @property
    def nights(self) -> list[dict[str, Any]]:
        content = json.loads((self.folder / "summary.json").read_text())
        assert (len(content["nights"]), len(content["refused"])) == (4, 2)
        return [*content["nights"], *content["refused"]]


def run(module: str, folder: Path, data: Path) -> tuple[int, str]:
    command = [sys.executable, "-m", module, "--data", str(data), "--folder", str(folder)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("nights")
    pictures.write_dataset(folder / "data", per_class=IMAGES // len(pictures.CLASSES))
    return Finished(folder / "nights", *run("demo.nights", folder / "nights", folder / "data"))


def column(finished: Finished, name: str) -> list[Any]:
    return [night[name] for night in finished.nights]


def is_about(estimated: float, cost: list[float]) -> bool:
    """Return whether an estimate is what earlier nights have cost."""
    return 0.85 * min(cost) <= estimated <= 1.15 * max(cost)


def test_every_night_ends_as_it_should_and_leaves_no_cluster(finished: Finished) -> None:
    assert finished.code == 0, finished.output
    assert column(finished, "run_state") == ["success"] * 4 + ["failed"] * 2
    assert column(finished, "clusters_alive") == [0] * 6
    assert left_running(finished.folder) == {}


def test_a_night_costs_what_is_new(finished: Finished) -> None:
    assert column(finished, "images_listed") == [48, 48, 63, 64, None, None]
    assert column(finished, "new") == [48, 0, 30, 1, None, None]  # a renamed image has a new path
    assert column(finished, "changed") == [0, 0, 5, 0, None, None]
    assert column(finished, "deleted") == [0, 0, 15, 0, None, None]
    assert column(finished, "inferences") == [48, 0, 25, 0, 0, 0]
    assert column(finished, "clusters_created") == [1, 0, 1, 1, 0, 0]
    assert column(finished, "embeddings_rows") == [48, 48, 63, 63, 63, 63]


def test_the_estimate_of_a_night_is_the_price_of_its_cluster(finished: Finished) -> None:
    # A primary node and a worker for 8.5 minutes. The later nights have learnt what the clusters before really took.
    first, second, *others = column(finished, "estimated_usd")
    assert (first, second) == (0.0742, 0)
    cost = column(finished, "cost_usd")
    assert is_about(others[0], cost[:1])
    assert is_about(others[1], [cost[0], cost[2]])
    assert others[2:] == [None, None]


def test_the_real_cost_of_a_night_is_that_of_its_cluster(finished: Finished) -> None:
    cost = column(finished, "cost_usd")
    per_minute = 2 * read_prices().by_type["m5.xlarge"].on_demand / 60
    least, most = CLUSTER_MINUTES
    # Costs are rounded to a hundredth of a cent. EC2 charges for a minute at least.
    assert [round(least * per_minute, 4) <= cost[number] < most * per_minute for number in (0, 2, 3)] == [True] * 3
    assert [cost[number] for number in (1, 4, 5)] == [0, 0, 0]
    assert finished.nights[0]["cost_usd_per_million"] == pytest.approx(cost[0] / 48 * 10**6, rel=0.01)


def test_the_refused_nights_say_why(finished: Finished) -> None:
    fifth, sixth = ((finished.folder / f"airflow-{number}.log").read_text() for number in (5, 6))
    estimated = re.search(r"is estimated at (\S+) USD", fifth)
    assert estimated is not None
    cost = column(finished, "cost_usd")
    assert is_about(float(estimated[1]), [cost[0], cost[2], cost[3]])
    assert f"above max_cost_usd {nights.MAX_COST_USD}" in fifth
    assert "too few images: 12 below" in sixth
    assert "of the 63 that run" in sixth


def test_the_frozen_night_keeps_the_basis_and_the_vectors(finished: Finished) -> None:
    third, fourth = (embeddings(finished.folder / f"night-{number}/embeddings") for number in (3, 4))
    assert finished.nights[2]["pca_model"] == finished.nights[3]["pca_model"]
    assert third.keys() == fourth.keys()
    for path, vector in third.items():
        np.testing.assert_allclose(fourth[path], vector, rtol=1e-5, atol=1e-6)


def test_the_output_has_a_line_for_each_night(finished: Finished) -> None:
    for number, night in enumerate((*nights.NIGHTS, *nights.REFUSED), 1):
        assert f"  {number} {night.title}" in finished.output


def embeddings(folder: Path) -> dict[str, Any]:
    """Return the vectors by path."""
    rows = pq.read_table(folder).to_pylist()
    return {row["path"]: np.array(row["vector"], np.float64) for row in rows}


@pytest.fixture
def catalog(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The tables of the nights, on a local AWS that continues with their data."""
    with aws.local_aws(finished.folder / "aws", free_port(), tmp_path / "log") as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        yield open_catalog(boto3.Session(), Settings(bucket=aws.BUCKET, release="1"))


def test_the_tables_show_the_last_night_and_the_first_one_by_time_travel(finished: Finished, catalog: Any) -> None:
    tables = {name: catalog.load_table(("orchard", name)) for name in TABLES}
    assert {name: table.scan().count() for name, table in tables.items()} == {
        "features": 48 + 25,
        "images": 63,
        "rejects": 1,
        "embeddings": 63,
        "pca_models": 2,
        "runs": 3,
    }
    first = tables["embeddings"].scan(snapshot_id=int(finished.nights[0]["tables"]["embeddings"]["snapshot_id"]))
    vectors = {row["path"]: np.array(row["vector"], np.float64) for row in first.to_arrow().to_pylist()}
    expected = embeddings(finished.folder / "night-1/embeddings")
    assert vectors.keys() == expected.keys()
    assert all((vectors[path] == expected[path]).all() for path in expected)


def test_the_embeddings_after_the_changes_equal_those_of_a_run_from_scratch(
    finished: Finished, catalog: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = tmp_path / "data"
    shutil.rmtree(dataset, ignore_errors=True)
    s3 = boto3.client("s3")
    for key in [*nights.keys_of_images(s3), *nights.keys_of_images(s3, nights.MOVED)]:
        if not key.endswith(("broken.jpg", "one-more.jpg")):  # the third night had neither
            target = dataset / key.removeprefix(aws.DATASET_PREFIX).removeprefix(nights.MOVED)
            target.parent.mkdir(parents=True, exist_ok=True)
            s3.download_file(aws.BUCKET, key, str(target))
    code, output = run("demo", tmp_path / "scratch", dataset)
    assert code == 0, output
    ours = embeddings(finished.folder / "night-3/embeddings")
    theirs = embeddings(tmp_path / "scratch/run/embeddings")
    assert ours.keys() == theirs.keys()
    difference = max(float(np.abs(ours[path] - theirs[path]).max()) for path in ours)
    assert difference <= 1e-6 * max(float(np.abs(vector).max()) for vector in theirs.values())
