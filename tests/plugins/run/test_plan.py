import json
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import botocore.session
import pytest
from botocore.exceptions import ClientError

from local_aws.emr.checks import check_parameters
from orchard.dataset.listing import CannotList, NoImages
from orchard.errors import PermanentError
from orchard.release import NoRelease, NoWheels, version_of
from orchard.run import steps
from orchard.run.changes import TooFewImages, TooManyRejects
from orchard.run.names import cluster_name, run_name
from orchard.run.params import BadParams, UnknownParams
from orchard.run.steps import ArgumentsTooLong
from orchard.settings import Settings
from tests.plugins.answers import failing
from tests.plugins.plans import RUN_AFTER, RUN_ID, plan, planned, put_images

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@pytest.fixture
def with_images(s3: "S3Client", released: Settings) -> Settings:
    """A deployment whose dataset contains three images."""
    put_images(s3, released.bucket, count=3)
    return released


def test_a_plan_contains_the_folders_of_the_run_and_the_release(s3: "S3Client", with_images: Settings) -> None:
    run = plan(s3, with_images)
    name = run_name(RUN_AFTER, RUN_ID, with_images.deployment)
    assert run["run_uri"] == f"s3://{with_images.bucket}/runs/images/{name}"
    assert run["scratch_uri"] == f"s3://{with_images.bucket}/scratch/images/{name}"
    ingest = run["ingest_step"]["HadoopJarStep"]["Args"]
    features = run["features_step"]["HadoopJarStep"]["Args"]
    pca = run["pca_step"]["HadoopJarStep"]["Args"]
    assert features[features.index("--model-uri") + 1] == f"{with_images.release_uri}/model/mobilenet.tflite"
    for name, arguments in (("ingest", ingest), ("features", features), ("pca", pca)):
        assert f"{with_images.release_uri}/spark/{name}.py" in arguments
        assert arguments[arguments.index("--run-uri") + 1] == run["run_uri"]
    for arguments in (ingest, features):
        assert arguments[arguments.index("--scratch-uri") + 1] == run["scratch_uri"]
    for arguments in (features, pca):
        assert arguments[arguments.index("--warehouse-uri") + 1] == with_images.warehouse_uri


def test_the_plan_does_not_depend_on_what_has_changed(s3: "S3Client", with_images: Settings) -> None:
    first = planned(s3, with_images)
    put_images(s3, with_images.bucket, "images/Lemon/")
    second = planned(s3, with_images)
    assert (first.changes["listed"], second.changes["listed"]) == (3, 5)
    assert first.run == second.run


def test_the_request_for_the_cluster_is_valid_and_names_the_dataset_and_the_run(
    s3: "S3Client", with_images: Settings
) -> None:
    run = plan(s3, with_images)
    request = run["cluster"]
    check_parameters(botocore.session.get_session().get_service_model("emr").operation_model("RunJobFlow"), request)
    assert request["Name"] == cluster_name(
        with_images.bucket, with_images.deployment, run_name(RUN_AFTER, RUN_ID, with_images.deployment), "images"
    )
    assert run["cluster_name"] == request["Name"]
    tags = {tag["Key"]: tag["Value"] for tag in request["Tags"]}
    assert tags["orchard:dag_id"] == "fruit_features"
    assert tags["orchard:run_id"] == RUN_ID
    assert tags["orchard:deployment"] == with_images.deployment
    assert tags["orchard:dataset_uri"] == with_images.dataset_uri
    assert tags["for-use-with-amazon-emr-managed-policies"] == "true"


def test_a_run_id_that_is_too_long_for_a_tag_is_truncated(s3: "S3Client", with_images: Settings) -> None:
    tags = plan(s3, with_images, run_id="x" * 300)["cluster"]["Tags"]
    assert max(len(tag["Value"]) for tag in tags) == 256


def test_a_long_prefix_results_in_a_cluster_name_that_emr_accepts(s3: "S3Client", with_images: Settings) -> None:
    prefix = "/".join(["x" * 99] * 4)
    put_images(s3, with_images.bucket, f"{prefix}/")
    run = plan(s3, with_images, dataset_uri=f"s3://{with_images.bucket}/{prefix}/")
    assert len(run["cluster"]["Name"]) == 256
    assert max(len(tag["Value"]) for tag in run["cluster"]["Tags"]) == 256


def test_a_misspelt_param_is_refused_and_the_known_ones_are_listed(s3: "S3Client", with_images: Settings) -> None:
    message = r"unknown params 'dataset_prefix' \(did you mean dataset_uri\?\): use dataset_uri, n_components,"
    with pytest.raises(UnknownParams, match=message):
        plan(s3, with_images, dataset_prefix="s3://other/")


