from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchard.cluster.history import MAX_FACTOR, RATES, RUNS_TO_LEARN_FROM, PastRun, differences, learn
from orchard.cluster.sizing import Speed, Work

DEFAULT = Speed()
ALL_RATES = [name for rates in RATES.values() for name in rates]
NOTHING = PastRun(None, None, None, None, None, None, None, {})


def past(work: Work, slots: int, speed: Speed) -> PastRun:
    """Return a run that took exactly what a speed predicts."""
    seconds = {step: of_step / slots for step, of_step in speed.step_task_seconds(work).items()}
    cluster_seconds = speed.fixed_seconds() + sum(seconds.values())
    counts = (work.objects, work.bytes, work.objects, work.images)
    return PastRun(speed.ready_seconds, cluster_seconds, slots, *counts, seconds)


def test_without_history_the_defaults_apply() -> None:
    assert learn([], DEFAULT) == DEFAULT
    assert learn([NOTHING], DEFAULT) == DEFAULT
    assert differences(DEFAULT, DEFAULT) == {}


def test_the_time_to_ready_is_the_median_of_the_last_runs() -> None:
    runs = [replace(NOTHING, ready_seconds=seconds) for seconds in (300.0, 900.0, 320.0)]
    assert learn(runs, DEFAULT).ready_seconds == 320
    old = [replace(NOTHING, ready_seconds=600.0)] * 100
    new = [replace(NOTHING, ready_seconds=200.0)] * RUNS_TO_LEARN_FROM
    assert learn([*new, *old], DEFAULT).ready_seconds == 200


@pytest.mark.parametrize("size", [0, 5_000, 3_000_000])
@pytest.mark.parametrize("factor", [0.5, 0.9, 1.1, 1.25, 3])
def test_the_factor_by_which_a_step_was_slower_applies_to_all_its_rates(size: int, factor: float) -> None:
    times = {"ready_seconds": 200, "other_seconds": 190}
    true = replace(DEFAULT, **times, **{name: getattr(DEFAULT, name) / factor for name in ALL_RATES})
    learnt = learn([past(Work(10**7, 2 * 10**7, 10**7 * size), 16, true)], DEFAULT)
    for name in (*times, *ALL_RATES):
        assert getattr(learnt, name) == pytest.approx(getattr(true, name))
    assert set(differences(learnt, DEFAULT)) == {*times, *ALL_RATES}


def test_each_step_has_its_own_factor() -> None:
    true = replace(DEFAULT, vectors_per_second=DEFAULT.vectors_per_second / 2)
    assert differences(learn([past(Work(10**6, 10**7), 16, true)], DEFAULT), DEFAULT) == pytest.approx(
        {"vectors_per_second": DEFAULT.vectors_per_second / 2}
    )


def test_known_contents_are_not_decoded_and_do_not_count_as_inferences() -> None:
    inferred = Work(objects=10**5, images=10**5, bytes=3 * 10**10)
    seconds = {"features": 2 * DEFAULT.step_task_seconds(inferred)["features"] / 16}
    run = PastRun(None, None, 16, 10**6, 3 * 10**11, 10**5, 10**6, seconds)
    assert learn([run], DEFAULT).inferences_per_second == pytest.approx(DEFAULT.inferences_per_second / 2)


def test_a_short_step_shows_nothing_because_spark_starts_in_it() -> None:
    true = replace(DEFAULT, inferences_per_second=40)
    assert learn([past(Work(300, 300), 4, true)], DEFAULT).inferences_per_second == DEFAULT.inferences_per_second


@pytest.mark.parametrize("other_seconds", [5.0, 170.0, 900.0])
def test_the_estimate_of_a_run_like_the_last_is_what_the_last_took(other_seconds: float) -> None:
    work = Work(objects=300, images=20_000, bytes=2 * 10**6)
    true = replace(DEFAULT, ready_seconds=270, other_seconds=other_seconds)
    run = past(work, 4, true)
    # Spark's start makes the short steps longer, and the rest of the time shorter.
    steps = {step: 9 + seconds / 4 for step, seconds in true.step_task_seconds(work).items()}
    learnt = learn([replace(run, step_seconds=steps)], DEFAULT)
    assert learnt.fixed_seconds() + learnt.task_seconds(work) / 4 == pytest.approx(run.cluster_seconds)


