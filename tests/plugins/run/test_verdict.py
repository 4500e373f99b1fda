import pytest

from orchard.run.verdict import MarkedFailed, check_verdict


def test_a_run_that_was_marked_failed_fails() -> None:
    with pytest.raises(MarkedFailed, match=r"marked failed while features\.wait_step was running"):
        check_verdict({"ingest.wait_step": "success", "features.wait_step": "failed", "publish": "skipped"})


@pytest.mark.parametrize(
    "states",
    [
        {"pca.wait_step": "success", "publish": "success"},
        {"ingest.wait_step": "success", "publish": "skipped"},  # marked success
        {"ingest.wait_step": "failed", "publish": "upstream_failed"},  # failed by itself, and so does the run
        {"pca.wait_step": "success", "publish": "failed"},
    ],
)
def test_every_other_run_keeps_the_state_that_airflow_gives_it(states: dict[str, str | None]) -> None:
    check_verdict(states)
