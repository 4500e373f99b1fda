"""The pages of the report as HTML. Jinja escapes every value."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import bokeh
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from orchard.report import plots
from orchard.report.airflow_run import AirflowRun
from orchard.report.figures import Figures
from orchard.report.happened import Happened, count, share
from orchard.report.history import History
from orchard.report.map_data import below
from orchard.report.unavailable import Unavailable
from orchard.run.sentence import duration

TEMPLATES = Environment(
    loader=PackageLoader("orchard.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters |= {"count": count, "duration": duration, "share": share}

# Objects that are rejected for these reasons may have a picture. The others are no images that can be decoded.
PICTURED = ("changed", "forbidden", "too_many_bytes", "too_many_pixels")
# From a page of a run, and from the page over time, to the folder of the static files and to the root of Airflow's UI.
STATIC_OF_RUN, ROOT_OF_RUN = "../../static/", "../../../../../"
STATIC_OF_DAG, ROOT_OF_DAG = "static/", "../../../"
SCRIPTS = ("bokeh.min.js", "theme.js", "map.js", "report.js")
FILE_SCRIPTS = ("bokeh.min.js", "theme.js", "map.js", "file.js")
STATIC = {
    **{file.name: file for file in (Path(__file__).parent / "static").iterdir()},
    "bokeh.min.js": Path(bokeh.__file__).parent / "server/static/js/bokeh.min.js",
}


def link(url: str, text: str) -> Markup:
    """Return a link to a page of Airflow's UI. The script opens it in the whole window, outside of the frame."""
    return Markup('<a href="{}" data-leaves-frame>{}</a>').format(url, text)


def plot(name: str, item: Mapping[str, Any], description: str) -> Markup:
    """Return the place of a plot, with the JSON that the script draws it from. `json_text` leaves no markup in it."""
    return Markup(
        '<div class="plot" id="plot-{0}" role="img" aria-label="{1}"></div>'
        '<script type="application/json" data-plot="plot-{0}">{2}</script>'
    ).format(name, description, json_text(item))


def json_text(value: Any) -> Markup:
    r"""Return a value as JSON that may stand in a script element of a page.

    >>> json_text("</script>")
    Markup('"\\u003c/script\\u003e"')
    """
    text = json.dumps(value, separators=(",", ":"), default=str)
    escaped = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return Markup(escaped)  # noqa: S704  # nothing in it can end the element


TEMPLATES.globals |= {"link": link, "plot": plot}


def run_url(root: str, run: AirflowRun) -> str:
    """Return the address of a run in Airflow's UI."""
    return f"{root}dags/{quote(run.dag_id, safe='')}/runs/{quote(run.run_id, safe='')}"


def run_page(run: AirflowRun, found: Happened | Unavailable, versions: Mapping[str, str]) -> str:
    """Return the report of a run. The browser loads the map and the figures."""
    return TEMPLATES.get_template("run.html").render(
        run_id=run.run_id,
        finished=run.is_finished,
        happened=Markup(happened_section(run, found)),  # noqa: S704  # rendered with the values escaped
        static=STATIC_OF_RUN,
        scripts=SCRIPTS,
        versions=versions,
    )


def happened_section(run: AirflowRun, found: Happened | Unavailable) -> str:
    """Return the first section of the report."""
    if isinstance(found, Unavailable):
        return TEMPLATES.get_template("happened.html").render(run=run, unavailable=found)
    return happened_html(run, found, run_url(ROOT_OF_RUN, run), run.cluster_ids)


def happened_html(run: AirflowRun | Mapping[str, Any], found: Happened, url: str, clusters: Sequence[str] = ()) -> str:
    """Return the first section of the report of a run whose address in Airflow's UI is `url`."""
    ends = [
        stage.start + stage.seconds for stage in found.stages if stage.start is not None and stage.seconds is not None
    ]
    return TEMPLATES.get_template("happened.html").render(
        run=run,
        unavailable=None,
        happened=found,
        scale=max(ends, default=1) or 1,
        run_url=url,
        clusters=clusters,
    )


