from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from orchard.release import NoRelease, missing_files, read_release
from orchard.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def test_a_release_knows_its_files_and_its_model(s3: "S3Client", released: Settings) -> None:
    release = read_release(s3, released)
    assert release.model_uri == f"{released.release_uri}/model/mobilenet.tflite"
    assert release.sizes["wheels/numpy.whl"] == len("wheels/numpy.whl")
    assert {"bootstrap/install.sh", "spark/ingest.py", "spark/orchard_spark.zip"} <= release.sizes.keys()


def test_a_whole_release_misses_nothing(s3: "S3Client", released: Settings) -> None:
    assert missing_files(s3, released, read_release(s3, released)) == []


def test_each_missing_or_cut_file_is_named(s3: "S3Client", released: Settings) -> None:
    release = read_release(s3, released)
    prefix = f"releases/{released.release}"
    s3.delete_object(Bucket=released.bucket, Key=f"{prefix}/spark/pca.py")
    s3.put_object(Bucket=released.bucket, Key=f"{prefix}/wheels/numpy.whl", Body=b"cut")
    assert sorted(missing_files(s3, released, release)) == [
        f"{release.uri}/spark/pca.py is missing",
        f"{release.uri}/wheels/numpy.whl has 3 bytes, not 16",
    ]


def test_a_release_that_is_not_there_is_named_with_the_way_out(s3: "S3Client", released: Settings) -> None:
    with pytest.raises(NoRelease) as error:
        read_release(s3, replace(released, release="ffff"))
    assert f"no release 'ffff' in s3://{released.bucket}/releases/ffff" in str(error.value)
    assert f"make release BUCKET={released.bucket}" in str(error.value)