def test_a_dataset_without_images_fails_before_anything_is_created(s3: "S3Client", released: Settings) -> None:
    with pytest.raises(NoImages, match=f"no images below s3://{released.bucket}/images/"):
        plan(s3, released)


def test_a_missing_release_fails_before_anything_is_created(s3: "S3Client", with_images: Settings) -> None:
    with pytest.raises(NoRelease, match="release 'gone' is not in"):
        plan(s3, replace(with_images, release="gone"))


def test_a_release_without_wheels_for_the_instance_type_is_refused_before_the_dataset_is_listed(
    s3: "S3Client", with_images: Settings
) -> None:
    # As a release of an earlier version: all of its wheels with compiled code are for x86_64.
    files = {
        path: {"size": 1, "sha256": "0" * 64}
        for path in (
            "spark/orchard_spark.zip",
            "model/mobilenet.tflite",
            "wheels/boto3-1.43.117-py3-none-any.whl",
            "wheels/numpy-2.4.6-cp311-cp311-manylinux_2_28_x86_64.whl",
        )
    }
    earlier = replace(with_images, release=version_of(files))
    manifest = {"version": earlier.release, "model": "model/mobilenet.tflite", "files": files}
    key = f"releases/{earlier.release}/manifest.json"
    s3.put_object(Bucket=earlier.bucket, Key=key, Body=json.dumps(manifest).encode())
    assert plan(s3, earlier, instance_type="c6i.xlarge")["cluster"], "it stays usable on x86_64"
    with failing(s3, "ListObjectsV2", "SlowDown", 503), pytest.raises(NoWheels) as error:
        plan(s3, earlier, instance_type="c7g.xlarge")
    fault = "has no wheels for aarch64, the architecture of c7g.xlarge: numpy is missing. Upload"
    assert f"{earlier.release!r} {fault}" in str(error.value)
    assert plan(s3, with_images, instance_type="c7g.xlarge")["cluster"]


def test_whole_floats_become_the_whole_numbers_that_emr_and_the_steps_expect(
    s3: "S3Client", with_images: Settings
) -> None:
    run = plan(s3, with_images, core_instances=2.0, n_components=3.0)
    assert run == plan(s3, with_images, core_instances=2, n_components=3)
    core = run["cluster"]["Instances"]["InstanceFleets"][1]
    assert isinstance(core["TargetOnDemandCapacity"], int)
    pca = run["pca_step"]["HadoopJarStep"]["Args"]
    assert pca[pca.index("--n-components") + 1] == "3"


def test_a_param_of_the_wrong_type_is_refused_before_s3_is_asked(s3: "S3Client", with_images: Settings) -> None:
    with failing(s3, "ListObjectsV2", "SlowDown", 503), pytest.raises(BadParams, match="core_instances is 'two': use"):
        plan(s3, with_images, core_instances="two")


@pytest.mark.parametrize(("images", "n_components"), [(2, 3), (3, 4), (3, 1280), (1, 0.95), (1, 1)])
def test_fewer_images_than_the_pca_needs_are_refused_with_both_numbers(
    s3: "S3Client", released: Settings, images: int, n_components: float
) -> None:
    put_images(s3, released.bucket, count=images)
    with pytest.raises(TooFewImages, match=f"has {images} readable images, but .*use") as error:
        plan(s3, released, n_components=n_components)
    assert images == 1 or f"n_components is {n_components}: use at most {images}" in str(error.value)
    assert isinstance(error.value, PermanentError)


def test_as_many_components_as_images_are_planned(s3: "S3Client", with_images: Settings) -> None:
    assert planned(s3, with_images, n_components=3).changes["listed"] == 3


@pytest.mark.parametrize("storage_class", ["GLACIER", "DEEP_ARCHIVE"])
def test_a_dataset_whose_first_image_is_readable_and_whose_others_are_archived_is_refused(
    s3: "S3Client", with_images: Settings, storage_class: str
) -> None:
    put_images(s3, with_images.bucket, "images/Lemon/", count=2, StorageClass=storage_class)
    message = r"2 of 5 images below s3://.*/images/ cannot be read, a ratio of 0\.400, over max_reject_ratio 0\.05: "
    with pytest.raises(TooManyRejects, match=message + r"2 archived \(restore them") as error:
        plan(s3, with_images)
    assert isinstance(error.value, PermanentError)


