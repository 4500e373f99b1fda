"""What the team was told about runs, on the S3 of a local AWS."""

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from orchard.dataset.uri import BadDatasetUri
from orchard.run.notices import (
    cost_warnings,
    failure_before,
    failure_uri,
    forget_failure,
    remember_failure,
    remember_warnings,
    untold,
    warnings_told,
)
from orchard.settings import Settings
from tests.plugins.plans import keys

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

RUN_ID = "manual__2026-11-22T02:00:00+00:00"


@pytest.fixture
def settings(bucket: str) -> Settings:
    return Settings(bucket=bucket, release="1")


def test_a_failure_is_known_until_it_is_forgotten(s3: "S3Client", settings: Settings) -> None:
    uri = settings.dataset_uri
    assert failure_before(s3, settings, uri) is None
    remember_failure(s3, settings, uri, "first")
    remember_failure(s3, settings, uri, RUN_ID)
    assert failure_before(s3, settings, uri) == RUN_ID
    forget_failure(s3, settings, uri)
    forget_failure(s3, settings, uri)
    assert failure_before(s3, settings, uri) is None
    assert keys(s3, f"{settings.bucket_uri}/runs/") == []


def test_a_failure_is_of_one_dataset_and_of_one_deployment(s3: "S3Client", settings: Settings) -> None:
    uri = f"{settings.bucket_uri}/images 2026/"
    remember_failure(s3, settings, uri, RUN_ID)
    # The two have the same folder.
    assert failure_before(s3, settings, f"{settings.bucket_uri}/images-2026/") is None
    assert failure_before(s3, replace(settings, deployment="other"), uri) is None
    assert failure_before(s3, settings, uri) == RUN_ID
    assert failure_uri(settings, uri).startswith(f"{settings.bucket_uri}/runs/images-2026/failed-")


def test_no_object_is_written_for_a_dataset_that_cannot_exist(s3: "S3Client", settings: Settings) -> None:
    with pytest.raises(BadDatasetUri):
        remember_failure(s3, settings, "fruits", RUN_ID)


def test_a_warning_about_a_figure_is_told_once_for_a_run(s3: "S3Client", settings: Settings) -> None:
    run_uri = f"{settings.bucket_uri}/runs/images/1"
    assert warnings_told(s3, run_uri) == set()
    remember_warnings(s3, run_uri, {"drift"})
    told = warnings_told(s3, run_uri)
    assert untold(["drift is 0.4, above …", "cost_usd is 2, above …"], told) == ["cost_usd is 2, above …"]
    assert warnings_told(s3, f"{settings.bucket_uri}/runs/images/2") == set()


@pytest.mark.parametrize(
    ("usd", "limit", "is_warning"),
    [(1.01, 1.0, True), (1.0, 1.0, False), (0.01, 0.0, True), (None, 0.0, False), (99.0, None, False)],
)
def test_a_cost_above_the_threshold_is_a_warning(usd: float | None, limit: float | None, is_warning: bool) -> None:
    found = cost_warnings(usd, Settings(bucket="fruits-data", release="1", warn_cost_usd=limit))
    assert len(found) == is_warning
    for warning in found:
        assert warning.startswith(f"cost_usd is {usd:g}, above ORCHARD_WARN_COST_USD {limit:g}: ")
