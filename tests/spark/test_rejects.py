import pytest

from orchard_spark.rejects import REASONS, RejectedObject


def test_every_reason_has_a_description() -> None:
    assert all(REASONS.values())


def test_an_unknown_reason_is_refused() -> None:
    with pytest.raises(AssertionError):
        RejectedObject("no such reason", "")
