import json
from dataclasses import replace
from datetime import timedelta

import pytest

from orchard.report.plots import MOST_LABELS, SERIES, Series, labels_plot, map_plot, series_plot, variance_plot
from orchard.report.run_rows import RunFigures
from tests.plugins.report.test_airflow_run import START

RUN = RunFigures(
    run_id="20261127T020000-abc123",
    dataset="s3://fruits/images/",
    published_at=START,
    seconds=120.0,
    step_seconds={},
    listed=10,
    images=10,
    new=0,
    changed=0,
    deleted=0,
    duplicates=0,
    inferences=0,
    rejects=0,
    cost_usd=0.1,
    estimated_usd=0.1,
    explained_variance=0.95,
    drift=None,
    label_accuracy=1.0,
)


def text_of(item: dict[str, object]) -> str:
    return json.dumps(item)


def test_the_map_has_an_empty_source_and_no_tooltip_of_bokeh() -> None:
    text = text_of(map_plot())
    assert '"name": "points"' in text
    assert '"tooltips": null' in text


def test_labels_that_look_alike_are_different_rows() -> None:
    long = "x" * 100
    text = text_of(labels_plot({f"{long}1": 3, f"{long}2": 2, "": 1}, None))
    assert (
        f"{'x' * 39}… (2)" in json.loads(json.dumps(text)).encode().decode("unicode_escape", "ignore") or "(2)" in text
    )
    assert "(no label)" in text


def test_of_many_labels_the_first_are_drawn() -> None:
    text = text_of(labels_plot({f"label {number}": 1 for number in range(500)}, {"label 3": 1}))
    assert f"label {MOST_LABELS - 1}" in text
    assert f'"label {MOST_LABELS}"' not in text


@pytest.mark.parametrize("ratios", [[], [0.5], [0.5, 0.3, 0.1]])
def test_the_variance_of_any_number_of_components_is_drawn(ratios: list[float]) -> None:
    assert "components" in text_of(variance_plot(ratios, len(ratios)))


@pytest.mark.parametrize("series", [known for known in SERIES if known.key != "drift"], ids=lambda known: known.key)
@pytest.mark.parametrize("runs", [1, 2], ids=["one run", "equal runs"])
def test_one_run_and_equal_runs_have_an_axis_with_a_width(series: Series, runs: int) -> None:
    shown = [replace(RUN, published_at=START + timedelta(days=day)) for day in range(runs)]
    item = series_plot(series, shown, {RUN.run_id: "manual__1"})
    (root,) = item["doc"]["roots"]
    for name in ("x_range", "y_range"):
        ends = root["attributes"][name].get("attributes", {})
        assert ends.get("end", 1) > ends.get("start", 0)  # Bokeh leaves out its defaults
    assert "manual__1" in text_of(item)


def test_a_run_without_a_figure_is_left_out() -> None:
    (drift,) = [series for series in SERIES if series.key == "drift"]
    assert drift.value(RUN) is None
    assert drift.value(replace(RUN, drift=0.5)) == 0.5
