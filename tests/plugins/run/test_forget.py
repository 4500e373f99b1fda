from dataclasses import replace
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from orchard.run import forget as forget_module
from orchard.run.forget import forget_dataset
from orchard.run.plan_files import NoPlan
from orchard.run.publish import DatasetChanged, LostFeatures
from orchard.settings import Settings
from orchard.tables import features
from orchard.tables.catalog import TABLES, open_catalog
from orchard.tables.commit import SharedFile
from orchard.tables.state import feature_files, published_state
from tests.plugins import deployed as deployments
from tests.plugins.deployed import REPLACED, Deployment, first_of, in_order, new_deployment, second_of
from tests.plugins.proxy import Proxy, impatient
from tests.plugins.runs import Run, sha256

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def other_of(first: Run) -> Run:
    """A run of another dataset: two of its three contents were inferred by the first run."""
    return deployments.other_of(first.bucket, known={0: first.name, 2: first.name})


@pytest.fixture(scope="module")
def origin(s3: "S3Client", session: boto3.Session, aws_url: str) -> Deployment:
    """A deployment with two runs of one dataset, and one of another. No test changes its tables."""
    deployed = new_deployment(s3, session, aws_url)
    first = first_of(deployed.settings.bucket)
    for run in (first, second_of(first), other_of(first)):
        deployed.publish(run)
    return deployed


@pytest.fixture
def other(first: Run) -> Run:
    return other_of(first)


def forget(deployed: Deployment, dataset: str) -> dict[str, int]:
    return forget_dataset(deployed.s3, deployed.catalog, deployed.settings, dataset)


def contents(deployed: Deployment) -> list[tuple[str, str]]:
    """Return the rows of `features`: the content and the run that inferred it."""
    return sorted((row["sha256"], row["run_id"]) for row in deployed.rows("features"))


def test_all_rows_of_the_dataset_are_removed_and_no_others(deployed: Deployment, first: Run, other: Run) -> None:
    removed = forget(deployed, first.dataset_uri)
    # The first run inferred four contents, the second one four more; the other dataset has two of them.
    expected = {"images": 7, "rejects": 2, "embeddings": 7, "pca_models": 2, "features": 6, "runs": 2}
    assert removed == expected
    for name in (*REPLACED, "pca_models", "runs"):
        assert {row["dataset"] for row in deployed.rows(name)} == {other.dataset_uri}
    assert contents(deployed) == [(sha256(0), first.name), (sha256(1), other.name), (sha256(2), first.name)]
    assert deployed.shows(other)
    assert published_state(deployed.catalog, deployed.settings, first.dataset_uri) is None


def test_features_that_no_image_refers_to_are_removed_with_the_last_dataset_that_inferred_them(
    deployed: Deployment, first: Run, other: Run
) -> None:
    forget(deployed, other.dataset_uri)
    assert (sha256(1), other.name) not in contents(deployed)
    forget(deployed, first.dataset_uri)
    assert [deployed.table(name).scan().count() for name in TABLES] == [0] * len(TABLES)


def test_features_that_another_dataset_inferred_are_removed_with_the_last_dataset_that_has_them(
    deployed: Deployment, first: Run, other: Run
) -> None:
    forget(deployed, first.dataset_uri)
    assert (sha256(0), first.name) in contents(deployed)
    forget(deployed, other.dataset_uri)
    assert contents(deployed) == []


def test_features_of_another_dataset_that_no_image_has_any_more_stay(
    deployed: Deployment, first: Run, second: Run, other: Run
) -> None:
    before = {row for row in contents(deployed) if row[1] in (first.name, second.name)}
    forget(deployed, other.dataset_uri)
    assert set(contents(deployed)) == before


