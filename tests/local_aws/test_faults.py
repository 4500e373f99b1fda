import re
from typing import Any

import pytest

from local_aws.faults import (
    Answer,
    BadRule,
    EndCluster,
    Faults,
    Hang,
    Latency,
    LoseAnswer,
    Numbered,
    Rule,
    Share,
    parse_rule,
)

OPERATIONS = ("DescribeCluster", "RunJobFlow")


def struck(rule: dict[str, Any], calls: list[str]) -> list[int]:
    """The places in `calls`, from 1 on, that a rule alone strikes."""
    faults = Faults()
    faults.add(rule, OPERATIONS)
    return [place for place, call in enumerate(calls, start=1) if faults.strike(call)]


@pytest.mark.parametrize(
    ("wire", "rule"),
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
def test_a_rule_is_read(wire: dict[str, Any], rule: Rule) -> None:
    assert parse_rule(wire, OPERATIONS) == rule


@pytest.mark.parametrize(
    ("wire", "complaint"),
    [
        ([], "a rule is a JSON object, not []"),
        ({"on": "s3", "anwser": "SlowDown"}, "unknown fields ['anwser']"),
        ({"lose_answer": True}, "on: None is not"),
        ({"on": ["s3"], "lose_answer": True}, "on: ['s3'] is not"),
        ({"on": "emr:Describe", "lose_answer": True}, "on: 'emr:Describe' is not"),
        ({"on": "emr:Describe", "lose_answer": True}, "one of DescribeCluster, RunJobFlow"),
        ({"on": "s3"}, "a rule has one of answer, lose_answer, hang_seconds, latency_seconds, end, not []"),
        ({"on": "s3", "answer": "SlowDown", "lose_answer": True}, "not ['answer', 'lose_answer']"),
        ({"on": "s3", "answer": "ThrottlingException"}, "answer: 'ThrottlingException' is not one of SlowDown"),
        ({"on": "emr", "answer": "SlowDown"}, "answer: 'SlowDown' is not one of ThrottlingException"),
        ({"on": "emr", "answer": []}, "answer: [] is not one of"),
        ({"on": "emr", "lose_answer": False}, "lose_answer: False is not true"),
        ({"on": "emr", "hang_seconds": 0}, "hang_seconds: 0 is not a number of seconds above 0"),
        ({"on": "emr", "latency_seconds": "1"}, "latency_seconds: '1' is not a number of seconds"),
        ({"on": "emr", "latency_seconds": True}, "latency_seconds: True is not a number of seconds"),
        ({"on": "emr", "hang_seconds": float("nan")}, "hang_seconds: nan is not a number of seconds"),
        ({"on": "cluster", "end": "STEP_FAILURE"}, "end: 'STEP_FAILURE' is not one of VALIDATION_ERROR"),
        ({"on": "cluster", "lose_answer": True}, "lose_answer: not for cluster"),
        ({"on": "s3", "end": "VALIDATION_ERROR"}, "end: not for s3"),
        ({"on": "s3", "lose_answer": True, "calls": []}, "calls: [] is not a list of numbers"),
        ({"on": "s3", "lose_answer": True, "calls": [0]}, "calls: [0] is not a list of numbers"),
        ({"on": "s3", "lose_answer": True, "calls": 1}, "calls: 1 is not a list of numbers"),
        ({"on": "s3", "lose_answer": True, "calls": [1], "share": 1}, "calls or share and seed, not both"),
        ({"on": "s3", "lose_answer": True, "share": 20}, "share: 20 is not a number above 0 and up to 1"),
        ({"on": "s3", "lose_answer": True, "share": 0.5, "seed": "x"}, "seed: 'x' is not a whole number"),
        ({"on": "s3", "lose_answer": True, "seed": 1}, "seed: there is no share"),
    ],
)
def test_what_is_no_rule_is_refused_by_name(wire: object, complaint: str) -> None:
    with pytest.raises(BadRule, match=re.escape(complaint)):
        parse_rule(wire, OPERATIONS)


def test_only_the_calls_of_its_own_operation_are_counted() -> None:
    calls = ["emr:RunJobFlow", "emr:DescribeCluster", "s3", "emr:DescribeCluster", "emr:DescribeCluster"]
    assert struck({"on": "emr:DescribeCluster", "calls": [2], "lose_answer": True}, calls) == [4]


def test_a_rule_on_emr_is_about_every_operation_and_nothing_else() -> None:
    assert struck({"on": "emr", "lose_answer": True}, ["emr:RunJobFlow", "s3", "cluster", "emr:AddTags"]) == [1, 4]


def test_a_rule_without_a_choice_strikes_every_call() -> None:
    assert struck({"on": "s3", "latency_seconds": 1}, ["s3"] * 4) == [1, 2, 3, 4]


def test_a_share_is_about_that_share_of_the_calls_and_the_same_for_the_same_seed() -> None:
    first, again, other = (
        struck({"on": "s3", "share": 0.2, "seed": seed, "answer": "SlowDown"}, ["s3"] * 1000) for seed in (1, 1, 2)
    )
    assert 150 < len(first) < 250
    assert first == again
    assert first != other


def test_latencies_add_up_and_the_first_other_fault_decides() -> None:
    faults = Faults()
    for rule in (
        {"on": "s3", "latency_seconds": 1},
        {"on": "s3", "latency_seconds": 2},
        {"on": "s3", "calls": [1], "answer": "SlowDown"},
        {"on": "s3", "lose_answer": True},
    ):
        faults.add(rule, ())
    assert [fault.rule.effect for fault in faults.strike("s3")] == [Latency(1), Latency(2), Answer("SlowDown")]
    assert [fault.rule.effect for fault in faults.strike("s3")] == [Latency(1), Latency(2), LoseAnswer()]
    assert [(fault["seen"], fault["struck"]) for fault in faults.listed()] == [(2, 2), (2, 2), (2, 1), (2, 1)]


def test_a_removed_rule_strikes_no_more_and_lets_go() -> None:
    faults = Faults()
    gone = faults.add({"on": "s3", "hang_seconds": 60}, ())
    kept = faults.add({"on": "s3", "answer": "SlowDown"}, ())
    [hanging] = faults.strike("s3")
    faults.remove(gone)
    assert hanging.removed.is_set()
    assert [fault.id for fault in faults.strike("s3")] == [kept]
    with pytest.raises(KeyError, match=gone):
        faults.remove(gone)
    assert faults
    faults.remove()
    assert not faults
    assert faults.strike("s3") == []
