from datetime import timedelta, timezone

import pytest

from orchard.run.names import cluster_name, dataset_name, hash_in_cluster_name, run_name
from tests.plugins.plans import RUN_AFTER, RUN_ID


def test_runs_at_the_same_time_have_different_folders() -> None:
    assert run_name(RUN_AFTER, "manual__a", "prod") != run_name(RUN_AFTER, "manual__b", "prod")


def test_the_name_of_a_run_is_in_utc_and_valid_in_a_hadoop_path() -> None:
    paris = RUN_AFTER.astimezone(timezone(timedelta(hours=1)))
    assert run_name(paris, RUN_ID, "prod") == run_name(RUN_AFTER, RUN_ID, "prod") == "20261122T020000-66502c"


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("s3://bucket/images/", "images"),
        ("s3://bucket/images/2026 autumn/", "images-2026-autumn"),
        ("s3://bucket/", "bucket"),
    ],
)
def test_the_name_of_a_dataset_is_a_valid_folder_name(uri: str, name: str) -> None:
    assert dataset_name(uri) == name


def test_the_same_run_of_two_deployments_has_two_folders_and_two_clusters() -> None:
    folders = [run_name(RUN_AFTER, RUN_ID, deployment) for deployment in ("prod", "test")]
    assert len(set(folders)) == 2
    assert cluster_name("fruits", "prod", folders[0], "images") != cluster_name("fruits", "test", folders[0], "images")


def test_a_dot_in_the_name_of_a_bucket_is_not_a_wildcard() -> None:
    names = [f"orchard-{bucket}-prod-20261122T020000-e20065-images" for bucket in ("my.fruits", "my-fruits")]
    assert [hash_in_cluster_name(name, "my.fruits", "prod") for name in names] == ["e20065", None]


@pytest.mark.parametrize("deployment", ["", "test-", "prod-2-", "2-prod-", "prodd-", "PROD-", "prod-20261121T020000-"])
def test_the_clusters_of_other_deployments_and_those_without_one_are_not_recognised(deployment: str) -> None:
    name = f"orchard-fruits-{deployment}20261122T020000-e20065-images"
    assert hash_in_cluster_name(name, "fruits", "prod") is None
