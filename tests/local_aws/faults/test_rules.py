import re
from typing import Any

import pytest

from local_aws.faults.rules import (
    Answer,
    EndCluster,
    Faults,
    Hang,
    InvalidRule,
    Latency,
    LoseAnswer,
    Numbered,
    Rule,
    Share,
    parse_rule,
)

OPERATIONS = ("DescribeCluster", "RunJobFlow")


def matches(rule: dict[str, Any], calls: list[str]) -> list[int]:
    """Return the positions in `calls`, counted from 1, that a single rule matches."""
    faults = Faults()
    faults.add(rule, OPERATIONS)
    return [number for number, call in enumerate(calls, start=1) if faults.match(call)]


@pytest.mark.parametrize(
    ("document", "rule"),
    [
        (
            {"on": "emr:DescribeCluster", "calls": [2, 3], "answer": "ThrottlingException"},
            Rule("emr:DescribeCluster", Numbered(frozenset({2, 3})), Answer("ThrottlingException")),
        ),
        ({"on": "emr", "lose_answer": True}, Rule("emr", Numbered(), LoseAnswer())),
        ({"on": "emr", "hang_seconds": 5}, Rule("emr", Numbered(), Hang(5))),
        ({"on": "s3", "latency_seconds": 0.05, "share": 1}, Rule("s3", Share(1), Latency(0.05))),
        (
            {"on": "s3", "share": 0.2, "answer": "SlowDown", "seed": 1},
            Rule("s3", Share(0.2, 1), Answer("SlowDown")),
        ),
        (
            {"on": "cluster", "end": "BOOTSTRAP_FAILURE", "calls": [1]},
            Rule("cluster", Numbered(frozenset({1})), EndCluster("BOOTSTRAP_FAILURE")),
        ),
    ],
)
def test_a_valid_rule_is_parsed(document: dict[str, Any], rule: Rule) -> None:
    assert parse_rule(document, OPERATIONS) == rule


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "a rule must be a JSON object, not []"),
        ({"on": "s3", "anwser": "SlowDown"}, "unknown fields ['anwser']"),
        ({"lose_answer": True}, "on: None is invalid"),
        ({"on": ["s3"], "lose_answer": True}, "on: ['s3'] is invalid"),
        ({"on": "emr:Describe", "lose_answer": True}, "on: 'emr:Describe' is invalid"),
        ({"on": "emr:Describe", "lose_answer": True}, "one of DescribeCluster, RunJobFlow"),
        (
            {"on": "s3"},
            "a rule must have exactly one of answer, lose_answer, hang_seconds, latency_seconds, end, spot_instances, "
            "not []",
        ),
        ({"on": "s3", "answer": "SlowDown", "lose_answer": True}, "not ['answer', 'lose_answer']"),
        (
            {"on": "s3", "answer": "ThrottlingException"},
            "answer: 'ThrottlingException' is invalid; use one of SlowDown",
        ),
        ({"on": "emr", "answer": "SlowDown"}, "answer: 'SlowDown' is invalid; use one of ThrottlingException"),
        ({"on": "emr", "answer": []}, "answer: [] is invalid; use one of"),
        ({"on": "emr", "lose_answer": False}, "lose_answer: False is invalid; use true"),
        ({"on": "emr", "hang_seconds": 0}, "hang_seconds: 0 is invalid; use a number of seconds above 0"),
        ({"on": "emr", "latency_seconds": "1"}, "latency_seconds: '1' is invalid; use a number of seconds"),
        ({"on": "emr", "latency_seconds": True}, "latency_seconds: True is invalid; use a number of seconds"),
        ({"on": "emr", "hang_seconds": float("nan")}, "hang_seconds: nan is invalid; use a number of seconds"),
        ({"on": "cluster", "end": "STEP_FAILURE"}, "end: 'STEP_FAILURE' is invalid; use one of VALIDATION_ERROR"),
        ({"on": "cluster", "spot_instances": -1}, "spot_instances: -1 is invalid; use a number of instances"),
        ({"on": "cluster", "spot_instances": True}, "spot_instances: True is invalid; use a number of instances"),
        ({"on": "cluster", "spot_instances": 1.5}, "spot_instances: 1.5 is invalid; use a number of instances"),
        ({"on": "cluster", "lose_answer": True}, "lose_answer is invalid on cluster"),
        ({"on": "emr", "spot_instances": 0}, "spot_instances is invalid on emr"),
        ({"on": "s3", "end": "VALIDATION_ERROR"}, "end is invalid on s3"),
        ({"on": "s3", "lose_answer": True, "calls": []}, "calls: [] is invalid; use a list of numbers"),
        ({"on": "s3", "lose_answer": True, "calls": [0]}, "calls: [0] is invalid; use a list of numbers"),
        ({"on": "s3", "lose_answer": True, "calls": 1}, "calls: 1 is invalid; use a list of numbers"),
        ({"on": "s3", "lose_answer": True, "calls": [1], "share": 1}, "calls excludes share and seed"),
        ({"on": "s3", "lose_answer": True, "share": 20}, "share: 20 is invalid; use a number above 0 and at most 1"),
        ({"on": "s3", "lose_answer": True, "share": 0.5, "seed": "x"}, "seed: 'x' is invalid; use an integer"),
        ({"on": "s3", "lose_answer": True, "seed": 1}, "seed requires share"),
    ],
)
def test_an_invalid_rule_is_rejected_with_the_wrong_field(document: object, message: str) -> None:
    with pytest.raises(InvalidRule, match=re.escape(message)):
        parse_rule(document, OPERATIONS)


