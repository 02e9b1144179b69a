"""A real browser for the tests of pages."""

import base64
import contextlib
import shutil

import pytest

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextlib.contextmanager
def chromium():
    """Chromium without a window; skips the test where playwright or Chromium is not here."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="needs playwright: pip install 'timm_stitch[browser]'"
    )
    if CHROMIUM is None:
        pytest.skip("needs a Chromium on the path: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


def drop(page, where, data):
    """Drop a file with these bytes on an element of a page."""
    file = page.evaluate_handle(
        """text => {
            const data = new DataTransfer(), bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0))
            data.items.add(new File([bytes], "dropped.png", {type: "image/png"}))
            return data
        }""",
        base64.b64encode(data).decode(),
    )
    page.dispatch_event(where, "drop", {"dataTransfer": file})
