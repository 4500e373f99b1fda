"""A real browser that records what a page must not do: errors, dialogs, and requests."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Dialog, Page, sync_playwright

ROOT = Path(__file__).parents[2]
SCREENSHOTS = ROOT / "build/ui"
CHROMIUM = shutil.which("chromium")
WIDE, NARROW = (1280, 900), (390, 844)  # in CSS pixels
# A page that opens this does it because it has taken data for markup.
MARKUP = "<img src=x onerror=alert(1)>"
SCRIPT = "</script><script>alert(1)</script>"
QUOTES = "\"'`&amp;"

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no Chromium: install it with `apt-get install chromium`"
)


@dataclass
class Watched:
    """A page, and what it has done: messages of errors, texts of dialogs, and addresses of requests."""

    page: Page
    errors: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Check that no script has failed, nothing of the data was run, and nothing was requested from elsewhere."""
        assert self.errors == [], self.errors
        assert self.dialogs == []
        assert [
            url for url in self.requests if not url.startswith(("file:", "data:", "blob:", "http://127.0.0.1:"))
        ] == []
        # The address that the markup in labels and paths names.
        assert [url for url in self.requests if url.split("?")[0].endswith("/x")] == []

    def screenshot(self, name: str, *, whole: bool = True) -> None:
        """Write a picture of the page into build/ui."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=whole)

    def overflow(self) -> int:
        """Return by how many pixels the page is wider than its window."""
        found: int = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        return found


@contextmanager
def chromium() -> Iterator[Browser]:
    """Run Chromium without a window while the context is open."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def open_page(
    browser: Browser, url: str, size: tuple[int, int] = WIDE, *, dark: bool = False, **options: Any
) -> Watched:
    """Open a page in a window of its own. `options` are those of a context of Playwright."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme="dark" if dark else "light", **options
    )
    page = context.new_page()
    watched = Watched(page)

    def on_dialog(dialog: Dialog) -> None:
        watched.dialogs.append(dialog.message)
        dialog.dismiss()

    def on_console(message: ConsoleMessage) -> None:
        # An object that is no image has no picture: the page says so in its place.
        if message.type == "error" and "/thumbnail?path=" not in message.location["url"]:
            watched.errors.append(f"{message.text} {message.location['url']}")

    page.on("console", on_console)
    page.on("pageerror", lambda error: watched.errors.append(str(error)))
    page.on("dialog", on_dialog)
    page.on("request", lambda request: watched.requests.append(request.url))
    page.goto(url)
    return watched


def place_of(watched: Watched, index: int, plot: str = "map-plot") -> tuple[float, float]:
    """Return the place of a point of a plot in the window, in CSS pixels from the left and the top."""
    found: list[float] = watched.page.evaluate(
        """([plot, index]) => {
          const host = document.getElementById(plot);
          const view = [...Bokeh.index.roots].find((view) => host.contains(view.el)) ?? [...Bokeh.index.roots][0];
          const renderer = view.model.renderers.at(-1);
          const data = renderer.data_source.data;
          const box = view.el.getBoundingClientRect();
          const frame = view.frame;
          return [
            box.left + frame.x_scale.compute(data.x[index]),
            box.top + frame.y_scale.compute(data.y[index]),
          ];
        }""",
        [plot, index],
    )
    return found[0], found[1]


def lasso_all(page: Page) -> None:
    """Draw a lasso around all points of the map, and wait until their images are listed."""
    page.locator("#map-plot").scroll_into_view_if_needed()
    page.locator("#map-plot [title*='Lasso']").first.click()
    frame = page.locator("#map-plot").bounding_box()
    assert frame is not None
    left, top = frame["x"] + 60, frame["y"] + 40
    right, bottom = frame["x"] + frame["width"] - 15, frame["y"] + frame["height"] - 40
    page.mouse.move(left, top)
    page.mouse.down()
    for x, y in ((right, top), (right, bottom), (left, bottom), (left, top + 5)):
        page.mouse.move(x, y, steps=5)
    page.mouse.up()
    page.wait_for_selector("#found .card")
