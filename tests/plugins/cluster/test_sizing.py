import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchard.cluster.instances import INSTANCE_TYPES
from orchard.cluster.prices import read_prices
from orchard.cluster.sizing import Speed, Work, estimate, workers_needed

SPEED = Speed()
COUNTS = st.integers(min_value=0, max_value=10**8)
TYPES = st.sampled_from(list(INSTANCE_TYPES))


def minutes(work: Work, instance_type: str, workers: int) -> float:
    return estimate(work, instance_type, workers, read_prices(), SPEED).minutes


@given(objects=COUNTS, kept=COUNTS, instance_type=TYPES, target=st.floats(min_value=0.1, max_value=600))
def test_the_number_of_workers_is_the_smallest_that_meets_the_target(
    objects: int, kept: int, instance_type: str, target: float
) -> None:
    work = Work(objects, objects + kept)
    workers = workers_needed(work, instance_type, target, 20, SPEED)
    assert 1 <= workers <= 20
    least = (SPEED.fixed_seconds() + 60) / 60  # no target is shorter than this
    if workers < 20:
        assert minutes(work, instance_type, workers) <= max(target, least) + 0.1
    if workers > 1:
        assert minutes(work, instance_type, workers - 1) >= max(target, least) - 0.1


def test_more_images_take_more_workers_and_a_longer_target_fewer() -> None:
    def needed(images: int, target: float) -> int:
        return workers_needed(Work(images, images), "m5.xlarge", target, 20, SPEED)

    assert [needed(count, 20) for count in (300, 100_000, 1_000_000, 10_000_000)] == [1, 1, 4, 20]
    assert [needed(1_000_000, target) for target in (12, 20, 60)] == [11, 4, 1]


def test_a_short_target_does_not_make_a_large_cluster_for_a_few_images() -> None:
    assert workers_needed(Work(12, 12), "m5.xlarge", 0.5, 20, SPEED) == 1


def test_the_price_is_that_of_all_nodes_for_the_whole_time() -> None:
    found = estimate(Work(10**7, 10**7), "m5.xlarge", 20, read_prices(), SPEED)
    on_demand = read_prices().by_type["m5.xlarge"].on_demand
    assert found.usd == pytest.approx(found.minutes / 60 * 21 * on_demand, rel=0.01)


def test_known_images_cost_only_their_part_of_the_pca() -> None:
    nothing_new, all_new = Work(0, 10**6), Work(10**6, 10**6)
    assert SPEED.task_seconds(nothing_new) < SPEED.task_seconds(all_new) / 10
