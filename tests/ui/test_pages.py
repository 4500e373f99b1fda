"""The pages in a real browser, in a complete Orchard that is served below a base path: a person's way through them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urljoin

import httpx
import pytest
from playwright.sync_api import Browser, FrameLocator, Page, expect

from orchard.storage import split_uri
from sandbox import aws, pictures, up
from sandbox.airflow import USER
from tests.faults.deployment import DAG, Deployment, Run, build, wait_until
from tests.ui.browser import (
    MARKUP,
    NARROW,
    QUOTES,
    WIDE,
    Watched,
    chromium,
    lasso_all,
    needs_chromium,
    open_page,
    place_of,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

pytestmark = [needs_chromium, pytest.mark.slow]
BASE_PATH = "/airflow"
PER_CLASS = 25
BROKEN = 3
DATASET = f"s3://{aws.BUCKET}/three hundred/"
EMPTY = f"s3://{aws.BUCKET}/empty/"
RUN_SECONDS = 400
READY = "body[data-map='drawn'][data-suspects='listed'][data-figures='shown']"


@dataclass
class Site:
    """The deployment, a browser, and the cookies of a user who has logged in through the form."""

    deployment: Deployment
    browser: Browser
    state: Any

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.deployment.web_port}{BASE_PATH}"

    def run_url(self, run: Run) -> str:
        """Return the address of a run in Airflow's UI."""
        return f"{self.url}/dags/{DAG}/runs/{quote(run.run_id, safe='')}"

    def open(self, url: str, size: tuple[int, int] = WIDE, *, dark: bool = False) -> Watched:
        return open_page(self.browser, url, size, dark=dark, storage_state=self.state)

    def report(self, run: Run, size: tuple[int, int] = WIDE, *, dark: bool = False) -> Watched:
        """Open the report of a run at its own address."""
        return self.open(f"{self.url}/orchard/dags/{DAG}/runs/{quote(run.run_id, safe='')}/", size, dark=dark)

    def published(self, run: Run, size: tuple[int, int] = WIDE, *, dark: bool = False) -> Watched:
        """Open the report of a published run, and wait until all of it is shown."""
        watched = self.report(run, size, dark=dark)
        watched.page.wait_for_selector(READY)
        return watched


def put_dataset(s3: "S3Client", folder: Path) -> None:
    """Write 300 images, a label and paths with markup, an image in the wrong folder, and objects that are broken."""
    pictures.write_dataset(folder, per_class=PER_CLASS)
    bucket, prefix = split_uri(DATASET)
    for file in sorted(folder.rglob("*.jpg")):
        label = MARKUP if file.parent.name == "Pear" else file.parent.name
        name = f"{QUOTES} {file.name}" if file.name.startswith("1") else file.name
        wrong = folder / "Blueberry" / file.name
        is_wrong = (file.parent.name, file.name) == ("Lemon", "7_100.jpg")
        body = (wrong if is_wrong else file).read_bytes()
        s3.put_object(Bucket=bucket, Key=f"{prefix}{label}/{name}", Body=body + b"other" * is_wrong)
    for number in range(BROKEN):
        s3.put_object(Bucket=bucket, Key=f"{prefix}Kiwi/{MARKUP} {number}.jpg", Body=b"\xff\xd8\xff broken")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, build_dir: Path) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("deployment")
    try:
        deployment = build(folder, build_dir, base_path=BASE_PATH)
        put_dataset(deployment.s3, folder / "three hundred")
        with chromium() as browser:
            site = Site(deployment, browser, None)
            site.state = log_in(site)
            yield site
    finally:
        up.down(folder)


@pytest.fixture(autouse=True)
def _close_the_pages(site: Site) -> Iterator[None]:
    """Airflow's pages ask the server again and again."""
    yield
    for context in site.browser.contexts:
        context.close()


def log_in(site: Site) -> Any:
    """Log in through the form, and return the browser's state."""
    watched = open_page(site.browser, f"{site.url}/")
    page = watched.page
    page.fill("input[name=username]", USER)
    page.fill("input[type=password]", password_of(site))
    page.click("button[type=submit]")
    page.wait_for_url(f"{site.url}/")
    return page.context.storage_state()


def password_of(site: Site) -> str:
    found = re.search(r'"admin": "([^"]+)"', (site.deployment.folder / "passwords.json").read_text())
    assert found is not None
    return found[1]


@pytest.fixture(scope="module")
def failed(site: Site) -> Run:
    """A run of an empty dataset."""
    return site.deployment.trigger(EMPTY)


@pytest.fixture(scope="module")
def first(site: Site, failed: Run) -> Run:
    """A run of 300 images that was triggered with the form. It may be running."""
    page = site.open(f"{site.url}/dags/{DAG}/").page
    page.get_by_role("button", name="Trigger").first.click()
    page.fill("#element_dataset_uri", DATASET)
    page.fill("[name=element_n_components]", "10")
    Watched(page).screenshot("form", whole=False)
    page.locator("[role=dialog]").get_by_role("button", name="Trigger").press("Enter")

    def triggered() -> str:
        ids = [str(run["dag_run_id"]) for run in site.deployment.api.runs(DAG)]
        return next((run_id for run_id in ids if run_id != failed.run_id), "")

    return Run(site.deployment, wait_until(triggered, "the run of the form"), DATASET)


