"""Make a notebook of each tutorial: its text as Markdown cells, its Python as code cells.

    python docs/notebooks.py

writes docs/notebooks. The pages are the source: change them, not the notebooks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
PAGES = ("tour", "tutorial_timm", "tutorial_papers", "tutorial_text", "choose_stitches", "dense")
PART = re.compile(r"^```(\w*)\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)


def cells(page: str) -> Iterator[dict[str, Any]]:
    """Yield the cells of a page; what a snippet prints is its output."""
    page = re.sub(r"\A---\n.*?\n---\n", "", page, flags=re.DOTALL)
    page = re.sub(r"^\[Notebook of this page\].*\n\n", "", page, flags=re.MULTILINE)
    page = re.sub(r"<!-- test:.*?-->\n", "", page, flags=re.DOTALL)
    page = re.sub(r"\]\(plans/", "](../plans/", page)
    page = re.sub(r"\]\((?!https?:|#|\.\./)([\w/-]+\.md)", r"](../\1", page)
    text, end = "", 0
    for part in PART.finditer(page):
        text += page[end : part.start()]
        end = part.end()
        if part[1] != "python":
            text += part[0]
            continue
        if text.strip():
            yield {"cell_type": "markdown", "metadata": {}, "source": text.strip()}
        text = ""
        outputs = [{"output_type": "stream", "name": "stdout", "text": part[3]}] if part[3] else []
        yield {
            "cell_type": "code", "metadata": {}, "execution_count": None, "source": part[2].strip(), "outputs": outputs
        }  # fmt: skip
    if (text + page[end:]).strip():
        yield {"cell_type": "markdown", "metadata": {}, "source": (text + page[end:]).strip()}


def notebooks() -> dict[str, str]:
    """Make every notebook: `{file name: JSON}`."""
    made = {}
    for name in PAGES:
        page = (FOLDER / f"{name}.md").read_text(encoding="utf-8")
        numbered = [{"id": f"cell-{number}", **cell} for number, cell in enumerate(cells(page))]
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        content = {"cells": numbered, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
        made[f"{name}.ipynb"] = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    return made


def main() -> None:
    """Write all notebooks."""
    (FOLDER / "notebooks").mkdir(exist_ok=True)
    for name, content in notebooks().items():
        (FOLDER / "notebooks" / name).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