def test_features_stay_for_a_dataset_that_is_published_while_another_is_forgotten(
    deployed: Deployment, first: Run, other: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = replace(other, name="20261125T030000-dddddd", base=other, kept=2, images=4, known={3: first.name})
    user.write(deployed.s3, features=feature_files(deployed.catalog, deployed.settings))
    change = features.change_without
    done: list[dict[str, Any]] = []

    def publish_meanwhile(*arguments: Any) -> Any:
        """Publish after the images of other datasets were read, and before the features are removed."""
        found = change(*arguments)
        if not done:
            done.append(deployed.publish(user, write=False))
        return found

    monkeypatch.setattr(forget_module, "change_without", publish_meanwhile)
    forget(deployed, first.dataset_uri)
    assert (sha256(3), first.name) in contents(deployed)
    assert deployed.shows(user)


def test_clearing_publish_of_a_forgotten_run_does_not_bring_its_rows_back(deployed: Deployment, first: Run) -> None:
    first.write(deployed.s3)  # again, because all tests have one bucket
    forget(deployed, first.dataset_uri)
    with pytest.raises(NoPlan):
        deployed.publish(first, write=False)
    assert deployed.rows("images", first) == []


@pytest.mark.slow
def test_features_of_a_run_that_was_not_published_are_removed_too(
    deployed: Deployment, first: Run, second: Run, other: Run
) -> None:
    late = replace(second, name="20261125T020000-dddddd", base=first, images=9)
    with pytest.raises(DatasetChanged):
        deployed.publish(late)
    deployed.table("features").append(late.rows("features"))  # as if it had been refused after this commit
    forget(deployed, first.dataset_uri)
    assert {run for _, run in contents(deployed)} == {first.name, other.name}
    assert len(contents(deployed)) == 3


def test_a_dataset_whose_folder_has_the_same_name_is_another_one(deployed: Deployment, first: Run, second: Run) -> None:
    twin = replace(first, name="20261122T040000-eeeeee", dataset_uri=f"s3://{first.bucket}/images-/")
    before = contents(deployed)
    assert (sha256(3), first.name) in before, "no image refers to this row any more"
    deployed.publish(twin)
    forget(deployed, twin.dataset_uri)
    assert contents(deployed) == before
    assert deployed.shows(second)


@pytest.mark.parametrize("dataset", ["s3://other/images/", "prefix"])
def test_a_dataset_without_rows_changes_nothing(deployed: Deployment, first: Run, dataset: str) -> None:
    versions = deployed.versions()
    removed = forget(deployed, f"s3://{first.bucket}/image" if dataset == "prefix" else dataset)
    assert removed == dict.fromkeys(removed, 0)
    assert deployed.versions() == versions


def test_without_tables_nothing_is_created(deployed: Deployment, first: Run) -> None:
    settings = replace(deployed.settings, catalog_database="missing")
    assert forget_dataset(deployed.s3, deployed.catalog, settings, first.dataset_uri) == {}
    assert not deployed.catalog.namespace_exists("missing")


@pytest.mark.slow
def test_earlier_snapshots_keep_the_rows(deployed: Deployment, first: Run) -> None:
    snapshots = deployed.runs()[0].snapshots
    forget(deployed, first.dataset_uri)
    for name in REPLACED:
        assert deployed.rows(name, first, snapshots[name]) == in_order(first.rows(name))


@pytest.mark.slow
def test_the_dataset_can_be_published_again(deployed: Deployment, first: Run) -> None:
    forget(deployed, first.dataset_uri)
    again = replace(first, name="20261126T020000-ffffff")
    deployed.publish(again)
    assert deployed.shows(again)


def test_a_run_that_was_planned_before_is_refused(deployed: Deployment, second: Run, other: Run) -> None:
    planned = replace(second, name="20261125T020000-dddddd", base=second, kept=7)
    user = replace(other, name="20261125T030000-dddddd", base=other, kept=2, images=4, known={3: second.name})
    for run in (planned, user):
        run.write(deployed.s3, features=feature_files(deployed.catalog, deployed.settings))
    forget(deployed, second.dataset_uri)
    with pytest.raises(NoPlan):
        deployed.publish(planned, write=False)
    with pytest.raises(LostFeatures, match="1 of its new images and of 0 others"):
        deployed.publish(user, write=False)
    fresh = replace(user, name="20261125T040000-dddddd", known={})
    deployed.publish(fresh)
    assert deployed.shows(fresh)


@pytest.mark.slow
def test_the_rows_are_removed_whoever_wrote_the_files(deployed: Deployment, first: Run, other: Run) -> None:
    for name in TABLES:
        table = deployed.table(name)
        table.overwrite(table.scan().to_arrow())
    forget(deployed, first.dataset_uri)
    assert len(contents(deployed)) == 3
    assert deployed.shows(other)


@pytest.mark.slow
def test_a_file_with_rows_of_several_datasets_is_reported(deployed: Deployment, first: Run) -> None:
    deployed.table("images").update_spec().remove_field("dataset").commit()
    table = deployed.table("images")
    table.overwrite(table.scan().to_arrow())
    versions = deployed.versions()
    with pytest.raises(SharedFile, match="identity of `dataset`"):
        forget(deployed, first.dataset_uri)
    assert deployed.versions() == versions


@pytest.mark.slow
def test_a_removal_that_stops_before_any_of_its_changes_can_be_repeated(
    deployed: Deployment, first: Run, other: Run, aws_url: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Proxy(aws_url).open() as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        s3, catalog = impatient("s3", proxy.url), open_catalog(boto3.Session(), settings)
        stopped = 0
        for change in range(1, 100, 3):
            proxy.shut_at(change)
            try:
                forget_dataset(s3, catalog, settings, first.dataset_uri)
            except Exception:
                proxy.reopen()
                stopped += 1
            else:
                break
    assert stopped > 3
    assert forget(deployed, first.dataset_uri) == dict.fromkeys(TABLES, 0)
    assert len(contents(deployed)) == 3
    assert deployed.shows(other)
