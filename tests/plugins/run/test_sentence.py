from typing import Any

import pytest

from orchard.run.sentence import UNKNOWN, Spent, dollars, duration, plan_sentence, run_sentence

COUNTS = {"new": 0, "changed": 0, "deleted": 0}
ESTIMATE = {"core_instances": 1, "task_instances": 2, "minutes": 8.2, "usd": 0.1134}


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        ({"listed": 22_688, "new": 31, "changed": 2, "deleted": 1}, "22,688 images, 31 new, 2 changed, 1 deleted"),
        ({"listed": 22_688, "new": 31}, "22,688 images, 31 new"),
        ({"listed": 22_688, "deleted": 1_200}, "22,688 images, 1,200 deleted"),
        ({"listed": 300, "new": 300}, "300 images, all new"),
        ({"listed": 300, "new": 300, "deleted": 5}, "300 images, all new, 5 deleted"),
        ({"listed": 1, "new": 1}, "1 image, 1 new"),
        ({"listed": 300}, "300 images, no changes"),
    ],
)
def test_a_plan_names_what_has_changed_and_leaves_out_what_has_not(counts: dict[str, Any], sentence: str) -> None:
    plan = COUNTS | counts
    assert plan_sentence(plan) == sentence
    assert plan_sentence(plan | {"estimate": ESTIMATE}) == f"{sentence}; 3 workers, about 8 min, about $0.11"


def test_a_cluster_with_one_worker_is_named_in_the_singular() -> None:
    estimate = {"core_instances": 1, "task_instances": 0, "minutes": 90.0, "usd": 12.6}
    plan = {**COUNTS, "listed": 300, "new": 3, "estimate": estimate}
    assert plan_sentence(plan) == "300 images, 3 new; 1 worker, about 1 h 30 min, about $13"


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        ({"listed": 22_688, "rejects_kept": 0}, "nothing to do: 22,688 images below s3://b/images/, no changes"),
        ({"listed": 12, "rejects_kept": 2}, "nothing to do: 12 images below s3://b/images/, 2 rejected, no changes"),
        ({"listed": 1, "rejects_kept": 0}, "nothing to do: 1 image below s3://b/images/, no changes"),
    ],
)
def test_a_plan_with_nothing_to_do_says_so_first(counts: dict[str, Any], sentence: str) -> None:
    assert plan_sentence({**COUNTS, **counts, "dataset": "s3://b/images/", "nothing_to_do": True}) == sentence


@pytest.mark.parametrize(
    ("counts", "spent", "sentence"),
    [
        ({"new": 31, "images_rejected": 2}, Spent(8.3, 0.1134), "22,688 images, 31 new, 2 rejected, 8 min, $0.11"),
        ({"new": 31}, Spent(8.3, 0.1134), "22,688 images, 31 new, 8 min, $0.11"),
        (
            {"new": 1, "changed": 2, "deleted": 3, "images_rejected": 4},
            Spent(120.0, 3.0),
            "22,688 images, 1 new, 2 changed, 3 deleted, 4 rejected, 2 h, $3.00",
        ),
        ({}, Spent(8.3, 0.1134), "22,688 images, no changes, 8 min, $0.11"),
        ({"new": 31}, Spent(8.3), "22,688 images, 31 new, 8 min"),
        ({"new": 31}, Spent(usd=0.0), "22,688 images, 31 new, $0"),
        ({"new": 31}, UNKNOWN, "22,688 images, 31 new"),
    ],
)
def test_a_run_names_its_counts_its_time_and_its_cost_as_far_as_they_are_known(
    counts: dict[str, Any], spent: Spent, sentence: str
) -> None:
    assert run_sentence({**COUNTS, "images_listed": 22_688, "images_rejected": 0, **counts}, spent) == sentence


@pytest.mark.parametrize(
    ("minutes", "text"),
    [
        *((-1.0, "0 s"), (0.0, "0 s"), (0.75, "45 s"), (59.4 / 60, "59 s"), (59.6 / 60, "1 min"), (1.0, "1 min")),
        *((8.4, "8 min"), (59.4, "59 min"), (59.6, "1 h"), (80.0, "1 h 20 min"), (119.7, "2 h")),
        (1501.0, "25 h 1 min"),
    ],
)
def test_a_duration_has_the_units_of_its_size(minutes: float, text: str) -> None:
    assert duration(minutes) == text


@pytest.mark.parametrize(
    ("usd", "text"),
    [
        *((0.0, "$0"), (0.00001, "$0.00001"), (0.00096, "$0.001"), (0.0042, "$0.004"), (0.00996, "$0.01")),
        *((0.01, "$0.01"), (0.1134, "$0.11"), (0.996, "$1.00"), (1.5, "$1.50"), (9.99, "$9.99"), (9.996, "$10")),
        *((12.34, "$12"), (999.6, "$1,000"), (12_345.6, "$12,346")),
    ],
)
def test_a_price_has_the_digits_that_matter(usd: float, text: str) -> None:
    assert dollars(usd) == text
