"""The report's plots, as the JSON that Bokeh's script draws. The page sets their colours, which follow the theme.

Everything that comes from data is a value of a data source or of a range: Bokeh draws it as text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
from bokeh.embed import json_item
from bokeh.models import (
    BasicTicker,
    ColumnDataSource,
    DatetimeTicker,
    DatetimeTickFormatter,
    FactorRange,
    HoverTool,
    NumeralTickFormatter,
    Plot,
    Range1d,
    TapTool,
)
from bokeh.plotting import figure

from orchard.report.run_rows import RunFigures

# The page finds the parts of a plot by these names, and sets their colours.
MAIN, MARKED, POINTS = "main", "marked", "points"
MAP_HEIGHT, PLOT_HEIGHT, ROW_HEIGHT = 520, 240, 22  # in CSS pixels
MOST_LABELS = 40
MOST_CHARACTERS = 40
# The format of counts.
WHOLE = "0,0"


def map_plot() -> dict[str, Any]:
    """Return the plot of the map without points. The browser fills the data source POINTS."""
    source = ColumnDataSource({"x": [], "y": [], "color": [], "marker": []}, name=POINTS)
    plot = figure(
        name="map",
        height=MAP_HEIGHT,
        sizing_mode="stretch_width",
        tools="pan,wheel_zoom,box_zoom,lasso_select,tap,reset",
        active_scroll="wheel_zoom",
        toolbar_location="above",
        match_aspect=False,
    )
    plot.toolbar.logo = None
    # Without a tooltip of Bokeh's: the page shows the image of the point, and its text as text.
    plot.add_tools(HoverTool(tooltips=None, mode="mouse"))
    drawn = plot.scatter("x", "y", color="color", marker="marker", size=8, alpha=0.75, line_width=0.5, source=source)
    drawn.selection_glyph = drawn.glyph.clone()
    drawn.selection_glyph.line_width = 2.5
    drawn.nonselection_glyph.fill_alpha = 0.25  # type: ignore[union-attr]
    drawn.nonselection_glyph.line_alpha = 0.25  # type: ignore[union-attr]
    return _item(plot)


def variance_plot(ratios: Sequence[float], n_components: int) -> dict[str, Any]:
    """Return the plot of the share of the variance that the first components explain together."""
    together = np.cumsum(np.asarray(ratios, float))
    numbers = np.arange(1, len(together) + 1)
    plot = _small("explained variance", "components", "share")
    plot.y_range.start, plot.y_range.end = 0, 1.05
    plot.yaxis.formatter = NumeralTickFormatter(format="0 %")
    plot.xaxis.ticker = BasicTicker(min_interval=1)
    plot.vbar(x=numbers, top=np.asarray(ratios, float), width=0.8, name=MARKED)
    plot.line(numbers, together, line_width=2, name=MAIN)
    if 0 < n_components <= len(together):
        plot.scatter([n_components], [together[n_components - 1]], size=11, name=MAIN)
    plot.add_tools(HoverTool(tooltips=[("components", "@x"), ("share", "@y{0.0 %}")], mode="vline"))
    return _item(plot)


def labels_plot(labels: Mapping[str, int], changes: Mapping[str, int] | None) -> dict[str, Any]:
    """Return the plot of the number of images of the labels that have the most, now and before `changes`, if any."""
    names = list(labels)[:MOST_LABELS]
    shown = _distinct([_shortened(name) for name in names])
    plot = _small("images per label", "images", "", y_range=FactorRange(factors=shown[::-1]))
    plot.height = ROW_HEIGHT * max(len(names), 3) + 70
    plot.x_range.start = 0
    if changes is not None:
        before = [labels[name] - changes.get(name, 0) for name in names]
        plot.hbar(y=shown, right=before, height=0.8, name=MARKED)
    plot.hbar(y=shown, right=[labels[name] for name in names], height=0.4, name=MAIN)
    plot.ygrid.grid_line_color = None
    return _item(plot)


@dataclass(frozen=True)
class Series:
    """A figure over time: its title, its attribute in RunFigures, the format of its axis, and what a unit is of it."""

    title: str
    key: str
    number_format: str
    unit: float = 1
    least_margin: float | None = None  # if the axis does not start at zero

    def value(self, run: RunFigures) -> float | None:
        """Return the figure of a run, or None if it is unknown."""
        found = getattr(run, self.key)
        return None if found is None else float(found) / self.unit


SERIES = (
    Series("images", "images", WHOLE),
    Series("rejects", "rejects", WHOLE),
    Series("duration from plan to publication, in minutes", "seconds", "0,0.[0]", unit=60),
    Series("real cost, in USD", "cost_usd", "0,0.[0000]"),
    Series("explained variance, in percent", "explained_variance", "0.[00]", unit=0.01, least_margin=1),
    Series("drift, in standard deviations", "drift", "0.[00000]"),
    Series("label accuracy, in percent", "label_accuracy", "0.[0]", unit=0.01, least_margin=1),
)


def series_plot(series: Series, runs: Sequence[RunFigures], airflow_run_ids: Mapping[str, str]) -> dict[str, Any]:
    """Return the plot of a figure over time. Each point has the run_id of Airflow that it leads to."""
    known = [(run, value) for run in runs if (value := series.value(run)) is not None]
    source = ColumnDataSource(
        {
            "x": [run.published_at for run, _ in known],
            "y": [value for _, value in known],
            "run": [run.run_id for run, _ in known],
            "airflow_run_id": [airflow_run_ids.get(run.run_id, "") for run, _ in known],
        },
        name=POINTS,
    )
    plot = _small(series.title, "", "", x_axis_type="datetime", **_ranges(series, known))
    plot.xaxis.formatter = DatetimeTickFormatter(days="%d %b", hours="%d %b %H:%M", minutes="%H:%M", months="%b %Y")
    plot.yaxis.formatter = NumeralTickFormatter(format=series.number_format)
    is_count = series.number_format == WHOLE
    plot.yaxis.ticker = BasicTicker(desired_num_ticks=5, min_interval=1 if is_count else 0)
    plot.xaxis.ticker = DatetimeTicker(desired_num_ticks=5)
    plot.line("x", "y", source=source, line_width=1.5, name=MAIN)
    points = plot.scatter("x", "y", source=source, size=9, name=MAIN)
    shown = [("run", "@run"), (series.title, f"@y{{{series.number_format}}}")]
    plot.add_tools(HoverTool(renderers=[points], tooltips=shown), TapTool(renderers=[points]))
    return _item(plot)


def _ranges(series: Series, known: Sequence[tuple[RunFigures, float]]) -> dict[str, Any]:
    """Return the ranges of the axes. One run, and runs with the same value, get an axis that a person can read."""
    times, values = [run.published_at for run, _ in known], [value for _, value in known]
    margin = max((max(times) - min(times)) / 10, timedelta(minutes=30))
    height = max((max(values) - min(values)) / 10, series.least_margin or 0)
    low = min(values) - height if series.least_margin else 0
    return {
        "x_range": Range1d(start=min(times) - margin, end=max(times) + margin),
        "y_range": Range1d(start=low, end=max(values) + height if series.least_margin else 1.1 * max(values) or 1),
    }


def _small(title: str, x: str, y: str, **options: Any) -> Any:
    return figure(
        title=title,
        x_axis_label=x or None,
        y_axis_label=y or None,
        height=PLOT_HEIGHT,
        sizing_mode="stretch_width",
        toolbar_location=None,
        tools="",
        **options,
    )


def _item(plot: Plot) -> dict[str, Any]:
    return dict(json_item(plot))


def _shortened(name: str) -> str:
    return name if len(name) <= MOST_CHARACTERS else f"{name[: MOST_CHARACTERS - 1]}…"


def _distinct(names: Sequence[str]) -> list[str]:
    """Return names that differ, as the factors of an axis must: repeats get a number."""
    found: list[str] = []
    for name in names:
        number, candidate = 1, name or "(no label)"
        while candidate in found:
            number += 1
            candidate = f"{name} ({number})"
        found.append(candidate)
    return found
