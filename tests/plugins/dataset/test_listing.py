from typing import TYPE_CHECKING

import pytest

from orchard.dataset.listing import DatasetSize, NoImages, measure_dataset

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def test_images_are_counted_and_other_objects_are_not(s3: "S3Client", bucket: str) -> None:
    for key in ("images/Kiwi/1.jpg", "images/Kiwi/2.PNG", "images/Kiwi/._1.jpg", "images/notes.txt", "other/3.jpg"):
        s3.put_object(Bucket=bucket, Key=key, Body=b"12345")
    assert measure_dataset(s3, f"s3://{bucket}/images/") == DatasetSize(images=2, bytes=10)


def test_a_prefix_may_contain_characters_that_are_special_in_other_uris(s3: "S3Client", bucket: str) -> None:
    for key in ("lot#3/a?b/1.jpg", "lot/2.jpg", "lots/3.jpg"):
        s3.put_object(Bucket=bucket, Key=key, Body=b"12345")
    assert measure_dataset(s3, f"s3://{bucket}/lot#3/a?b/").images == 1


def test_all_pages_of_a_listing_are_counted(s3: "S3Client", bucket: str) -> None:
    for number in range(1001):
        s3.put_object(Bucket=bucket, Key=f"images/{number}.jpg", Body=b"1")
    assert measure_dataset(s3, f"s3://{bucket}/images/").images == 1001


def test_a_prefix_without_images_is_reported_with_the_endings_of_images(s3: "S3Client", bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="images/notes.txt", Body=b"1")
    with pytest.raises(NoImages) as error:
        measure_dataset(s3, f"s3://{bucket}/images/")
    assert f"no images below s3://{bucket}/images/ (other objects: 1)" in str(error.value)
    assert ".jpg, .jpeg, .png, .webp, .bmp" in str(error.value)
