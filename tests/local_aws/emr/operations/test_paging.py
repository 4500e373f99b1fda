from pathlib import Path

import pytest

from tests.local_aws.user import User, bash, refusal, until


@pytest.fixture(scope="module")
def ended(user: User) -> str:
    return user.run()


def test_pages_of_50_steps_do_not_shift_when_states_change(user: User, tmp_path: Path) -> None:
    cluster_id = user.start(bash(until(tmp_path / "go"), on_failure="CANCEL_AND_WAIT"), *[bash("true")] * 60)
    pages = [page["Steps"] for page in user.emr.get_paginator("list_steps").paginate(ClusterId=cluster_id)]
    assert [len(page) for page in pages] == [50, 11]
    assert len({step["Id"] for page in pages for step in page}) == 61

    first = user.emr.list_steps(ClusterId=cluster_id, StepStates=["PENDING"])
    user.emr.cancel_steps(ClusterId=cluster_id, StepIds=[first["Marker"]])
    second = user.emr.list_steps(ClusterId=cluster_id, StepStates=["PENDING"], Marker=first["Marker"])
    assert (len(first["Steps"]), len(second["Steps"])) == (50, 10)
    code, _ = refusal(user.emr.list_steps, ClusterId=cluster_id, Marker="s-0000000000000")
    assert code == "InvalidRequestException"
    user.terminate(cluster_id)


def test_pages_of_clusters_do_not_shift_when_clusters_are_created(
    user: User, waiting: str, ended: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("local_aws.emr.operations.paging.PAGE_SIZE", 1)
    since = min(user.cluster(name)["Status"]["Timeline"]["CreationDateTime"] for name in (waiting, ended))
    all_ids = [
        cluster["Id"]
        for page in user.emr.get_paginator("list_clusters").paginate(CreatedAfter=since)
        for cluster in page["Clusters"]
    ]
    assert {waiting, ended} <= set(all_ids)
    first = user.emr.list_clusters(CreatedAfter=since)
    user.start()
    second = user.emr.list_clusters(CreatedAfter=since, Marker=first["Marker"])
    assert [cluster["Id"] for cluster in first["Clusters"] + second["Clusters"]] == all_ids[:2]
