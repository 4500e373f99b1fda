from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import botocore.session
import pytest

from local_aws.emr.checks import check_parameters
from orchard.dataset import NoImages
from orchard.plan import UnknownParams, dataset_tag, plan_run, run_name, tag_value
from orchard.release import NoRelease
from orchard.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

RUN_ID = "manual__2026-11-22T02:00:00+00:00"
RUN_AFTER = datetime(2026, 11, 22, 2, tzinfo=UTC)


def plan(s3: "S3Client", settings: Settings, run_id: str = RUN_ID, **params: Any) -> dict[str, Any]:
    given = {"dataset_uri": settings.dataset_uri, "instance_type": "m5.xlarge", "core_instances": 2, **params}
    return plan_run(s3, settings, given, dag_id="fruit_features", run_id=run_id, run_after=RUN_AFTER)


@pytest.fixture
def with_images(s3: "S3Client", released: Settings) -> Settings:
    for number in range(3):
        s3.put_object(Bucket=released.bucket, Key=f"images/Kiwi/{number}.jpg", Body=b"12345")
    return released


def test_a_plan_says_what_there_is_and_where_it_goes(s3: "S3Client", with_images: Settings) -> None:
    planned = plan(s3, with_images)
    assert planned["images"] == 3
    assert planned["run_uri"] == f"s3://{with_images.bucket}/runs/images/{run_name(RUN_AFTER, RUN_ID)}"
    assert planned["model_uri"] == f"{with_images.release_uri}/model/mobilenet.tflite"
    assert planned["release_uri"] == with_images.release_uri


def test_the_cluster_is_a_valid_request_that_names_dataset_and_run(s3: "S3Client", with_images: Settings) -> None:
    request = plan(s3, with_images)["cluster"]
    check_parameters(botocore.session.get_session().get_service_model("emr").operation_model("RunJobFlow"), request)
    assert request["Name"] == f"orchard-{with_images.bucket}-{run_name(RUN_AFTER, RUN_ID)}-images"
    tags = {tag["Key"]: tag["Value"] for tag in request["Tags"]}
    assert tags["orchard:dag_id"] == "fruit_features"
    assert tags["orchard:run_id"] == RUN_ID
    assert tags["orchard:dataset_uri"] == with_images.dataset_uri
    assert tags["for-use-with-amazon-emr-managed-policies"] == "true"


def test_a_run_id_longer_than_a_tag_takes_is_cut(s3: "S3Client", with_images: Settings) -> None:
    tags = plan(s3, with_images, run_id="x" * 300)["cluster"]["Tags"]
    assert max(len(tag["Value"]) for tag in tags) == 256


def test_a_long_prefix_gives_a_name_that_emr_takes(s3: "S3Client", with_images: Settings) -> None:
    prefix = "/".join(["x" * 99] * 4)
    s3.put_object(Bucket=with_images.bucket, Key=f"{prefix}/1.jpg", Body=b"1")
    planned = plan(s3, with_images, dataset_uri=f"s3://{with_images.bucket}/{prefix}/")
    assert len(planned["cluster"]["Name"]) == 256
    assert max(len(tag["Value"]) for tag in planned["cluster"]["Tags"]) == 256


def test_datasets_that_differ_have_different_tags_even_where_a_tag_cannot_hold_the_difference() -> None:
    uris = [f"s3://b/{'x' * 300}/{end}/" for end in ("kiwi", "lemon")] + ["s3://b/lot#1/", "s3://b/lot?1/"]
    tags = [dataset_tag(uri) for uri in uris]
    assert len(set(tags)) == len(uris)
    assert [tag_value(tag) for tag in tags] == tags, "each is a value that a tag may have"


def test_a_misspelt_param_is_refused_and_the_right_ones_are_listed(s3: "S3Client", with_images: Settings) -> None:
    with pytest.raises(UnknownParams, match="no param is named 'dataset_prefix': there are dataset_uri, n_components,"):
        plan(s3, with_images, dataset_prefix="s3://other/")


def test_runs_of_the_same_moment_have_folders_of_their_own() -> None:
    assert run_name(RUN_AFTER, "manual__a") != run_name(RUN_AFTER, "manual__b")


def test_the_name_of_a_run_is_utc_and_fit_for_hadoop() -> None:
    paris = RUN_AFTER.astimezone(timezone(timedelta(hours=1)))
    assert run_name(paris, RUN_ID) == run_name(RUN_AFTER, RUN_ID) == "20261122T020000-e20065"


def test_a_dataset_without_images_fails_before_anything_is_made(s3: "S3Client", released: Settings) -> None:
    with pytest.raises(NoImages, match=f"no image below s3://{released.bucket}/images/"):
        plan(s3, released)


def test_an_unknown_release_fails_before_anything_is_made(s3: "S3Client", with_images: Settings) -> None:
    with pytest.raises(NoRelease, match="no release 'gone'"):
        plan(s3, replace(with_images, release="gone"))
