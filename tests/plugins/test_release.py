import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError
from botocore.stub import Stubber

from orchard.cluster.instances import INSTANCE_TYPES
from orchard.errors import PermanentError
from orchard.release import (
    File,
    NoRelease,
    NoWheels,
    Release,
    WrongManifest,
    check_wheels,
    damaged_files,
    read_release,
)
from orchard.settings import Settings
from orchard_spark.mobilenet import model_name

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def test_a_release_lists_its_files_and_its_model(s3: "S3Client", released: Settings) -> None:
    release = read_release(s3, released)
    assert release.model_uri == f"{released.release_uri}/model/mobilenet.tflite"
    assert release.files["wheels/numpy.whl"].size == len("wheels/numpy.whl")
    assert release.files["wheels/numpy.whl"].sha256 == hashlib.sha256(b"wheels/numpy.whl").hexdigest()
    assert {"bootstrap/install.sh", "spark/ingest.py", "spark/orchard_spark.zip"} <= release.files.keys()
    assert release.bytes == sum(file.size for file in release.files.values())


def release_of(**files: str) -> Release:
    """Return a release with files of these hashes, by path."""
    return Release("s3://b/releases/1", "model/a.b.tflite", {path: File(1, content) for path, content in files.items()})


def test_the_model_has_the_name_that_the_steps_write_into_the_tables() -> None:
    release = Release("s3://b/releases/1", "model/mobilenetv2-1.0-224-imagenet-6001306c.tflite", {})
    assert release.model_name == model_name(release.model_uri) == "mobilenetv2-1.0-224-imagenet-6001306c"


def test_the_decoder_changes_with_pillow_and_with_the_package_of_the_steps_only() -> None:
    files = {
        "spark/orchard_spark.zip": "1",
        "spark/ingest.py": "1",
        "wheels/pillow-13.0.0-cp311.whl": "1",
        "wheels/numpy-2.4.6-cp311.whl": "1",
        "model/mobilenet.tflite": "1",
    }
    decoder = release_of(**files).decoder
    assert len(decoder) == 12
    same = {path for path in files if release_of(**{**files, path: "2"}).decoder == decoder}
    assert same == {"spark/ingest.py", "wheels/numpy-2.4.6-cp311.whl", "model/mobilenet.tflite"}
    del files["wheels/pillow-13.0.0-cp311.whl"]
    assert release_of(**files, **{"wheels/Pillow-13.1.0-cp311.whl": "1"}).decoder != decoder


def with_wheels(*names: str) -> Release:
    return release_of(**{f"wheels/{name}": "1" for name in names}, **{"spark/ingest.py": "1"})


ANY = "boto3-1.43.117-py3-none-any.whl"
NUMPY = "numpy-2.4.6-cp311-cp311-manylinux_2_27_{0}.manylinux_2_28_{0}.whl"
PROTOBUF = "protobuf-7.36.2-cp310-abi3-manylinux2014_{}.whl"
BOTH = [wheel.format(architecture) for wheel in (NUMPY, PROTOBUF) for architecture in ("x86_64", "aarch64")]


@pytest.mark.parametrize(
    ("wheels", "architecture", "missing"),
    [
        ([ANY, *BOTH], "x86_64", []),
        ([ANY, *BOTH], "aarch64", []),
        ([ANY], "aarch64", []),
        ([ANY, NUMPY.format("x86_64"), PROTOBUF.format("x86_64")], "x86_64", []),
        ([ANY, NUMPY.format("x86_64"), PROTOBUF.format("x86_64")], "aarch64", ["numpy", "protobuf"]),
        ([ANY, *BOTH[:3]], "x86_64", []),
        ([ANY, *BOTH[:3]], "aarch64", ["protobuf"]),
        ([ANY, NUMPY.format("aarch64")], "x86_64", ["numpy"]),
    ],
)
def test_a_release_lacks_the_packages_whose_wheels_are_all_for_other_architectures(
    wheels: list[str], architecture: str, missing: list[str]
) -> None:
    assert with_wheels(*wheels).lacks_wheels(architecture) == missing


@pytest.mark.parametrize("instance_type", INSTANCE_TYPES)
def test_a_release_of_an_earlier_version_is_refused_for_graviton_only(instance_type: str) -> None:
    settings = Settings(bucket="fruits-data", release="0123")
    earlier = with_wheels(ANY, NUMPY.format("x86_64"), PROTOBUF.format("x86_64"))
    if INSTANCE_TYPES[instance_type].architecture == "x86_64":
        check_wheels(earlier, settings, instance_type)
        return
    with pytest.raises(NoWheels) as error:
        check_wheels(earlier, settings, instance_type)
    assert str(error.value) == (
        f"release '0123' has no wheels for aarch64, the architecture of {instance_type}: numpy, protobuf are missing. "
        "Upload a new release with `make release BUCKET=fruits-data`, and set ORCHARD_RELEASE to the version that it "
        "prints, or choose an instance_type of another architecture"
    )
    assert isinstance(error.value, PermanentError)
    check_wheels(with_wheels(ANY, *BOTH), settings, instance_type)