def test_the_time_besides_start_and_tasks_is_the_median_of_the_last_runs() -> None:
    work = Work(10**6, 10**6, 5 * 10**9)
    runs = [past(work, 16, replace(DEFAULT, other_seconds=seconds)) for seconds in (120, 150, 1700)]
    assert learn(runs, DEFAULT).other_seconds == pytest.approx(150)
    without = [replace(runs[0], ready_seconds=None), replace(runs[0], cluster_seconds=None)]
    assert learn(without, DEFAULT).other_seconds == DEFAULT.other_seconds, "a held run, and one of an earlier release"


ODD: list[dict[str, Any]] = [
    {"ready_seconds": -5.0},
    {"ready_seconds": float("nan")},
    {"ready_seconds": float("inf")},
    {"ready_seconds": 0.0},
    {"ready_seconds": 86_400.0},
    {"cluster_seconds": -5.0},
    {"cluster_seconds": float("nan")},
    {"cluster_seconds": float("inf")},
    {"cluster_seconds": 0.0},
    {"cluster_seconds": 86_400.0},
    {"task_slots": 0},
    {"task_slots": -4},
    {"objects": 0, "inferences": 0, "images": 0},
    {"objects": -1, "inferences": -1, "images": -1},
    {"objects": 10**15, "inferences": 10**15, "images": 10**15},
    {"bytes": 10**18},
    {"step_seconds": {}},
    {"step_seconds": {"ingest": None, "features": None, "pca": None}},
    {"step_seconds": {"ingest": -100.0, "features": float("nan"), "pca": float("inf")}},
    {"step_seconds": {"ingest": 1e12, "features": 1e12, "pca": 1e12}},
]


@pytest.mark.parametrize("odd", ODD, ids=str)
def test_values_that_cannot_be_true_do_not_count(odd: dict[str, Any]) -> None:
    good = past(Work(10**6, 10**6, 5 * 10**9), 16, DEFAULT)
    learnt = learn([replace(good, **odd)], DEFAULT)
    for name in odd:
        assert name != "ready_seconds" or learnt.ready_seconds == DEFAULT.ready_seconds
        assert name != "cluster_seconds" or learnt.other_seconds == DEFAULT.other_seconds
    for name in ALL_RATES:
        assert getattr(learnt, name) == pytest.approx(getattr(DEFAULT, name)), "the default, or what a good value shows"


NUMBERS = st.one_of(st.none(), st.floats(), st.floats(min_value=0, max_value=1e6))
COUNTS = st.one_of(st.none(), st.integers(min_value=-(10**18), max_value=10**18))
RUNS = st.builds(
    PastRun,
    ready_seconds=NUMBERS,
    cluster_seconds=NUMBERS,
    task_slots=COUNTS,
    objects=COUNTS,
    bytes=COUNTS,
    inferences=COUNTS,
    images=COUNTS,
    step_seconds=st.dictionaries(st.sampled_from(["plan", "ingest", "features", "pca"]), NUMBERS),
)


@given(runs=st.lists(RUNS, max_size=5), objects=st.integers(min_value=0, max_value=10**8))
def test_no_history_makes_an_estimate_impossible(runs: list[PastRun], objects: int) -> None:
    learnt = learn(runs, DEFAULT)
    assert 0 < learnt.ready_seconds <= 3600
    assert 0 < learnt.other_seconds <= 1800
    expected = DEFAULT.task_seconds(Work(objects, objects))
    assert expected / MAX_FACTOR * 0.99 <= learnt.task_seconds(Work(objects, objects)) <= expected * MAX_FACTOR * 1.01