def test_archived_images_within_the_tolerated_share_are_a_warning(
    s3: "S3Client", with_images: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    put_images(s3, with_images.bucket, "images/Lemon/", count=1, StorageClass="GLACIER")
    with caplog.at_level(logging.WARNING):
        assert planned(s3, with_images, max_reject_ratio=0.25).changes["listed"] == 4
    assert "1 of 4 images below" in caplog.text
    assert "will be rejected: 1 archived (restore them" in caplog.text
    with pytest.raises(TooFewImages, match="has 3 readable images, but n_components is 4: use at most 3"):
        plan(s3, with_images, max_reject_ratio=0.25, n_components=4)


def test_images_of_more_than_max_bytes_are_refused_before_a_cluster_is_created(
    s3: "S3Client", with_images: Settings
) -> None:
    put_images(s3, with_images.bucket, "images/Lemon/", count=2, Body=b"x" * 11)
    assert planned(s3, with_images, max_bytes=11).changes["listed"] == 5
    message = r"2 too_many_bytes \(make them smaller, or set a larger max_bytes\)"
    with pytest.raises(TooManyRejects, match=message):
        plan(s3, with_images, max_bytes=10)


def test_images_of_more_than_max_bytes_within_the_tolerated_share_are_a_warning(
    s3: "S3Client", with_images: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    put_images(s3, with_images.bucket, "images/Lemon/", count=1, Body=b"x" * 11)
    with caplog.at_level(logging.WARNING):
        plan(s3, with_images, max_bytes=10, max_reject_ratio=0.25)
    assert "will be rejected: 1 too_many_bytes (make them smaller" in caplog.text


def test_a_dataset_in_a_missing_bucket_is_refused(s3: "S3Client", released: Settings) -> None:
    with pytest.raises(CannotList, match=r"s3://no-such-bucket/images/ cannot be listed: .*NoSuchBucket"):
        plan(s3, released, dataset_uri="s3://no-such-bucket/images/")


@pytest.mark.parametrize("code", ["SlowDown", "AccessDenied"])
def test_an_error_that_may_end_by_itself_is_raised_for_a_retry(
    s3: "S3Client", with_images: Settings, code: str
) -> None:
    with failing(s3, "ListObjectsV2", code, 403), pytest.raises(ClientError, match=code):
        plan(s3, with_images)


def test_a_manifest_of_another_release_is_refused(s3: "S3Client", with_images: Settings) -> None:
    where = {"Bucket": with_images.bucket, "Key": f"releases/{with_images.release}/manifest.json"}
    manifest = json.loads(s3.get_object(**where)["Body"].read())  # type: ignore[arg-type]
    s3.put_object(**where, Body=json.dumps({**manifest, "version": "ba9876543210"}).encode())  # type: ignore[arg-type]
    message = f"describes release 'ba9876543210', not '{with_images.release}'. Delete it, upload the release again"
    with pytest.raises(NoRelease, match=message):
        plan(s3, with_images)


def test_a_manifest_that_was_changed_is_refused_before_the_dataset_is_listed(
    s3: "S3Client", with_images: Settings
) -> None:
    where = {"Bucket": with_images.bucket, "Key": f"releases/{with_images.release}/manifest.json"}
    manifest = json.loads(s3.get_object(**where)["Body"].read())  # type: ignore[arg-type]
    manifest["files"]["spark/ingest.py"]["sha256"] = "0" * 64
    s3.put_object(**where, Body=json.dumps(manifest).encode())  # type: ignore[arg-type]
    with failing(s3, "ListObjectsV2", "SlowDown", 503), pytest.raises(NoRelease, match="was changed: the version of"):
        plan(s3, with_images)


def test_arguments_that_are_too_long_for_emr_are_refused_by_the_plan(
    s3: "S3Client", with_images: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # S3's keys, and so the arguments, are shorter than EMR's real limit.
    ingest = plan(s3, with_images)["ingest_step"]["HadoopJarStep"]["Args"]
    monkeypatch.setattr(steps, "MAX_ARGUMENT_CHARACTERS", len("".join(ingest)) - 1)
    with pytest.raises(ArgumentsTooLong, match=f"arguments of step ingest have {len(''.join(ingest))} characters"):
        plan(s3, with_images)


def test_the_keys_of_a_run_over_the_longest_prefix_fit_into_s3s_limit(s3: "S3Client", with_images: Settings) -> None:
    prefix = "/".join(["x" * 99] * 10)
    put_images(s3, with_images.bucket, f"{prefix}/")
    run = plan(s3, with_images, dataset_uri=f"s3://{with_images.bucket}/{prefix}/")
    # The longest name that a step writes below it has fewer than 200 characters.
    assert max(len(run[name].split("/", 3)[3]) for name in ("run_uri", "scratch_uri")) < 1024 - 200
