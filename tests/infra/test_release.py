import base64
import io
import json
import zipfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from infra import release

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def keys(s3: "S3Client", bucket: str) -> set[str]:
    return {item["Key"] for item in s3.list_objects_v2(Bucket=bucket)["Contents"]}


def test_a_release_contains_code_wheels_bootstrap_script_and_model(parts: Path) -> None:
    assert set(release.collect(parts)) == {
        "bootstrap/install.sh",
        "bootstrap/requirements.txt",
        "model/mobilenet.tflite",
        "spark/features.py",
        "spark/ingest.py",
        "spark/orchard_spark.zip",
        "spark/pca.py",
        "wheels/numpy.whl",
    }


def test_the_zip_file_contains_the_package_that_the_steps_import(parts: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(release.collect(parts)["spark/orchard_spark.zip"])) as archive:
        names = set(archive.namelist())
    package = release.ROOT / "spark/orchard_spark"
    assert names == {f"orchard_spark/{file.name}" for file in package.glob("*.py")}


def test_the_version_changes_only_if_the_content_changes(parts: Path) -> None:
    before = release.manifest(release.collect(parts))["version"]
    assert release.manifest(release.collect(parts))["version"] == before
    (parts / "wheels/numpy.whl").write_bytes(b"another")
    assert release.manifest(release.collect(parts))["version"] != before


def test_a_release_is_uploaded_once_with_its_manifest(s3: "S3Client", bucket: str, parts: Path) -> None:
    contents = release.collect(parts)
    version = release.upload(s3, bucket, contents)
    assert keys(s3, bucket) == {f"releases/{version}/{path}" for path in [*contents, "manifest.json"]}
    manifest = json.loads(s3.get_object(Bucket=bucket, Key=f"releases/{version}/manifest.json")["Body"].read())
    assert manifest["model"] == "model/mobilenet.tflite"
    assert manifest["files"]["wheels/numpy.whl"]["size"] == 16

    s3.delete_object(Bucket=bucket, Key=f"releases/{version}/wheels/numpy.whl")
    assert release.upload(s3, bucket, contents) == version
    assert f"releases/{version}/wheels/numpy.whl" not in keys(s3, bucket), "a complete release never changes"


def test_s3_stores_the_checksum_of_every_file(s3: "S3Client", bucket: str, parts: Path) -> None:
    contents = release.collect(parts)
    version = release.upload(s3, bucket, contents)
    for path, file in release.manifest(contents)["files"].items():
        head = s3.head_object(Bucket=bucket, Key=f"releases/{version}/{path}", ChecksumMode="ENABLED")
        assert base64.b64decode(head["ChecksumSHA256"]).hex() == file["sha256"]


def test_the_next_upload_completes_an_interrupted_one(s3: "S3Client", bucket: str, parts: Path) -> None:
    contents = release.collect(parts)
    version = release.manifest(contents)["version"]
    s3.put_object(Bucket=bucket, Key=f"releases/{version}/wheels/numpy.whl", Body=b"half")
    release.upload(s3, bucket, contents)
    assert (
        s3.get_object(Bucket=bucket, Key=f"releases/{version}/wheels/numpy.whl")["Body"].read() == b"wheels/numpy.whl"
    )


@pytest.mark.parametrize("missing", ["wheels/numpy.whl", "model/mobilenet.tflite"])
def test_the_error_about_a_missing_part_says_how_to_build_it(parts: Path, missing: str) -> None:
    (parts / missing).unlink()
    with pytest.raises(release.PartMissing, match="build it with `make release-parts`"):
        release.collect(parts)


@pytest.mark.parametrize(("present", "missing"), [("x86_64", "aarch64"), ("aarch64", "x86_64")])
def test_a_release_without_the_wheels_of_an_architecture_is_not_uploaded(
    parts: Path, present: str, missing: str
) -> None:
    wheel = parts / f"wheels/pyarrow-26.0.1-cp311-cp311-manylinux_2_28_{present}.whl"
    wheel.write_bytes(b"1")
    with pytest.raises(release.PartMissing, match=f"no wheel of pyarrow for {missing} in .*make release-parts"):
        release.collect(parts)
    wheel.with_name(wheel.name.replace(present, missing)).write_bytes(b"2")
    assert sorted(path for path in release.collect(parts) if "pyarrow" in path) == [
        "wheels/pyarrow-26.0.1-cp311-cp311-manylinux_2_28_aarch64.whl",
        "wheels/pyarrow-26.0.1-cp311-cp311-manylinux_2_28_x86_64.whl",
    ]


def test_a_wheel_of_pure_python_is_in_the_release_once(build_dir: Path) -> None:
    wheels = [path for path in release.collect(build_dir) if path.startswith("wheels/")]
    per_package = Counter(path.partition("-")[0] for path in wheels)
    architectures = len(release.ARCHITECTURES)
    for path in wheels:
        assert per_package[path.partition("-")[0]] == (1 if path.endswith("-any.whl") else architectures)


def test_a_release_cannot_contain_two_models(parts: Path) -> None:
    (parts / "model/other.tflite").write_bytes(b"2")
    with pytest.raises(release.PartMissing, match=r"no single model \(2 found\)"):
        release.collect(parts)
