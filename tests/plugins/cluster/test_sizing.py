from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchard.cluster.instances import INSTANCE_TYPES
from orchard.cluster.prices import read_prices
from orchard.cluster.sizing import Speed, Work, Workers, estimate, with_spot, workers_needed

SPEED = Speed()
COUNTS = st.integers(min_value=0, max_value=10**8)
TYPES = st.sampled_from(list(INSTANCE_TYPES))


def minutes(work: Work, instance_type: str, workers: int) -> float:
    return estimate(work, instance_type, Workers(workers), read_prices(), SPEED).minutes


@given(objects=COUNTS, kept=COUNTS, instance_type=TYPES, target=st.floats(min_value=0.1, max_value=600))
def test_the_number_of_workers_is_the_smallest_that_meets_the_target(
    objects: int, kept: int, instance_type: str, target: float
) -> None:
    work = Work(objects, objects + kept)
    workers = workers_needed(work, instance_type, target, 20, SPEED)
    assert 1 <= workers <= 20
    least = (SPEED.fixed_seconds() + max(60, 60 * target / 4)) / 60  # no target is shorter than this
    if workers < 20:
        assert minutes(work, instance_type, workers) <= max(target, least) + 0.1
    if workers > 1:
        assert minutes(work, instance_type, workers - 1) >= max(target, least) - 0.1


def test_a_shorter_run_than_a_minute_costs_as_much_as_a_minute() -> None:
    quick, per_minute = Speed(ready_seconds=1, other_seconds=30), 2 * read_prices().by_type["m5.xlarge"].on_demand / 60
    found = estimate(Work(1, 1), "m5.xlarge", Workers(1), read_prices(), quick)
    assert (found.minutes, found.usd) == (0.5, round(per_minute, 4))


def test_more_images_take_more_workers_and_a_longer_target_fewer() -> None:
    def needed(images: int, target: float) -> int:
        return workers_needed(Work(images, images), "m5.xlarge", target, 20, SPEED)

    assert [needed(count, 20) for count in (300, 100_000, 1_000_000, 10_000_000)] == [1, 1, 4, 20]
    assert [needed(1_000_000, target) for target in (12, 20, 60)] == [11, 4, 1]


def test_a_short_target_does_not_make_a_large_cluster_for_a_few_images() -> None:
    assert workers_needed(Work(12, 12), "m5.xlarge", 0.5, 20, SPEED) == 1


def test_the_price_is_that_of_all_nodes_for_the_whole_time() -> None:
    found = estimate(Work(10**7, 10**7), "m5.xlarge", Workers(20), read_prices(), SPEED)
    on_demand = read_prices().by_type["m5.xlarge"].on_demand
    assert found.usd == pytest.approx(found.minutes / 60 * 21 * on_demand, rel=0.01)


@given(objects=COUNTS, instance_type=TYPES, workers=st.integers(min_value=1, max_value=20))
def test_spot_workers_take_the_same_time_and_cost_at_most_as_much(
    objects: int, instance_type: str, workers: int
) -> None:
    work, prices, size = Work(objects, objects), read_prices(), with_spot(workers)
    on_demand = estimate(work, instance_type, Workers(workers), prices, SPEED)
    found = estimate(work, instance_type, size, prices, SPEED)
    assert (found.minutes, found.usd) == (on_demand.minutes, on_demand.usd), "the price if all of Spot falls back"
    assert on_demand.usd_with_spot == (on_demand.usd, on_demand.usd)
    low, high = found.usd_with_spot
    assert low <= high <= found.usd
    if size.task and found.usd > 0.1:
        assert high < found.usd


def test_the_first_worker_is_on_demand_and_all_others_are_on_spot() -> None:
    assert [with_spot(workers) for workers in (1, 2, 20)] == [Workers(1), Workers(1, 1), Workers(1, 19)]


def test_the_range_with_spot_has_the_prices_of_all_types_of_the_size() -> None:
    work, prices = Work(10**7, 10**7), read_prices().by_type
    found = estimate(work, "m5.xlarge", Workers(1, 19), read_prices(), SPEED)
    spot = [prices[name].spot for name in ("m5.xlarge", "m6i.xlarge", "m7i.xlarge")]
    hours = found.minutes / 60
    for usd, price in zip(found.usd_with_spot, (min(spot)[0], max(high for _, high in spot)), strict=True):
        assert usd == pytest.approx(hours * (2 * prices["m5.xlarge"].on_demand + 19 * price), rel=0.01)


def test_known_images_cost_only_their_part_of_the_pca() -> None:
    nothing_new, all_new = Work(0, 10**6), Work(10**6, 10**6)
    assert SPEED.task_seconds(nothing_new) < SPEED.task_seconds(all_new) / 10


def test_a_slow_start_of_the_cluster_does_not_make_it_large() -> None:
    work = Work(10**6, 10**6)
    workers = [
        workers_needed(work, "m5.xlarge", 20, 20, replace(SPEED, ready_seconds=seconds))
        for seconds in (420, 1100, 3600)
    ]
    assert workers == [4, 8, 8]
