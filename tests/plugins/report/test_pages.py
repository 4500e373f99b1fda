import json
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from orchard.report.figures import Figures
from orchard.report.happened import happened
from orchard.report.history import History
from orchard.report.pages import figures_section, history_section, json_text, report_file, run_page
from orchard.report.run_folder import RunFolder
from orchard.report.run_rows import Reject, Rejects, Variance
from orchard.report.unavailable import Unavailable
from tests.plugins.report.test_airflow_run import START, run_of, task
from tests.plugins.report.test_happened import FOLDER, NOW, SUMMARY
from tests.plugins.report.test_plots import RUN

MARKUP = "<img src=x onerror=alert(1)>\"'</script><script>alert(2)</script>"
VERSIONS = dict.fromkeys(("report.css", "bokeh.min.js", "theme.js", "map.js", "report.js"), "1")


class Elements(HTMLParser):
    """Collects the elements of a page, and its text without that of scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def figures(**changed: Any) -> Figures:
    summary = {
        **SUMMARY,
        "labels": {MARKUP: 298},
        "labels_changed": {MARKUP: 3, "gone": -2},
        "label_count": 1,
        "n_components": 2,
        "explained_variance": 0.95,
        "label_accuracy": 0.98,
        "drift": {"shift": 0.1},
        "duplicates": 1,
    }
    rejects = Rejects([Reject(f"s3://fruits/images/{MARKUP}", MARKUP, 1, MARKUP, MARKUP)], {MARKUP: 2})
    return Figures("s3://fruits/images/", summary | changed, Variance("m", [0.7, 0.25], 298, "r"), rejects)


def assert_harmless(page: str, scripts: int) -> None:
    """Check that nothing of MARKUP is an element or an attribute."""
    elements = Elements(page)
    executed = [attrs for tag, attrs in elements.found if tag == "script" and attrs.get("type") != "application/json"]
    assert len(executed) == scripts
    assert not any(tag == "img" for tag, _ in elements.found)
    assert not any(name.startswith("on") for _, attrs in elements.found for name in attrs)


def test_text_in_json_cannot_end_the_script_element() -> None:
    assert "<" not in json_text([MARKUP])
    assert json.loads(json_text([MARKUP])) == [MARKUP]


def test_figures_show_text_from_data_as_text() -> None:
    section = figures_section(figures())
    assert_harmless(section, 0)
    assert MARKUP in Elements(section).text


def test_what_happened_shows_text_from_data_as_text() -> None:
    failed = task("features.wait_step", "failed")
    folder = replace(FOLDER, summary={**SUMMARY, "sentence": MARKUP, "warnings": [MARKUP]})
    run = replace(
        run_of(failed, xcoms={("features.wait_step", "cause"): MARKUP}), run_id=MARKUP, conf={"dataset_uri": MARKUP}
    )
    page = run_page(run, happened(run, folder, None, NOW), VERSIONS)
    assert_harmless(page, 4)
    assert Elements(page).text.count(MARKUP) >= 4


def test_a_failed_run_links_to_the_log_of_the_task() -> None:
    run = run_of(task("features.wait_step", "failed"))
    page = Elements(run_page(run, happened(run, RunFolder(), None, NOW), VERSIONS))
    links = [attrs["href"] for tag, attrs in page.found if tag == "a"]
    assert "../../../../../dags/fruit_features/runs/manual__1/tasks/features.wait_step" in links


def test_without_access_the_page_says_what_to_grant_and_where_the_file_is() -> None:
    run = run_of(state="success", xcoms={("plan", "return_value"): {"run_uri": "s3://fruits/runs/images/1"}})
    page = Elements(run_page(run, Unavailable(MARKUP, "Grant s3:GetObject."), VERSIONS))
    assert "Grant s3:GetObject." in page.text
    assert "s3://fruits/runs/images/1/report.html" in page.text
    assert MARKUP in page.text


@pytest.mark.parametrize("changes", [None, {}, {"gone": -2}])
def test_labels_are_listed_with_their_changes(changes: dict[str, int] | None) -> None:
    text = Elements(figures_section(figures(labels={"Kiwi": 5}, labels_changed=changes))).text
    assert ("gone" in text) == bool(changes)
    assert ("the run before" in text) == (changes is not None)


@pytest.mark.parametrize(("reason", "has_picture"), [("changed", True), ("undecodable", False), ("empty", False)])
def test_only_rejects_that_may_be_images_have_a_picture(reason: str, has_picture: bool) -> None:
    reject = Reject("s3://fruits/images/1.jpg", "Kiwi", 1, reason, "")
    page = Elements(figures_section(replace(figures(), rejects=Rejects([reject], {reason: 1}))))
    assert ["1.jpg"] * has_picture == [attrs["data-thumb"] for _, attrs in page.found if "data-thumb" in attrs]


@pytest.mark.parametrize(("folder", "expected"), [(FOLDER, "yes"), (RunFolder(), "no")])
def test_the_page_says_whether_there_is_a_map(folder: RunFolder, expected: str) -> None:
    page = Elements(run_page(run_of(), happened(run_of(), folder, None, NOW), VERSIONS))
    assert [attrs["data-published"] for _, attrs in page.found if "data-published" in attrs] == [expected]


def test_a_run_without_labels_variance_or_rejects_has_figures() -> None:
    empty = replace(figures(labels={}, labels_changed=None), variance=None, rejects=Rejects([], {}))
    assert "No object of the dataset is rejected." in Elements(figures_section(empty)).text


def test_each_published_run_leads_to_the_run_that_airflow_knows() -> None:
    known = History(["s3://fruits/images/"], "s3://fruits/images/", [RUN], {RUN.run_id: "manual__1+00:00"})
    page = Elements(history_section("fruit_features", known))
    links = [attrs["href"] for tag, attrs in page.found if tag == "a"]
    assert links == ["../../../dags/fruit_features/runs/manual__1%2B00%3A00"]
    forgotten = Elements(history_section("fruit_features", replace(known, airflow_run_ids={})))
    assert RUN.run_id in forgotten.text
    assert not any(tag == "a" for tag, _ in forgotten.found)


def test_a_deployment_without_runs_says_so() -> None:
    assert "No run of the dataset has been published yet." in history_section("d", History([], "", [], {}))


def test_the_file_holds_everything_and_runs_only_its_own_scripts() -> None:
    found = happened(run_of(state="success"), FOLDER, None, START)
    page = report_file(found, figures(), {"paths": [MARKUP], "sheet": "data:image/webp;base64,"}, "https://airflow/x")
    assert_harmless(page, 4)
    elements = Elements(page)
    assert not any("src" in attrs or tag == "link" for tag, attrs in elements.found)
    (policy,) = [attrs["content"] for tag, attrs in elements.found if attrs.get("http-equiv")]
    assert policy is not None
    assert policy.count("'sha256-") == 4
    assert "default-src 'none'" in policy