@pytest.fixture(scope="module")
def published(first: Run) -> Run:
    """The first run, which is published."""
    assert first.wait_for_end(RUN_SECONDS) == "success"
    return first


@pytest.fixture(scope="module")
def second(site: Site, published: Run) -> Run:
    """A run of the same dataset that adds one image, and so is what the tables show now."""
    site.deployment.add_image(DATASET)
    run = site.deployment.trigger(DATASET)
    assert run.wait_for_end(RUN_SECONDS) == "success"
    return run


def frame_of(page: Page) -> FrameLocator:
    return page.frame_locator("iframe")


def points(watched: Watched) -> int:
    found: int = watched.page.evaluate(
        "[...Bokeh.index.roots].map(v => v.model).find(m => m.name === 'map').renderers[0].data_source.data.x.length"
    )
    return found


def test_the_tab_shows_the_progress_of_a_run_and_then_its_report(site: Site, first: Run) -> None:
    watched = site.open(site.run_url(first))
    page = watched.page
    page.get_by_role("link", name="Report").click()
    report = frame_of(page)
    progress = report.locator(".progress")
    progress.wait_for(timeout=RUN_SECONDS * 1000)
    assert re.search(r"(ingest|features|pca): .*of 303", progress.inner_text().replace(",", ""))
    watched.screenshot("tab-running", whole=False)
    expect(report.locator(".state")).to_have_text("success", timeout=RUN_SECONDS * 1000)
    report.locator("body[data-map='drawn'][data-figures='shown']").wait_for()
    watched.screenshot("tab-finished", whole=False)
    watched.check()


def test_the_report_of_a_run_shows_everything(site: Site, published: Run) -> None:
    watched = site.published(published)
    page = watched.page
    assert page.inner_text("#happened h1").startswith("303 images, all new, 3 rejected, ")
    assert points(watched) == 12 * PER_CLASS
    assert page.locator(".rejects tbody tr").count() == BROKEN
    assert MARKUP in page.locator("#legend .label-name").all_inner_texts()
    assert [row.inner_text() for row in page.locator(".stages th").all()][:2] == ["plan", "wait for turn"]
    watched.screenshot("report-light")
    watched.check()


def test_pointing_clicking_filtering_and_searching(site: Site, published: Run) -> None:
    watched = site.published(published)
    page = watched.page
    page.locator("#map-plot").scroll_into_view_if_needed()
    page.mouse.move(*place_of(watched, 40))
    page.wait_for_selector("#hover-card:not([hidden])")
    page.wait_for_selector("#hover-card img.picture")
    wait_until(
        lambda: page.evaluate("document.querySelector('#hover-card img').naturalWidth") > 0, "the image of the point"
    )
    path = page.inner_text("#hover-card code")
    watched.screenshot("report-hover", whole=False)
    page.mouse.click(*place_of(watched, 40))
    page.wait_for_selector("#detail .card")
    assert page.inner_text("#detail code") == path
    assert page.locator("#detail .card").count() == 12
    suspect = page.locator("#suspects .card", has_text="Lemon")
    assert suspect.count() >= 1
    suspect.first.click()
    page.wait_for_selector("#detail li.differs")
    assert "Blueberry" in page.locator("#detail").inner_text()
    watched.screenshot("report-neighbours", whole=False)
    page.fill("#label-search", "<img")
    assert page.locator("#legend li:visible").count() == 1
    page.locator("#legend li:visible input").uncheck()
    assert points(watched) == 11 * PER_CLASS
    page.fill("#search", MARKUP)
    page.locator("#found .card").first.click()
    expect(page.locator("#detail h3")).to_have_text(MARKUP)
    page.wait_for_selector("#detail .card")
    page.select_option("#axis-x", index=7)
    page.wait_for_timeout(500)
    watched.screenshot("report-axes", whole=False)
    watched.check()


def test_a_lasso_lists_its_images(site: Site, published: Run) -> None:
    watched = site.published(published)
    page = watched.page
    lasso_all(page)
    assert "300 images chosen, with 12 labels." in page.inner_text("#found")
    watched.screenshot("report-lasso")
    watched.check()


def test_dark_mode_follows_airflow_live(site: Site, published: Run) -> None:
    watched = site.open(site.run_url(published) + "/plugin/orchard-report")
    page = watched.page
    report = frame_of(page)
    report.locator(READY).wait_for()
    for theme, background in (("dark", "rgb(20, 24, 31)"), ("light", "rgb(255, 255, 255)")):
        # As Airflow's own switch does it, which is in the window around the frame.
        page.evaluate("(theme) => localStorage.setItem('theme', theme)", theme)
        expect(report.locator("body")).to_have_css("background-color", background)
        watched.screenshot(f"tab-{theme}", whole=False)
    watched.check()


