from dataclasses import replace
from typing import TYPE_CHECKING

import botocore.session
import pytest

from local_aws.emr.checks import check_parameters
from orchard.dataset.listing import NoImages
from orchard.release import NoRelease
from orchard.run.names import run_name
from orchard.run.plan import UnknownParams
from orchard.settings import Settings
from tests.plugins.plans import RUN_AFTER, RUN_ID, plan

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@pytest.fixture
def with_images(s3: "S3Client", released: Settings) -> Settings:
    """A deployment whose dataset contains three images."""
    for number in range(3):
        s3.put_object(Bucket=released.bucket, Key=f"images/Kiwi/{number}.jpg", Body=b"12345")
    return released


def test_a_plan_contains_the_number_of_images_the_runs_folder_and_the_release(
    s3: "S3Client", with_images: Settings
) -> None:
    planned = plan(s3, with_images)
    assert planned["images"] == 3
    assert planned["run_uri"] == f"s3://{with_images.bucket}/runs/images/{run_name(RUN_AFTER, RUN_ID)}"
    ingest = planned["ingest_step"]["HadoopJarStep"]["Args"]
    features = planned["features_step"]["HadoopJarStep"]["Args"]
    pca = planned["pca_step"]["HadoopJarStep"]["Args"]
    assert ingest[ingest.index("--input-uri") + 1] == with_images.dataset_uri
    assert features[features.index("--model-uri") + 1] == f"{with_images.release_uri}/model/mobilenet.tflite"
    for name, arguments in (("ingest", ingest), ("features", features), ("pca", pca)):
        assert f"{with_images.release_uri}/spark/{name}.py" in arguments
        assert arguments[arguments.index("--run-uri") + 1] == planned["run_uri"]


def test_the_request_for_the_cluster_is_valid_and_names_the_dataset_and_the_run(
    s3: "S3Client", with_images: Settings
) -> None:
    planned = plan(s3, with_images)
    request = planned["cluster"]
    check_parameters(botocore.session.get_session().get_service_model("emr").operation_model("RunJobFlow"), request)
    assert request["Name"] == f"orchard-{with_images.bucket}-{run_name(RUN_AFTER, RUN_ID)}-images"
    assert planned["cluster_name"] == request["Name"]
    tags = {tag["Key"]: tag["Value"] for tag in request["Tags"]}
    assert tags["orchard:dag_id"] == "fruit_features"
    assert tags["orchard:run_id"] == RUN_ID
    assert tags["orchard:dataset_uri"] == with_images.dataset_uri
    assert tags["for-use-with-amazon-emr-managed-policies"] == "true"


def test_a_run_id_that_is_too_long_for_a_tag_is_truncated(s3: "S3Client", with_images: Settings) -> None:
    tags = plan(s3, with_images, run_id="x" * 300)["cluster"]["Tags"]
    assert max(len(tag["Value"]) for tag in tags) == 256


def test_a_long_prefix_results_in_a_cluster_name_that_emr_accepts(s3: "S3Client", with_images: Settings) -> None:
    prefix = "/".join(["x" * 99] * 4)
    s3.put_object(Bucket=with_images.bucket, Key=f"{prefix}/1.jpg", Body=b"1")
    planned = plan(s3, with_images, dataset_uri=f"s3://{with_images.bucket}/{prefix}/")
    assert len(planned["cluster"]["Name"]) == 256
    assert max(len(tag["Value"]) for tag in planned["cluster"]["Tags"]) == 256


def test_a_misspelt_param_is_refused_and_the_known_ones_are_listed(s3: "S3Client", with_images: Settings) -> None:
    with pytest.raises(UnknownParams, match="unknown params 'dataset_prefix': use dataset_uri, n_components,"):
        plan(s3, with_images, dataset_prefix="s3://other/")


def test_a_dataset_without_images_fails_before_anything_is_created(s3: "S3Client", released: Settings) -> None:
    with pytest.raises(NoImages, match=f"no images below s3://{released.bucket}/images/"):
        plan(s3, released)


def test_a_missing_release_fails_before_anything_is_created(s3: "S3Client", with_images: Settings) -> None:
    with pytest.raises(NoRelease, match="release 'gone' is not in"):
        plan(s3, replace(with_images, release="gone"))
