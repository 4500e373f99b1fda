from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sandbox import aws

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def test_every_file_of_a_folder_is_uploaded(
    s3: "S3Client", bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aws, "BUCKET", bucket)
    for name in ("Kiwi/1.jpg", "Kiwi/broken.jpg", "Lime/late/2.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    assert aws.upload_images(s3, tmp_path, prefix="new/") == 3
    keys = [item["Key"] for item in s3.list_objects_v2(Bucket=bucket)["Contents"]]
    assert keys == ["new/Kiwi/1.jpg", "new/Kiwi/broken.jpg", "new/Lime/late/2.jpg"]


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_the_error_about_a_folder_without_files_names_the_folder(s3: "S3Client", tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=f"no files in {tmp_path}/{name}: use DATA=FOLDER"):
        aws.upload_images(s3, tmp_path / name)
