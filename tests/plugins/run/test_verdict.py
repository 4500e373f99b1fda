import pytest

from orchard.run.verdict import MarkedFailed, RunFailed, check_verdict

DONE: dict[str, str | None] = {"pca.wait_step": "success", "publish": "success", "cluster_gone": "success"}


def test_a_run_that_was_marked_failed_fails() -> None:
    with pytest.raises(MarkedFailed, match=r"marked failed while features\.wait_step was running"):
        check_verdict({"ingest.wait_step": "success", "features.wait_step": "failed", "publish": "skipped"})


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"pca.wait_step": "failed", "publish": "upstream_failed"}, "pca.wait_step failed: see the logs"),
        ({"publish": "failed"}, "publish failed: see the logs"),
        ({"publish": "upstream_failed"}, "publish did not run: clear with downstream"),
    ],
)
def test_a_run_fails_if_a_task_has_failed_or_could_not_run(changed: dict[str, str | None], named: str) -> None:
    with pytest.raises(RunFailed, match=f"^the run has failed, because {named}$"):
        check_verdict({**DONE, **changed})


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"pca.wait_step": "success", "publish": "skipped"},  # marked success
        {"terminate_cluster": "failed"},  # the cluster is gone all the same
        {"cluster_gone": "failed"},  # `verdict` has then checked it itself
        {"cluster_gone": "failed", "publish": "skipped"},  # marked success
        {"verdict": "failed"},  # its own earlier attempt
        {"verdict": "running"},
        {"hold_cluster": "failed"},  # a user has marked it failed, to end the hold early
    ],
)
def test_every_other_run_succeeds(changed: dict[str, str | None]) -> None:
    check_verdict({**DONE, **changed})
