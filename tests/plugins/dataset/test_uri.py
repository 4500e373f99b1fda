import re

import pytest

from orchard.dataset.uri import DATASET_URI_PATTERN, BadDatasetUri, check_dataset_uri
from tests.plugins.dataset_uris import ACCEPTED_URIS, REFUSED_URIS


@pytest.mark.parametrize("uri", ACCEPTED_URIS, ids=ascii)
def test_a_uri_whose_parts_are_read_as_they_are_listed_is_returned_unchanged(uri: str) -> None:
    assert check_dataset_uri(uri) == uri
    assert re.search(DATASET_URI_PATTERN, uri)


@pytest.mark.parametrize("uri", REFUSED_URIS, ids=ascii)
def test_any_other_uri_is_refused_by_the_function_and_by_the_pattern(uri: str) -> None:
    with pytest.raises(BadDatasetUri, match=r"use|rename"):
        check_dataset_uri(uri)
    assert not re.search(DATASET_URI_PATTERN, uri)


@pytest.mark.parametrize("value", [None, 3, ["s3://fruits-data/images/"], b"s3://fruits-data/images/"])
def test_a_value_that_is_not_text_is_refused(value: object) -> None:
    with pytest.raises(BadDatasetUri, match="it is not text"):
        check_dataset_uri(value)


@pytest.mark.parametrize("uri", ["s3://fruits-data/a/b", "s3://fruits-data/a//b/", "s3://fruits-data//a/b//"])
def test_the_message_contains_the_uri_that_was_probably_meant(uri: str) -> None:
    with pytest.raises(BadDatasetUri, match="use 's3://fruits-data/a/b/'"):
        check_dataset_uri(uri)
