from datetime import timedelta, timezone

import pytest

from orchard.run.names import dataset_name, hash_in_cluster_name, run_name
from tests.plugins.plans import RUN_AFTER, RUN_ID


def test_runs_at_the_same_time_have_different_folders() -> None:
    assert run_name(RUN_AFTER, "manual__a") != run_name(RUN_AFTER, "manual__b")


def test_the_name_of_a_run_is_in_utc_and_valid_in_a_hadoop_path() -> None:
    paris = RUN_AFTER.astimezone(timezone(timedelta(hours=1)))
    assert run_name(paris, RUN_ID) == run_name(RUN_AFTER, RUN_ID) == "20261122T020000-e20065"


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


def test_a_dot_in_the_name_of_a_bucket_is_not_a_wildcard() -> None:
    assert hash_in_cluster_name("orchard-my.fruits-20261122T020000-e20065-images", "my.fruits") == "e20065"
    assert hash_in_cluster_name("orchard-my-fruits-20261122T020000-e20065-images", "my.fruits") is None
