"""The report as one file, in a real browser: `file://`, without a server. The labels and paths have markup."""

from collections.abc import Iterator
from operator import ne
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import Browser, Page

from sandbox.processes import wait_until
from tests.conftest import new_bucket
from tests.ui.browser import (
    MARKUP,
    NARROW,
    QUOTES,
    SCRIPT,
    WIDE,
    Watched,
    chromium,
    lasso_all,
    needs_chromium,
    open_page,
    place_of,
)
from tests.ui.report_files import PER_CLASS, report_file

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

pytestmark = needs_chromium
MOST_BYTES = 5_000_000
READY = "body[data-map='drawn'][data-suspects='listed']"


@pytest.fixture(scope="module")
def file(s3: "S3Client", tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("report") / "report.html"
    file.write_text(report_file(s3, new_bucket(s3)))
    return file


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def report(browser: Browser, file: Path) -> Watched:
    """The report in a wide window. A test leaves it as it was."""
    return opened(browser, file)


def opened(browser: Browser, file: Path, size: tuple[int, int] = WIDE, *, dark: bool = False) -> Watched:
    watched = open_page(browser, file.as_uri(), size, dark=dark)
    watched.page.wait_for_selector(READY)
    return watched


def texts(page: Page, selector: str) -> list[str]:
    return page.locator(selector).all_inner_texts()


def shown_points(page: Page) -> int:
    """Return how many points the map shows."""
    found: int = page.evaluate(
        "[...Bokeh.index.roots].map(v => v.model).find(m => m.name === 'map').renderers[0].data_source.data.x.length"
    )
    return found


def click_point(report: Watched, index: int) -> None:
    report.page.locator("#map-plot").scroll_into_view_if_needed()
    report.page.mouse.move(*place_of(report, index))
    report.page.mouse.click(*place_of(report, index))


def test_the_file_is_small_and_asks_for_nothing(report: Watched, file: Path) -> None:
    assert file.stat().st_size <= MOST_BYTES
    assert report.requests == [file.as_uri()]
    report.check()
    report.screenshot("file-light")


def test_labels_paths_and_messages_with_markup_are_text(report: Watched) -> None:
    legend = texts(report.page, "#legend .label-name")
    assert MARKUP in legend
    assert f"{QUOTES} {SCRIPT}" in legend
    assert f"{SCRIPT} {QUOTES} is broken" in texts(report.page, ".rejects td")
    assert report.page.locator("img[onerror]").count() == 0
    for number in range(3):
        report.page.fill("#search", MARKUP if number == 0 else SCRIPT if number == 1 else QUOTES)
        assert report.page.locator("#found .card").count() >= PER_CLASS
        report.page.locator("#found .card").first.click()
        report.page.wait_for_selector("#detail .card")
    report.page.fill("#search", "")
    report.check()


def test_pointing_at_a_point_shows_its_image_and_clicking_it_its_neighbours(report: Watched) -> None:
    page = report.page
    page.locator("#map-plot").scroll_into_view_if_needed()
    page.mouse.move(5, 5)
    page.mouse.move(*place_of(report, 20))
    page.wait_for_selector("#hover-card:not([hidden])")
    path = page.inner_text("#hover-card code")
    assert page.inner_text("#hover-card strong") in path
    assert page.locator("#hover-card .picture").bounding_box() == pytest.approx(
        {"width": 132, "height": 132, "x": pytest.approx(0, abs=2000), "y": pytest.approx(0, abs=2000)}
    )
    report.screenshot("file-hover", whole=False)
    click_point(report, 20)
    page.wait_for_selector("#detail .card")
    assert page.inner_text("#detail code") == path
    assert page.locator("#detail .card").count() == 8
    assert "Nearest neighbours" in page.inner_text("#detail")
    page.mouse.move(5, 5)
    page.wait_for_selector("#hover-card", state="hidden")
    report.check()


def test_an_image_in_the_wrong_folder_is_listed_and_its_neighbours_are_marked(report: Watched) -> None:
    page = report.page
    suspects = page.locator("#suspects .card")
    assert suspects.count() == 2
    assert "nearest neighbours are labelled Apple Red" in suspects.filter(has_text="Apple Green").first.inner_text()
    suspects.first.click()
    page.wait_for_selector("#detail .card")
    marked, of_label = page.locator("#detail li.differs"), page.inner_text("#detail h3")
    assert marked.count() >= PER_CLASS - 1
    assert of_label not in texts(page, "#detail li.differs .card-label")
    assert "have another label" in page.inner_text("#detail")
    report.screenshot("file-neighbours", whole=False)
    report.check()


def test_the_legend_hides_labels_and_finds_them(report: Watched) -> None:
    page = report.page
    every = shown_points(page)
    page.locator("#legend input").first.uncheck()
    assert shown_points(page) == every - PER_CLASS
    page.fill("#label-search", "apple")
    assert page.locator("#legend li:visible").count() == 2
    page.click("#hide-all")
    assert shown_points(page) == every - 3 * PER_CLASS
    page.fill("#label-search", "")
    page.click("#hide-all")
    assert shown_points(page) == 0
    page.click("#show-all")
    assert shown_points(page) == every
    report.check()


def test_the_axes_can_be_any_two_components(report: Watched) -> None:
    page = report.page
    before = place_of(report, 0)
    page.select_option("#axis-x", index=2)
    page.select_option("#axis-y", index=3)
    page.wait_for_timeout(200)
    assert place_of(report, 0) != pytest.approx(before)
    assert "component 3 (10.0 %)" in page.locator("#axis-x option:checked").inner_text()
    # All points are in the frame again.
    frame = page.locator("#map-plot").bounding_box()
    assert frame is not None
    for index in range(0, shown_points(page), 7):
        x, y = place_of(report, index)
        assert frame["x"] < x < frame["x"] + frame["width"]
        assert frame["y"] < y < frame["y"] + frame["height"]
    page.select_option("#axis-x", index=0)
    page.select_option("#axis-y", index=1)
    report.check()


def test_a_lasso_lists_the_images_in_it(report: Watched) -> None:
    page = report.page
    lasso_all(page)
    every = shown_points(page)
    assert f"{every} images chosen, with 12 labels." in page.inner_text("#found")
    report.screenshot("file-lasso")
    page.fill("#search", "x")
    page.fill("#search", "")
    page.locator("#map-plot [title*='Pan']").first.click()
    report.check()


def test_the_keyboard_alone_reaches_an_image_and_its_neighbours(browser: Browser, file: Path) -> None:
    report = opened(browser, file)
    page = report.page
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "search":
            break
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.type("kiwi/3")
    page.wait_for_selector("#found .card")
    assert texts(page, "#found .card-label") == ["Kiwi"]
    for _ in range(200):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('#found') !== null"):
            break
    assert "Kiwi/3" in page.evaluate("document.activeElement.getAttribute('aria-label')")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none", "the focus cannot be seen"
    page.keyboard.press("Enter")
    page.wait_for_selector("#detail .card")
    assert page.inner_text("#detail h3") == "Kiwi"
    assert set(texts(page, "#detail .card-label")) == {"Kiwi"} | set(texts(page, "#detail li.differs .card-label"))
    report.screenshot("file-keyboard", whole=False)
    report.check()


def test_the_skip_link_leads_to_the_content(browser: Browser, file: Path) -> None:
    report = opened(browser, file)
    report.page.keyboard.press("Tab")
    assert report.page.evaluate("document.activeElement.className") == "skip"
    report.page.keyboard.press("Enter")
    assert report.page.evaluate("document.activeElement.id") == "content"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_narrow_window_shows_everything_without_scrolling_sideways(browser: Browser, file: Path, dark: bool) -> None:
    report = opened(browser, file, NARROW, dark=dark)
    assert report.overflow() == 0
    plot = report.page.locator("#map-plot").bounding_box()
    assert plot is not None
    assert plot["width"] > NARROW[0] * 0.8
    report.screenshot(f"file-narrow-{'dark' if dark else 'light'}")
    report.check()


def test_light_and_dark_follow_the_system_live(browser: Browser, file: Path) -> None:
    report = opened(browser, file)
    page = report.page

    def colours() -> tuple[str, str]:
        plot: str = page.evaluate("[...Bokeh.index.roots][0].model.background_fill_color")
        body: str = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return plot, body

    light = colours()
    page.emulate_media(color_scheme="dark")
    wait_until(lambda: all(map(ne, colours(), light)), "the dark colours", timeout_seconds=10)
    report.screenshot("file-dark")
    page.emulate_media(color_scheme="light")
    wait_until(lambda: colours() == light, "the light colours", timeout_seconds=10)
    report.check()


def test_text_can_be_read_in_light_and_dark(browser: Browser, file: Path) -> None:
    for dark in (False, True):
        page = opened(browser, file, dark=dark).page
        faint: list[str] = page.evaluate(CONTRAST)
        assert faint == [], "dark" if dark else "light"


# WCAG's contrast of each element with text against its background: at least 4.5, or 3 for large text.
# https://www.w3.org/TR/WCAG22/#contrast-minimum
CONTRAST = """() => {
  const channel = (value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) =>
    0.2126 * channel(r / 255) + 0.7152 * channel(g / 255) + 0.0722 * channel(b / 255);
  const background = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const found = parse(getComputedStyle(at).backgroundColor);
      if (found.length < 4 || found[3] === 1) return found;
    }
    return [255, 255, 255];
  };
  const faint = [];
  for (const element of document.querySelectorAll("main *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || element.getClientRects().length === 0 || element.closest(".symbol, script, style")) continue;
    const style = getComputedStyle(element);
    const [first, second] = [luminance(parse(style.color)), luminance(background(element))];
    const contrast = (Math.max(first, second) + 0.05) / (Math.min(first, second) + 0.05);
    if (contrast < (parseFloat(style.fontSize) >= 24 ? 3 : 4.5)) {
      faint.push(`${contrast.toFixed(2)} ${element.tagName}.${element.className} ${element.textContent.slice(0, 40)}`);
    }
  }
  return faint;
}"""