def test_a_narrow_window_needs_no_sideways_scrolling(site: Site, published: Run) -> None:
    for dark in (False, True):
        watched = site.published(published, NARROW, dark=dark)
        assert watched.overflow() == 0
        watched.screenshot(f"report-narrow-{'dark' if dark else 'light'}")
        watched.check()
    history = site.open(f"{site.url}/orchard/dags/{DAG}/", NARROW)
    history.page.wait_for_selector("body[data-history]")
    assert history.overflow() == 0
    history.check()


def test_the_keyboard_alone_reaches_an_image_and_its_neighbours(site: Site, published: Run) -> None:
    watched = site.published(published)
    page = watched.page
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "search":
            break
    page.keyboard.type("Kiwi/3_")
    page.wait_for_selector("#found .card")
    for _ in range(200):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('#found') !== null"):
            break
    page.keyboard.press("Enter")
    page.wait_for_selector("#detail .card")
    assert page.inner_text("#detail code") == "Kiwi/3_100.jpg"
    watched.check()


def test_an_earlier_run_is_shown_as_it_was(site: Site, published: Run, second: Run) -> None:
    earlier, later = site.published(published), site.published(second)
    assert points(earlier) == 12 * PER_CLASS
    assert points(later) == 12 * PER_CLASS + 1
    assert "Different from the last run" in later.page.inner_text("#happened")
    later.screenshot("report-second")
    for watched in (earlier, later):
        watched.check()


def test_a_point_over_time_leads_to_its_run(site: Site, second: Run, published: Run) -> None:
    watched = site.open(f"{site.url}/orchard/dags/{DAG}/")
    page = watched.page
    page.wait_for_selector("body[data-history]")
    page.select_option("#dataset", DATASET)
    expect(page.locator("#history")).to_contain_text("2 published runs")
    page.wait_for_selector("#plot-series-images canvas")
    page.wait_for_timeout(500)
    watched.screenshot("over-time")
    page.locator("#plot-series-images").scroll_into_view_if_needed()
    page.mouse.move(*place_of(watched, 0, "plot-series-images"))
    page.mouse.click(*place_of(watched, 0, "plot-series-images"))
    page.wait_for_url(re.compile("/plugin/orchard-report$"))
    assert published.run_id in unquote(page.url)
    watched.check()


def test_a_failed_run_shows_its_cause_a_hint_and_its_log(site: Site, failed: Run) -> None:
    assert failed.wait_for_end(RUN_SECONDS) == "failed"
    watched = site.report(failed)
    page = watched.page
    notice = page.locator(".notice.failed")
    assert "plan failed." in notice.inner_text()
    assert f"no images below {EMPTY}" in notice.inner_text()
    assert "clear plan" in notice.inner_text()
    page.wait_for_selector("body[data-map='none'][data-figures='none']")
    watched.screenshot("report-failed")
    watched.check()
    notice.get_by_role("link").click()
    page.wait_for_url(re.compile(f"/dags/{DAG}/runs/.*/tasks/plan"))
    expect(page.locator("body")).to_contain_text("NoImages", timeout=20_000)


def test_a_run_with_nothing_to_do_says_so(site: Site, second: Run) -> None:
    run = site.deployment.trigger(DATASET)
    assert run.wait_for_end(RUN_SECONDS) == "success"
    watched = site.report(run)
    watched.page.wait_for_selector("body[data-map='none'][data-figures='none']")
    assert "othing" in watched.page.inner_text("#happened h1")
    assert "published no images" in watched.page.inner_text("#map-note")
    watched.check()
    watched.screenshot("report-nothing-to-do")


def test_every_link_of_the_report_opens(site: Site, published: Run, failed: Run) -> None:
    cookies = {cookie["name"]: cookie["value"] for cookie in site.state["cookies"]}
    for run in (published, failed):
        page = site.report(run).page
        addresses = [link.get_attribute("href") or "" for link in page.locator("a:not(.skip)").all()]
        assert addresses
        for address in addresses:
            answer = httpx.get(urljoin(page.url, address), cookies=cookies, timeout=60)
            assert answer.status_code in (200, 303), (address, answer.text)


def test_the_file_in_the_folder_of_the_run_is_the_same_report(site: Site, published: Run, tmp_path: Path) -> None:
    summary = published.summary("publish", "return_value")
    assert summary is not None
    bucket, key = split_uri(summary["report_uri"])
    file = tmp_path / "report.html"
    file.write_bytes(site.deployment.s3.get_object(Bucket=bucket, Key=key)["Body"].read())
    assert file.stat().st_size <= 5_000_000
    watched = open_page(site.browser, file.as_uri())
    watched.page.wait_for_selector("body[data-map='drawn'][data-suspects='listed']")
    assert watched.requests == [file.as_uri()]
    assert points(watched) == 12 * PER_CLASS
    watched.page.locator("#suspects .card").first.click()
    watched.page.wait_for_selector("#detail .card")
    watched.screenshot("file-of-the-run")
    watched.check()
