"""The URI of a dataset: one rule for the form, Airflow's API, the nightly run's setting and the plan."""

import re

# The name of a bucket: https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html
BUCKET_PATTERN = r"(?!(?:[0-9]+\.){3}[0-9]+(?:/|$))(?![a-z0-9.-]*\.\.)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"
_CONTROL = r"\x00-\x1f\x7f"
_SURROGATE = r"\ud800-\udfff"  # half of a character: text with one cannot be encoded as UTF-8
# What `check_dataset_uri` accepts, for the form's JSON schema. A test compares the two. In Python $ also matches before
# a final line break.
DATASET_URI_PATTERN = rf"^s3://{BUCKET_PATTERN}/(?:(?!\.{{1,2}}/)[^/{_CONTROL}{_SURROGATE}]+/)*$(?!\n)"

_BUCKET = re.compile(BUCKET_PATTERN)


class BadDatasetUri(ValueError):
    """The URI does not name a folder of images on S3. The message gives the reason and what to use."""


def check_dataset_uri(uri: object) -> str:
    """Return the URI of a dataset if every part of Orchard reads the same objects below it.

    >>> check_dataset_uri("s3://fruits-data/images/2026 autumn/")
    's3://fruits-data/images/2026 autumn/'

    Raises:
        BadDatasetUri: a part is empty, "." or "..", the final slash is missing, or the bucket's name is invalid. Hadoop
            and clients of object stores remove such parts, and would read other objects than the listing shows.
    """
    if not isinstance(uri, str):
        raise BadDatasetUri("it is not text: use a URI such as s3://bucket/images/")
    if not uri.startswith("s3://"):
        raise BadDatasetUri("it does not start with s3://: use a URI such as s3://bucket/images/")
    bucket, slash, prefix = uri.removeprefix("s3://").partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise BadDatasetUri(f"{bucket!r} is not the name of a bucket: use 3 to 63 of a-z, 0-9, . and -")
    if re.search(f"[{_CONTROL}{_SURROGATE}]", prefix):
        raise BadDatasetUri("it contains a control character or invalid UTF-8: rename the folder")
    parts = prefix.split("/")
    if not slash or parts[-1]:
        raise BadDatasetUri(f"it does not end in /: use {_joined(bucket, parts)!r}")
    folders = parts[:-1]
    if "" in folders:
        raise BadDatasetUri(f"it has an empty part: use {_joined(bucket, parts)!r}, or rename the folder")
    if {".", ".."} & set(folders):
        raise BadDatasetUri("it has a part . or ..: use the full path, or rename the folder")
    return uri


def _joined(bucket: str, parts: list[str]) -> str:
    """Return the URI of the folder with these parts, without the empty ones."""
    return "/".join([f"s3://{bucket}", *filter(None, parts), ""])
