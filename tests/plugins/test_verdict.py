import pytest

from orchard.verdict import MarkedFailed, check_verdict


def test_a_run_that_was_marked_failed_is_no_success() -> None:
    with pytest.raises(MarkedFailed, match=r"marked failed while features\.wait_step ran"):
        check_verdict({"ingest.wait_step": "success", "features.wait_step": "failed", "publish": "skipped"})


@pytest.mark.parametrize(
    "states",
    [
        {"pca.wait_step": "success", "publish": "success"},
        {"ingest.wait_step": "success", "publish": "skipped"},  # marked success
        {"ingest.wait_step": "failed", "publish": "upstream_failed"},  # failed by itself, as the run will
        {"pca.wait_step": "success", "publish": "failed"},
    ],
)
def test_every_other_run_is_what_airflow_calls_it(states: dict[str, str | None]) -> None:
    check_verdict(states)