def figures_section(figures: Figures) -> str:
    """Return the section with the figures of a published run."""
    summary = figures.summary
    labels, changes = summary.get("labels") or {}, summary.get("labels_changed")
    chosen, ratios = summary.get("n_components") or 0, figures.variance.ratios if figures.variance else []
    rejects = figures.rejects
    tiles = [
        ("images", count(summary.get("images_ingested") or 0)),
        ("duplicates", count(summary.get("duplicates") or 0)),
        ("components", count(chosen)),
    ]
    accuracy, drift = summary.get("label_accuracy"), (summary.get("drift") or {}).get("shift")
    variance = summary.get("explained_variance")
    tiles += [("explained variance", share(variance))] if variance is not None else []
    tiles += [("label accuracy (1-NN)", share(accuracy))] if accuracy is not None else []
    tiles += [("drift", f"{drift:.3g}")] if drift is not None else []
    changed = changes or {}
    rows = [(name, images, changed.get(name, 0)) for name, images in labels.items()]
    rows += [(name, 0, change) for name, change in changed.items() if name not in labels]
    return TEMPLATES.get_template("figures.html").render(
        tiles=tiles,
        variance=plots.variance_plot(ratios, chosen),
        variance_note=f"The vectors have {count(chosen)} components. Bars show the share of each.",
        labels_plot=plots.labels_plot(labels, changes),
        labels_note=f"{count(summary.get('label_count') or len(labels))} labels."
        + ("" if changes is None else " Wide bars show the run before."),
        labels=rows,
        pictured=PICTURED,
        rejects=[(below(figures.dataset_uri, reject.path), reject) for reject in rejects.shown],
        rejects_note=", ".join(f"{count(number)} {reason}" for reason, number in rejects.totals.items())
        + (f". The first {len(rejects.shown)} are listed." if rejects.total > len(rejects.shown) else "."),
    )


def message_page(message: str, remedy: str) -> str:
    """Return a page with a message for a person."""
    return TEMPLATES.get_template("message.html").render(message=message, remedy=remedy)


def report_file(happened: Happened, figures: Figures, map_data: Mapping[str, Any] | None, airflow_url: str) -> str:
    """Return the report of a published run as one file. `airflow_url` is the address of the run, or empty."""
    run = {"run_id": figures.summary["run_id"], "plan": {}, "state": happened.state}
    scripts = [(STATIC[name].read_text().replace("</script", "<\\/script")) for name in FILE_SCRIPTS]
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    data = {key: value for key, value in (map_data or {}).items() if key != "sheet"}
    return TEMPLATES.get_template("report_file.html").render(
        run_id=figures.summary["run_id"],
        finished=True,
        happened=Markup(happened_html(run, happened, airflow_url)),  # noqa: S704  # rendered with the values escaped
        figures=Markup(figures_section(figures)),  # noqa: S704  # the same
        map_data=json_text(data) if data else None,
        sheet=(map_data or {}).get("sheet", ""),
        style=Markup(STATIC["report.css"].read_text()),  # noqa: S704  # Orchard's own file
        scripts=[Markup(script) for script in scripts],  # noqa: S704  # the same, and Bokeh's
        hashes=hashes,
    )


def data_url(content_type: str, content: bytes) -> str:
    """Return content as a URL that holds it."""
    return f"data:{content_type};base64,{base64.b64encode(content).decode('ascii')}"


def history_page(dag_id: str, versions: Mapping[str, str]) -> str:
    """Return the page with all runs over time. The browser loads the plots."""
    return TEMPLATES.get_template("history.html").render(
        dag_id=dag_id, static=STATIC_OF_DAG, scripts=SCRIPTS, versions=versions
    )


def history_section(dag_id: str, history: History) -> str:
    """Return the plots of the published runs of a dataset."""
    ids = history.airflow_run_ids
    return TEMPLATES.get_template("history_section.html").render(
        history=history,
        runs=history.runs,
        series_plots=[
            (series, plots.series_plot(series, history.runs, ids))
            for series in plots.SERIES
            if any(series.value(run) is not None for run in history.runs)
        ],
        run_urls={
            run.run_id: f"{ROOT_OF_DAG}dags/{quote(dag_id, safe='')}/runs/{quote(ids[run.run_id], safe='')}"
            for run in history.runs
            if run.run_id in ids
        },
    )