def test_a_rule_counts_only_the_calls_of_its_operation() -> None:
    calls = ["emr:RunJobFlow", "emr:DescribeCluster", "s3", "emr:DescribeCluster", "emr:DescribeCluster"]
    assert matches({"on": "emr:DescribeCluster", "calls": [2], "lose_answer": True}, calls) == [4]


def test_a_rule_on_emr_applies_to_every_emr_operation_and_nothing_else() -> None:
    assert matches({"on": "emr", "lose_answer": True}, ["emr:RunJobFlow", "s3", "cluster", "emr:AddTags"]) == [1, 4]


def test_a_rule_without_calls_or_share_applies_to_every_call() -> None:
    assert matches({"on": "s3", "latency_seconds": 1}, ["s3"] * 4) == [1, 2, 3, 4]


def test_a_share_selects_about_that_share_of_the_calls_and_the_same_for_the_same_seed() -> None:
    first, again, other = (
        matches({"on": "s3", "share": 0.2, "seed": seed, "answer": "SlowDown"}, ["s3"] * 1000) for seed in (1, 1, 2)
    )
    assert 150 < len(first) < 250
    assert first == again
    assert first != other


def test_latencies_add_up_and_only_the_first_other_fault_applies() -> None:
    faults = Faults()
    for rule in (
        {"on": "s3", "latency_seconds": 1},
        {"on": "s3", "latency_seconds": 2},
        {"on": "s3", "calls": [1], "answer": "SlowDown"},
        {"on": "s3", "lose_answer": True},
    ):
        faults.add(rule, ())
    assert [fault.rule.effect for fault in faults.match("s3")] == [Latency(1), Latency(2), Answer("SlowDown")]
    assert [fault.rule.effect for fault in faults.match("s3")] == [Latency(1), Latency(2), LoseAnswer()]
    assert [(fault["seen"], fault["struck"]) for fault in faults.describe()] == [(2, 2), (2, 2), (2, 1), (2, 1)]


def test_a_removed_rule_matches_no_more_and_releases_its_calls() -> None:
    faults = Faults()
    removed = faults.add({"on": "s3", "hang_seconds": 60}, ())
    remaining = faults.add({"on": "s3", "answer": "SlowDown"}, ())
    [hanging] = faults.match("s3")
    faults.remove(removed)
    assert hanging.removed.is_set()
    assert [fault.id for fault in faults.match("s3")] == [remaining]
    with pytest.raises(KeyError, match=removed):
        faults.remove(removed)
    assert faults
    faults.remove()
    assert not faults
    assert faults.match("s3") == []
