"""Pictures of plans and notebooks are those that the scripts of the site make."""

import json
import re
import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize(("script", "made", "folder"), [("draw_plans", "pictures", "plans"),
                                                         ("notebooks", "notebooks", "notebooks")])  # fmt: skip
def test_files_are_those_that_the_script_makes(script, made, folder):
    files = runpy.run_path(str(DOCS / f"{script}.py"))[made]()
    kept = {path.name: path.read_text(encoding="utf-8") for path in (DOCS / folder).iterdir()}
    assert kept == files, f"run python docs/{script}.py"


def test_a_notebook_has_the_snippets_of_its_page_in_order():
    page = (DOCS / "tutorial_timm.md").read_text(encoding="utf-8")
    cells = json.loads((DOCS / "notebooks/tutorial_timm.ipynb").read_text(encoding="utf-8"))["cells"]
    code = [cell["source"] for cell in cells if cell["cell_type"] == "code"]
    places = [page.index(source) for source in code]
    assert places == sorted(places)
    assert len(code) == page.count("```python")


def test_messages_that_the_site_explains_are_those_of_the_package():
    page = (DOCS / "errors.md").read_text(encoding="utf-8")
    sources = "".join(file.read_text(encoding="utf-8") for file in (DOCS.parent / "timm_stitch").rglob("*.py"))
    sources = re.sub(r'"\s*f?"', "", sources)  # texts of several lines
    terms = re.findall(r"^(.+)\n:   ", page, re.MULTILINE)
    messages = [message for term in terms for message in re.findall(r"`([^`]+)`", term)]
    parts = [part.strip(" ()…") for message in messages for part in re.split(r"…|=…|\{…\}", message)]
    assert len(messages) > 30
    assert [part for part in parts if len(part) > 9 and part not in sources] == []
