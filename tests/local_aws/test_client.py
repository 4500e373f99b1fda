from typing import Any

import pytest

from local_aws.client import LocalAwsClient, Refused


def test_rules_are_listed_unchanged_and_removed_individually(local_aws: LocalAwsClient) -> None:
    first = local_aws.fail("emr:ListClusters", "ThrottlingException", calls=[2, 3])
    second = local_aws.latency(0.001)
    rules = [(fault["id"], fault["rule"]) for fault in local_aws.faults()]
    latency = {"on": "s3", "latency_seconds": 0.001, "share": 1.0, "seed": 0}
    assert rules == [
        (first, {"on": "emr:ListClusters", "answer": "ThrottlingException", "calls": [2, 3]}),
        (second, latency),
    ]
    local_aws.remove(first)
    assert [fault["id"] for fault in local_aws.faults()] == [second]
    local_aws.clear()
    assert local_aws.faults() == []


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        (lambda client: client.fail("emr:Describe", "ThrottlingException"), 400, "emr:Describe"),
        (lambda client: client.remove("999"), 404, "fault '999' does not exist"),
        (lambda client: client.lose_instances("j-NONE"), 404, "j-NONE"),
        (lambda client: client.interrupt_spot("j-NONE"), 404, "j-NONE"),
        (lambda client: client.limit_spot(-1), 400, "spot_instances: -1 is invalid"),
        (lambda client: client.kill_step("j-NONE", "s-NONE"), 404, "j-NONE"),
        (lambda client: client.kill_step("j-NONE", "s-NONE", 999), 400, "number of a signal"),
    ],
)
def test_an_invalid_request_raises_refused_and_adds_no_rule(
    local_aws: LocalAwsClient, request_: Any, status: int, message: str
) -> None:
    with pytest.raises(Refused, match=message) as refused:
        request_(local_aws)
    assert refused.value.status == status
    assert local_aws.faults() == []
