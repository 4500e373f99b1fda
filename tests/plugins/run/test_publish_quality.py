"""Publish runs whose figures are beyond thresholds: each test continues from a copy of the tables after a first run."""

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import boto3
import pyarrow as pa
import pytest
from pyiceberg.table import Table

from orchard.run import publish, quality
from orchard.run.quality import PoorQuality
from orchard.run.summary import read_summary
from orchard.tables.commit import Change, replacement
from orchard.tables.rows import arrow_schema
from tests.plugins.deployed import Deployment, first_of, new_deployment, settings_of
from tests.plugins.runs import Run

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@pytest.fixture(scope="module")
def origin(s3: "S3Client", session: boto3.Session, aws_url: str) -> Deployment:
    """A deployment with a run of four Kiwis, two Apples and two Limes, which no test changes."""
    deployed = new_deployment(s3, session, aws_url)
    deployed.publish(eight_images(deployed.settings.bucket))
    return deployed


@pytest.fixture(autouse=True)
def _count_few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let figures of a few images count, because the runs of these tests have no more."""
    monkeypatch.setattr(quality, "FEWEST_SAMPLED", 1)
    monkeypatch.setattr(quality, "FEWEST_IMAGES_OF_LABEL", 1)


def eight_images(bucket: str) -> Run:
    return replace(first_of(bucket), images=8, rejects=0, labels=("Kiwi", "Apple", "Kiwi", "Lime"))


@pytest.fixture
def first(bucket: str) -> Run:
    return eight_images(bucket)


@pytest.fixture
def second(first: Run) -> Run:
    """A run that keeps two Kiwis and an Apple, and brings a Pear."""
    name = "20261123T020000-bbbbbb"
    return replace(first, name=name, images=4, kept=3, base=first, copies=0, labels=("Kiwi", "Apple", "Kiwi", "Pear"))


CHANGED = {"Kiwi": -2, "Lime": -2, "Apple": -1, "Pear": 1}


def with_settings(deployed: Deployment, **changes: Any) -> Deployment:
    return Deployment(deployed.s3, deployed.catalog, replace(deployed.settings, **changes))


def test_a_run_beyond_a_threshold_leaves_the_tables_as_they_are_until_the_threshold_is_changed(
    deployed: Deployment, first: Run, second: Run
) -> None:
    versions = deployed.versions()
    files = deployed.s3.list_objects_v2(Bucket=first.bucket, Prefix="warehouse/images/")["KeyCount"]
    strict = with_settings(deployed, stop_label_accuracy=0.8, stop_label_loss=0.5, stop_drift=0.5)
    with pytest.raises(PoorQuality) as error:
        strict.publish(second)
    message = str(error.value)
    assert f"run {second.name} of {second.dataset_uri} is not published: " in message
    assert "label_accuracy is 0.75, below ORCHARD_STOP_LABEL_ACCURACY 0.8: " in message
    assert 'label_loss is 1, above ORCHARD_STOP_LABEL_LOSS 0.5: label "Lime" has 0 of 2 images left' in message
    assert "drift" not in message
    assert f"they still show run {first.name}. " in message
    assert "change the threshold and clear `publish`" in message
    assert deployed.versions() == versions
    assert deployed.shows(first)
    assert deployed.s3.list_objects_v2(Bucket=first.bucket, Prefix="warehouse/images/")["KeyCount"] == files
    assert read_summary(deployed.s3, second.uri) is None

    summary = deployed.publish(second, write=False)
    assert deployed.shows(second)
    assert (summary["labels_changed"], summary["label_count"]) == (CHANGED, 3)
    assert summary["labels"] == {"Kiwi": 2, "Apple": 1, "Pear": 1}
    assert read_summary(deployed.s3, second.uri) == summary
    assert strict.publish(second, write=False) == summary, "it is published already"


def test_a_threshold_that_warns_does_not_stop(
    deployed: Deployment, second: Run, caplog: pytest.LogCaptureFixture
) -> None:
    changed = {"warn_label_accuracy": 0.8, "warn_reject_ratio": 0.2, "warn_drift": 0.1, "warn_label_loss": None}
    with caplog.at_level(logging.WARNING, "orchard.run.publish"):
        summary = with_settings(deployed, **changed).publish(replace(second, rejects=3))
    names = [warning.partition(" ")[0] for warning in summary["warnings"]]
    assert names == ["label_accuracy", "drift", "reject_ratio"]
    assert "reject_ratio is 0.428571, above ORCHARD_WARN_REJECT_RATIO 0.2: 3 of 7 images" in summary["warnings"][2]
    assert caplog.messages == [f"publish: {second.uri}: {warning}" for warning in summary["warnings"]]
    assert deployed.shows(replace(second, rejects=3))


def test_a_run_within_the_thresholds_has_no_warnings(deployed: Deployment, first: Run) -> None:
    more = replace(first, name="20261123T020000-bbbbbb", images=12, kept=8, base=first)
    summary = deployed.publish(more)
    assert summary["warnings"] == []
    assert summary["labels_changed"] == {"Kiwi": 2, "Apple": 1, "Lime": 1}


def without_labels(deployed: Deployment, runs: list[str]) -> None:
    """Take the labels out of the rows of runs, as an earlier release would have written them."""
    table = deployed.table("runs")
    rows = table.scan().to_arrow().to_pylist()
    changed = [row | ({"labels": None} if row["run_id"] in runs else {}) for row in rows]
    table.overwrite(pa.Table.from_pylist(changed, schema=arrow_schema(table.schema())))


def test_the_labels_of_a_run_of_an_earlier_release_are_counted_in_the_tables(
    deployed: Deployment, first: Run, second: Run
) -> None:
    without_labels(deployed, [first.name])
    summary = deployed.publish(second)
    assert summary["labels_changed"] == CHANGED
    assert [row["labels"] for row in deployed.rows("runs")] == [None, sorted(summary["labels"].items())]


def test_steps_of_an_earlier_release_have_no_accuracy_and_exceed_no_threshold(
    deployed: Deployment, second: Run
) -> None:
    pca: dict[str, Any] = {"drift": {"new": 0.1, "fit": 0.04}, "label_accuracy": {}}
    settings = {"stop_label_accuracy": 1.0, "stop_drift": 0.0}
    summary = with_settings(deployed, **settings).publish(replace(second, changed_metrics={"pca": pca}))
    assert (summary["label_accuracy"], summary["label_sample"]) == (None, None)
    (_, row) = deployed.rows("runs")
    assert (row["label_accuracy"], row["label_sample"], row["drift"]) == (None, None, None)


def test_a_publication_that_was_broken_off_is_completed_whatever_the_thresholds_are_now(
    deployed: Deployment, second: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_off(table: Table, dataset: str, files: Any) -> Change:
        if table.name()[1] == "embeddings":
            raise ConnectionError("S3 does not respond")
        return replacement(table, dataset, files)

    with monkeypatch.context() as patch:
        patch.setattr(publish, "replacement", break_off)
        with pytest.raises(ConnectionError):
            deployed.publish(second)
    assert not deployed.shows(second)
    summary = with_settings(deployed, stop_label_accuracy=0.9).publish(second, write=False)
    assert deployed.shows(second)
    assert "label_accuracy is 0.75, below ORCHARD_STOP_LABEL_ACCURACY 0.9: " in summary["warnings"][0]


def test_a_published_run_whose_steps_are_redone_is_stopped_like_another(deployed: Deployment, first: Run) -> None:
    redone = replace(first, images=9)
    with pytest.raises(PoorQuality, match=f"still show run {first.name}"):
        with_settings(deployed, stop_label_accuracy=0.9).publish(redone)
    assert deployed.shows(first)


def test_the_first_run_of_a_dataset_can_be_stopped(deployed: Deployment, bucket: str) -> None:
    strict = Deployment(deployed.s3, deployed.catalog, replace(settings_of(bucket), stop_explained_variance=0.99))
    run = first_of(bucket)
    metrics: dict[str, Any] = {"plan": {"n_components": 2}, "pca": {"drift": {"new": None, "fit": 0.04, "shift": None}}}
    with pytest.raises(PoorQuality, match=r"0\.96, below ORCHARD_STOP_EXPLAINED_VARIANCE 0\.99.*still show no run of"):
        strict.publish(replace(run, changed_metrics=metrics))
    assert all(strict.rows(name) == [] for name in ("images", "features", "runs"))
