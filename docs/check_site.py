"""Look at the built site in a browser: links, overflow, errors, contrast, labels, search.

`make site-check` builds the site and runs this; it needs playwright and a Chromium on the path. Each page is opened at
the width of a desktop and of a phone, in light and in dark. `--pictures FOLDER` keeps screenshots of some pages, and of
README.md as Markdown shows it. The exit status is 1 if a check fails.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import http.server
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import markdown
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).parent.parent
WIDTHS, SCHEMES = (1280, 390), ("light", "dark")
SHOWN = ("", "choose_stitches/", "installation/", "networks/", "experiments/", "command_line/", "api/create/")
# What a reader types, and the page that must come first.
SEARCHES = {
    "install": "installation/",
    "cite": "citation/",
    "fine-tune": "tutorial_timm/",
    "finetune": "training/",
    "glossary": "concepts/",
}

# Texts below the contrast that WCAG 2.1 AA asks for (4.5, large text 3), by element and color.
CONTRAST = r"""() => {
  const canvas = Object.assign(document.createElement("canvas"), {width: 1, height: 1})
  const paint = canvas.getContext("2d", {willReadFrequently: true})
  const rgba = color => {
    paint.clearRect(0, 0, 1, 1); paint.fillStyle = color; paint.fillRect(0, 0, 1, 1)
    const [r, g, b, a] = paint.getImageData(0, 0, 1, 1).data
    return [r, g, b, a / 255]
  }
  const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3]))
  const luminance = color => color
    .map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0)
  const behind = element => {
    const layers = []
    for (let e = element; e; e = e.parentElement) layers.unshift(rgba(getComputedStyle(e).backgroundColor))
    return layers.reduce((below, layer) => over(layer, below), [255, 255, 255])
  }
  const low = {}, walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), element = walker.currentNode.parentElement
    if (!text || element.closest("svg, script, style, noscript, template")) continue
    const style = getComputedStyle(element), box = element.getBoundingClientRect(), size = parseFloat(style.fontSize)
    let opacity = 1
    for (let e = element; e; e = e.parentElement) opacity *= getComputedStyle(e).opacity
    if (style.visibility !== "visible" || !box.width || !box.height || size < 2 || opacity < .05) continue
    const below = behind(element), ink = rgba(style.color)
    ink[3] *= opacity
    const [light, dark] = [luminance(over(ink, below)), luminance(below)].sort((a, b) => b - a)
    const ratio = (light + .05) / (dark + .05), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700)
    const key = `${element.tagName}.${element.className} ${style.color}`
    if (ratio < (large ? 3 : 4.5)) low[key] = [ratio, text.slice(0, 40)]
  }
  return Object.entries(low).map(([key, [ratio, text]]) => `contrast ${ratio.toFixed(2)}: ${key} ${text}`)
}"""

CONTENT = r"""() => {
  const label = e =>
    e.textContent.trim() || e.ariaLabel || e.title || e.labels?.length || e.querySelector("img[alt], title")
  const wrong = [
    ...[...document.images].filter(e => !e.alt).map(e => `picture without alt: ${e.src}`),
    ...[...document.querySelectorAll("iframe")].filter(e => !e.title).map(e => `frame without title: ${e.src}`),
    ...[...document.querySelectorAll("a[href], button, input:not([type=hidden]), select")]
      .filter(e => e.offsetParent && !label(e)).map(e => `no label: ${e.outerHTML.slice(0, 100)}`),
  ]
  if (!document.title || !document.documentElement.lang) wrong.push("no title or language")
  if (document.querySelectorAll("h1").length !== 1) wrong.push("not one h1")
  return {wrong, title: document.title, ids: [...document.querySelectorAll("[id]")].map(e => e.id),
          links: [...new Set([...document.querySelectorAll("a[href]")].map(e => e.href))]}
}"""


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on loopback."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


def open_page(browser: Browser, base: str, width: int, scheme: Any, problems: set[str]) -> Page:
    """Open a window that records errors, and requests that fail or leave the site."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    inside = (base, "data:", "blob:")
    page.on("console", lambda m: problems.add(f"{page.url}: {m.text}") if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.add(f"{page.url}: {error}"))
    page.on("response", lambda r: problems.add(f"{page.url}: {r.status} {r.url}") if r.status >= 400 else None)
    page.on("request", lambda r: None if r.url.startswith(inside) else problems.add(f"{page.url}: fetches {r.url}"))
    return page


