from typing import TYPE_CHECKING

import pytest

from orchard import dataset

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("s3://bucket/images/", "images"),
        ("s3://bucket/images/2026 autumn/", "images-2026-autumn"),
        ("s3://bucket/", "bucket"),
    ],
)
def test_a_datasets_name_is_fit_for_a_folder(uri: str, name: str) -> None:
    assert dataset.dataset_name(uri) == name


def test_images_are_counted_and_other_objects_are_not(s3: "S3Client", bucket: str) -> None:
    for key in ("images/Kiwi/1.jpg", "images/Kiwi/2.PNG", "images/Kiwi/._1.jpg", "images/notes.txt", "other/3.jpg"):
        s3.put_object(Bucket=bucket, Key=key, Body=b"12345")
    assert dataset.survey(s3, f"s3://{bucket}/images/") == dataset.Contents(images=2, bytes=10)


def test_a_prefix_may_hold_what_has_a_meaning_in_other_uris(s3: "S3Client", bucket: str) -> None:
    for key in ("lot#3/a?b/1.jpg", "lot/2.jpg", "lots/3.jpg"):
        s3.put_object(Bucket=bucket, Key=key, Body=b"12345")
    assert dataset.survey(s3, f"s3://{bucket}/lot#3/a?b/").images == 1


def test_more_objects_than_a_page_holds_are_counted(s3: "S3Client", bucket: str) -> None:
    for number in range(1001):
        s3.put_object(Bucket=bucket, Key=f"images/{number}.jpg", Body=b"1")
    assert dataset.survey(s3, f"s3://{bucket}/images/").images == 1001


def test_a_prefix_without_images_is_named_with_what_is_expected(s3: "S3Client", bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="images/notes.txt", Body=b"1")
    with pytest.raises(dataset.NoImages) as error:
        dataset.survey(s3, f"s3://{bucket}/images/")
    assert f"no image below s3://{bucket}/images/: 1 other objects are there" in str(error.value)
    assert ".jpg, .jpeg, .png, .webp, .bmp" in str(error.value)
