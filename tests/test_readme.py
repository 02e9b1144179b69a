"""README.md: its figures are those of the cards, its pictures and links are there, and it reads well."""

import json
import re
import runpy
import statistics
import sys
from types import ModuleType, SimpleNamespace

import pytest
from PIL import Image, ImageChops, ImageStat
from test_snippets import PAGES, ROOT

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
LINKS = re.findall(r'(?:\]\(|src="|srcset=")([^)"]+)', TEXT)


def test_published_figures_are_those_of_the_cards():
    rows = re.findall(r"^\| `(snnet\w+)` \| (\d+) \| (.*) \|$", TEXT, re.MULTILINE)
    assert len(rows) == 6
    for name, count, cells in rows:
        stitches = json.loads((ROOT / "hub_cards" / name / "stitches.json").read_text(encoding="utf-8"))["stitches"]
        known = {f"{s['top1']:.2f} % at {s['macs'] / 1e9:.2f} G" for s in stitches if "top1" in s}
        assert int(count) == len(stitches)
        assert set(cells.split(" | ")) <= known


def test_our_figures_are_on_the_pages_that_are_linked():
    pages = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("experiments.md", "comparison.md"))
    known = set(re.findall(r"\d\d\.\d+", pages))
    known |= {f"{float(figure):.1f}" for figure in known}
    assert set(re.findall(r"\d\d\.\d+", TEXT[TEXT.index("Our own") : TEXT.index("## Supported models")])) <= known


def test_pictures_are_those_that_the_script_draws():
    for path, text in runpy.run_path(str(ROOT / "docs/draw_stitching.py"))["pictures"]().items():
        assert path.read_text(encoding="utf-8") == text, "run python docs/draw_stitching.py"
    with Image.open(ROOT / "docs/curve.png") as light, Image.open(ROOT / "docs/curve-dark.png") as dark:
        made = runpy.run_path(str(ROOT / "docs/darken.py"))["darken"](light).convert("RGB")
        assert dark.size == made.size
        off = ImageStat.Stat(ImageChops.difference(dark.convert("RGB"), made)).mean
        assert max(off) < 2, "run python docs/darken.py docs/curve.png"  # Pillows choose other palettes


@pytest.mark.parametrize("link", [link for link in LINKS if not link.startswith("http")])
def test_relative_links_lead_to_files_and_headings(link):
    file, _, heading = link.partition("#")
    assert (ROOT / (file or "README.md")).exists()
    if heading:
        headings = re.findall(r"^#+ (.*)", (ROOT / (file or "README.md")).read_text(encoding="utf-8"), re.MULTILINE)
        assert heading in [re.sub(r"[^\w -]", "", text).lower().replace(" ", "-") for text in headings]


def test_sentences_are_short():
    functions = runpy.run_path(str(ROOT / "docs/sentences.py"))
    lengths = []
    for page in PAGES:
        sentences = functions["sentences"](page.read_text(encoding="utf-8"))
        lengths += [len(functions["words"](sentence)) for sentence in sentences]
        assert [s for s in sentences if len(functions["words"](s)) > 30] == [], page
        assert functions["avoided"](sentences) == [], page
    assert statistics.median(lengths) < 15


@pytest.mark.parametrize("repository", [None, "https://github.com/owner/name"])
def test_the_package_has_absolute_links(repository, monkeypatch):
    interface = ModuleType("hatchling.metadata.plugin.interface")  # hatchling is installed in builds alone
    interface.MetadataHookInterface = object
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    metadata = {"urls": {"Repository": repository} if repository else {}}
    hook = runpy.run_path(str(ROOT / "hatch_build.py"))["MetadataHook"]
    hook.update(SimpleNamespace(root=str(ROOT)), metadata)
    text = metadata["readme"]["text"]
    links = re.findall(r'\]\(([^)]*)\)|(?:src|srcset)="([^"]*)"', text)
    assert all(link.startswith(("https://", "#")) for pair in links for link in pair if link)
    assert "<!-- test" not in text
    if repository:
        assert f'src="{repository}/raw/main/docs/stitching-light.svg"' in text
        assert f"[use a network]({repository}/blob/main/docs/use.md)" in text
    else:
        assert "src=" not in text
        assert "More: use a network, train, share." in text