def check_pages(browser: Browser, base: str, names: list[str], pictures: Path | None) -> set[str]:
    """Open every page in each width and scheme."""
    problems: set[str] = set()
    contents: dict[str, Any] = {}
    for scheme in SCHEMES:
        for width in WIDTHS:
            page = open_page(browser, base, width, scheme, problems)
            for name in names:
                page.goto(base + name)
                page.wait_for_timeout(100)  # scripts of the theme
                wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
                problems |= {f"{name} {scheme} {width}: {text}" for text in page.evaluate(CONTRAST)}
                problems |= {f"{name} {width}: {wide} pixels too wide"} if wide > 0 else set()
                contents[name] = page.evaluate(CONTENT)
                if pictures and name in (*SHOWN, "readme.html"):
                    shot = f"{name.strip('/').replace('/', '_') or 'front'}-{width}-{scheme}.png"
                    page.screenshot(path=pictures / shot, full_page=True)
            page.close()
    return (
        problems
        | {f"{name}: {text}" for name, page in contents.items() for text in page["wrong"]}
        | check_links(base, contents)
    )


def check_links(base: str, contents: dict[str, Any]) -> set[str]:
    """Follow the links inside the site, and compare titles."""
    problems = set()
    for name, content in contents.items():
        for link in content["links"]:
            place, _, anchor = link.removeprefix(base).partition("#")
            if link.startswith(base) and place in contents and anchor and anchor not in contents[place]["ids"]:
                problems.add(f"{name}: no #{anchor} on {place or 'the front page'}")
    titles = [content["title"] for content in contents.values()]
    return problems | {f"two pages are called {title}" for title in titles if titles.count(title) > 1}


def check_search(browser: Browser, base: str) -> set[str]:
    """Type into the search field, as a reader would."""
    problems: set[str] = set()
    page = open_page(browser, base, 1280, "light", problems)
    for words, expected in SEARCHES.items():
        page.goto(base)
        page.click(".md-search__input")
        page.keyboard.type(words)
        page.wait_for_selector(".md-search-result__item a")
        found = page.locator(".md-search-result__item a").first.get_attribute("href") or ""
        if f"/{expected}" not in found:
            problems.add(f"a search for {words!r} leads to {found}, not to {expected}")
    return problems


README_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>README</title><link rel="icon" href="favicon.svg"><style>
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui; max-width: 50rem; margin: auto; padding: 1rem; overflow-wrap: break-word }
body, html { background: light-dark(#fff, #0d1117); color: light-dark(#1f2328, #e6edf3) }
pre, table { overflow-x: auto; display: block }
img { max-width: 100% }
pre { background: light-dark(#f6f8fa, #161b22); padding: 1rem; font-size: 13px }
td, th { border: 1px solid #8885; padding: .3rem .6rem }
a { color: light-dark(#0550ae, #79b8ff) }
</style>"""


def write_readme(folder: Path) -> None:
    """Write README.md as a page of its own, with its pictures."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    body = markdown.markdown(text, extensions=["tables", "fenced_code", "toc"])
    (folder / "readme.html").write_text(README_PAGE + body, encoding="utf-8")
    shutil.copytree(ROOT / "docs", folder / "docs", ignore=shutil.ignore_patterns("*.py"))


def main() -> int:
    """Check the site and print what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", type=Path, nargs="?", default=ROOT / "site", help="the built site (default: site)")
    parser.add_argument("--pictures", type=Path, help="folder for screenshots")
    options = parser.parse_args()
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if options.pictures:
        options.pictures.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as driver:
        folder = Path(shutil.copytree(options.site, Path(temporary) / "site"))
        write_readme(folder)
        names = sorted(str(path.relative_to(folder)).removesuffix("index.html") for path in folder.rglob("index.html"))
        names += ["readme.html", *(str(path.relative_to(folder)) for path in sorted(folder.glob("curves/*.html")))]
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        with served(folder) as base:
            problems = check_pages(browser, base, names, options.pictures) | check_search(browser, base)
        browser.close()
    print(*sorted(problems), f"{len(names)} pages, {len(problems)} problems", sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