def test_a_complete_release_has_no_damaged_files_and_none_of_its_files_are_read(
    s3: "S3Client", released: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert damaged_files(s3, released, read_release(s3, released)) == []
    assert "bytes are read" not in caplog.text, "S3 has the checksum of every file that infra/release.py uploaded"


def test_each_missing_truncated_or_changed_file_is_named(s3: "S3Client", released: Settings) -> None:
    release = read_release(s3, released)
    prefix = f"releases/{released.release}"
    s3.delete_object(Bucket=released.bucket, Key=f"{prefix}/spark/pca.py")
    s3.put_object(Bucket=released.bucket, Key=f"{prefix}/wheels/numpy.whl", Body=b"cut")
    other = b"another-model.tflite--"[: release.files["model/mobilenet.tflite"].size]
    s3.put_object(
        Bucket=released.bucket, Key=f"{prefix}/model/mobilenet.tflite", Body=other, ChecksumAlgorithm="SHA256"
    )
    assert sorted(damaged_files(s3, released, release)) == [
        f"model/mobilenet.tflite has SHA-256 {hashlib.sha256(other).hexdigest()}, "
        f"not {hashlib.sha256(b'model/mobilenet.tflite').hexdigest()}",
        "spark/pca.py is missing",
        "wheels/numpy.whl has 3 bytes, not 16",
    ]


@pytest.mark.parametrize(("content", "damages"), [(b"wheels/numpy.whl", 0), (b"wheels/NUMPY.whl", 1)])
def test_a_file_without_a_sha256_on_s3_is_read(
    s3: "S3Client", released: Settings, content: bytes, damages: int, caplog: pytest.LogCaptureFixture
) -> None:
    key = f"releases/{released.release}/wheels/numpy.whl"
    s3.put_object(Bucket=released.bucket, Key=key, Body=content)
    with caplog.at_level(logging.INFO):
        assert len(damaged_files(s3, released, read_release(s3, released))) == damages
    assert f"s3://{released.bucket}/{key} has no SHA-256 on S3, so its 16 bytes are read" in caplog.text


def test_the_checksum_of_a_multipart_upload_is_not_used_as_the_checksum_of_the_file(
    s3: Any, bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    content = b"m" * (6 << 20)
    where = {"Bucket": bucket, "Key": "releases/1/model/m.tflite"}
    where["UploadId"] = s3.create_multipart_upload(**where, ChecksumAlgorithm="SHA256")["UploadId"]
    parts = []
    for number, part in enumerate((content[: 5 << 20], content[5 << 20 :]), 1):
        done = s3.upload_part(**where, PartNumber=number, Body=part, ChecksumAlgorithm="SHA256")
        parts.append({"PartNumber": number, "ETag": done["ETag"], "ChecksumSHA256": done["ChecksumSHA256"]})
    s3.complete_multipart_upload(**where, MultipartUpload={"Parts": parts})
    assert s3.head_object(Bucket=bucket, Key=where["Key"], ChecksumMode="ENABLED")["ChecksumSHA256"]

    file = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest = json.dumps({"model": "model/m.tflite", "files": {"model/m.tflite": file}})
    s3.put_object(Bucket=bucket, Key="releases/1/manifest.json", Body=manifest.encode())
    settings = Settings(bucket=bucket, release="1")
    with caplog.at_level(logging.INFO):
        assert damaged_files(s3, settings, read_release(s3, settings)) == []
    assert "so its 6291456 bytes are read" in caplog.text


def test_a_missing_release_is_reported_with_its_remedy(s3: "S3Client", released: Settings) -> None:
    with pytest.raises(NoRelease) as error:
        read_release(s3, replace(released, release="ffff"))
    assert f"release 'ffff' is not in s3://{released.bucket}/releases/ffff" in str(error.value)
    assert f"make release BUCKET={released.bucket}" in str(error.value)


@pytest.mark.parametrize("code", ["AccessDenied", "SlowDown"])
def test_an_error_that_does_not_mean_that_the_release_is_missing_is_raised(s3: "S3Client", code: str) -> None:
    with Stubber(s3) as stubber:
        stubber.add_client_error("get_object", code)
        with pytest.raises(ClientError, match=code):
            read_release(s3, Settings(bucket="fruits-data", release="1"))


@pytest.mark.parametrize(
    ("manifest", "fault"),
    [
        ({"version": "2", "model": "m", "files": {}}, "describes release '2', not '1'"),
        ({"version": None, "model": "m", "files": {}}, "describes release None, not '1'"),
        ({"version": "1", "model": "m"}, "is not the manifest of a release"),
        ({"version": "1", "files": {}}, "is not the manifest of a release"),
        ({"version": "1", "model": "m", "files": {"m": {"size": 1}}}, "is not the manifest of a release"),
        (["1"], "is not the manifest of a release"),
        (None, "is not the manifest of a release"),
    ],
)
def test_a_manifest_that_does_not_describe_the_configured_release_is_a_permanent_error(
    s3: "S3Client", bucket: str, manifest: Any, fault: str
) -> None:
    body = b"{" if manifest is None else json.dumps(manifest).encode()
    s3.put_object(Bucket=bucket, Key="releases/1/manifest.json", Body=body)
    with pytest.raises(WrongManifest) as error:
        read_release(s3, Settings(bucket=bucket, release="1"))
    assert f"the manifest.json in s3://{bucket}/releases/1 {fault}" in str(error.value)
    assert f"Delete it, upload the release again with `make release BUCKET={bucket}`" in str(error.value)
    assert isinstance(error.value, PermanentError)


def change_hash(manifest: dict[str, Any]) -> None:
    manifest["files"]["wheels/numpy.whl"]["sha256"] = "0" * 64


def change_size(manifest: dict[str, Any]) -> None:
    manifest["files"]["wheels/numpy.whl"]["size"] = 17


def add_file(manifest: dict[str, Any]) -> None:
    manifest["files"]["spark/more.py"] = {"sha256": "0" * 64, "size": 1}


def remove_file(manifest: dict[str, Any]) -> None:
    del manifest["files"]["spark/pca.py"]


def rename_file(manifest: dict[str, Any]) -> None:
    manifest["files"]["spark/pcb.py"] = manifest["files"].pop("spark/pca.py")


def swap_files(manifest: dict[str, Any]) -> None:
    files = manifest["files"]
    files["spark/pca.py"], files["spark/ingest.py"] = files["spark/ingest.py"], files["spark/pca.py"]


def add_attribute(manifest: dict[str, Any]) -> None:
    manifest["files"]["spark/pca.py"]["mode"] = 0o755


def remove_version_and_change(manifest: dict[str, Any]) -> None:
    del manifest["version"]
    change_hash(manifest)


def choose_another_model(manifest: dict[str, Any]) -> None:
    manifest["model"] = "spark/pca.py"


def remove_version_and_choose_another_model(manifest: dict[str, Any]) -> None:
    del manifest["version"]
    choose_another_model(manifest)


def manifest_of(s3: "S3Client", settings: Settings) -> dict[str, Any]:
    body = s3.get_object(Bucket=settings.bucket, Key=f"releases/{settings.release}/manifest.json")["Body"].read()
    manifest: dict[str, Any] = json.loads(body)
    return manifest


def put_manifest(s3: "S3Client", settings: Settings, manifest: dict[str, Any]) -> None:
    key = f"releases/{settings.release}/manifest.json"
    s3.put_object(Bucket=settings.bucket, Key=key, Body=json.dumps(manifest).encode())


@pytest.mark.parametrize(
    "change",
    [
        change_hash,
        change_size,
        add_file,
        remove_file,
        rename_file,
        swap_files,
        add_attribute,
        remove_version_and_change,
        choose_another_model,
        remove_version_and_choose_another_model,
    ],
)
def test_a_manifest_that_was_changed_is_refused(
    s3: "S3Client", released: Settings, change: Callable[[dict[str, Any]], None]
) -> None:
    manifest = manifest_of(s3, released)
    change(manifest)
    put_manifest(s3, released, manifest)
    with pytest.raises(WrongManifest, match=f"the manifest.json in {released.release_uri} was changed: ") as error:
        read_release(s3, released)
    assert "Delete it, upload the release again with `make release" in str(error.value)


def test_a_folder_that_was_renamed_is_refused(s3: "S3Client", released: Settings) -> None:
    manifest = manifest_of(s3, released)
    renamed = replace(released, release="0123456789ab")
    put_manifest(s3, renamed, manifest)
    with pytest.raises(WrongManifest, match=f"describes release '{released.release}', not '0123456789ab'"):
        read_release(s3, renamed)
    # The content shows it, too.
    put_manifest(s3, renamed, {**manifest, "version": "0123456789ab"})
    with pytest.raises(WrongManifest, match=f"was changed: .* is '{released.release}', not '0123456789ab'"):
        read_release(s3, renamed)


def test_the_order_of_the_entries_of_a_manifest_does_not_matter(s3: "S3Client", released: Settings) -> None:
    manifest = manifest_of(s3, released)
    files = {path: dict(reversed(file.items())) for path, file in reversed(manifest["files"].items())}
    put_manifest(s3, released, {"files": files, "model": manifest["model"], "version": manifest["version"]})
    assert read_release(s3, released).files.keys() == files.keys()


def test_the_release_of_an_earlier_version_stays_usable(s3: "S3Client", bucket: str) -> None:
    # As the first version of infra/release.py wrote it.
    files = {
        "bootstrap/install.sh": {"sha256": "12" * 32, "size": 2},
        "model/mobilenetv2-1.0-224-imagenet-6001306c.tflite": {"sha256": "34" * 32, "size": 3},
        "wheels/numpy-2.4.6-cp311-cp311-manylinux_2_27_x86_64.whl": {"sha256": "56" * 32, "size": 4},
    }
    settings = Settings(bucket=bucket, release="14409d558787")
    model = "model/mobilenetv2-1.0-224-imagenet-6001306c.tflite"
    put_manifest(s3, settings, {"version": settings.release, "model": model, "files": files})
    assert read_release(s3, settings).model_name == "mobilenetv2-1.0-224-imagenet-6001306c"
