import argparse
from dataclasses import replace

import pytest

from benchmarks import cost
from orchard.cluster.instances import INSTANCE_TYPES
from orchard.cluster.prices import read_prices
from orchard.cluster.sizing import Speed
from orchard.run.params import DEFAULT_TARGET_MINUTES, MAX_CORE_INSTANCES

PRICES, SPEED = read_prices(), Speed()


def test_the_page_has_the_tables_that_the_program_computes() -> None:
    text = cost.PAGE.read_text()
    found = cost.tables(DEFAULT_TARGET_MINUTES, PRICES, SPEED)
    assert cost.with_tables(text, found) == text, "run `python -m benchmarks.cost --write`"
    other = cost.tables(DEFAULT_TARGET_MINUTES, PRICES, replace(SPEED, inferences_per_second=10))
    assert cost.with_tables(text, other) != text


def test_a_page_without_a_marker_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cost.md lacks the markers <!-- computed: counts: begin -->"):
        cost.with_tables("# Costs\n", {"counts": "| 1 |"})


def test_above_a_million_images_a_million_costs_at_most_15_cents_with_spot() -> None:
    found = cost.sized(10_000_000, "c6i.xlarge", 60, PRICES, SPEED)
    assert found.workers.total <= MAX_CORE_INSTANCES
    assert max(found.usd_with_spot) / 10 <= 0.15


def test_every_instance_type_has_a_row_and_the_cheapest_is_first() -> None:
    rows = cost.table_of_types(10**7, 60, PRICES, SPEED).splitlines()[2:]
    assert len(rows) == len(INSTANCE_TYPES)
    lowest = [float(row.split("|")[4].split(" to ")[0]) for row in rows]
    assert lowest == sorted(lowest)


@pytest.mark.parametrize("text", ["[]", "3", "{", '{"speed": 1}', '{"ready_seconds": 0}', '{"ready_seconds": "x"}'])
def test_rates_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="use a JSON object of positive numbers for ready_seconds"):
        cost.speed_of(text)


def test_rates_can_be_replaced() -> None:
    assert cost.speed_of('{"ready_seconds": 300}') == replace(SPEED, ready_seconds=300)
